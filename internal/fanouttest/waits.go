package fanouttest

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// Stacks are the stacks of all goroutines.
func Stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// Grace is how long a call may take after its deadline: the documented second, and what a loaded machine needs.
const Grace = time.Second + 4*time.Second

// After waits for done or the end of ctx, whose error it returns.
func After(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// InTime is a ctx for what would wait for ever if it failed.
func InTime(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

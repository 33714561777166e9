package main

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"
)

// An impatient writer does not outlast ctx for long, though a write to a reader who does not read would: after lastWords it
// writes no more.
type impatient struct {
	ctx context.Context
	w   io.Writer

	mu     sync.Mutex
	gaveUp bool
}

func (i *impatient) Write(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.gaveUp {
		return 0, i.ctx.Err()
	}
	p = bytes.Clone(p) // it may be the caller's again before it is written
	done := make(chan error, 1)
	go func() {
		_, err := i.w.Write(p)
		done <- err
	}()
	ended, err := heard(i.ctx, done)
	if !ended {
		i.gaveUp = true
		return 0, i.ctx.Err()
	}
	return len(p), err
}

// heard waits for what is to come of a write, but after the end of ctx for lastWords at most.
func heard(ctx context.Context, done <-chan error) (ended bool, err error) {
	select {
	case err := <-done:
		return true, err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return true, err
	case <-time.After(lastWords):
		return false, nil
	}
}

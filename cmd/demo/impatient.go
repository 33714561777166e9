package main

import (
	"bytes"
	"context"
	"io"
	"time"
)

// An impatient writer does not outlast ctx for long, though a write to a reader who does not read would.
type impatient struct {
	ctx      context.Context
	w        io.Writer
	patience time.Duration // after the end of ctx
}

func (i impatient) Write(p []byte) (int, error) {
	done := make(chan error, 1)
	p = bytes.Clone(p) // which is the caller's again before it is written, perhaps
	go func() {
		_, err := i.w.Write(p)
		done <- err
	}()
	select {
	case err := <-done:
		return len(p), err
	case <-i.ctx.Done():
	}
	select {
	case err := <-done:
		return len(p), err
	case <-time.After(i.patience):
		return 0, i.ctx.Err()
	}
}

package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

const (
	// progressAfter is how long a piece of work must have taken to be shown: less is not worth a look.
	progressAfter = 500 * time.Millisecond
	progressEvery = 100 * time.Millisecond
)

// A progress shows on a terminal how far a long piece of work has come, on one line that it erases at the end. A nil
// progress shows nothing.
type progress struct {
	w io.Writer
}

// newProgress returns nil where nobody looks, or where the line would be torn apart by others.
func newProgress(stderr io.Writer, opts options) *progress {
	if _, ok := terminalWidth(stderr); !ok || opts.echo {
		return nil
	}
	return &progress{stderr}
}

// start begins a piece of work of so many parts. count is called when n of them are done, by any goroutine, and stop at
// the end. Until stop has returned, nobody else may write to the terminal.
func (p *progress) start(what string, total int) (count func(n int), stop func()) {
	if p == nil {
		return func(int) {}, func() {}
	}
	var done atomic.Int64
	ended, erased := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(erased)
		select {
		case <-ended:
			return
		case <-time.After(progressAfter):
		}
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			n := int(done.Load())
			fmt.Fprintf(p.w, "\r\x1b[K%s: %s of %s (%d %%)", what, program.Thousands(n), program.Thousands(total), 100*n/max(total, 1))
			select {
			case <-ended:
				fmt.Fprint(p.w, "\r\x1b[K")
				return
			case <-tick.C:
			}
		}
	}()
	return func(n int) { done.Add(int64(n)) }, func() {
		close(ended)
		<-erased
	}
}

package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// A progress shows how far a run has come: on a terminal on one line, which it erases at the end, elsewhere on a line for
// each cell.
type progress struct {
	w        io.Writer
	terminal bool
	started  time.Time
}

func newProgress(stderr io.Writer) *progress {
	p := &progress{w: stderr, started: time.Now()}
	if file, ok := stderr.(*os.File); ok {
		info, err := file.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// show says what is being done now, as the i-th of n.
func (p *progress) show(i, n int, what string) {
	line := fmt.Sprintf("[%d/%d, %v] %s", i, n, time.Since(p.started).Round(time.Second), what)
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", line)
	} else {
		fmt.Fprintf(p.w, "bench: %s\n", line)
	}
}

// end erases the line.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

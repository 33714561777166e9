package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// On a terminal the figures are written over each other, and at last the summary over them.
func TestBoardOnTerminal(t *testing.T) {
	tty, screen := terminal(t, 80)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shown := make(chan string, 1)
	go func() {
		var b strings.Builder
		buf := make([]byte, 4096)
		for { // the end is an error, as all processes have closed the terminal
			n, err := screen.Read(buf)
			b.Write(buf[:n])
			if strings.Count(b.String(), "Ctrl-C ends it") >= 2 {
				cancel()
			}
			if err != nil {
				break
			}
		}
		shown <- b.String()
	}()
	status := run(ctx, []string{consistency, "-dsn", pgtest.DSN(t), "-for", "1h"}, tty, io.Discard, func(string) string { return "" })
	tty.Close()
	got := <-shown
	frames := strings.Split(got, "\r\x1b[5A")
	last := frames[len(frames)-1]
	folded := strings.Join(strings.Fields(strings.ReplaceAll(last, "\x1b[K", "")), " ") // lines may end anywhere
	if status != success || len(frames) < 3 || strings.Contains(last, "Ctrl-C") || !strings.Contains(last, "totals read") ||
		!strings.HasSuffix(folded, "right in this run. \x1b[J") || !strings.HasSuffix(last, "\x1b[K\r\n\x1b[J") {
		t.Errorf("status %d, on the terminal: %q", status, got)
	}
	if !strings.Contains(got, "\x1b[32m") {
		t.Errorf("no colours: %q", got)
	}
}

func TestBoardByEnvironment(t *testing.T) {
	tty, _ := terminal(t, 80)
	for _, test := range []struct {
		env            map[string]string
		redraw, colour bool
	}{{nil, true, true}, {map[string]string{"NO_COLOR": "1"}, true, false}, {map[string]string{"TERM": "dumb"}, false, false}} {
		b := newBoard(newExperiment(consistencyOptions{}), tty, io.Discard, func(name string) string { return test.env[name] })
		if b.redraw != test.redraw || b.colour != test.colour {
			t.Errorf("%v: redraw %t, colour %t", test.env, b.redraw, b.colour)
		}
	}
}

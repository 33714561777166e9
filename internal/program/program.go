// Package program is what the demo and the bench have in common as programs: how they are interrupted, and how they word
// errors and numbers.
package program

import (
	"bytes"
	"context"
	"encoding/xml"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

// Context is a ctx that ends when the program is told to: by Ctrl-C, SIGTERM or the end of its terminal. A second signal ends
// the program as if the first had not been caught.
func Context() context.Context {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop)

	// Go ends a program that writes to a closed pipe by SIGPIPE, unless it asks for the signal. Ignoring it was decided
	// against: child processes would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return ctx
}

// OneLine is an error's text on one line. Those of pgx have a line for each address that was tried, often with the same
// text, and joined errors one for each.
func OneLine(err error) string {
	var b strings.Builder
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		if strings.Contains(b.String(), line) {
			continue
		}
		switch {
		case b.Len() == 0:
		case strings.HasSuffix(b.String(), ":"):
			b.WriteString(" ")
		default:
			b.WriteString("; ")
		}
		b.WriteString(line)
	}
	return b.String()
}

// Thousands is n with its digits in groups of three.
func Thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// EscapeXML is s as text or an attribute's value of XML, SVG or HTML.
func EscapeXML(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a bytes.Buffer does not fail
	return b.String()
}

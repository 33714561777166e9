package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

// printAll prints what the flags ask for: the results on stdout, and with -json what is not JSON on stderr.
func printAll(opts options, out *outcome, stdout, stderr io.Writer) error {
	var fileErr error
	if opts.timeline.file != "" { // first: a reader of the output may end before its end
		fileErr = writeTimeline(opts, out)
	}
	w := bufio.NewWriter(stdout) // which keeps its first error for Flush
	side, sideOut := w, stdout
	if opts.json {
		printJSON(w, opts, out)
		side, sideOut = bufio.NewWriter(stderr), stderr
	} else {
		printResults(w, opts, out)
	}
	if opts.timeline.on && opts.timeline.file == "" {
		columns, _ := terminalWidth(sideOut)
		printTimeline(side, out, columns)
	}
	fmt.Fprintln(side, summary(opts, out))
	if side != w {
		_ = side.Flush() // there is nowhere left to say that it failed
	}
	err := w.Flush()
	if errors.Is(err, syscall.EPIPE) {
		err = nil // whoever closes the pipe, such as head, has seen enough
	}
	return errors.Join(err, fileErr)
}

// printResults prints the rows of each query and, if there is one, the merged map.
func printResults(w *bufio.Writer, opts options, out *outcome) {
	width := digits(max(len(out.lookups)-1, 0))
	for i, l := range out.lookups {
		fmt.Fprintf(w, "query %*d  ListAByData(%q)  ", width, i, l.arg)
		switch {
		case l.err != nil:
			fmt.Fprintf(w, "failed: %s", program.OneLine(l.err))
		case opts.noMerge:
			fmt.Fprintf(w, "%s discarded", counted(l.span.Rows, "row", "rows"))
		case len(l.rows) == 0:
			fmt.Fprint(w, "no rows")
		default:
			for j, row := range l.rows {
				if j > 0 {
					fmt.Fprint(w, ", ")
				}
				fmt.Fprintf(w, "(%d, %s)", row.ID, text(row.Data))
			}
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	if opts.noMerge {
		return
	}
	fmt.Fprint(w, "merged\n")
	merged := sortedByKey(out.merged)
	for _, row := range merged {
		fmt.Fprintf(w, "%*d  %s\n", digits(int(merged[len(merged)-1].ID)), row.ID, text(row.Data))
	}
	fmt.Fprintln(w)
}

// summary is one line on the whole.
func summary(opts options, out *outcome) string {
	var b strings.Builder
	fmt.Fprint(&b, counted(len(out.lookups), "query", "queries"))
	if n := out.failed(); n > 0 {
		fmt.Fprintf(&b, " (%s failed)", program.Thousands(n))
	}
	fmt.Fprintf(&b, ", %s, ", counted(out.rows(), "row", "rows"))
	if opts.noMerge {
		fmt.Fprint(&b, "not merged")
	} else {
		fmt.Fprint(&b, counted(len(out.merged), "distinct key", "distinct keys"))
	}
	fmt.Fprintf(&b, "; %s, %s used; %s (%s", counted(opts.conns, "connection", "connections"),
		counted(out.backends(), "backend", "backends"), duration(out.elapsed), opts.strategy)
	if opts.snapshot {
		fmt.Fprint(&b, ", one snapshot")
	}
	fmt.Fprintf(&b, ", seed %d)", opts.seed)
	return b.String()
}

// sortedByKey returns the rows of a merged map in the order of their keys.
func sortedByKey(merged map[int32]db.A) []db.A {
	return slices.SortedFunc(maps.Values(merged), func(a, b db.A) int { return cmp.Compare(a.ID, b.ID) })
}

// text is a column's value as psql would show it, but for NULL, which it shows as nothing.
func text(data *string) string {
	if data == nil {
		return "NULL"
	}
	return *data
}

// digits is how many columns n takes.
func digits(n int) int { return len(strconv.Itoa(n)) }

// counted is a number of things.
func counted(n int, one, many string) string {
	if n == 1 {
		many = one
	}
	return program.Thousands(n) + " " + many
}

// duration is d with three digits that matter, in milliseconds or seconds.
func duration(d time.Duration) string {
	unit, value := "ms", d.Seconds()*1000
	if d >= time.Second {
		unit, value = "s", d.Seconds()
	}
	switch {
	case value < 10:
		return fmt.Sprintf("%.2f %s", value, unit)
	case value < 100:
		return fmt.Sprintf("%.1f %s", value, unit)
	}
	return fmt.Sprintf("%.0f %s", value, unit)
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"syscall"
	"text/tabwriter"
)

// printTables prints the report for a terminal.
func printTables(r *report, stdout io.Writer) error {
	w := bufio.NewWriter(stdout) // which keeps its first error for Flush
	fmt.Fprintf(w, "%s, %s; a round trip takes %s ms\n", r.Server, r.Machine, significant(r.RoundTrip))
	for i := range r.Cells {
		printCell(w, &r.Cells[i])
	}
	printClaims(w, r.Claims)
	printAdvice(w, r.Advice)
	if len(r.Notes) > 0 {
		fmt.Fprintln(w)
	}
	for _, note := range r.Notes {
		fmt.Fprintln(w, note)
	}
	if err := w.Flush(); !errors.Is(err, syscall.EPIPE) {
		return err
	}
	return nil // whoever closes the pipe, such as head, has seen enough
}

func printCell(w io.Writer, c *cell) {
	fmt.Fprintf(w, "\n%s\n", c.Title())
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	load, beside := c.Kind == loadCells, c.Kind == besideCells // of which the median is p50
	fmt.Fprintf(tw, "\t%s\tp10\tp90\t", c.Unit)
	if load {
		fmt.Fprint(tw, "p50 ms\t")
	}
	if load || beside {
		fmt.Fprint(tw, "p99 ms\t")
	}
	fmt.Fprintf(tw, "to errgroup\t%ss\t\n", c.ValueName())
	for _, res := range c.Results {
		fmt.Fprintf(tw, "%s\t", label(res.Contender))
		if res.Values == 0 {
			fmt.Fprintf(tw, "–\t\t\t%s\t%s\n", map[bool]string{true: "\t"}[load]+map[bool]string{true: "\t"}[load || beside], "  "+res.Note)
			continue
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t", figure(res.Median, c.Unit), figure(res.P10, c.Unit), figure(res.P90, c.Unit))
		if load {
			fmt.Fprintf(tw, "%s\t", significant(res.P50))
		}
		if load || beside {
			fmt.Fprintf(tw, "%s\t", significant(res.P99))
		}
		against := ""
		if ratio, ok := c.ratio(res.Contender, byErrgroup); ok {
			against = fmt.Sprintf("%.2f", ratio)
		}
		fmt.Fprintf(tw, "%s\t%d\t  %s\n", against, res.Values, res.Note)
	}
	_ = tw.Flush() // w keeps the error
}

func printClaims(w io.Writer, findings []finding) {
	if len(findings) == 0 {
		return
	}
	fmt.Fprintf(w, "\nClaims: %s\n", tally(findings))
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "  claim\twanted\tmeasured\tverdict\t")
	for _, f := range findings {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\n", f.Claim, f.Wanted, f.Measured(), f.Verdict, f.Where)
	}
	_ = tw.Flush()
}

func printAdvice(w io.Writer, all []advice) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w, "\nWhat pays on this server")
	for _, a := range all {
		fmt.Fprintf(w, "  %s: %s\n", a.Case, a.Text)
	}
}

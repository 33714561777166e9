package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// markdown is what a README has room for: how the figures were made, a call of some queries in each of the ways, and what
// became of the claims.
func markdown(r *report) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s; %s. Measured on %s by `%s`\n", r.Server, r.Machine, r.Started.Format("2 January 2006"), r.Command)
	cells := r.find(func(c *cell) bool { return c.Kind == gridCells })
	if numbers := distinct(cells, func(c *cell) int { return c.Queries }); len(numbers) > 0 {
		queries := numbers[0]
		if slices.Contains(numbers, 30) {
			queries = 30
		}
		cells = slices.DeleteFunc(cells, func(c *cell) bool { return c.Queries != queries })
		fmt.Fprintf(&b, "\nA call of %s on %s, median in milliseconds, the quickest in bold:\n\n", counted(queries, "query"), counted(gridConns, "connection"))
		markdownCells(&b, cells)
	}
	if slices.ContainsFunc(r.Claims, func(f finding) bool { return f.Verdict != notMeasured }) {
		b.WriteString("\n| claim | wanted | measured | verdict | |\n|---|---|---|---|---|\n")
		for _, f := range r.Claims {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", code(f.Claim), f.Wanted, f.Measured(), f.Verdict, f.Where)
		}
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// markdownCells is a table of the contenders of the charts.
func markdownCells(b *bytes.Buffer, cells []*cell) {
	names := presentIn(cells, charted...)
	b.WriteString("| | round trip |")
	for _, name := range names {
		fmt.Fprintf(b, " %s |", code(label(name)))
	}
	fmt.Fprintf(b, "\n|---|---|%s\n", strings.Repeat("---|", len(names)))
	for _, c := range cells {
		trip := "as it is"
		if c.LatencyMS > 0 {
			trip = fmt.Sprintf("+%g ms", c.LatencyMS)
		}
		fmt.Fprintf(b, "| %s | %s |", shortLabels[c.Statement], trip)
		best, _ := c.best(func(name string) bool { return slices.Contains(names, name) })
		for _, name := range names {
			switch res, ok := c.of(name); {
			case !ok:
				b.WriteString(" – |")
			case name == best.Contender:
				fmt.Fprintf(b, " **%s** |", significant(res.Median))
			default:
				fmt.Fprintf(b, " %s |", significant(res.Median))
			}
		}
		b.WriteString("\n")
	}
}

// code keeps Markdown from taking a dollar for mathematics.
func code(s string) string { return strings.ReplaceAll(s, "= any($1)", "`= any($1)`") }

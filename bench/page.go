package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"slices"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

//go:embed page.html
var pageHTML string

// charted are the contenders of the charts; those that hardly differ from one of them, and snapshots, are in the tables.
var charted = []string{single, byErrgroup, byBatch, byAny, parallel, pipelined, coalesced, auto, byPython}

// A figureOnPage is a chart and its caption.
type figureOnPage struct {
	SVG     template.HTML
	Caption string
}

// page is the report as one HTML document with nothing outside of it. It is well-formed XML too.
func page(r *report) ([]byte, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"label": label, "figure": figure, "significant": significant, "counted": counted, "thousands": program.Thousands,
	}).Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	var figures []figureOnPage
	for _, c := range charts(r) {
		figures = append(figures, figureOnPage{template.HTML(c.drawing.svg(c.title, false)), c.caption}) // escaped by drawing
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{
		"Report": r, "Style": template.CSS(chartStyle()), "Figures": figures, "Heat": heat(r), "Met": met, "Tally": tally(r.Claims), "Missed": missed,
		"Measured": slices.ContainsFunc(r.Claims, func(f finding) bool { return f.Verdict != notMeasured }),
	})
	return b.Bytes(), err
}

// picture is the report's first chart as an SVG document.
func picture(r *report) ([]byte, error) {
	all := charts(r)
	if len(all) == 0 {
		return nil, fmt.Errorf("there is nothing to draw: no cell was run")
	}
	return all[0].drawing.svg(all[0].title, true), nil
}

// A chart is one of the report's.
type chart struct {
	title, caption string
	drawing        *drawing
}

// charts are all for which the report has something to show.
func charts(r *report) []chart {
	var all []chart
	add := func(title, caption string, d *drawing) { all = append(all, chart{title, caption, d}) }

	grid := r.find(func(c *cell) bool { return c.Kind == gridCells })
	latencies := distinct(grid, func(c *cell) float64 { return c.LatencyMS })
	numbers := distinct(grid, func(c *cell) int { return c.Queries })
	names := distinct(grid, func(c *cell) string { return c.Statement })
	// Thirty queries are what the examples have: they come first.
	slices.SortStableFunc(numbers, func(a, b int) int {
		return map[bool]int{true: 0, false: 1}[a == 30] - map[bool]int{true: 0, false: 1}[b == 30]
	})
	for _, queries := range numbers {
		var rows []string
		for _, name := range names {
			rows = append(rows, shortLabels[name])
		}
		var panels []panel
		for _, latency := range latencies {
			p := panel{title: latencyTitle(latency)}
			for _, name := range names {
				p.cells = append(p.cells, r.inGrid(name, queries, latency))
			}
			panels = append(panels, p)
		}
		title := fmt.Sprintf("%s on %s", counted(queries, "query"), counted(gridConns, "connection"))
		add(title, "", dotChart(title, "How long a call takes: medians over turns, with their range from the 10th to the 90th percentile. Filled: package fanout.",
			"milliseconds, on a logarithmic scale: further left is faster", rows, panels, charted...))
	}

	if len(numbers) > 1 {
		for _, name := range names {
			var panels []panel
			for _, latency := range latencies {
				p := panel{title: latencyTitle(latency)}
				for _, queries := range slices.Sorted(slices.Values(numbers)) {
					if c := r.inGrid(name, queries, latency); c != nil {
						p.cells = append(p.cells, c)
					}
				}
				if len(p.cells) > 0 {
					panels = append(panels, p)
				}
			}
			title := "More and more queries: " + statementLabels[name]
			add(title, "", curveChart(title, "How long a call takes, by the number of its queries.", panels, charted...))
		}
	}

	if d := snapshotChart(r, 30); d != nil {
		add("What a snapshot costs", "", d)
	}
	for _, c := range r.find(func(c *cell) bool { return c.Kind == rateCells }) {
		title := fmt.Sprintf("Look-ups per second through %s", counted(c.Connections, "connection"))
		add(title, "", barChart(title, fmt.Sprintf("One client, %s in a call; pgbench as the measure of what the server can do.", program.Thousands(c.Queries)),
			"look-ups per second: more is better", []string{""}, [][]bar{bars(c, c.Unit, medianOf)}))
	}
	if cells := r.find(func(c *cell) bool { return c.Kind == loadCells }); len(cells) > 0 {
		var labels []string
		var rates, slowest [][]bar
		for _, c := range cells {
			labels = append(labels, counted(c.Clients, "client"))
			rates = append(rates, bars(c, c.Unit, medianOf))
			slowest = append(slowest, bars(c, milliseconds, p99Of))
		}
		title := fmt.Sprintf("Many clients on a pool of %d", cells[0].Connections)
		about := fmt.Sprintf("Each makes one call of %s after the other.", counted(cells[0].Queries, "look-up"))
		add(title, "", barChart(title, about, "look-ups per second, all clients together: more is better", labels, rates))
		title += ": the slowest calls"
		add(title, "", barChart(title, about, "99th percentile of a call's time in milliseconds: less is better", labels, slowest))
	}
	for _, c := range r.find(func(c *cell) bool { return c.Kind == besideCells }) {
		title := "A client of single look-ups beside the others"
		add(title, "", barChart(title, fmt.Sprintf("%s gather %d look-ups in a call; all share a pool of %d.", counted(c.Clients, "client"), c.Queries, c.Connections),
			"99th percentile of the single look-up's time in milliseconds: less is better", []string{""}, [][]bar{bars(c, milliseconds, p99Of)}))
	}
	for _, c := range r.find(func(c *cell) bool { return c.Kind == coldCells }) {
		title := "The first call on cold connections"
		add(title, "", barChart(title, fmt.Sprintf("%d different statements, seen before by the Source, but not by these connections; a round trip takes %g ms.", c.Queries, c.LatencyMS),
			"milliseconds: less is better", []string{""}, [][]bar{bars(c, c.Unit, medianOf)}))
	}
	return all
}

// shortLabels fit beside a chart.
var shortLabels = map[string]string{
	scanning: "scan of a 100-row table",
	looking:  "look-up by index",
	waiting:  "5 ms of waiting",
	burning:  "2 ms of CPU",
	mixing:   "1 in 10 takes 20 ms",
	ranging:  "10,000 rows each",
}

func latencyTitle(ms float64) string {
	if ms == 0 {
		return "no added latency"
	}
	return fmt.Sprintf("+%g ms for each round trip", ms)
}

// distinct returns what there is, in the order in which it first occurs.
func distinct[T comparable](cells []*cell, of func(*cell) T) []T {
	var all []T
	for _, c := range cells {
		if v := of(c); !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// medianOf and p99Of choose what a bar stands for.
func medianOf(r result) (value, low, high float64) { return r.Median, r.P10, r.P90 }
func p99Of(r result) (value, low, high float64)    { return r.P99, 0, 0 }

// bars are those of the contenders that ran, but snapshots. The unit is that of the values, which need not be the cell's.
func bars(c *cell, unit string, of func(result) (value, low, high float64)) []bar {
	var all []bar
	for _, r := range c.Results {
		if _, coloured := colours[r.Contender]; r.Values == 0 || !coloured {
			continue
		}
		value, low, high := of(r)
		all = append(all, bar{r.Contender, value, low, high, figure(value, unit), summary(c, r)})
	}
	return all
}

// snapshotChart compares each strategy with itself under a snapshot, with the least latency and with the most.
func snapshotChart(r *report, queries int) *drawing {
	var labels []string
	var groups [][]bar
	cells := r.find(func(c *cell) bool { return c.Kind == gridCells && c.Queries == queries })
	latencies := distinct(cells, func(c *cell) float64 { return c.LatencyMS })
	for _, c := range cells {
		if c.LatencyMS != slices.Min(latencies) && c.LatencyMS != slices.Max(latencies) {
			continue
		}
		var group []bar
		for _, s := range []string{parallel, pipelined, coalesced, auto} {
			if ratio, ok := c.ratio(s+withSnapshot, s); ok {
				group = append(group, bar{s, ratio, 0, 0, significantRatio(ratio), c.Title()})
			}
		}
		if len(group) > 0 {
			labels = append(labels, c.Title())
			groups = append(groups, group)
		}
	}
	if len(groups) == 0 {
		return nil
	}
	return barChart("What a snapshot costs", fmt.Sprintf("The time of a call of %s that all read one snapshot, as a multiple of its time without.", counted(queries, "query")),
		"times as long", labels, groups)
}

// A heatRow is a cell of the grid in the table of ratios.
type heatRow struct {
	Title  string
	Ratios []heatRatio
}

type heatRatio struct{ Class, Text string }

// A heatTable has the ratio to the errgroup of every contender in every cell of the grid.
type heatTable struct {
	Contenders []string
	Rows       []heatRow
}

func heat(r *report) heatTable {
	grid := r.find(func(c *cell) bool { return c.Kind == gridCells })
	var names []string
	for _, c := range contenders() {
		if c.name != byErrgroup {
			names = append(names, c.name)
		}
	}
	t := heatTable{Contenders: presentIn(grid, names...)}
	for _, c := range grid {
		row := heatRow{Title: c.Title()}
		for _, name := range t.Contenders {
			cell := heatRatio{"none", "–"}
			if ratio, ok := c.ratio(name, byErrgroup); ok {
				cell = heatRatio{heatClass(ratio), significantRatio(ratio)}
			}
			row.Ratios = append(row.Ratios, cell)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// heatClass says how much faster or slower a ratio is.
func heatClass(ratio float64) string {
	for _, step := range []struct {
		below float64
		class string
	}{{0.4, "faster3"}, {0.7, "faster2"}, {0.9, "faster1"}, {1.1, "same"}, {1.5, "slower1"}, {3, "slower2"}} {
		if ratio < step.below {
			return step.class
		}
	}
	return "slower3"
}

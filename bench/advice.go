package main

import (
	"fmt"
	"slices"
	"strings"
)

// An advice is which strategy pays in one case, and by how much.
type advice struct {
	Case     string `json:"case"`
	Strategy string `json:"strategy"`
	Text     string `json:"text"`
}

// worthIt is how many times as fast something must be to be called faster: below it, the next run may say otherwise.
const worthIt = 1.1

// advise reads off the report what the user wants to know: what to set Strategy to.
func advise(r *report) []advice {
	var all []advice
	var latencies []float64
	several := func(c *cell) bool { return c.Kind == gridCells && c.Queries > 1 }
	for _, c := range r.find(several) {
		if !slices.Contains(latencies, c.LatencyMS) {
			latencies = append(latencies, c.LatencyMS)
		}
	}
	for _, latency := range latencies {
		cells := r.find(func(c *cell) bool { return several(c) && c.LatencyMS == latency })
		if a, ok := overall(cells); ok {
			all = append(all, a)
		}
		if len(latencies) > 1 {
			continue // one line is enough for a network that is made up
		}
		for _, c := range cells {
			if a, ok := adviseCell(c); ok {
				all = append(all, a)
			}
		}
	}
	for _, c := range r.find(func(c *cell) bool { return c.Kind == loadCells }) {
		if a, ok := adviseCell(c); ok {
			all = append(all, a)
		}
	}
	return all
}

func strategy(name string) bool { return fixedStrategy(name) || name == auto }

// overall compares the strategies over all the cells.
func overall(cells []*cell) (advice, bool) {
	if len(cells) < 2 {
		return advice{}, false
	}
	best, bestMean, bestWorst := "", 0.0, 0.0
	var where *cell
	var failed []string
	for _, s := range []string{parallel, serial, pipelined, coalesced, auto} {
		var ratios []float64
		worst, at := 0.0, (*cell)(nil)
		for _, c := range cells {
			res, ok := c.of(s)
			top, ok2 := c.best(strategy)
			if !ok || !ok2 {
				continue
			}
			ratio := res.Median / top.Median
			ratios = append(ratios, ratio)
			if ratio > worst {
				worst, at = ratio, c
			}
		}
		if len(ratios) < len(cells) { // it was left out somewhere, for taking too long, or has failed
			if slices.ContainsFunc(cells, func(c *cell) bool { return c.failed(s) }) {
				failed = append(failed, s)
			}
			continue
		}
		if m := geometricMean(ratios); best == "" || m < bestMean {
			best, bestMean, bestWorst, where = s, m, worst, at
		}
	}
	if best == "" {
		return advice{}, false
	}
	a := advice{Case: "over all" + latencyOf(cells[0]), Strategy: best}
	a.Text = fmt.Sprintf("%s, on average %s times the time of the best strategy in each cell", best, significantRatio(bestMean))
	for _, other := range []string{single, byErrgroup} {
		var ratios []float64
		for _, c := range cells {
			if ratio, ok := c.ratio(other, best); ok {
				ratios = append(ratios, ratio)
			}
		}
		if len(ratios) > 0 {
			a.Text += "; " + compared(1, geometricMean(ratios)) + " " + label(other)
		}
	}
	if bestWorst >= worthIt {
		a.Text += fmt.Sprintf("; at worst %s times the best, for %s", significantRatio(bestWorst), where.Title())
	}
	if len(failed) > 0 {
		a.Text += "; not compared since it failed: " + strings.Join(failed, ", ")
	}
	return a, true
}

func latencyOf(c *cell) string {
	if c.LatencyMS == 0 {
		return ""
	}
	return fmt.Sprintf(", +%g ms", c.LatencyMS)
}

// adviseCell says what pays in one cell: which of the strategies that one can set, and how what chooses by itself does
// beside it.
func adviseCell(c *cell) (advice, bool) {
	best, ok := c.best(fixedStrategy)
	if !ok {
		return advice{}, false
	}
	a := advice{Case: c.Title(), Strategy: best.Contender, Text: fmt.Sprintf("%s, %s %s", best.Contender, figure(best.Median, c.Unit), c.Unit)}
	for _, other := range []string{single, byErrgroup, byBatch} {
		if ratio, ok := c.slowness(other, best.Contender); ok {
			a.Text += "; " + compared(1, ratio) + " " + label(other)
		}
	}
	if ratio, ok := c.slowness(best.Contender+withSnapshot, best.Contender); ok && ratio >= worthIt {
		a.Text += fmt.Sprintf("; with a snapshot %s", compared(ratio, 1)+" without")
	}
	if ratio, ok := c.slowness(auto, best.Contender); ok {
		a.Text += fmt.Sprintf("; auto is %s it", compared(ratio, 1))
	}
	return a, true
}

// compared says how a time compares with another.
func compared(took, other float64) string {
	switch {
	case other >= took*worthIt:
		return significantRatio(other/took) + " times as fast as"
	case took >= other*worthIt:
		return significantRatio(took/other) + " times as slow as"
	}
	return "about as fast as"
}

package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// A claim is something that the project says of itself, to be read off a report.
type claim struct {
	text    string
	atLeast bool // the bound is the least that is wanted, and otherwise the most
	bound   float64

	measure measurement
}

// A measurement returns the ratio and where it was found; ok is false if the report does not have it.
type measurement func(*report) (ratio float64, where string, ok bool)

// A finding is what became of a claim.
type finding struct {
	Claim   string   `json:"claim"`
	Wanted  string   `json:"wanted"`
	Ratio   *float64 `json:"measured"` // nil: not measured
	Verdict string   `json:"verdict"`
	Where   string   `json:"where,omitempty"`
}

// The verdicts.
const (
	met         = "met"
	missed      = "missed"
	notMeasured = "not measured"
)

func (f finding) Measured() string {
	if f.Ratio == nil {
		return "–"
	}
	text := significantRatio(*f.Ratio)
	if f.Verdict == missed && strings.HasSuffix(f.Wanted, " "+text) {
		return fmt.Sprintf("%.4f", *f.Ratio) // missed by what was rounded away
	}
	return text
}

func significantRatio(v float64) string {
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

var (
	parallel  = fanout.Parallel.String()
	serial    = fanout.Serial.String()
	pipelined = fanout.Pipelined.String()
	coalesced = fanout.Coalesced.String()
	auto      = fanout.Auto.String()
)

// everyClaim is in the order of the report. All ratios are of medians.
func everyClaim() []claim {
	many := func(c *cell) bool { return c.Queries >= 30 }
	most := func(c *cell) bool { return c.Queries == 300 }
	any := func(*cell) bool { return true }
	batchOrErrgroup := func(name string) bool { return name == byErrgroup || name == byBatch }
	inGrid := func(a, b, statement string, queries int, latency float64) measurement {
		return func(r *report) (float64, string, bool) {
			c := r.inGrid(statement, queries, latency)
			if c == nil {
				return 0, "", false
			}
			ratio, ok := c.ratio(a, b)
			return ratio, "", ok
		}
	}
	overBatch := func(statement string, queries int) measurement {
		return bounded(inGrid(coalesced, byBatch, statement, queries, 0), inGrid(byLeastAny, byBatch, statement, queries, 0))
	}
	is := func(name string) func(string) bool { return func(n string) bool { return n == name } }
	return []claim{
		{"Parallel / errgroup by hand, every cell", false, 1.10, worst(gridCells, any, parallel, is(byErrgroup))},
		{"Parallel / errgroup by hand, geometric mean", false, 1.03, mean(gridCells, any, parallel, is(byErrgroup))},
		{"Pipelined / the better of errgroup and pgx.Batch, every cell with 30 queries or more", false, 1.10,
			bounded(worst(gridCells, many, pipelined, batchOrErrgroup), worst(gridCells, many, byLeastBatch, batchOrErrgroup))},
		{"Pipelined / errgroup, 30 look-ups, no added latency", false, 0.65, inGrid(pipelined, byErrgroup, looking, 30, 0)},
		{"Pipelined / errgroup, 30 look-ups, 10 ms", false, 0.42, inGrid(pipelined, byErrgroup, looking, 30, 10)},
		{"Pipelined / errgroup, 30 statements of 5 ms, 10 ms", false, 0.65, inGrid(pipelined, byErrgroup, waiting, 30, 10)},
		{"Pipelined / errgroup, first call on cold connections, 30 statements known to the Source, 10 ms", false, 0.5, worst(coldCells, any, pipelined, is(byErrgroup))},
		{"look-ups per second, Pipelined / pgbench pipelined, same connections", true, 0.6, worst(rateCells, any, pipelined, is(byPgbenchPL))},
		{"SQLAlchemy gather as its example has it / Parallel, 30 scans of 100 rows", true, 40, inGrid(byPythonExample, parallel, scanning, 30, 0)},
		{"SQLAlchemy gather, pool of the same size / Parallel, 30 scans of 100 rows", true, 40, inGrid(byPython, parallel, scanning, 30, 0)},

		{"Coalesced / pgx.Batch, 30 scans of 100 rows, no added latency", false, 0.50, overBatch(scanning, 30)},
		{"Coalesced / pgx.Batch, 300 scans of 100 rows, no added latency", false, 0.20, overBatch(scanning, 300)},
		{"Coalesced / pgx.Batch, 30 look-ups, no added latency", false, 0.85, overBatch(looking, 30)},
		{"Coalesced / pgx.Batch, 300 look-ups, no added latency", false, 0.65, overBatch(looking, 300)},
		{"Coalesced / = any($1) by hand, 300 queries", false, 2.5,
			bounded(worst(gridCells, most, coalesced, is(byAny)), worst(gridCells, most, byLeastAny, is(byAny)))},
		{"Auto / the best that runs the same functions, every cell", false, 1.25, worst(gridCells, any, auto, unmodified)},
		{"Auto / the best that runs the same functions, geometric mean", false, 1.05, mean(gridCells, any, auto, unmodified)},
		{"queries per second, Auto / the best fixed strategy, 1, 16 and 128 clients", true, 0.95, worst(loadCells, any, auto, fixedStrategy)},
		{"p99 of a client of single look-ups beside 16 with 30 in a call, Auto / Parallel", false, 0.5, func(r *report) (float64, string, bool) {
			for _, c := range r.find(func(c *cell) bool { return c.Kind == besideCells }) {
				a, ok := c.of(auto)
				p, ok2 := c.of(parallel)
				return a.P99 / p.P99, "", ok && ok2
			}
			return 0, "", false
		}},
		{"SQLAlchemy gather as its example has it / Coalesced, 30 scans of 100 rows", true, 150, inGrid(byPythonExample, coalesced, scanning, 30, 0)},
		{"SQLAlchemy gather, pool of the same size / Coalesced, 30 scans of 100 rows", true, 150, inGrid(byPython, coalesced, scanning, 30, 0)},
	}
}

// unmodified chooses those who run the functions as they are, but Auto itself; a snapshot is more than is asked for here.
func unmodified(name string) bool {
	for _, c := range contenders() {
		if c.name == name {
			return c.unmodified && !c.snapshot && name != auto
		}
	}
	return false
}

func fixedStrategy(name string) bool {
	return name == parallel || name == serial || name == pipelined || name == coalesced
}

// against is the contender's ratio to the best of the others, in the cells of a kind that chosen accepts.
func against(r *report, kind string, chosen func(*cell) bool, contender string, others func(string) bool) (ratios []float64, cells []*cell) {
	for _, c := range r.find(func(c *cell) bool { return c.Kind == kind && chosen(c) }) {
		a, ok := c.of(contender)
		b, ok2 := c.best(others)
		if ok && ok2 {
			ratios = append(ratios, a.Median/b.Median)
			cells = append(cells, c)
		}
	}
	return ratios, cells
}

// worst measures the worst cell: that of the highest ratio, or where more is better, of the lowest.
func worst(kind string, chosen func(*cell) bool, contender string, others func(string) bool) measurement {
	return func(r *report) (float64, string, bool) {
		ratios, cells := against(r, kind, chosen, contender, others)
		at := -1
		for i, ratio := range ratios {
			if at < 0 || ratio > ratios[at] == (cells[i].Unit == milliseconds) {
				at = i
			}
		}
		if at < 0 {
			return 0, "", false
		}
		where := ""
		if len(cells) > 1 {
			where = fmt.Sprintf("the worst of %s: %s", counted(len(cells), "cell"), cells[at].Title())
		}
		return ratios[at], where, true
	}
}

// mean measures the geometric mean over the cells.
func mean(kind string, chosen func(*cell) bool, contender string, others func(string) bool) measurement {
	return func(r *report) (float64, string, bool) {
		ratios, _ := against(r, kind, chosen, contender, others)
		return geometricMean(ratios), fmt.Sprintf("over %s", counted(len(ratios), "cell")), len(ratios) > 0
	}
}

// bounded adds to where measure has found its ratio the yardstick for it, as measured by least.
func bounded(measure, least measurement) measurement {
	return func(r *report) (float64, string, bool) {
		ratio, where, ok := measure(r)
		if bound, _, known := least(r); ok && known {
			where = strings.TrimPrefix(where+"; coroutines alone: "+significantRatio(bound), "; ")
		}
		return ratio, where, ok
	}
}

// tally is how many findings there are of each verdict.
func tally(findings []finding) string {
	number := map[string]int{}
	for _, f := range findings {
		number[f.Verdict]++
	}
	return fmt.Sprintf("%d %s, %d %s, %d %s", number[met], met, number[missed], missed, number[notMeasured], notMeasured)
}

// claims holds all claims against the report.
func claims(r *report) []finding {
	var all []finding
	for _, c := range everyClaim() {
		sign := "≤"
		if c.atLeast {
			sign = "≥"
		}
		f := finding{Claim: c.text, Wanted: sign + " " + strings.TrimSuffix(fmt.Sprintf("%.2f", c.bound), ".00"), Verdict: notMeasured}
		if ratio, where, ok := c.measure(r); ok && !math.IsNaN(ratio) && !math.IsInf(ratio, 0) {
			f.Ratio, f.Where, f.Verdict = &ratio, where, missed
			if ratio <= c.bound != c.atLeast || ratio == c.bound {
				f.Verdict = met
			}
		}
		all = append(all, f)
	}
	return all
}

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

	of      comparison  // what is measured again for it; none if that would not pay
	measure measurement // nil: the worst of that
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

// A comparison is of a contender with the best of others, in the cells of a kind that chosen accepts.
type comparison struct {
	kind      string
	chosen    func(*cell) bool
	contender string
	others    func(contender string) bool
}

func anyCell(*cell) bool { return true }

func is(name string) func(string) bool { return func(n string) bool { return n == name } }

func errgroupOrBatch(name string) bool { return name == byErrgroup || name == byBatch }

// as is the same comparison of another contender.
func (v comparison) as(contender string) comparison {
	v.contender = contender
	return v
}

// everyClaim is in the order of the report. All ratios are of medians.
func everyClaim() []claim {
	inGrid := func(contender, other, statement string, queries int, latency float64) comparison {
		return comparison{gridCells, func(c *cell) bool {
			return c.Statement == statement && c.Queries == queries && c.LatencyMS == latency
		}, contender, is(other)}
	}
	byItself := func(v comparison, least string) measurement { return bounded(v.worst, v.as(least).worst) }
	parallelByHand := comparison{gridCells, anyCell, parallel, is(byErrgroup)}
	pipelinedBest := comparison{gridCells, func(c *cell) bool { return c.Queries >= 30 }, pipelined, errgroupOrBatch}
	scan30, scan300 := inGrid(coalesced, byBatch, scanning, 30, 0), inGrid(coalesced, byBatch, scanning, 300, 0)
	lookUp30, lookUp300 := inGrid(coalesced, byBatch, looking, 30, 0), inGrid(coalesced, byBatch, looking, 300, 0)
	coalescedAny := comparison{gridCells, func(c *cell) bool { return c.Queries == 300 }, coalesced, is(byAny)}
	autoBest := comparison{gridCells, anyCell, auto, unmodified}
	none := comparison{}
	return []claim{
		{"Parallel / errgroup by hand, every cell", false, 1.10, parallelByHand, nil},
		{"Parallel / errgroup by hand, geometric mean", false, 1.03, none, parallelByHand.mean},
		{"Pipelined / the better of errgroup and pgx.Batch, every cell with 30 queries or more", false, 1.10, pipelinedBest, byItself(pipelinedBest, byLeastBatch)},
		{"Pipelined / errgroup, 30 look-ups, no added latency", false, 0.65, inGrid(pipelined, byErrgroup, looking, 30, 0), nil},
		{"Pipelined / errgroup, 30 look-ups, 10 ms", false, 0.42, inGrid(pipelined, byErrgroup, looking, 30, 10), nil},
		{"Pipelined / errgroup, 30 statements of 5 ms, 10 ms", false, 0.65, inGrid(pipelined, byErrgroup, waiting, 30, 10), nil},
		{"Pipelined / errgroup, first call on cold connections, 30 statements known to the Source, 10 ms", false, 0.5, none, comparison{coldCells, anyCell, pipelined, is(byErrgroup)}.worst},
		{"look-ups per second, Pipelined / pgbench pipelined, same connections", true, 0.6, comparison{rateCells, anyCell, pipelined, is(byPgbenchPL)}, nil},
		{"SQLAlchemy gather as its example has it / Parallel, 30 scans of 100 rows", true, 40, inGrid(byPythonExample, parallel, scanning, 30, 0), nil},
		{"SQLAlchemy gather, pool of the same size / Parallel, 30 scans of 100 rows", true, 40, inGrid(byPython, parallel, scanning, 30, 0), nil},

		{"Coalesced / pgx.Batch, 30 scans of 100 rows, no added latency", false, 0.50, scan30, byItself(scan30, byLeastAny)},
		{"Coalesced / pgx.Batch, 300 scans of 100 rows, no added latency", false, 0.20, scan300, byItself(scan300, byLeastAny)},
		{"Coalesced / pgx.Batch, 30 look-ups, no added latency", false, 0.85, lookUp30, byItself(lookUp30, byLeastAny)},
		{"Coalesced / pgx.Batch, 300 look-ups, no added latency", false, 0.65, lookUp300, byItself(lookUp300, byLeastAny)},
		{"Coalesced / = any($1) by hand, 300 queries", false, 2.5, coalescedAny, byItself(coalescedAny, byLeastAny)},
		{"Auto / the best that runs the same functions, every cell", false, 1.25, autoBest, nil},
		{"Auto / the best that runs the same functions, geometric mean", false, 1.05, none, autoBest.mean},
		{"queries per second, Auto / the best fixed strategy, 1, 16 and 128 clients", true, 0.95, comparison{loadCells, anyCell, auto, fixedStrategy}, nil},
		{"p99 of a client of single look-ups beside 16 with 30 in a call, Auto / Parallel", false, 0.5, none, func(r *report) (float64, string, bool) {
			for _, c := range r.find(func(c *cell) bool { return c.Kind == besideCells }) {
				a, ok := c.of(auto)
				p, ok2 := c.of(parallel)
				return a.P99 / p.P99, "", ok && ok2
			}
			return 0, "", false
		}},
		{"SQLAlchemy gather as its example has it / Coalesced, 30 scans of 100 rows", true, 150, inGrid(byPythonExample, coalesced, scanning, 30, 0), nil},
		{"SQLAlchemy gather, pool of the same size / Coalesced, 30 scans of 100 rows", true, 150, inGrid(byPython, coalesced, scanning, 30, 0), nil},
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

// ratios are the contender's to the best of the others, and their cells.
func (v comparison) ratios(r *report) (ratios []float64, cells []*cell) {
	for _, c := range r.find(func(c *cell) bool { return c.Kind == v.kind && v.chosen(c) }) {
		a, ok := c.of(v.contender)
		b, ok2 := c.best(v.others)
		if ok && ok2 {
			ratios = append(ratios, a.Median/b.Median)
			cells = append(cells, c)
		}
	}
	return ratios, cells
}

// worstCell is that of the highest ratio, or where more is better, of the lowest; nil if there is none.
func (v comparison) worstCell(r *report) (worst *cell, ratio float64) {
	ratios, cells := v.ratios(r)
	for i, c := range cells {
		if worst == nil || ratios[i] > ratio == (c.Unit == milliseconds) {
			worst, ratio = c, ratios[i]
		}
	}
	return worst, ratio
}

// worst measures the worst cell.
func (v comparison) worst(r *report) (ratio float64, where string, ok bool) {
	c, ratio := v.worstCell(r)
	if c == nil {
		return 0, "", false
	}
	if ratios, _ := v.ratios(r); len(ratios) > 1 {
		where = fmt.Sprintf("the worst of %s: %s", counted(len(ratios), "cell"), c.Title())
	}
	return ratio, where, true
}

// mean measures the geometric mean over the cells.
func (v comparison) mean(r *report) (float64, string, bool) {
	ratios, _ := v.ratios(r)
	return geometricMean(ratios), fmt.Sprintf("over %s", counted(len(ratios), "cell")), len(ratios) > 0
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
		measure := c.measure
		if measure == nil {
			measure = c.of.worst
		}
		if ratio, where, ok := measure(r); ok && !math.IsNaN(ratio) && !math.IsInf(ratio, 0) {
			f.Ratio, f.Where, f.Verdict = &ratio, where, missed
			if ratio <= c.bound != c.atLeast || ratio == c.bound {
				f.Verdict = met
			}
		}
		all = append(all, f)
	}
	return all
}

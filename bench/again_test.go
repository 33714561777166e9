package main

import (
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// What looks worst has its figures, and those of all that may be the best there, until they are enough.
func TestUndecided(t *testing.T) {
	about := map[string]comparison{}
	for _, c := range everyClaim() {
		about[c.text] = c.of
	}
	parallelByHand, autoBest := about["Parallel / errgroup by hand, every cell"], about["Auto / the best that runs the same functions, every cell"]
	pipelinedBest := about["Pipelined / the better of errgroup and pgx.Batch, every cell with 30 queries or more"]
	autoLoad := about["queries per second, Auto / the best fixed strategy, 1, 16 and 128 clients"]
	rate := about["look-ups per second, Pipelined / pgbench pipelined, same connections"]
	for _, test := range []struct {
		name                 string
		comparison           comparison
		median               float64 // of the contender
		values, valuesOfBest int
		want                 []string
	}{
		{"few", parallelByHand, 1000, 3, 3, []string{byErrgroup, parallel}},
		{"few of the other", parallelByHand, 1000, 1000, 3, []string{byErrgroup, parallel}},
		{"enough of long calls", parallelByHand, 1000, enoughLong, enoughLong, nil},
		{"few of short ones", parallelByHand, 100, enoughLong, enoughLong, []string{byErrgroup, parallel}},
		{"enough of short ones", parallelByHand, 100, enoughFigures, enoughFigures, nil},
		{"others that may be the best", autoBest, position(parallel) + 0.5, 3, 1000, []string{single, byErrgroup, byConc, parallel, auto}},
		{"none is better", pipelinedBest, 0.1, 3, 1000, []string{byErrgroup, pipelined}},
		{"where more is better", autoLoad, 12.5, 3, 1000, []string{coalesced, auto}},
		{"few runs of pgbench", rate, 1000, 1000, enoughLong - 1, []string{pipelined, byPgbenchPL}},
		{"enough runs of pgbench", rate, 1000, enoughLong, enoughLong, nil},
		{"enough where more is better", autoLoad, 1000, enoughLong, 1000, []string{coalesced, auto}},
	} {
		r := sample()
		r.Cells = []cell{*r.find(func(c *cell) bool { return c.Kind == test.comparison.kind && c.Queries != 1 && c.Clients != 128 })[0]}
		c := &r.Cells[0]
		for i := range c.Results {
			res := &c.Results[i]
			res.Values = test.valuesOfBest
			if res.Contender == test.comparison.contender {
				res.Median, res.Values = test.median, test.values
			}
		}
		got, names := test.comparison.undecided(r)
		if !slices.Equal(names, test.want) || (got == c) != (test.want != nil) {
			t.Errorf("%s: %v in %+v, want %v", test.name, names, got, test.want)
		}
	}
	if c, names := parallelByHand.undecided(&report{}); c != nil || names != nil {
		t.Error(c, names)
	}
}

// Figures are added to those that are there, in cells of all kinds, and nobody else's are touched.
func TestAgain(t *testing.T) {
	srv, _ := opened(t, 1000, 3)
	b := &bench{
		opts: options{statements: []string{scanning}}, srv: srv, statements: statements(1000, 100), contenders: contenders(),
		progress: newProgress(io.Discard), random: rand.New(rand.NewPCG(1, 2)),
	}
	defer b.closePool()
	for _, c := range []cell{
		{Kind: gridCells, Statement: scanning, Queries: 30, Connections: gridConns, Clients: 1, Unit: milliseconds},
		{Kind: loadCells, Statement: scanning, Queries: 8, Connections: loadConns, Clients: 2, Unit: perSecond},
		{Kind: rateCells, Statement: scanning, Queries: 300, Connections: gridConns, Clients: 1, Unit: perSecond},
	} {
		for _, name := range []string{byErrgroup, parallel, auto} {
			res := newResult(name, []float64{1e9}, "a note")
			res.P99 = 3
			c.Results = append(c.Results, res)
		}
		if more, err := b.again(t.Context(), &c, []string{byErrgroup, parallel}); err != nil || !more {
			t.Fatal(more, err)
		}
		if len(c.Results) != 3 {
			t.Errorf("%+v", c.Results)
		}
		for _, r := range c.Results {
			if again := r.Contender != auto; again != (r.Values > 5) || again != (r.Median < 1e9) || slices.Max(r.figures) != 1e9 || r.Note != "a note" || r.P99 != 3 {
				t.Errorf("%+v", r)
			}
		}
	}

	b.opts.queries = []int{1, 30}
	b.report = &report{Cells: []cell{{Kind: gridCells, Statement: scanning, Queries: 1, Results: []result{newResult(byErrgroup, []float64{1e6}, "")}}}}
	c := cell{Kind: gridCells, Statement: scanning, Queries: 30, Connections: gridConns, Clients: 1, Unit: milliseconds}
	for _, name := range []string{byErrgroup, parallel} {
		c.Results = append(c.Results, newResult(name, []float64{1}, ""))
	}
	more, err := b.again(t.Context(), &c, []string{byErrgroup, parallel})
	if err != nil || more || c.Results[0].Values != 1 || c.Results[1].Values == 1 {
		t.Errorf("%v, %+v, %v", more, c.Results, err)
	}
}

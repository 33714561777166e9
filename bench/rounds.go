package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	// warmUps is how many rounds a cell has before those that count: what adapts, has adapted by then.
	warmUps = 5

	// minRounds is how many count of a contender, however long they take, and minRoundsAside of one on which no claim
	// rests; maxRounds is where more would tell nothing new.
	minRounds      = 3
	minRoundsAside = 2
	maxRounds      = 500

	// onceAbove is how long a run may take that is to be repeated, and onceAboveAside that of one on which no claim rests.
	onceAbove      = 2 * time.Second
	onceAboveAside = 400 * time.Millisecond

	// countsAbove is how long the first run must take to count: what is to be warmed up is small beside it.
	countsAbove = 300 * time.Millisecond

	// tooLong is what nobody wants to wait for. Where a contender would take as long, going by what it took for fewer
	// queries, it is left out of the cell.
	tooLong      = 6 * time.Second
	tooLongAside = 2 * time.Second
)

// A runner is a contender at work in a cell.
type runner struct {
	contender
	task task // nil: of another program

	// run runs the task once. It computes a digest if asked to.
	run func(ctx context.Context, draws []int32, digested bool) (time.Duration, digest, error)

	took  []float64 // each round, in milliseconds
	spent time.Duration
	out   bool // it does not run again in this cell
	note  string
}

// taskRunner times a task.
func taskRunner(c contender, t task) *runner {
	return &runner{contender: c, task: t, run: func(ctx context.Context, draws []int32, digested bool) (time.Duration, digest, error) {
		start := time.Now()
		merged, err := t(ctx, draws)
		took := time.Since(start)
		if err != nil || !digested {
			return took, digest{}, err
		}
		return took, merged.digest(), nil
	}}
}

// rounds runs the contenders in turn until the time is up. In each round each of them runs once, on the same draws. The
// order is drawn anew for each round: if it only rotated, a contender would have the same one before it nearly always,
// and pay for its garbage. prepare runs before each run and is not timed.
//
// A contender that fails is out, with a note. One that comes to other rows than the rest is an error: then no figure
// means anything.
func rounds(ctx context.Context, runners []*runner, draw func() []int32, prepare func() error, budget time.Duration) error {
	start := time.Now()
	once := func(r *runner, draws []int32, digested bool) (time.Duration, digest, error) {
		if err := prepare(); err != nil {
			return 0, digest{}, err
		}
		took, d, err := r.run(ctx, draws, digested)
		if ctx.Err() != nil {
			return 0, digest{}, context.Cause(ctx)
		}
		if err != nil {
			r.out, r.took = true, nil
			r.note = "failed: " + oneLine(err)
		}
		return took, d, nil
	}

	var first *runner
	var want digest
	draws := draw()
	for _, r := range runners {
		if r.out {
			continue
		}
		took, got, err := once(r, draws, true)
		switch {
		case err != nil:
			return err
		case r.out:
			continue
		case first == nil:
			first, want = r, got
		case got != want:
			return fmt.Errorf("%s came to %v, %s to %v", first.name, want, r.name, got)
		}
		if took > countsAbove {
			r.took = append(r.took, inMilliseconds(took))
		}
		if took > onceAbove || took > onceAboveAside && r.aside {
			r.out = true
			r.note = "one run"
		}
		r.spent = took
	}
	for range warmUps - 1 {
		draws := draw()
		for _, r := range runners {
			// Where a run is long, what is to be learned from it is soon learned.
			if r.out || r.spent > budget/time.Duration(4*len(runners)) {
				continue
			}
			took, _, err := once(r, draws, false)
			if err != nil {
				return err
			}
			r.spent += took
		}
	}

	weights := 0.0
	for _, r := range runners {
		r.spent = 0
		if !r.out {
			weights += r.weight()
		}
	}
	left := budget - time.Since(start)
	done := func(r *runner) bool {
		least := minRounds
		if r.aside {
			least = minRoundsAside
		}
		if time.Since(start) > 2*budget { // on a machine too slow for all of it, that all cells are run matters more
			least = 1
		}
		return r.out || len(r.took) >= least && float64(r.spent) >= float64(left)*r.weight()/weights
	}
	for round := 0; round < maxRounds; round++ {
		ran := false
		draws := draw()
		for _, i := range rand.Perm(len(runners)) {
			r := runners[i]
			if done(r) {
				continue
			}
			ran = true
			began := time.Now()
			took, _, err := once(r, draws, false)
			if err != nil {
				return err
			}
			r.spent += time.Since(began)
			if !r.out {
				r.took = append(r.took, inMilliseconds(took))
			}
		}
		if !ran {
			break
		}
	}
	return nil
}

// results are those of the runners.
func results(runners []*runner) []result {
	var all []result
	for _, r := range runners {
		all = append(all, newResult(r.name, r.took, r.note))
	}
	return all
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

const (
	// warmUps is how many calls a contender makes in a cell before those that count: what learns has learned by then. Where
	// calls are long, they are fewer; but what learns makes leastWarmUps, unless the first call counts already. It has learned
	// in the cells before, too.
	warmUps      = 25
	leastWarmUps = 3

	// A contender's turn is as many calls as fit into turnTime, but mostInTurn at most: what runs at once before a call
	// is then mostly its own like, as it is in a program. Calls longer than settled hardly feel what was before them.
	turnTime   = 10 * time.Millisecond
	mostInTurn = 20
	settled    = 5 * time.Millisecond

	// mostInFigure is how many calls, at most, have one figure: where as many fit into turnTime, they are those of several
	// turns. A short call takes either of two times, as a processor has gone to sleep meanwhile or has not, and for longer
	// than a turn lasts it is mostly the same one: the median of turns would be one or the other by chance.
	mostInFigure = 100

	// minFigures is how many figures count of a contender, unless that takes much too long, and minFiguresAside of one on which
	// no claim rests.
	minFigures      = 3
	minShortFigures = 11 // where calls are shorter than shortCall
	minFiguresAside = 2
	shortCall       = 120 * time.Millisecond

	// onceAbove is how long a call may take that is to be repeated, and onceAboveAside that of one on which no claim rests:
	// none rests on a contender that takes hopeless times as long as another, either. One that is aside and of
	// this program has done with its first call, if that counts.
	onceAbove      = 2 * time.Second
	onceAboveAside = 400 * time.Millisecond
	hopeless       = 3

	// inContention is how many times as long as the quickest one's a contender's calls may be for it to have as much time as
	// the others though no claim rests on it by name: one rests on the best of all that run the functions as they are.
	inContention = 2

	// countsAbove is how long the first call must take to count: what is to be warmed up is small beside it.
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

	took     []float64     // of a call, by each figure that counts, in milliseconds
	turns    []float64     // the same by each turn that the next figure is the mean of
	shortest time.Duration // of all calls
	spent    time.Duration
	out      bool // it does not run again in this cell
	note     string
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

// call runs the runner once. If it fails it is out, with a note; the error is only that of ctx.
func (r *runner) call(ctx context.Context, draws []int32, digested bool) (time.Duration, digest, error) {
	took, d, err := r.run(ctx, draws, digested)
	if ctx.Err() != nil {
		return 0, digest{}, context.Cause(ctx)
	}
	if err != nil {
		r.out, r.took = true, nil
		r.note = failedNote + program.OneLine(err)
	}
	if r.shortest == 0 || took < r.shortest {
		r.shortest = took
	}
	return took, d, nil
}

// inTurn is how many calls are in a turn, and inFigure in a figure.
func (r *runner) inTurn() int { return min(r.inFigure(), mostInTurn) }

func (r *runner) inFigure() int {
	return int(min(max(turnTime/max(r.shortest, 1), 1), mostInFigure))
}

// A course is what the runners of a cell have in common.
type course struct {
	// draw draws the arguments of a call.
	draw func() []int32

	// renew, if set, comes before each call and is not timed: a turn is one call then.
	renew func() error

	budget time.Duration
}

// rounds runs the contenders in turn until the time is up. In a round all have the same arguments, and the order is drawn
// anew: if it only rotated, a contender would have the same one before it nearly always. Before each turn garbage is
// collected, so that nobody pays for another's. All get their share of the time, over the whole of it: one whose
// calls are long sits out some rounds, and is not done before or after the others, under what may be other circumstances.
//
// A contender that comes to other rows than the rest is an error: then no figure means anything.
func (c course) rounds(ctx context.Context, runners []*runner) error {
	start := time.Now()
	if err := c.first(ctx, runners); err != nil {
		return err
	}
	if err := c.warmUp(ctx, runners); err != nil {
		return err
	}
	for _, r := range runners {
		r.spent = 0
	}
	compete(runners)
	for {
		elapsed := time.Since(start)
		threshold := pace(runners)
		lists := c.lists()
		ran := false
		for _, i := range rand.Perm(len(runners)) {
			r := runners[i]
			if r.out {
				continue
			}
			if elapsed >= c.budget {
				if len(r.took) >= r.least(elapsed > 3*c.budget) {
					continue
				}
			} else if r.share() > threshold {
				continue
			}
			ran = true
			if err := c.turn(ctx, r, lists); err != nil {
				return err
			}
		}
		if !ran {
			return nil
		}
	}
}

// first has each runner make a call, and compares what they come to.
func (c course) first(ctx context.Context, runners []*runner) error {
	var first *runner
	var want digest
	var quickest time.Duration
	draws := c.draw()
	for _, r := range runners {
		if r.out {
			continue
		}
		if err := c.prepare(true); err != nil {
			return err
		}
		took, got, err := r.call(ctx, draws, true)
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
		r.spent = took
		if quickest == 0 || took < quickest {
			quickest = took
		}
	}
	for _, r := range runners {
		most := onceAbove
		if r.aside && !r.elsewhere {
			most = countsAbove
		} else if r.aside || r.spent > hopeless*quickest {
			most = onceAboveAside
		}
		if !r.out && r.spent > most {
			r.out = true
			r.note = "one call"
		}
	}
	return nil
}

// warmUp has each runner make calls that do not count.
func (c course) warmUp(ctx context.Context, runners []*runner) error {
	most := c.budget / time.Duration(4*max(len(runners), 1))
	lists := c.lists()
	for _, r := range runners {
		for i := 1; i < warmUps && !r.out; i++ {
			if r.spent > most && (i >= leastWarmUps || !r.learns() || r.shortest > countsAbove) {
				break
			}
			began := time.Now()
			if err := c.prepare(i == 1); err != nil {
				return err
			}
			if _, _, err := r.call(ctx, lists(i), false); err != nil {
				return err
			}
			r.spent += time.Since(began)
		}
	}
	return nil
}

// compete has those be measured like the others that may turn out to be the best. Of few calls, the median is low now and
// then by chance, and the best of several such medians nearly always.
func compete(runners []*runner) {
	could := slices.DeleteFunc(slices.Clone(runners), func(r *runner) bool { return r.out || !unmodified(r.name) })
	if len(could) == 0 {
		return
	}
	quickest := slices.MinFunc(could, func(a, b *runner) int { return cmp.Compare(a.shortest, b.shortest) })
	for _, r := range could {
		if float64(r.shortest) < inContention*float64(quickest.shortest) {
			r.aside = false
		}
	}
}

// turn is a runner's in a round. What counts is the mean of its calls, or of those of several turns, not each of them: see
// mostInFigure.
func (c course) turn(ctx context.Context, r *runner, lists func(int) []int32) error {
	began := time.Now()
	defer func() { r.spent += time.Since(began) }()
	n := r.inTurn()
	if c.renew != nil {
		n = 1
	}
	if err := c.prepare(true); err != nil {
		return err
	}
	settle := 0
	if c.renew == nil && r.shortest < settled {
		settle = 1 + n/10 // after the collection, memory that was kept for reuse is gone and the caches hold something else
	}
	sum := time.Duration(0)
	for i := range settle + n {
		took, _, err := r.call(ctx, lists(i), false)
		if err != nil {
			return err
		}
		if r.out {
			return nil
		}
		if i >= settle {
			sum += took
		}
	}
	r.turns = append(r.turns, inMilliseconds(sum)/float64(n))
	if len(r.turns)*n >= r.inFigure() || c.renew != nil {
		r.took = append(r.took, average(r.turns))
		r.turns = r.turns[:0]
	}
	return nil
}

// prepare comes before a call: the first of a turn finds no garbage.
func (c course) prepare(collect bool) error {
	if collect {
		runtime.GC()
	}
	if c.renew != nil {
		return c.renew()
	}
	return nil
}

// lists are the arguments of a round: the i-th call of each turn has the i-th list.
func (c course) lists() func(i int) []int32 {
	var drawn [][]int32
	return func(i int) []int32 {
		for len(drawn) <= i {
			drawn = append(drawn, c.draw())
		}
		return drawn[i]
	}
}

// least is how many figures have to count of the runner. On a machine too slow for all of them, that all cells are run
// matters more.
func (r *runner) least(hurry bool) int {
	switch {
	case hurry:
		return 1
	case r.aside:
		return minFiguresAside
	case r.shortest < shortCall:
		return minShortFigures
	}
	return minFigures
}

// share is the time that the runner has had, by its weight.
func (r *runner) share() float64 { return float64(r.spent) / r.weight() }

// pace is the share of those that are to go on now: at least one of the runners, and all that are behind the mean.
func pace(runners []*runner) float64 {
	sum, least, n := 0.0, 0.0, 0
	for _, r := range runners {
		if r.out {
			continue
		}
		if n == 0 || r.share() < least {
			least = r.share()
		}
		sum += r.share()
		n++
	}
	return max(sum/float64(max(n, 1)), least)
}

// results are those of the runners.
func results(runners []*runner) []result {
	var all []result
	for _, r := range runners {
		all = append(all, newResult(r.name, r.took, r.note))
	}
	return all
}

package main

import (
	"context"
	"slices"
	"time"
)

const (
	// againUntil is when the run ends, as against -time, if there is something to be measured again until then.
	againUntil = 1.75

	// againTime is for how long a cell is measured again at a time, unless its calls are too long for that.
	againTime = 2 * time.Second

	// enoughFigures is how many of a contender are enough, and enoughLong of one whose calls are longer than shortCall, or
	// beside pgbench, which knows no time shorter than a second.
	enoughFigures = 4 * minShortFigures
	enoughLong    = minShortFigures
)

// measureAgain spends the time until the deadline on the cells that decide the claims, one claim after the other. The worst of
// many ratios is mostly worse than it would be with more figures; and where calls are long, figures are few. So what
// looks worst is measured again until the worst, which may be another cell by then, has enough figures, on whichever side
// of the bound it is. All figures count.
func (b *bench) measureAgain(ctx context.Context, deadline time.Time) error {
	var open []comparison
	for _, claim := range everyClaim() {
		open = append(open, claim.of)
	}
	for len(open) > 0 {
		v := open[0]
		open = open[1:]
		c, names := v.undecided(b.report)
		if c == nil {
			continue
		}
		if time.Now().After(deadline) {
			return nil
		}
		b.progress.show(len(b.report.Cells), len(b.report.Cells), "again: "+c.Title())
		more, err := b.again(ctx, c, names)
		if err != nil {
			return in(ctx, c, err)
		}
		if more { // otherwise there would be no end of it
			open = append(open, v)
		}
	}
	return nil
}

// undecided returns the worst cell, if it has too few figures, and whose: those of the contender, and of all others that
// may be the best.
func (v comparison) undecided(r *report) (c *cell, names []string) {
	c, _ = v.worstCell(r)
	if c == nil {
		return nil, nil
	}
	one, _ := c.of(v.contender)
	best, _ := c.best(v.others)
	enough, few := enoughFigures, false
	if c.Kind == rateCells || c.Unit == milliseconds && one.Median >= inMilliseconds(shortCall) {
		enough = enoughLong
	}
	for _, r := range c.Results {
		slowness, _ := c.slowness(r.Contender, v.contender)
		other := r.Values > 0 && v.others(r.Contender) && (slowness <= 1 || r.Contender == best.Contender)
		if r.Contender == v.contender || other {
			names = append(names, r.Contender)
			few = few || r.Values < enough
		}
	}
	if !few {
		return nil, nil
	}
	return c, names
}

// again adds to the figures of these contenders in a cell. It reports whether all have more now: one that has become too
// slow is left out.
func (b *bench) again(ctx context.Context, c *cell, names []string) (more bool, err error) {
	b.only = names
	defer func() { b.only = nil }()
	second := *c
	second.Results = nil
	if err := b.run(ctx, &second, againTime); err != nil {
		return false, err
	}
	more = true
	for _, r := range second.Results {
		before := &c.Results[slices.IndexFunc(c.Results, func(before result) bool { return before.Contender == r.Contender })]
		if _, failed := r.failure(); failed {
			*before = r
			continue
		}
		more = more && r.Values > 0
		all := newResult(r.Contender, append(before.figures, r.figures...), before.Note)
		all.P50, all.P99 = before.P50, before.P99
		*before = all
	}
	return more, nil
}

package fanout

import (
	"testing"
	"time"
)

// Work is divided evenly among lanes, but not among more than it is worth; fewer, where nothing has run on their connections.
func TestWorkIsDivided(t *testing.T) {
	for _, test := range []struct {
		work  time.Duration
		fresh bool
		want  int // of ten lanes
	}{
		{100 * time.Microsecond, false, 1},
		{time.Millisecond, false, 2},
		{10 * time.Millisecond, false, 9},
		{time.Second, false, 10},
		{time.Millisecond, true, 1},
		{10 * time.Millisecond, true, 2},
		{30 * time.Millisecond, true, 5},
		{time.Second, true, 10},
	} {
		x := &exchange{call: &call{}, work: test.work}
		for range 10 {
			x.lanes = append(x.lanes, &pipeline{exchange: x, state: &connState{ran: !test.fresh}})
		}
		n, most := 0, time.Duration(0)
		for _, p := range x.lanes {
			if x.work == 0 {
				break
			}
			p.picked = min(x.share(p), x.work)
			x.work -= p.picked
			most = max(most, p.picked)
			n++
		}
		if n != test.want || x.work > 0 {
			t.Errorf("%v of work, fresh=%v: %d lanes, %v left", test.work, test.fresh, n, x.work)
		}
		if test.work == time.Second && most > test.work/10 {
			t.Errorf("%v of work, fresh=%v: %v for one of %d lanes", test.work, test.fresh, most, n)
		}
	}
}

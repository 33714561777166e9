package fanout

import (
	"context"
	"time"
)

const (
	// earlyLanes is how many lanes join a snapshot as soon as there is one, and lateness how much later the others do.
	// Measured with thirty look-ups on ten connections and two cores: three to five lanes are done first.
	earlyLanes = 4
	lateness   = time.Millisecond

	// nearby is how soon a snapshot has been exported where round trips are cheap.
	nearby = 500 * time.Microsecond

	// claimPatience is how long lanes wait for somebody to send the first statement of the call, which exports the snapshot:
	// a query function may be busy with something else before, and must not stall the others.
	claimPatience = time.Millisecond
)

// letIn returns when it is worth its while for lane k of the call, from 0, to join: at the latest when ctx ends, which it
// does when there is nothing left to take. It is called before the lane has a connection or a unit, so that who waits
// keeps nothing from others.
//
// To join takes a transaction: begin, import, savepoint and commit are as much work for the server as several quick
// statements. Where round trips are cheap, a few lanes are done with a small call sooner than many. So only a few begin,
// and the others follow if there is something left to do a moment later. Where the round trip is what takes the time,
// all join at once. Letting them in one by one, by the clock, was slower than either: timers are not that fine.
func (s *snapshot) letIn(ctx context.Context, k int) {
	if s == nil || s.alone || k == 0 {
		return
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
		return
	case <-time.After(claimPatience):
		if !s.claimed() {
			return
		}
		select {
		case <-s.settled:
		case <-ctx.Done():
			return
		}
	}
	if k < earlyLanes || !s.near {
		return
	}
	select {
	case <-time.After(lateness):
	case <-ctx.Done():
	}
}

// claimed reports whether a lane is about to export.
func (s *snapshot) claimed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exporter != nil
}

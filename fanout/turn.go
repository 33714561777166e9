package fanout

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// turns are what the Auto calls of a Source take, where more of them at once only make each other slower: the server has so
// many processors and disks, and what is beyond that stands in their queues instead of here, in front of everybody else.
//
// How many may be at work at once follows from how long calls take then, as against when one is at work alone: up to crowded
// times as long is the use of what there is; beyond that it is waiting, and fewer are let in. That is how TCP Vegas tells
// a queue in the network, and BBR's way of looking now and then at how long things take without one is where alone comes
// from: every so often one call is at work by itself. Calls are compared by the work that their statements are known to be,
// with the way to the server, on the lane that has the most of it: a call has more lanes when it is alone.
//
// That is for others who use the pool. Where there are none, the calls stand in each other's way only, and as many as there
// are connections do more in all than fewer: a tenth or more, with 16 clients on two processors.
//
// A turn is no more than a courtesy. Who has waited long enough goes ahead: calls may depend on each other in ways that
// are not for this package to know.
type turns struct {
	mu      sync.Mutex
	most    int     // the pool's MaxConns
	width   float64 // how many may be at work
	working int
	begun   int             // ever
	waiting []chan struct{} // closed when it is their turn
	alone   bool            // one is at work by itself, so that it can be seen how long things take
	look    time.Time       // when that is due again
	misses  int             // in a row, when it could not be seen

	acquires func() int64 // how many connections have been acquired from the pool, by anybody
	ours     atomic.Int64 // of these, by calls that take turns, and how many they are waiting for
	theirs   int64        // by others, as far as has been seen
	seen     int64        // ours, when that was

	plain, snapshot paces
}

// The paces are those of calls of a kind: a snapshot takes time besides the statements.
type paces struct {
	apart    pace // of calls at work alone
	together pace // of the others
}

const (
	// turnPatience is how long a call waits for its turn, at most. The doc of Auto names it.
	turnPatience = 100 * time.Millisecond

	// crowded is how many times as long as alone calls may take.
	crowded = 1.5

	// leastTurns is the part of the pool that may be at work in any case; and if it has two connections, two calls may:
	// what one takes by itself does not tell whether it is too few.
	leastTurns = 1.0 / 3

	// othersLast is how many connections must have been acquired by calls that take turns, and none by anybody else, for
	// these to have the pool to themselves: who takes one of so many does not wait often.
	othersLast = 100

	// aloneLasts is how long it is relied on what calls have taken alone.
	aloneLasts = 10 * time.Second

	// mostMisses is how many calls in a row are alone because it could not be seen what the one before took. It may be that
	// this never can: where nothing is prepared, say.
	mostMisses = 8

	// callWork is what a call takes besides its statements, about.
	callWork = 50 * time.Microsecond
)

// A turn is a call's.
type turn struct {
	began    time.Time
	number   int           // of the turn, if it began with nobody else at work; otherwise 0
	work     time.Duration // of the statements so far, on the lane that has the most
	missed   bool          // part of it
	snapshot bool          // of a call that has one
}

// A pace is how long calls have taken for the work that they were: sums that decay.
type pace struct{ took, work float64 }

func (p *pace) add(took, work time.Duration) {
	const memory = 15.0 / 16
	p.took = p.took*memory + float64(took)
	p.work = p.work*memory + float64(work)
}

func (t *turns) init(maxConns int, acquires func() int64) {
	t.most, t.width, t.acquires = maxConns, float64(maxConns), acquires
}

// take returns when it is the caller's turn, patience is at its end, or ctx has ended. In any case, end is to follow.
func (t *turns) take(ctx context.Context, patience time.Duration) (mine turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) > 0 || !t.admits() {
		t.wait(ctx, patience)
	} else {
		t.admit()
	}
	mine.began = time.Now()
	if t.working == 1 {
		mine.number = t.begun
	}
	return mine
}

// wait waits until the caller is admitted, or admits itself. It is called with mu held, which is let go of meanwhile.
func (t *turns) wait(ctx context.Context, patience time.Duration) {
	mine := make(chan struct{})
	t.waiting = append(t.waiting, mine)
	t.mu.Unlock()
	select {
	case <-mine:
	case <-time.After(patience):
	case <-ctx.Done():
	}
	t.mu.Lock()
	if i := slices.Index(t.waiting, mine); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		t.admit()
		if time.Now().After(t.look) {
			t.look = time.Now().Add(aloneLasts) // calls are too long for one to be alone: nobody else is to wait for that
		}
		t.admitWaiting()
	}
}

// admitWaiting lets in as many of those that wait as may be at work. It is called with mu held.
func (t *turns) admitWaiting() {
	for len(t.waiting) > 0 && t.admits() {
		t.admit()
		close(t.waiting[0])
		t.waiting = t.waiting[1:]
	}
}

// admits reports whether one more may be at work. It is called with mu held.
func (t *turns) admits() bool {
	switch {
	case t.working == 0:
		return true
	case t.alone || t.working >= t.most:
		return false
	case t.working >= int(math.Round(t.width)) && t.others():
		return false
	}
	return time.Now().Before(t.look)
}

// others reports whether the pool is used by anybody but calls that take turns. It is called with mu held.
func (t *turns) others() bool {
	acquires := t.acquires()
	ours := t.ours.Load() // after that, so that none of ours is taken for somebody else's
	if theirs := acquires - ours; theirs > t.theirs {
		t.theirs, t.seen = theirs, ours
	}
	return ours-t.seen < othersLast
}

// admit lets one more be at work. It is called with mu held.
func (t *turns) admit() {
	t.begun++
	t.working++
	t.alone = t.working == 1 && time.Now().After(t.look)
	if t.alone {
		t.look = time.Now().Add(aloneLasts)
	}
}

// learn notes that n executions of x, and base besides, have taken d together. They are part of a call with turn mine, on a
// lane that has had as much work before.
func (t *turns) learn(mine *turn, work *time.Duration, x *text, base, d time.Duration, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.working == 1 || x.alone.count == 0 {
		x.alone.add(float64(max(0, d-base)) / float64(n))
	}
	*work += base + time.Duration(x.alone.mean*float64(n))
	mine.work = max(mine.work, *work)
}

// miss notes that part of what the call with turn mine takes is work that nobody knows: a statement was described or parsed,
// or has not come to its end. Then it says nothing of how long its work takes.
func (t *turns) miss(mine *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine.missed = true
}

// end is called when the call with turn mine has ended.
func (t *turns) end(mine *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	took, of := time.Since(mine.began), &t.plain
	if mine.snapshot {
		of = &t.snapshot
	}
	alone := mine.number == t.begun // nobody has come since
	switch {
	case mine.missed && alone:
		if t.misses++; t.misses < mostMisses {
			t.look = time.Time{}
		} else {
			t.misses = 0
		}
	case mine.missed:
	case alone:
		of.apart.add(took, callWork+mine.work)
		t.look, t.misses = time.Now().Add(aloneLasts), 0
	case of.apart.work > 0:
		of.together.add(took, callWork+mine.work)
		stretch := of.together.took / of.together.work * of.apart.work / of.apart.took
		t.width += (float64(t.working)*crowded/stretch - t.width) / 8
		t.width = min(max(t.width, leastTurns*float64(t.most), 2), float64(t.most))
	}
	t.working--
	t.admitWaiting()
}

// An average moves with what is added to it.
type average struct {
	mean  float64
	count int
}

func (a *average) add(v float64) {
	a.count++
	a.mean += max(1.0/16, 1/float64(a.count)) * (v - a.mean)
}

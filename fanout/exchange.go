package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// An exchange is where the query functions of a Pipelined call and its lanes meet. Each function runs in a runner's
// goroutine, as if it had a connection of its own, until it asks for a statement; there it parks. Lanes pick up parked
// requests and send them, several at a time, and hand back what the server answers.
//
// The first request of a query function may go by any lane; the later ones stay with that lane. So a slow statement holds
// up only what has been sent behind it already, and how much that may be follows from what statements are known to cost.
//
// A lane that has nothing under way first waits until every function has parked or returned, so that all they ask for
// travels together; but not longer than gatherWait: a function may be busy with something else.
type exchange struct {
	call  *call
	ahead int // the most functions that run at once

	mu       sync.Mutex
	ready    []*request    // first requests, that any lane may pick up, in the order of their units
	work     time.Duration // what ready is expected to cost
	unknown  int           // of ready, whose cost is not known
	drained  bool          // no unit is left to begin
	busy     int           // functions of this epoch that are neither parked nor known to be busy with something else
	epoch    int
	live     int // runners
	began    bool
	lanes    []*pipeline             // connected
	starting int                     // lanes that wait for a connection
	spare    int                     // lanes that may be started
	stop     context.CancelCauseFunc // ends the waits of starting lanes
	over     error                   // why there is no lane any more

	// timer ends the wait for busy functions. timers counts its functions that run or may yet.
	timer  *time.Timer
	timers sync.WaitGroup
}

const (
	// gatherWait is how long parked statements wait for a function that is busy with something else. The package's doc
	// names it.
	gatherWait = time.Millisecond

	// aheadPerLane is how many functions run ahead for each lane that the call may have, and how many statements a lane
	// may have under way.
	aheadPerLane = 32

	// laneWork is the least work that is worth a lane's taking part: what waking it, its system calls and the server's
	// process cost is about a fifth of that.
	laneWork = 250 * time.Microsecond
)

// errNotNeeded is why a lane's wait for a connection ends when nothing is left for it to do.
var errNotNeeded = errors.New("no connection is needed any more")

// runPipelined runs the units by at most width lanes.
func (c *call) runPipelined(width int) {
	x := &exchange{call: c, ahead: min(c.n, aheadPerLane*width), spare: width}
	c.exchange = x
	x.mu.Lock()
	x.start(c.acquireCtx)
	x.mu.Unlock()
}

// end is called when all runners and lanes have ended.
func (x *exchange) end() {
	x.mu.Lock()
	x.stopTimer()
	if x.stop != nil {
		x.stop(nil)
	}
	x.mu.Unlock()
	x.timers.Wait()
}

// begin starts the query functions, with the first lane that has a connection. It is called with mu held.
func (x *exchange) begin() {
	if x.began {
		return
	}
	x.began = true
	x.live, x.busy = x.ahead, x.ahead
	for range x.ahead {
		w := &runner{exchange: x, lane: lane{call: x.call}}
		x.call.group.Go(w.run)
	}
}

// park hands in a request, whose function waits from now on. It fails if there is no lane to send it.
func (x *exchange) park(r *request) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := r.handle
	if r.text != nil {
		r.cost, r.counted = r.text.expected()
	}
	switch p := h.pipeline; {
	case p != nil && p.broken != nil:
		return p.broken
	case p != nil:
		p.own = append(p.own, r)
	case x.over != nil:
		return errUnsent{x.over}
	default:
		x.offer(r)
	}
	x.wait(r)
	return nil
}

// offer makes r ready for any lane. It is called with mu held.
func (x *exchange) offer(r *request) {
	at, _ := slices.BinarySearchFunc(x.ready, r.handle.unit, func(r *request, unit int) int { return r.handle.unit - unit })
	x.ready = slices.Insert(x.ready, at, r)
	x.work += r.cost
	if r.counted == 0 {
		x.unknown++
	}
}

// wait notes that r's function waits. It is called with mu held.
func (x *exchange) wait(r *request) {
	r.waiting = true
	w := r.handle.runner
	w.parked = true
	if w.epoch == x.epoch {
		x.busy--
	}
	x.gather()
}

// resume notes that r's function does not wait any more. It is called with mu held.
func (x *exchange) resume(r *request) {
	r.waiting = false
	w := r.handle.runner
	w.parked = false
	w.epoch = x.epoch
	x.busy++
}

// answer wakes r's function, if it waits. It is called with mu held.
func (x *exchange) answer(r *request) {
	if r.waiting {
		x.resume(r)
		r.handle.wake <- struct{}{}
	}
}

// gather has the lanes pick up what is parked, if no function is busy; otherwise a little later, whatever they are busy
// with. It is called with mu held.
func (x *exchange) gather() {
	if x.busy > 0 {
		if x.timer == nil && (len(x.ready) > 0 || slices.ContainsFunc(x.lanes, (*pipeline).parked)) {
			x.timers.Add(1)
			epoch := x.epoch
			x.timer = time.AfterFunc(gatherWait, func() {
				defer x.timers.Done()
				x.expire(epoch)
			})
		}
		return
	}
	x.stopTimer()
	for _, p := range x.lanes {
		if len(p.own) > 0 || x.live == 0 {
			p.wakeUp()
		}
	}
	x.summon()
}

func (x *exchange) stopTimer() {
	if x.timer != nil && x.timer.Stop() {
		x.timers.Done()
	}
	x.timer = nil
}

// expire ends the wait for functions that are still busy: with something else, it seems.
func (x *exchange) expire(epoch int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.epoch != epoch || x.timer == nil {
		return
	}
	x.timer = nil
	x.epoch++
	x.busy = 0
	x.gather()
}

// summon has another lane come for what is ready: an idle one, or else new ones. It is called with mu held.
func (x *exchange) summon() {
	if len(x.ready) == 0 {
		return
	}
	for _, p := range x.lanes {
		if p.idle {
			p.wakeUp()
			return
		}
	}
	if !x.began || x.spare == 0 || x.call.ctx.Err() != nil {
		return
	}
	if x.starting > 0 {
		return
	}
	var ctx context.Context
	ctx, x.stop = context.WithCancelCause(x.call.acquireCtx)
	for want := x.unknown + int((x.work+laneWork-1)/laneWork); want > 0 && x.spare > 0; want-- {
		x.start(ctx)
	}
}

// unready notes that r is not ready any more. It is called with mu held.
func (x *exchange) unready(r *request) {
	x.work -= r.cost
	if r.counted == 0 {
		x.unknown--
	}
}

// share is the part of what is ready that a lane may take, so that something is left for those that are about to come.
func (x *exchange) share() time.Duration {
	lanes := 1
	for _, p := range x.lanes {
		if p.idle {
			lanes++
		}
	}
	if x.starting > 0 {
		lanes += min(x.starting, int(x.call.pool.Stat().IdleConns()))
	}
	return max(laneWork, x.work/time.Duration(lanes))
}

// start starts one lane. It is called with mu held.
func (x *exchange) start(ctx context.Context) {
	x.starting++
	x.spare--
	p := &pipeline{lane: lane{call: x.call}, exchange: x, ctx: ctx, wake: make(chan struct{}, 1)}
	x.call.group.Go(p.run)
}

// started is called by a lane that has got its connection, or failed to.
func (x *exchange) started(p *pipeline, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.starting--
	if ok {
		x.lanes = append(x.lanes, p)
		x.begin()
		return
	}
	if context.Cause(p.ctx) == errNotNeeded {
		x.spare++
	} // else another one would fail too
	x.missing()
	x.gather()
}

// left is called by a lane that has ended.
func (x *exchange) left(p *pipeline) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.remove(p)
	if x.live > 0 && len(x.lanes)+x.starting == 0 && x.call.borrowed == nil && x.call.ctx.Err() == nil {
		x.start(x.call.ctx)
	}
	x.missing()
	x.gather()
}

// remove takes a lane out that picks up nothing any more. It is called with mu held.
func (x *exchange) remove(p *pipeline) {
	if i := slices.Index(x.lanes, p); i >= 0 {
		x.lanes = slices.Delete(x.lanes, i, i+1)
		x.spare++
	}
}

// missing ends the exchange if there is no lane left, and none to come. It is called with mu held.
func (x *exchange) missing() {
	if !x.began || len(x.lanes)+x.starting > 0 || x.over != nil {
		return
	}
	x.over = fmt.Errorf("fanout: %w, and there is no other", errConnectionLost)
	if err := x.call.lastNoConn(); err != nil {
		x.over = fmt.Errorf("%w: %w", x.over, err)
	}
	for _, r := range x.ready {
		r.answered, r.err = true, errUnsent{x.over}
		x.answer(r)
	}
	x.ready, x.work, x.unknown = nil, 0, 0
}

// leave is called by a runner that has no unit any more.
func (x *exchange) leave(w *runner) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.live--
	x.drained = true
	if w.epoch == x.epoch {
		x.busy--
	}
	x.gather()
}

// abandon is called by a function that goes on because its ctx has ended. It reports whether r was still to be answered.
func (x *exchange) abandon(r *request) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !r.waiting {
		<-r.handle.wake
		return false
	}
	x.resume(r)
	ctx := r.ctx
	if ctx.Err() == nil {
		ctx = &r.handle.ctx
	}
	r.abandoned = true
	r.chunks = nil
	r.err = cancelled(ctx, r.sent)
	p := r.handle.pipeline
	if i := slices.Index(x.ready, r); i >= 0 {
		x.ready = slices.Delete(x.ready, i, i+1)
		x.unready(r)
	} else if p != nil {
		if i := slices.Index(p.own, r); i >= 0 {
			p.own = slices.Delete(p.own, i, i+1)
		} else {
			p.interrupt(r)
		}
	}
	return true
}

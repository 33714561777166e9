package fanout

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"
)

// An exchange is where the query functions of a Pipelined call and its lanes meet. Each function runs as if it had a
// connection of its own, until it asks for a statement; there it parks. Lanes pick up parked requests and send them,
// several at a time, and hand back what the server answers.
//
// The first request of a query function may go by any lane; the later ones stay with that lane. So a slow statement holds
// up only what has been sent behind it already, and how much that may be follows from what statements are known to cost.
//
// Functions are coroutines: whoever has an answer for one runs it on, in his own goroutine, until it parks again. That
// gathers what they ask for by itself, and costs a tenth of waking a goroutine for each. See driver.
type exchange struct {
	call *call

	mu       sync.Mutex
	ready    []*request    // first requests, that any lane may pick up, in the order of the call's units
	work     time.Duration // what ready is expected to cost
	unknown  int           // of ready, whose cost is not known
	drained  bool          // no unit of the call is left to begin
	live     int           // runners, those of joined calls included
	unborn   int           // of these, not started
	began    bool
	lanes    []*pipeline             // connected
	starting int                     // lanes that wait for a connection
	leaving  int                     // lanes that pick up nothing any more, and still have their connections
	spare    int                     // lanes that may be started
	sealed   bool                    // but not any more: they could not have the call's snapshot
	nesting  int                     // functions that have no lane, and wait for a nested call that has joined
	stop     context.CancelCauseFunc // ends the waits of starting lanes
	over     error                   // why there is no lane any more
	closed   bool                    // the call's ctx has ended
	loose    []*driver               // that are not those of lanes
	loads    []time.Duration         // memory for share
	watched  bool                    // the drivers are looked after

	unwatch   func() bool    // stops the watch of the call's ctx
	callbacks sync.WaitGroup // functions of ctxs that run or may yet
}

const (
	// stallBound is how long, to within as much again, others wait for a function that is busy with something else. The
	// doc of Pipelined gives an idea of it.
	stallBound = time.Millisecond

	// aheadPerLane is how many functions run ahead for each lane that the call may have.
	aheadPerLane = 32

	// maxUnderWay is how many statements a lane may have under way that others could have sent: where round trips are long
	// and statements are quick, a few lanes do with less work what more of them would.
	maxUnderWay = 2 * aheadPerLane

	// startTogether is how many functions are started before a lane looks what they have asked for. Fewer would let the
	// server begin sooner; but where it shares the processor with them, each writing interrupts them for what it executes.
	startTogether = 32

	// startWork is many times what it takes to start a function.
	startWork = 100 * time.Microsecond

	// levelTogether is startTogether where functions may have statements in common, if these are no more than little work:
	// as many as one has, mostly, who writes a loop within a loop. More than that keep the server waiting.
	levelTogether = 128

	// laneWork is the least work that is worth a lane's taking part: what waking it, its system calls and the server's
	// process cost is about a fifth of that.
	laneWork = 250 * time.Microsecond

	// onlyWork is how much more work than lasts a round trip goes ahead on a call's only lane. No other lane could run it;
	// but when the call ends early, each statement that has been sent must be cancelled in turn.
	onlyWork = 100 * time.Millisecond

	// freshWork is how much more than laneWork a lane must be worth on a connection that nothing has run on: there the
	// server's process has catalogs to load.
	freshWork = 2 * time.Millisecond
)

// errNotNeeded is why a lane's wait for a connection ends when nothing is left for it to do.
var errNotNeeded = errors.New("no connection is needed any more")

// runPipelined runs the units by at most width lanes.
func (c *call) runPipelined(width int) {
	x := &exchange{call: c, spare: width}
	c.exchange = x
	x.callbacks.Add(1)
	x.unwatch = context.AfterFunc(c.ctx, x.close)
	x.mu.Lock()
	x.start(c.acquireCtx)
	x.mu.Unlock()
}

// end is called when all runners and lanes have ended.
func (x *exchange) end() {
	x.mu.Lock()
	x.retire()
	if x.stop != nil {
		x.stop(nil)
	}
	x.mu.Unlock()
	x.callbacks.Wait()
}

// retire ends the watch of the call's ctx, which nobody needs any more. It is called with mu held.
func (x *exchange) retire() {
	if x.unwatch != nil && x.unwatch() {
		x.callbacks.Done()
	}
	x.unwatch = nil
}

// begin starts the query functions, with the first lane that has a connection. It is called with mu held.
func (x *exchange) begin() {
	if x.began {
		return
	}
	x.began = true
	x.live = min(x.call.n, aheadPerLane*x.call.width())
	x.unborn = x.live
}

// bear has d start some more query functions, and reports whether there were any. Not all at once: the server is to have
// something to do while the others are started.
func (x *exchange) bear(d *driver) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := startTogether
	if x.call.coalesced {
		n = levelTogether / 2
	}
	n = min(n, x.unborn)
	x.unborn -= n
	d.runnable = append(d.runnable, newRunners(n, x.call)...)
	return n > 0
}

// gather has d start more functions before anything is sent: the other half of a level, unless the first is enough to be
// getting on with; and as many as there are, if what is ready takes so long that starting them does not count. Then it can
// be divided evenly.
func (x *exchange) gather(d *driver) bool {
	x.mu.Lock()
	level := x.call.coalesced && len(x.ready) < levelTogether && x.work < jointBase
	long := x.work > time.Duration(x.unborn)*startWork
	more := x.unknown == 0 && (level || long)
	x.mu.Unlock()
	return more && x.bear(d)
}

// park hands in a request, whose function waits from now on. It fails if there is no lane to send it.
func (x *exchange) park(r *request) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := r.handle
	if r.text != nil {
		r.cost, r.counted = x.expected(r)
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
	if x.closed || h.ctx.Err() != nil {
		x.forsake(r)
		return r.err
	}
	r.waiting = true
	if p := h.pipeline; p != nil {
		p.wakeUp()
	}
	return nil
}

// offer makes r ready for any lane. It is called with mu held.
func (x *exchange) offer(r *request) {
	behind := r.handle.outermost().unit + 1 // those of calls that are nested in the same unit
	at, _ := slices.BinarySearchFunc(x.ready, behind, func(r *request, unit int) int { return r.handle.outermost().unit - unit })
	x.ready = slices.Insert(x.ready, at, r)
	x.work += r.cost
	if r.counted == 0 {
		x.unknown++
	}
}

// answer has r's function go on, if it waits, with what d drives. It is called with the exchange's mu held.
func (d *driver) answer(r *request) {
	if r.waiting {
		r.waiting = false
		d.runnable = append(d.runnable, r.handle.runner)
	}
}

// summon has another lane come for what is ready: an idle one, or else new ones. It is called with mu held.
func (x *exchange) summon() {
	if len(x.ready) == 0 {
		return
	}
	for _, p := range x.lanes {
		if p.idle && p.feeding == nil && p.owner == nil {
			p.wakeUp()
			return
		}
	}
	for _, p := range x.lanes {
		if p.feeding != nil {
			p.wakeUp() // that waits for a function to take its rows: no longer than others can wait
		} // else somebody has it to himself; two such lanes would wake each other for ever
	}
	if !x.began || x.spare == 0 || x.sealed || x.call.ctx.Err() != nil {
		return
	}
	if x.starting > 0 || !x.room() {
		return
	}
	var ctx context.Context
	ctx, x.stop = context.WithCancelCause(x.call.acquireCtx)
	for want := max(1, x.unknown+worthwhile(x.work, laneWork)); want > 0 && x.spare > 0 && x.room(); want-- {
		x.start(ctx)
	}
}

// worthwhile is how many lanes work is worth, if that is the least for one: the time that it takes falls with their number,
// what they cost rises with it, and the sum is least at the root of the ratio.
func worthwhile(work, least time.Duration) int {
	return int(math.Ceil(math.Sqrt(float64(work) / float64(least))))
}

// unready notes that r is not ready any more. It is called with mu held.
func (x *exchange) unready(r *request) {
	x.work -= r.cost
	if r.counted == 0 {
		x.unknown--
	}
}

// reckon has it counted what is known by now of what is ready. It is called with mu held.
func (x *exchange) reckon() {
	for _, r := range x.ready {
		if r.counted > 0 || r.text == nil {
			continue
		}
		if cost, counted := x.expected(r); counted > 0 {
			x.unready(r)
			r.cost, r.counted = cost, counted
			x.work += cost
		}
	}
}

// share is the part of what is ready that p may take, so that all lanes end at the same time, those included that are
// about to come; but not so little that they had better not. It is called with mu held.
func (x *exchange) share(p *pipeline) time.Duration {
	least := laneWork
	if !p.state.ran {
		least += freshWork
	}
	least *= time.Duration(max(1, worthwhile(x.work, least)))
	if x.work <= least {
		return least
	}
	now := time.Since(epoch)
	own := p.remaining(now)
	x.loads = append(x.loads[:0], own)
	for _, other := range x.lanes {
		if other != p && other.feeding == nil && other.owner == nil {
			x.loads = append(x.loads, other.remaining(now))
		}
	}
	coming := x.starting // which may have their connections
	if x.spare > 0 && !x.sealed && x.room() {
		coming += min(x.spare, int(x.call.pool.Stat().IdleConns()))
	}
	for range coming {
		x.loads = append(x.loads, 0)
	}
	return max(least, level(x.work, x.loads)-own)
}

// level is up to where work fills lanes that have loads already, if it is divided as evenly as can be. It sorts loads.
func level(work time.Duration, loads []time.Duration) time.Duration {
	slices.Sort(loads)
	for i, load := range loads {
		work += load
		if even := work / time.Duration(i+1); i+1 == len(loads) || even <= loads[i+1] {
			return even
		}
	}
	return work
}

// load is what the statements under way on the lane are expected to take together. It is called with mu held.
func (p *pipeline) load() (load time.Duration) {
	for _, r := range p.inflight {
		load += r.cost
	}
	return load
}

// remaining is what is left of the load, and what is about to be sent. It is called with mu held.
func (p *pipeline) remaining(now time.Duration) time.Duration {
	return max(0, p.load()-(now-p.since)) + p.picked
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
		x.revive() // what a lane had taken that has been lost since, it may have given back
	} // else another one would fail too
	x.missing()
	x.summon()
	x.releaseExporter()
}

// left is called by a lane that has ended.
func (x *exchange) left(p *pipeline) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.remove(p)
	x.leaving--
	x.spare++
	x.revive()
	x.missing()
	x.summon()
	x.releaseExporter()
}

// settled reports whether each function that still runs has a lane that it goes on with, other than p, which has exported the
// call's snapshot; or waits for a nested call. Nobody will have to import any more. It is called with mu held.
func (x *exchange) settled(p *pipeline) bool {
	if !x.drained || len(x.ready) > 0 || x.starting > 0 {
		return false
	}
	settled := x.nesting
	for _, other := range x.lanes {
		if other != p && other.units == 0 {
			return false // it leaves too
		}
		settled += other.units
	}
	return settled >= x.live
}

// releaseExporter has the lane that has exported the call's snapshot look whether it is needed any more. It is called with mu
// held.
func (x *exchange) releaseExporter() {
	if x.call.snapshot == nil || !x.drained {
		return
	}
	for _, p := range x.lanes {
		if p.exports() && p.idle && x.settled(p) {
			p.wakeUp()
		}
	}
}

// seal is called when p leaves. If it has exported the call's snapshot, and functions still run, those lanes that go on have
// imported it or do so now, and no other lane is started. It is called with mu held.
func (x *exchange) seal(p *pipeline) {
	if x.live == 0 || !p.exports() {
		return
	}
	x.sealed = true
	for _, other := range x.lanes {
		x.call.takes(other.transaction)
	}
}

// revive starts a lane where functions are left and no lane is. It is called with mu held.
func (x *exchange) revive() {
	if x.live > 0 && x.began && len(x.lanes)+x.starting+x.leaving == 0 && x.call.borrowed == nil && x.call.ctx.Err() == nil {
		var ctx context.Context
		ctx, x.stop = context.WithCancelCause(x.call.ctx)
		x.start(ctx)
	}
}

// remove takes a lane out that picks up nothing any more. It is called with mu held.
func (x *exchange) remove(p *pipeline) {
	if i := slices.Index(x.lanes, p); i >= 0 {
		x.lanes = slices.Delete(x.lanes, i, i+1)
		x.leaving++
		x.loose = append(x.loose, p.driver) // which has functions to run on
	}
}

// missing ends the exchange if there is no lane left, and none to come. It is called with mu held.
func (x *exchange) missing() {
	if !x.began || len(x.lanes)+x.starting+x.leaving > 0 || x.over != nil {
		return
	}
	x.call.mu.Lock()
	x.over = x.call.noOther()
	x.call.mu.Unlock()
	d := &driver{exchange: x}
	for _, r := range x.ready {
		r.answered, r.err = true, errUnsent{x.over}
		r.untrace()
		d.answer(r)
	}
	x.goDrive(d)
	x.ready, x.work, x.unknown = nil, 0, 0
}

// tryAgain begins anew, for a function that runs once more, where no connection was to be had.
func (x *exchange) tryAgain() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over != nil {
		x.over, x.spare = nil, x.call.width()
		x.revive()
	}
}

// leave is called by a runner that has no unit any more.
func (x *exchange) leave(w *runner) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.live--
	x.releaseExporter()
	if w.call.outer != nil {
		x.leaveJoined(w)
		return
	}
	if x.drained && x.live > 0 {
		return
	}
	x.drained = true
	// Lanes that have nothing to do may not be needed any more; behind a pooler others may wait for a server connection
	// that they hold.
	for _, p := range x.lanes {
		p.wakeUp()
	}
	if x.live > 0 {
		return
	}
	x.retire()
	x.unneeded()
}

// unneeded ends the wait for further connections. It is called with mu held.
func (x *exchange) unneeded() {
	if x.stop != nil {
		x.call.unneeded(x.stop)
		x.stop = nil
	}
}

// close is called when the call's ctx has ended: no function waits any longer.
func (x *exchange) close() {
	defer x.callbacks.Done()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.live == 0 {
		return
	}
	x.closed = true
	var waiting []*request
	collect := func(requests []*request) {
		for _, r := range requests {
			for m := range r.each {
				if m.waiting {
					waiting = append(waiting, m)
				}
			}
		}
	}
	collect(x.ready)
	for _, p := range x.lanes {
		collect(p.own)
		collect(p.again)
		collect(p.inflight)
	}
	d := &driver{exchange: x}
	for _, r := range waiting {
		x.forsake(r)
		d.answer(r)
	}
	x.goDrive(d)
	for _, p := range x.lanes {
		p.wakeUp()
	}
}

// abandonAfter has r abandoned when ctx ends. Who stops that is done with one of the callbacks.
func (x *exchange) abandonAfter(ctx context.Context, r *request) (stop func() bool) {
	x.callbacks.Add(1)
	return context.AfterFunc(ctx, func() { x.abandon(r) })
}

// abandon is called when a ctx has ended that r's function has made for this statement alone, or that of a joined call.
func (x *exchange) abandon(r *request) {
	defer x.callbacks.Done()
	x.mu.Lock()
	defer x.mu.Unlock()
	if !r.waiting {
		return
	}
	if r.writing {
		r.late = true
		return
	}
	d := &driver{exchange: x}
	x.forsake(r)
	d.answer(r)
	x.goDrive(d)
}

// dismiss has r's function go on if a ctx has ended while r was being written. It is called with mu held.
func (x *exchange) dismiss(r *request, d *driver) {
	if r.waiting && (x.closed || r.late) {
		x.forsake(r)
		d.answer(r)
	}
}

// forsake notes that nobody waits for r any more, because a ctx has ended. It is called with mu held.
func (x *exchange) forsake(r *request) {
	ctx := r.ctx
	if ctx.Err() == nil {
		ctx = r.handle.ctx.Context
	}
	if ctx.Err() == nil {
		ctx = x.call.ctx
	}
	r.abandoned = true
	r.spared = x.spares(r)
	r.chunks, r.taken = nil, 0
	r.err = cancelled(ctx, r.sent)
	p := r.handle.pipeline
	if i := slices.Index(x.ready, r); i >= 0 {
		x.ready = slices.Delete(x.ready, i, i+1)
		x.unready(r)
		r.untrace()
	} else if p != nil {
		if i := slices.Index(p.own, r); i >= 0 {
			p.own = slices.Delete(p.own, i, i+1)
			r.untrace() // of a statement that it was not to be a member of after all
		} else {
			p.interrupt(r)
		}
	}
}

package fanout

// A call joins when it is nested in a query function of a Pipelined call and is Pipelined itself: its query functions run
// beside those of the outer call, in the same exchange, and what they ask for goes by the same lanes. So the nested calls
// of many functions travel together, as their own statements do. Otherwise the outer functions would have a connection to
// themselves one after the other, and for each the nested call's statements would be sent one by one.
//
// The nested call keeps what makes it a call: its units, ctx and errors are its own. It has no lanes; what concerns a
// lane concerns the outer call. Its functions send by the lane that the outer function has sent something by, because it
// is on that connection that a nested call runs; where there is none yet, by any.

const (
	// joinedRunners is how many functions of a joined call run at once, at most: a level of a tree is to be together.
	joinedRunners = 8 * aheadPerLane

	// runnersPerLane is how many runners an exchange may have for each lane, before joined calls have one each only. That
	// is enough for any of the functions that run ahead to have a nested call of as many; only deeper nesting could make
	// their number grow with every level.
	runnersPerLane = aheadPerLane * (1 + aheadPerLane)
)

// joins reports whether the call, which is nested in a function with exchange x, can join. A snapshot of its own is a
// transaction, for which it must have a connection to itself.
func (c *call) joins(x *exchange) bool {
	return c.pipelined && x != nil && (!c.wantSnapshot || x.call.snapshot != nil || x.call.inside())
}

// join runs the units beside those of the outer call. The outer function is parked until they have ended: whoever has run
// the last one runs it on.
func (c *call) join() {
	x, outer := c.exchange, c.outer.runner
	x.mu.Lock()
	room := runnersPerLane*x.call.width() - x.live
	c.runners = min(c.n, joinedRunners, max(1, room))
	x.live += c.runners
	x.runOn(outer.driver, newRunners(c.runners, c)...)
	if c.outer.pipeline == nil {
		x.nesting++
		x.releaseExporter()
	}
	x.mu.Unlock()
	outer.park()
	x.mu.Lock()
	if c.outer.pipeline == nil {
		x.nesting--
	}
	x.mu.Unlock()
}

// leaveJoined has the outer function go on when w was the last runner of its nested call. It is called with mu held.
func (x *exchange) leaveJoined(w *runner) {
	c := w.call
	c.runners--
	if c.runners == 0 {
		x.runOn(w.driver, c.outer.runner)
	}
}

// outermost is the handle of the outer call's function that h's is nested in, at whatever depth: h itself, if it is not.
func (h *handle) outermost() *handle {
	for h.call.outer != nil {
		h = h.call.outer
	}
	return h
}

// follow makes the lane of a joined call's outer function that of h, which is new.
func (h *handle) follow() {
	outer := h.call.outer
	if outer == nil {
		return
	}
	x := h.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := outer.pipeline; p != nil {
		h.pipeline = p
		p.units++
	}
}

// handUp leaves the lane of h, whose function in a joined call has left something in the session, or has panicked, to the
// outer function, which goes on with the connection as it would if the nested call had run on one that is its own. One that
// panics in turn has the outer call destroy it, and nobody sees before what has become of it.
func (h *handle) handUp() {
	outer, x := h.call.outer, h.exchange
	outer.mu.Lock()
	defer outer.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	p := h.pipeline
	if p == nil {
		return
	}
	if outer.pipeline == nil {
		outer.pipeline = p
		x.nesting-- // the outer function is one of the lane's units now
	} else {
		p.units--
	}
	if h.alone && outer.pipeline == p {
		h.alone = false
		outer.link, outer.db = h.link, h.db
		outer.alone, outer.keeps = true, true
		p.owner = outer
	}
	p.wakeUp()
}

// spares reports whether r, which nobody waits for any more, is to run to its end. In the caller's transaction a cancelled
// statement aborts what the outer function may well want to go on with: it is not cancelled only because another query
// of its joined call has failed, after which Serial would not have sent it. It is called with mu held.
func (x *exchange) spares(r *request) bool {
	var ended *call // the outermost
	for c := r.handle.call; c.outer != nil; c = c.outer.call {
		if c.ctx.Err() != nil {
			ended = c
		}
	}
	return ended != nil && x.call.tx != nil && !x.closed && ended.parent.Err() == nil && ended.outer.ctx.Err() == nil
}

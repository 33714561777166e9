package fanout

import (
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// pick takes what is to be sent now: no more ahead than pays. It is called with mu held.
//
// What is under way on a lane, beside what is executing, must last a round trip, or the server waits for it (the
// bandwidth-delay product); laneWork on top of that spares system calls. Any more would only make statements wait here that
// another lane could run; so would more than this lane's share of what is ready. A call's only lane may send more than
// that, which none of them could. As long as little is known of a statement, it may turn out to be slow: nothing is sent
// behind one of the same text, and at most one statement behind another; nor is it sent behind one that has to be described
// first, which would be executed after it.
func (p *pipeline) pick() []*request {
	x := p.exchange
	p.picked = 0
	if p.doomed {
		return nil
	}
	under := len(p.inflight)
	if under > 0 && (p.spoiled || p.haunted || x.call.ctx.Err() != nil) {
		return nil
	}
	if under > 0 && p.conn.PgConn().Frontend().ReadBufferLen() > 0 {
		return nil // there is an answer already: what its function asks for next is to travel along
	}
	if under > 0 && len(p.again) > 0 && p.state.mode == pgx.QueryExecModeDescribeExec && p.inflight[0].described {
		return nil // so are those that are about to be described, in the second round
	}
	load := p.load()
	trip := x.call.shared.trip.time()
	if under > 0 {
		// The server is not to wait while the functions go on that the first answer is for.
		trip += time.Duration(len(p.inflight[0].members)) * memberWork
	}
	only := x.call.width() == 1 // no other lane could run what is not sent
	ahead := func(least, cost time.Duration) time.Duration {
		if only {
			return trip + onlyWork
		}
		return trip + max(least, min(trip, cost))
	}
	if under > 0 && load > ahead(laneWork/2, p.inflight[0].cost) {
		return nil
	}
	if x.unknown > 0 {
		x.reckon()
	}
	share := x.share(p)
	surplus := p.surplus()
	var batch []*request
	var taken time.Duration
	for {
		from := &p.again
		if len(*from) == 0 {
			from = &p.own
		}
		if len(*from) == 0 {
			from = &x.ready
		}
		if len(*from) == 0 || surplus && from == &x.ready {
			break
		}
		r := (*from)[0]
		alone := r.text == nil || p.state.mode != pgx.QueryExecModeDescribeExec && !canTravel(p.conn, r.text.sql, r.args)
		if alone && (under > 0 || len(batch) > 0) {
			break
		}
		t, cost, counted := r.text, r.cost, r.counted
		var j *joint
		if from != &p.again && !r.abandoned {
			j = p.jointFor(r)
		}
		if j != nil {
			if cost, counted = j.expected(t); counted > 0 || only {
				t = j.text
			} else {
				j = nil // it may be slow, and several of them more so
			}
		}
		if n := under + len(batch); n > 0 && (n >= maxUnderWay && from == &x.ready && !only || p.toBeDescribed(r, t, batch) ||
			from != &p.again && (p.overtakes(r, t, only || counted > 0 && cost <= laneWork, batch) || !only && p.behindUnknown(batch)) ||
			load >= ahead(laneWork, cost) ||
			!only && (taken >= share || int64(n) >= 2+counted || counted == 0 && p.underWay(t, batch))) {
			break
		}
		if j != nil {
			room := max(jointWork, share-taken)
			if only {
				room = math.MaxInt64
			}
			r = p.join(r, j, room)
		} else {
			*from = (*from)[1:]
			if from == &x.ready {
				x.unready(r)
			}
			if !p.drop(r) {
				continue
			}
			for m := range r.each {
				p.bind(m)
			}
		}
		r.pure = p.mayShareSync(r)
		batch = append(batch, r)
		load += r.cost
		taken += r.cost
		if alone {
			r.text = nil
			break
		}
	}
	p.picked = taken
	if len(x.ready) == 0 {
		x.unneeded() // lanes that have no connection yet
		x.releaseExporter()
	}
	return batch
}

// drop answers what nobody waits for any more, of what r stands for. It reports whether there is anything else.
func (p *pipeline) drop(r *request) bool {
	for m := range r.each {
		if m.abandoned {
			m.answered = true
			p.dropped = append(p.dropped, m)
		}
	}
	if r.members != nil {
		r.members = slices.DeleteFunc(r.members, func(m *request) bool { return m.abandoned })
	}
	return r.wanted()
}

// underWay reports whether a statement of that text is under way, or in batch.
func (p *pipeline) underWay(t *text, batch []*request) bool {
	same := func(r *request) bool { return r.text == t }
	return slices.ContainsFunc(p.inflight, same) || slices.ContainsFunc(batch, same)
}

// behindUnknown reports whether a statement goes already behind one of which nothing is known, and that is executed now.
func (p *pipeline) behindUnknown(batch []*request) bool {
	unknown := false
	for _, r := range p.inflight {
		if unknown {
			return true
		}
		unknown = r.counted == 0 && !r.described
	}
	for _, r := range batch {
		if unknown {
			return true
		}
		unknown = r.counted == 0 && !p.describes(r, r.text)
	}
	return false
}

// toBeDescribed reports whether r, of which t is to be sent, must wait for another one of that text to be described on this
// connection.
func (p *pipeline) toBeDescribed(r *request, t *text, batch []*request) bool {
	return p.state.mode != pgx.QueryExecModeExec && p.state.mode != pgx.QueryExecModeDescribeExec && p.state.descriptions[t.sql] == nil &&
		p.toldOf(r, t) == nil && p.underWay(t, batch)
}

// overtakes reports whether r, which is new and asks for t, would be executed before another statement that is only
// described first. In a transaction of the caller's they are executed in the order in which they were asked for. With
// partial, r is not even described before that: if it cannot be, the other one would fail by it. Elsewhere what is quick may
// overtake; anything else would have the other one wait that was there before.
func (p *pipeline) overtakes(r *request, t *text, quick bool, batch []*request) bool {
	inside := p.call.tx != nil
	if !inside && quick || p.describes(r, t) && !(inside && p.call.partial) {
		return false
	}
	return slices.ContainsFunc(p.inflight, func(r *request) bool { return r.described }) ||
		slices.ContainsFunc(batch, func(r *request) bool { return p.describes(r, r.text) })
}

// describes reports whether r, of which t is to be sent, will not be executed when it is sent for the first time.
func (p *pipeline) describes(r *request, t *text) bool {
	told := r.own != nil && r.text == t
	switch p.state.mode {
	case pgx.QueryExecModeExec:
		return false
	case pgx.QueryExecModeDescribeExec:
		return !told
	}
	return !told && p.state.descriptions[t.sql] == nil && p.toldOf(r, t) == nil
}

// toldOf is what another connection to the same place has learned of t, which is to be sent for r; nil if none has, or too long
// ago, or if it is not to be relied on.
func (p *pipeline) toldOf(r *request, t *text) *sourceDescription {
	d := t.description.Load()
	if d == nil || d.place != p.state.place || time.Since(d.found) >= descriptionLasts || r.distrust || p.call.tx != nil {
		return nil
	}
	return d
}

// bind makes the lane r's function's, so that its later requests go by it as well.
func (p *pipeline) bind(r *request) {
	if r.handle.pipeline != p {
		r.handle.pipeline = p
		r.binds = true
		p.units++
	}
}

// unbind makes r, whose function has sent nothing by this lane that counts, ready for any lane. It is called with mu held.
func (p *pipeline) unbind(r *request) {
	r.handle.pipeline = nil
	r.group = nil
	r.own, r.distrust = nil, false // which this connection has told
	p.units--
	p.exchange.offer(r)
}

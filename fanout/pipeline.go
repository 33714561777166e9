package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A pipeline is a lane of a Pipelined call: one goroutine with one connection, on which statements of several query
// functions are under way at once. Each is followed by a Sync of its own, which makes it the transaction that it would be
// if it had been sent alone, and keeps its error from the others.
type pipeline struct {
	lane
	exchange *exchange
	ctx      context.Context // bounds the wait for the connection
	wake     chan struct{}   // holds a token after wakeUp

	// Guarded by the exchange's mu.
	idle     bool          // it waits for something to do
	own      []*request    // of functions that have sent something by this lane
	again    []*request    // to be sent once more, before all others
	units    int           // whose functions have sent something by this lane and still run
	owner    *handle       // has the connection to itself
	used     bool          // somebody had
	broken   error         // why nothing can be sent any more
	doomed   bool          // the connection is not to be used again
	inflight []*request    // sent, in this order
	since    time.Duration // after epoch, when the first of them may have begun to execute
	feeding  *request      // the lane waits for its function to take rows
	cancel   *cancelling
	mute     bool // no cancel request is to be sent any more
	driver   *driver

	// The lane's own.
	ended     bool            // it only waits for functions to run on
	prepared  map[string]bool // in a transaction of the caller's: statements, by this call; false while that is under way
	conn      *pgx.Conn       // the link's; its type map serves functions that still decode when the lane has ended
	pid       uint32
	state     *connState
	dropped   []*request       // that nobody waits for any more, of which the tracer is to be told
	batch     []*request       // to be written now, and what is written of it; nil once that is under way
	sending   []*request       // being written
	unsynced  *request         // written last, its Sync not yet
	together  time.Duration    // expected of those that will share that Sync
	most      time.Duration    // of that
	aborted   bool             // what is read next, up to a Sync, has been skipped by the server
	ran       int              // results read that share the Sync to come
	runTook   time.Duration    // which they have taken, together
	measuring bool             // the way has been measured with them
	probing   bool             // an empty round trip is to be sent ahead of the next statement, to be measured
	probed    time.Time        // when an empty round trip was sent ahead, to be measured
	measured  time.Time        // when its answer came in, ahead of what is read now
	pipe      *pgconn.Pipeline // nil while the connection is not in pipeline mode
	builder   pgx.ExtendedQueryBuilder
	rows      chunk // of the result that is being read
	arrays    arrays
	runs      []jointRun // in rows
	tag       pgconn.CommandTag
	last      time.Time     // when the last result had come in
	busy      time.Duration // since then, with functions
	failed    bool          // to find out whether a text can be coalesced, for a reason that says nothing of the text
	spoiled   bool          // an error has aborted the transaction of a snapshot call: what is under way will fail
	haunted   bool          // a cancel request may yet come to bear on what is under way
	deadline  time.Time     // of what follows a cancel request
	timer     *time.Timer
}

// cancelling is an attempt to have the server end the statement that is executing.
type cancelling struct {
	ended chan struct{} // closed when the statement has
	done  chan struct{} // closed when no cancel request is under way any more
}

const (
	schemasSQL = "select pg_catalog.current_schemas(true)::text"

	// guardSQL fails where names are resolved in other schemas than $1.
	guardSQL = "select 1 / (pg_catalog.current_schemas(true)::text operator(pg_catalog.=) $1)::int"

	// guardCallSQL is guardSQL for a statement that may call a function with a parameter alone. It also fails where one of
	// the types $2, which the parameters have, has the name of a function of this type: if f is a type of strings, f($1) is
	// $1::f to a server that is not told the type of $1; if it is told that it is an f, it calls a function f.
	guardCallSQL = `select 1 / (pg_catalog.current_schemas(true)::text operator(pg_catalog.=) $1 and not exists (
		select from pg_catalog.pg_proc p
		join pg_catalog.pg_type t on t.typname operator(pg_catalog.=) p.proname
			and t.oid operator(pg_catalog.=) any (array[p.proargtypes[0], p.provariadic])
		where t.oid operator(pg_catalog.=) any ($2::pg_catalog.oid[])
			and p.pronargs operator(pg_catalog.-) p.pronargdefaults operator(pg_catalog.<=) 1::pg_catalog.int2))::int`

	// maxRepeats is how often a statement is sent again that a cancel request for another one has hit.
	maxRepeats = 10

	// hauntedSize is more of a result than is on its way from the server when it confirms a cancel request: a statement
	// that has sent so much has not been hit.
	hauntedSize = 8 << 20

	// worthSync is from how many statements on a Sync in between pays, which costs about as much as three of them.
	worthSync = 16
)

// run is the goroutine of a lane that has been started.
func (p *pipeline) run() error {
	c, x := p.call, p.exchange
	p.driver = &driver{exchange: x, lane: p}
	if c.borrowed != nil {
		p.use(c.borrowed, c.borrowedDB)
	} else if !p.tryAcquire() {
		x.started(p, false)
		return nil
	}
	p.conn = p.link.conn
	p.state, p.pid = stateOf(p.conn), p.conn.PgConn().PID()
	p.state.makeRoom()
	x.started(p, true)
	return p.loop(p.driver)
}

// tryAcquire is acquire, and survives what a hook of the pool may do.
func (p *pipeline) tryAcquire() (ok bool) {
	completed := false
	defer func() {
		if !completed {
			p.call.fail(unwound(recover()))
			p.exchange.started(p, false)
		}
	}()
	ok = p.acquire(p.ctx) == nil
	completed = true
	return ok
}

// loop is what a lane does: to run functions on, to send what they have asked for, to read what the server answers. d is
// the lane's driver for as long as this is the lane's goroutine.
func (p *pipeline) loop(d *driver) error {
	completed := false
	defer func() {
		if !completed {
			p.unwind(d, recover())
		}
	}()
	for p.drive(d) {
		p.tellDropped()
		if p.ended {
			p.leave()
			break
		}
		if len(p.inflight) == 0 && p.exchange.gather(d) {
			continue
		}
		batch, more := p.next()
		p.tellDropped()
		if !more {
			p.ended = true // when the functions that this concerns have run on
			p.exchange.lookAfter(d)
			continue
		}
		p.send(batch)
		if !p.exchange.bear(d) {
			p.receive()
		}
	}
	completed = true
	return nil
}

// drive has d run functions on, and notes what that takes: the server may have its next answer ready meanwhile.
func (p *pipeline) drive(d *driver) bool {
	if len(p.inflight) == 0 {
		return d.drive() // nothing is being timed
	}
	began := time.Since(epoch) // which asks for less than time.Now
	if !d.drive() {
		return false
	}
	p.busy += time.Since(epoch) - began
	return true
}

var epoch = time.Now()

// unwind is called when the lane's goroutine is unwinding: by runtime.Goexit in a function that it ran, which is that
// function's affair, or by a panic in a tracer of pgx.
func (p *pipeline) unwind(d *driver, v any) {
	x := p.exchange
	x.mu.Lock()
	lost := d.detached
	d.running = false // no function is: nobody is to take its place before all is done
	x.mu.Unlock()
	if v == nil && lost {
		return
	}
	defer func() { // also if a tracer ends the goroutine once more
		x.mu.Lock()
		defer x.mu.Unlock()
		p.ended = true
		d.detach()
	}()
	err := unwound(v)
	p.call.fail(err)
	p.link.sever() // nothing that has been written is to be sent now, or that is still to come read
	p.lost(err)
}

// unwound is the error of a goroutine that a panic with value v has ended, or with v nil runtime.Goexit.
func unwound(v any) error {
	if v == nil {
		return errGoexit
	}
	return &PanicError{Value: v, Stack: debug.Stack()}
}

// wakeUp has the lane look for something to do. It is called with mu held.
func (p *pipeline) wakeUp() {
	if p.idle {
		p.idle = false
		p.wake <- struct{}{}
	}
}

// next returns what to send, which is nothing if there are results to be read first; it waits while there is nothing at
// all to do. more is false when the lane is not needed any more, or broken.
func (p *pipeline) next() (batch []*request, more bool) {
	x := p.exchange
	for {
		p.quieten()
		x.mu.Lock()
		if p.broken != nil {
			x.mu.Unlock()
			return nil, false
		}
		if p.owner == nil {
			if p.used && !p.reusable() {
				x.mu.Unlock()
				if !p.rollBack() {
					p.fail(errConnectionLost)
					return nil, false
				}
				x.mu.Lock()
			}
			p.used = false
			if t := p.unproven(); t != nil {
				x.mu.Unlock()
				p.miss()
				p.prove(t)
				continue
			}
			batch = p.pick()
			x.summon()
			if len(batch) > 0 || len(p.inflight) > 0 {
				if len(batch) > 0 && batch[0].text == nil {
					p.grant(batch[0])
					batch = nil
				}
				x.mu.Unlock()
				return batch, true
			}
			if p.dispensable() {
				for _, r := range p.again { // which nobody waits for any more
					p.dropped = slices.AppendSeq(p.dropped, r.each)
				}
				p.broken = errLeft
				x.remove(p)
				x.mu.Unlock()
				return nil, false
			}
		}
		if x.unborn > 0 {
			x.mu.Unlock()
			return nil, true
		}
		if p.owner != nil {
			x.summon() // for what this lane cannot send now
		}
		p.idle = true
		first := slices.Index(x.lanes, p) == 0
		x.mu.Unlock()
		p.rest(first)
	}
}

var errLeft = errors.New("fanout: the lane has ended")

// dispensable reports whether the call can do without this lane from now on. The one that exports a call's snapshot stays
// until the end, because any other may yet have to import. It is called with mu held.
func (p *pipeline) dispensable() bool {
	x := p.exchange
	switch {
	case p.doomed:
		return x.closed || len(p.own)+len(p.again) == 0
	case len(p.own) > 0 || len(p.again) > 0 || p.units > 0 || x.unborn > 0:
		return false
	case x.live == 0:
		return true
	case len(x.lanes) == 1 || (len(x.ready) > 0 || !x.drained) && !p.surplus():
		return false
	case p.transaction == nil:
		return true
	}
	exporter, _ := p.call.snapshot.exportedBy(p.transaction)
	return !exporter
}

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
		alone := r.text == nil || p.state.mode != pgx.QueryExecModeDescribeExec && !canTravel(p.conn, r.sql, r.args)
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
		if n := under + len(batch); n > 0 && (n >= maxUnderWay && from == &x.ready && !only || p.toBeDescribed(t, batch) ||
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
	if len(x.ready) == 0 {
		x.unneeded() // lanes that have no connection yet
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

// toBeDescribed reports whether a statement of that text must wait for another one to be described on this connection.
func (p *pipeline) toBeDescribed(t *text, batch []*request) bool {
	return p.state.mode != pgx.QueryExecModeExec && p.state.mode != pgx.QueryExecModeDescribeExec && p.state.descriptions[t.sql] == nil &&
		(t.told() == nil || p.call.tx != nil) && p.underWay(t, batch)
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
	return !told && p.state.descriptions[t.sql] == nil && (p.call.tx != nil || r.distrust || t.told() == nil)
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

// grant gives the connection to one function until it is given back.
func (p *pipeline) grant(r *request) {
	p.owner = r.handle
	r.handle.link, r.handle.db = p.link, p.db
	r.answered, r.granted = true, true
	if r.abandoned {
		p.owner = nil
		return
	}
	p.exchange.answer(r, p.driver)
}

// fail ends the lane: what is under way gets err, and so does what has not been sent, since its function has sent something
// by this lane before; but in a snapshot call, which is read only, it can go by another one.
func (p *pipeline) fail(err error) {
	x := p.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.broken != nil {
		return
	}
	p.broken = err
	x.remove(p)
	var ended []*request
	end := func(r *request) {
		if !r.abandoned {
			r.err = err
		}
		r.answered = true
		ended = append(ended, r)
		x.answer(r, p.driver)
	}
	for _, sent := range p.inflight {
		for r := range sent.each {
			end(r)
		}
	}
	for i, unsent := range slices.Concat(p.again, p.own) {
		for r := range unsent.each {
			// Whatever a function has read in a snapshot, it can read the rest elsewhere. And what was to be sent again has
			// not been executed.
			if r.waiting && (p.call.snapshot != nil || i < len(p.again) && r.binds && !r.streamed) {
				p.unbind(r)
				continue
			}
			end(r)
		}
	}
	for _, unwritten := range p.batch {
		for r := range unwritten.each {
			if !r.answered {
				r.writing = false
				end(r)
			}
		}
	}
	p.inflight, p.again, p.own, p.batch = nil, nil, nil, nil
	for _, r := range ended {
		p.trace(r)
	}
}

// lost is fail for a connection that is gone. If the server has ended it in so many words, while it executed the first of
// what was under way, it has not begun with the others: they can go by another lane. A pooler's words do not tell how far
// the server behind it has come.
func (p *pipeline) lost(err error) {
	p.unprologue(err)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "FATAL" && (strings.HasPrefix(pgErr.Code, "57P") || pgErr.Code == "40001") {
		p.handBack(1)
	}
	if p.pipe != nil {
		_ = p.pipe.Close()
		p.pipe = nil
	}
	p.silence()
	p.link.sever()
	if pgErr != nil && pgErr.SeverityUnlocalized == "ERROR" && refusalOf(err) == nil {
		// Which pgx has been told to close the connection for, by OnPgError. It is nobody else's.
		p.blame(err)
		err = errors.New(err.Error())
	}
	if pgconn.SafeToRetry(err) {
		// So it is to what could not be sent now, which has been handed back; not to what was under way before.
		p.fail(fmt.Errorf("%w: %v", errConnectionLost, err))
		return
	}
	p.fail(fmt.Errorf("%w: %w", errConnectionLost, err))
}

// blame has the first of what was under way fail by err. If that is several, each of them goes by another lane by itself.
func (p *pipeline) blame(err error) {
	x := p.exchange
	x.mu.Lock()
	if len(p.inflight) == 0 {
		x.mu.Unlock()
		return
	}
	first := p.inflight[0]
	p.inflight = p.inflight[1:]
	if first.members != nil {
		p.leaveAlone(first.members)
		x.mu.Unlock()
		return
	}
	x.mu.Unlock()
	p.answer(first, fmt.Errorf("%w: %w", errConnectionLost, err))
}

// handBack makes the requests ready again that are under way from the n-th on, where their functions have sent nothing
// else.
func (p *pipeline) handBack(n int) {
	x := p.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	var kept []*request
	for i, r := range p.inflight {
		keep := func(m *request) bool {
			if i < n || !m.binds || m.abandoned || m.streamed {
				return true
			}
			p.unbind(m)
			return false
		}
		if r.members != nil {
			r.members = slices.DeleteFunc(r.members, func(m *request) bool { return !keep(m) })
			if len(r.members) > 0 {
				kept = append(kept, r)
			}
		} else if keep(r) {
			kept = append(kept, r)
		}
	}
	p.inflight = kept
}

// unprologue settles the prologues that are under way.
func (p *pipeline) unprologue(err error) {
	for _, r := range slices.Concat(p.inflight, p.batch) {
		if ahead := r.prologue; ahead != nil && ahead.settle != nil {
			_ = ahead.settle(nil, err)
			ahead.settle = nil
		}
	}
}

// quieten leaves pipeline mode when nothing is under way, where others are to use the connection or a round trip is due.
func (p *pipeline) quieten() {
	if len(p.inflight) > 0 || p.link == nil {
		return
	}
	if p.haunted {
		p.ordinary()
		p.link.absorb(p.deadline)
		p.haunted = false
		if p.link.closed() {
			p.fail(fmt.Errorf("%w", errConnectionLost))
		}
	}
	p.spoiled = false
	p.ordinary()
}

// rollBack ends the transaction that a function has left open, so that the lane can go on with what others have under
// way by it. It reports whether it can.
func (p *pipeline) rollBack() bool {
	if p.transaction != nil || !p.link.leftOpen() || p.conn.PgConn().IsBusy() {
		return false
	}
	_, _ = p.link.exec(time.Now().Add(cancelGrace), "rollback")
	return p.link.idle()
}

// ordinary leaves pipeline mode.
func (p *pipeline) ordinary() {
	if p.pipe != nil {
		_ = p.pipe.Close()
		p.pipe = nil
	}
	p.probed = time.Time{} // its answer has been read, if nothing followed it
}

// leave gives the connection back.
func (p *pipeline) leave() {
	p.ordinary()
	p.exchange.mu.Lock()
	doomed := p.doomed
	p.exchange.mu.Unlock()
	if p.link != nil {
		if doomed && p.call.borrowed == nil {
			p.link.destroy()
		}
		p.release()
	}
	p.exchange.left(p)
}

// send sends the batch in one go. What cannot be sent is answered at once.
func (p *pipeline) send(batch []*request) {
	if len(batch) == 0 {
		return
	}
	x := p.exchange
	var ahead *prologue
	if p.transaction != nil && len(p.inflight) == 0 {
		p.call.takes(p.transaction)
		var err error
		if ahead, err = p.transaction.prologue(p.call.ctx); err != nil {
			for _, r := range batch {
				p.answer(r, err)
			}
			return
		}
	}
	if p.pipe == nil {
		p.pipe = p.conn.PgConn().StartPipeline(context.Background())
	}
	now := time.Now()
	p.probing = len(p.inflight) == 0 && p.call.shared.trip.due()
	x.mu.Lock()
	batch = slices.DeleteFunc(batch, func(r *request) bool {
		wanted := p.drop(r)
		for m := range r.each {
			m.writing = wanted
		}
		return !wanted
	})
	x.mu.Unlock()
	p.sending, p.unsynced = p.sending[:0], nil
	p.most = mostTogether(batch)
	p.batch = batch
	defer func() {
		if p.batch != nil && ahead != nil && ahead.settle != nil { // an encoder or a tracer has ended the goroutine
			_ = ahead.settle(nil, errNotSent)
			ahead.settle = nil
		}
	}()
	for _, r := range batch {
		if err := p.write(r, ahead); err != nil {
			p.answer(r, err)
			continue
		}
		ahead = nil
		r.sentAt = now
		for m := range r.each {
			m.sentAt = now
		}
		p.sending = append(p.sending, r)
	}
	p.batch = nil
	p.sync()
	if len(p.sending) == 0 && len(p.inflight) == 0 {
		p.ordinary() // before the exporter may join on this lane's behalf
	}
	if ahead != nil && ahead.settle != nil {
		_ = ahead.settle(nil, errNotSent)
	}
	if len(p.sending) == 0 {
		return
	}
	x.mu.Lock()
	if len(p.inflight) == 0 {
		p.since = time.Since(epoch)
	}
	p.inflight = append(p.inflight, p.sending...)
	d := &driver{exchange: x} // not the lane's, which has results to wait for
	for _, sent := range p.sending {
		sent.sent = true
		for r := range sent.each {
			r.sent, r.writing = true, false
			x.dismiss(r, d)
		}
	}
	x.goDrive(d)
	x.mu.Unlock()
	if err := p.pipe.Flush(); err != nil {
		p.unprologue(err)
		if pgconn.SafeToRetry(err) {
			p.handBack(len(p.inflight) - len(p.sending))
		}
		p.lost(err)
	}
	p.last, p.busy = time.Now(), 0 // what this has taken is not what the next result takes
}

// mostTogether is how much work of the batch may share a Sync, which is where the server sends what it has. With three
// quarters of a batch behind the first, functions go on with their rows while the server is at work on the rest; but it takes
// as long to send as for a few statements, which a short batch would not make up for.
func mostTogether(batch []*request) time.Duration {
	most := time.Duration(laneWork / 2)
	if len(batch) < worthSync {
		return most
	}
	var work time.Duration
	for _, r := range batch {
		work += r.cost
	}
	return min(most, work*3/4)
}

// write puts one request's messages into the connection's buffer: what has to precede it, itself and a Sync.
func (p *pipeline) write(r *request, ahead *prologue) (err error) {
	defer func() {
		if v := recover(); v != nil { // of an argument's encoder
			r.panicked = &PanicError{Value: v, Stack: debug.Stack()}
			err = errors.New("fanout: an argument's encoder panicked")
		}
	}()
	s := p.state
	for m := range r.each {
		p.startTrace(m)
	}
	var description *pgconn.StatementDescription
	var guard string
	unnamed := false
	r.described, r.guarded, r.anew, r.synced, r.preparing, r.follows, r.held = false, false, false, false, "", nil, 0
	if s.mode == pgx.QueryExecModeDescribeExec {
		description, r.described = r.own, r.own == nil
	} else if s.mode != pgx.QueryExecModeExec {
		description = s.descriptions[r.sql]
		if description == nil && r.own != nil && r.own.SQL != "" {
			description = r.own // where the connection's memory is full
		}
		if description == nil {
			known := r.text.told()
			switch {
			case known == nil || r.distrust || p.call.tx != nil:
				r.described = true
			default:
				guard, r.guarded = known.schemas, true
				description = &pgconn.StatementDescription{SQL: r.sql, ParamOIDs: known.params, Fields: known.fields}
			}
		} else {
			if p.call.tx != nil && p.call.shared.hooks && description.Name != "" {
				done, underWay := p.prepared[r.sql]
				r.anew, unnamed = !underWay, underWay && !done // whose preparation may fail
			}
			r.follows = p.preparing(r.sql)
			if known := r.text.description.Load(); r.follows != nil && description.Name == "" && known != nil {
				guard, r.guarded = known.schemas, true
			}
		}
	}
	b := &p.builder
	values, formats, results := [][]byte(nil), []int16(nil), []int16(nil)
	if r.members != nil {
		if !r.described && !p.buildJoint(r) {
			return errNobody
		}
		values, formats, results = p.arrays.values, p.arrays.formats, p.arrays.results
	} else if !r.described {
		err := p.build(description, r.args)
		if err != nil && (r.guarded || p.unfit(r, description)) {
			// They may fit the types that the statement has here, or by now.
			r.described, r.guarded, r.distrust, description = true, false, true, nil
		} else if err != nil {
			return err
		}
		values, formats, results = b.ParamValues, b.ParamFormats, b.ResultFormats
	}
	shares := r.pure && ahead == nil && !r.described && !r.guarded && len(s.stale) == 0 && p.preparing(r.sql) == nil
	if !shares || p.together > p.most || p.unsynced != nil && p.unsynced.text != r.text {
		p.sync()
	}
	if p.probing { // only now: what cannot be written must leave nothing in the buffer
		p.pipe.SendPipelineSync()
		p.probing, p.probed = false, time.Now()
	}
	// pgconn needs the formats until the result is read, the builder only until the next statement.
	results = p.kept(r.sql, results)
	r.description = description
	r.prologue, r.arrived = ahead, nil
	if ahead != nil {
		r.arrived = make(chan struct{})
	}
	r.plain = ahead == nil && !r.described && !r.guarded && !r.anew && !unnamed
	if r.anew {
		// The pool's owner may have deallocated it since, by a hook; to be told so would abort the transaction. To deallocate
		// what is not there is no error.
		s.stale = append(s.stale, description.Name)
		r.preparing = description.Name
		p.isPrepared(r.sql, false)
	}
	r.stale = len(s.stale)
	for _, name := range s.stale {
		p.pipe.SendDeallocate(name)
	}
	s.stale = nil
	if ahead != nil {
		for _, sql := range ahead.statements {
			p.pipe.SendQueryParams(sql, nil, nil, nil, nil)
		}
		p.pipe.SendFlushRequest() // as in travel
	}
	if r.described || r.guarded {
		if s.mode == pgx.QueryExecModeCacheStatement && len(s.descriptions) < maxDescriptions {
			s.prepared++
			r.preparing = "fanout_" + strconv.Itoa(s.prepared)
		}
	}
	switch {
	case r.described:
		p.pipe.SendQueryParams(schemasSQL, nil, nil, nil, nil)
		var types []uint32
		if r.joint != nil {
			types = r.joint.arrays
		}
		p.pipe.SendPrepare(r.preparing, r.sql, types)
	case description == nil:
		p.pipe.SendQueryParams(r.sql, values, nil, formats, results)
	case r.guarded || r.anew:
		switch {
		case r.guarded && r.preparing != "" && callsWithParameter(r.sql):
			types := textArray(decimals(description.ParamOIDs))
			p.pipe.SendQueryParams(guardCallSQL, [][]byte{[]byte(guard), types}, nil, nil, nil)
		case r.guarded:
			p.pipe.SendQueryParams(guardSQL, [][]byte{[]byte(guard)}, nil, nil, nil)
		}
		if r.preparing == "" {
			p.pipe.SendQueryParams(r.sql, values, description.ParamOIDs, formats, results)
			break
		}
		p.pipe.SendPrepare(r.preparing, r.sql, description.ParamOIDs)
		p.pipe.SendQueryPrepared(r.preparing, values, formats, results)
	case description.Name == "" || unnamed:
		p.pipe.SendQueryParams(r.sql, values, description.ParamOIDs, formats, results)
	case ahead != nil || r.stale > 0 || r.follows != nil || p.unsynced != nil:
		// Not SendQueryStatement, which leaves a description in pgconn's queue if what precedes it fails.
		p.pipe.SendQueryPrepared(description.Name, values, formats, results)
	default:
		p.pipe.SendQueryStatement(description, values, formats, results)
	}
	if r.guarded {
		description.Name = r.preparing
		if len(s.descriptions) < maxDescriptions {
			s.descriptions[r.sql] = description // as it will be, if the guard does not object
		}
	}
	p.unsynced = r
	p.together += r.cost
	if !shares {
		p.sync()
	}
	return nil
}

// sync ends the transaction of what has been written.
func (p *pipeline) sync() {
	if p.unsynced == nil {
		return
	}
	p.pipe.SendPipelineSync()
	p.unsynced.synced = true
	p.unsynced, p.together = nil, 0
}

// build encodes the arguments. It lets go of the type map also if an encoder panics.
func (p *pipeline) build(description *pgconn.StatementDescription, args []any) error {
	p.state.types.Lock()
	defer p.state.types.Unlock()
	return build(&p.builder, p.conn, description, args)
}

// unfit reports whether description, which r's arguments do not fit, is what the connection has remembered of the statement
// from before r: the tables may have changed since, and it is to be described anew. Not in a transaction of the caller's,
// which it would cost if that failed; there the next one describes it, if nobody else relies on it.
func (p *pipeline) unfit(r *request, description *pgconn.StatementDescription) bool {
	if description == nil || p.state.descriptions[r.sql] != description || r.redone {
		return false
	}
	if p.call.tx != nil {
		if len(p.inflight)+len(p.sending)+len(p.again) == 0 {
			p.state.drop(r.sql)
		}
		return false
	}
	p.state.drop(r.sql)
	r.text.description.Store(nil)
	r.redone = true
	return true
}

// isPrepared notes that this call, which is in a transaction of the caller's, has sql prepared, or is about to.
func (p *pipeline) isPrepared(sql string, done bool) {
	if p.prepared == nil {
		p.prepared = map[string]bool{}
	}
	p.prepared[sql] = done
}

// preparing is the request under way that prepares sql; nil if there is none.
func (p *pipeline) preparing(sql string) *request {
	for _, sent := range [][]*request{p.inflight, p.sending} {
		for _, r := range sent {
			if r.guarded && r.sql == sql {
				return r
			}
		}
	}
	return nil
}

// receive reads the result of the statement that is executing.
func (p *pipeline) receive() {
	x := p.exchange
	x.mu.Lock()
	if len(p.inflight) == 0 {
		x.mu.Unlock()
		return
	}
	r := p.inflight[0]
	if !r.wanted() {
		p.interrupt(r)
	}
	x.mu.Unlock()

	p.rows.reset()
	p.runs = p.runs[:0]
	p.tag = pgconn.CommandTag{}
	err, lost := p.read(r)
	now := time.Now()
	if lost {
		p.lost(err)
		return
	}
	if refused := refusalOf(err); refused != nil {
		p.refuse(refused)
		return
	}
	x.mu.Lock()
	if p.haunted {
		p.deadline = now.Add(cancelGrace) // the server answers; who knows how long this one has taken
	}
	p.inflight = p.inflight[1:] // from now on nobody sends a cancel request for it
	p.since = now.Sub(epoch)
	x.mu.Unlock()
	if p.stopCancelling() {
		p.haunted = true
	}
	aborted := p.spoiled // before r
	p.learn(r, err, now)
	p.last, p.busy = now, 0
	repeat := p.repeat(r, err, aborted)
	x.mu.Lock()
	if repeat && r.wanted() && !x.closed {
		p.again = append(p.again, r)
		x.mu.Unlock()
		return
	}
	for m := range r.each {
		if repeat && m.waiting {
			x.forsake(m) // the call has ended meanwhile
		}
	}
	if r.members != nil && (err != nil || r.described || p.outdated(r)) && !x.closed {
		p.leaveAlone(r.members)
		x.mu.Unlock()
		return
	}
	x.mu.Unlock()
	p.answer(r, err)
}

// refuse ends a lane whose transaction could not begin, or be brought back.
func (p *pipeline) refuse(e *prologueError) {
	for i, r := range p.inflight {
		if i == 0 {
			continue // read already
		}
		if err, lost := p.read(r); lost {
			e.err = cmp.Or(e.err, err)
			break
		}
	}
	p.silence()
	p.ordinary()
	if e.prologue.settle != nil {
		// It may have to ask the server: the connection is free for that now.
		e.err = e.prologue.settle(nil, e.err)
	}
	p.fail(e.err)
}

// answer tells r's function how it went.
func (p *pipeline) answer(r *request, err error) {
	x := p.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case r.members != nil && err == nil && !r.described: // which it is, if the call has ended meanwhile
		p.distribute(r)
	case r.members == nil && !r.abandoned:
		r.tag = p.tag
		if p.rows.rows > 0 && r.sent {
			r.chunks = append(r.chunks, p.rows.exact())
		}
	}
	p.rows.reset()
	p.tag = pgconn.CommandTag{}
	for m := range r.each {
		m.answered, m.writing = true, false
		if !m.abandoned {
			m.err = err
		}
		x.answer(m, p.driver)
	}
	for m := range r.each {
		p.trace(m)
	}
}

// errNobody is why a statement is not sent whose executions are all sent by themselves.
var errNobody = errors.New("fanout: nobody waits for the statement")

// errDesync cannot be: it would be a mistake in the package.
var errDesync = errors.New("fanout: results out of step with requests")

// A prologueError is the failure of what precedes a statement: then nothing that follows on the connection counts.
type prologueError struct {
	prologue *prologue
	err      error
}

// refusalOf is the prologueError that err is, or nil.
func refusalOf(err error) (refused *prologueError) {
	if err != nil {
		errors.As(err, &refused)
	}
	return refused
}

func (e *prologueError) Error() string { return e.err.Error() }
func (e *prologueError) Unwrap() error { return e.err }

// read reads what the server says to r, up to its Sync. lost says that err is the end of the connection.
func (p *pipeline) read(r *request) (err error, lost bool) {
	if !p.probed.IsZero() {
		if _, err := next[*pgconn.PipelineSync](p.pipe); err != nil {
			return err, !isServerError(err) || p.conn.IsClosed()
		}
		// Functions that have run meanwhile may have kept the lane from seeing the answer.
		now, sure := time.Now(), p.busy < costNoise/4
		p.call.shared.trip.observe(now.Sub(p.probed), sure)
		p.probed = time.Time{}
		if sure {
			p.measured = now
		}
	}
	if p.aborted {
		p.aborted = !r.synced
		return errSkipped, false
	}
	err = p.readGroup(r)
	if err == nil && !r.synced {
		return nil, false
	}
	p.aborted = !r.synced
	for {
		if err != nil && !isServerError(err) && p.conn.IsClosed() {
			return err, true
		}
		results, syncErr := p.pipe.GetResults()
		switch results.(type) {
		case *pgconn.PipelineSync:
			return err, false
		case nil:
			if syncErr == nil {
				return cmp.Or(err, error(errDesync)), true
			}
			if !isServerError(syncErr) {
				return cmp.Or(err, syncErr), true
			}
			// A constraint that is checked at the end, or more words of a server that ends the connection.
			err = cmp.Or(err, syncErr)
		}
	}
}

// errSkipped is of a statement that the server has not run because one before it, with which it shares a Sync, has failed.
var errSkipped = errors.New("fanout: the statement was skipped")

func isServerError(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr)
}

// readGroup reads r's results, in the order in which write has asked for them.
func (p *pipeline) readGroup(r *request) error {
	for range r.stale {
		if _, err := next[*pgconn.CloseComplete](p.pipe); err != nil {
			return err
		}
	}
	if r.prologue != nil {
		ahead := r.prologue
		rows := make([][]string, len(ahead.statements))
		var err error
		for i := range rows {
			if rows[i], err = p.firstRow(); err != nil {
				break
			}
		}
		if err == nil && ahead.settle != nil {
			err = ahead.settle(rows, nil)
			ahead.settle = nil
		}
		if err != nil {
			return &prologueError{ahead, err}
		}
		close(r.arrived)
	}
	if r.guarded || r.described {
		row, err := p.firstRow()
		if err != nil {
			return err
		}
		if r.described {
			r.schemas = row[0]
		} else if r.preparing == "" {
			r.guarded = false // what fails from here on is the statement itself
		}
	}
	if r.described || r.preparing != "" {
		description, err := next[*pgconn.StatementDescription](p.pipe)
		if err != nil {
			return err
		}
		r.guarded = false // what fails from here on is the statement itself
		if r.described {
			description.Name, description.SQL = r.preparing, r.sql
			r.description = description
			return nil
		}
	}
	reader, err := next[*pgconn.ResultReader](p.pipe)
	if err != nil {
		return err
	}
	return p.readRows(r, reader)
}

// firstRow reads a result to the end and returns the values of its first row.
func (p *pipeline) firstRow() (row []string, err error) {
	reader, err := next[*pgconn.ResultReader](p.pipe)
	if err != nil {
		return nil, err
	}
	for reader.NextRow() {
		if row == nil {
			row = texts(reader.Values())
		}
	}
	_, err = reader.Close()
	return row, err
}

// readRows reads the rows of r's statement. A long result is handed over piece by piece; not yet, if it may turn out that
// a cancel request for another one has hit it: then it is to be sent again.
func (p *pipeline) readRows(r *request, reader *pgconn.ResultReader) (err error) {
	if r.members != nil {
		return p.readJoint(r, reader)
	}
	r.fields = p.fieldsOf(r, reader.FieldDescriptions())
	p.confirm(r)
	for reader.NextRow() {
		p.rows.add(reader.Values())
		if size := len(p.rows.data) + 4*len(p.rows.lengths); size >= chunkSize && (!p.haunted || size >= hauntedSize) {
			p.hand(r)
		}
	}
	p.tag, err = reader.Close()
	return err
}

// kept is a copy of formats that stays as it is. They are mostly those of the execution before.
func (p *pipeline) kept(sql string, formats []int16) []int16 {
	if kept := p.state.formats[sql]; slices.Equal(kept, formats) {
		return kept
	}
	kept := slices.Clone(formats)
	if len(p.state.formats) < maxDescriptions {
		p.state.formats[sql] = kept
	}
	return kept
}

// fieldsOf keeps the descriptions of r's columns beyond the next result. They are mostly those of the execution before.
func (p *pipeline) fieldsOf(r *request, fields []pgconn.FieldDescription) []pgconn.FieldDescription {
	same := func(a, b pgconn.FieldDescription) bool { return a == b }
	if kept := p.state.fields[r.sql]; slices.EqualFunc(kept, fields, same) {
		return kept
	}
	kept := slices.Clone(fields)
	if len(p.state.fields) < maxDescriptions {
		p.state.fields[r.sql] = kept
	}
	return kept
}

// confirm corrects what another connection has told of r's columns by what the server says: they may have been renamed, or
// have got other types, before this one prepared the statement. Later executions do not ask the server.
func (p *pipeline) confirm(r *request) {
	d := r.description
	if r.plain || d == nil || slices.EqualFunc(r.fields, d.Fields, sameButFormat) {
		return
	}
	fields := slices.Clone(r.fields)
	for i := range fields {
		fields[i].Format = 0
	}
	if known := r.text.description.Load(); known != nil && slices.Equal(known.fields, d.Fields) {
		r.text.description.CompareAndSwap(known, &sourceDescription{known.params, fields, known.schemas, known.found})
	}
	d.Fields = fields
}

func sameButFormat(a, b pgconn.FieldDescription) bool {
	a.Format = b.Format
	return a == b
}

// hand hands the rows read so far to r's function, and waits until it has taken those before: a function that is slower
// than the server does not pile up rows in memory. But others that have sent something behind r do not wait for it longer
// than stallBound; then its rows do pile up.
func (p *pipeline) hand(r *request) {
	x := p.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	r.streamed = true
	if r.abandoned {
		p.rows.reset()
		return
	}
	full := p.rows
	p.rows = chunk{data: make([]byte, 0, chunkSize+chunkSize/4), lengths: make([]int32, 0, len(full.lengths))}
	r.chunks = append(r.chunks, full)
	d := &driver{exchange: x} // not the lane's, which has the rest to read
	x.answer(r, d)
	x.goDrive(d)
	began := time.Now()
	defer func() { r.held += time.Since(began) }()
	var patience <-chan time.Time // from when there are others, whatever comes meanwhile
	for r.untaken() > 1 && !r.abandoned && !r.unbounded {
		p.feeding, p.idle = r, true
		others := len(p.inflight) > 1 || len(p.again)+len(p.own)+len(x.ready) > 0
		x.mu.Unlock()
		if others && patience == nil {
			if p.timer == nil {
				p.timer = time.NewTimer(stallBound)
			} else {
				p.timer.Reset(stallBound)
			}
			patience = p.timer.C
		}
		select {
		case <-p.wake:
		case <-patience:
			x.mu.Lock()
			r.unbounded = true
			x.mu.Unlock()
		case <-p.call.ctx.Done():
			x.mu.Lock()
			if !r.abandoned {
				r.abandoned, r.chunks, r.taken = true, nil, 0
				r.err = cancelled(p.call.ctx, true)
				p.interrupt(r)
			}
			x.mu.Unlock()
		}
		x.mu.Lock()
		p.feeding = nil
		if !p.idle {
			select {
			case <-p.wake:
			default:
			}
		}
		p.idle = false
	}
}

// learn keeps what the result tells of the statement, and of the way to the server.
func (p *pipeline) learn(r *request, err error, now time.Time) {
	x := p.exchange
	with := byItself
	switch {
	case !p.state.ran:
		with = fresh
	case !r.plain:
		with = withParse
	}
	p.state.ran = true
	p.forget(r, err)
	r.own = nil
	way := &x.call.shared.trip
	trip := way.time()
	measured := !p.measured.IsZero()
	total := now.Sub(r.sentAt)
	took := total - trip
	switch {
	case measured:
		took = now.Sub(p.measured)
		p.measured = time.Time{}
	case total < trip:
		way.observe(total, true) // it cannot take longer
		measured = true
	case p.last.After(r.sentAt): // others were under way before it, or it took some time to send it
		took = min(took, now.Sub(p.last))
	}
	took = max(0, took-r.held-p.busy)
	if err != nil {
		p.ran, p.runTook, p.measuring = 0, 0, false
		var pgErr *pgconn.PgError
		if expected, _ := r.text.expected(); r.members == nil && errors.As(err, &pgErr) && pgErr.Code == "57014" &&
			took > max(expected, time.Millisecond) {
			r.text.observe(took, 1) // it would have taken even longer
		}
		if p.transaction != nil {
			p.spoiled = true
		}
		return
	}
	if r.described {
		p.miss()
		s := p.state
		r.own = r.description
		if s.mode == pgx.QueryExecModeDescribeExec {
			return // what is remembered is not to be used
		}
		if len(s.descriptions) < maxDescriptions {
			s.descriptions[r.sql] = r.description
		}
		if p.call.tx == nil { // what a transaction of the caller's has changed, others do not see
			r.text.description.Store(&sourceDescription{r.description.ParamOIDs, r.description.Fields, r.schemas, time.Now()})
		} else {
			p.isPrepared(r.sql, true)
		}
		return
	}
	if r.anew {
		p.isPrepared(r.sql, true)
	}
	r.learnBytes(len(p.rows.data))
	if r.unbounded {
		p.miss()
		return
	}
	base, executions := r.parts()
	noise := 2*time.Millisecond + 2*trip
	if with == fresh {
		noise += freshNoise
	}
	if with != byItself && took < noise {
		r.text.atMost(max(0, took-base)/time.Duration(executions), executions, with)
		p.miss()
		return
	}
	// The server answers those that share a Sync all at once.
	p.ran++
	p.runTook += took
	p.measuring = p.measuring || measured
	if !r.synced {
		return
	}
	n := p.ran
	took = p.runTook
	p.ran, p.runTook = 0, 0
	measured, p.measuring = p.measuring, false
	if r.members == nil {
		executions = n
	}
	each := max(0, took-base) / time.Duration(executions)
	if !measured && r.counted > 0 && farther(took/time.Duration(n), r.cost) {
		way.doubt(r.text, each, executions)
		p.miss()
		return
	}
	if p.call.auto {
		p.call.shared.turns.learn(&p.call.turn, r.text, base, took, executions)
	}
	if r.members != nil {
		r.learnJoint(took, each)
		return
	}
	r.text.observe(each, executions)
}

// miss notes, where turns are taken, that a part of the call's work is not known.
func (p *pipeline) miss() {
	if p.call.auto {
		p.call.shared.turns.miss(&p.call.turn)
	}
}

// parts is how many executions r's statement is of, and what it takes besides them.
func (r *request) parts() (base time.Duration, executions int) {
	if r.members != nil {
		return jointBase, len(r.members)
	}
	return 0, 1
}

// learnBytes keeps how long the result was, of n bytes unless it was handed over piece by piece.
func (r *request) learnBytes(n int) {
	switch {
	case r.members != nil:
		r.members[0].text.observeBytes(n / len(r.members))
	case r.streamed:
		r.text.observeBytes(2 * jointBytes)
	default:
		r.text.observeBytes(n)
	}
}

// forget drops descriptions that may be out of date by err, or are unfit for this connection.
func (p *pipeline) forget(r *request, err error) {
	if err == nil {
		return
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return
	}
	s := p.state
	if r.anew {
		delete(p.prepared, r.sql)
		s.drop(r.sql) // what it has been prepared as may not be what is remembered
	}
	if r.guarded {
		if s.descriptions[r.sql] == r.description {
			delete(s.descriptions, r.sql)
		}
		return
	}
	if outOfDate(err) {
		if s.descriptions[r.sql] == r.description {
			s.forget(r.sql, err)
		}
		r.text.description.Store(nil)
	}
}

// repeat reports whether r is to be sent again: to be run, now that it is described; because another connection's
// description did not fit; or because what has failed was not it. None of these has been executed, or the server has
// undone it. aborted says that one in front of it has aborted the transaction.
func (p *pipeline) repeat(r *request, err error, aborted bool) bool {
	if err == nil && r.described && r.members != nil {
		return p.fits(r)
	}
	if err == nil {
		return r.described
	}
	return p.repeatFailed(r, err, aborted)
}

// repeatFailed is repeat for a request that err came of.
func (p *pipeline) repeatFailed(r *request, err error, aborted bool) bool {
	if err == errSkipped {
		r.apart = true // or a statement that fails each time could hold the others up
		return true
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch {
	case r.guarded:
		r.distrust = true
		return true
	case r.follows != nil && r.follows.distrust && pgErr.Code == "26000":
		return true
	case aborted && pgErr.Code == "25P02": // otherwise a function in the database says so, and would each time
		return true
	case outOfDate(err) && p.call.tx == nil && !r.redone &&
		!r.described && !r.streamed && r.description != nil:
		// What was prepared is out of date. pgx reports that; but here several may have been sent relying on it.
		r.redone, r.distrust = true, true
		return true
	case p.haunted && pgErr.Code == "57014" && p.call.tx == nil && r.repeats < maxRepeats && !r.streamed:
		r.repeats++
		return true
	case r.members != nil && r.described && tells(err):
		r.members[0].text.refute(pgErr.Message)
	}
	return false
}

// interrupt has the server end r's statement, which nobody wants any more, once it is executing: now, or when its turn
// comes. It is called with mu held.
func (p *pipeline) interrupt(r *request) {
	if r.group != nil {
		r = r.group
	}
	if len(p.inflight) == 0 || p.inflight[0] != r || r.spared || p.cancel != nil || p.mute || r.wanted() {
		return
	}
	c := &cancelling{ended: make(chan struct{}), done: make(chan struct{})}
	p.cancel = c
	p.deadline = time.Now().Add(cancelGrace)
	link, deadline, arrived := p.link, p.deadline, r.arrived
	go func() {
		defer close(c.done)
		if arrived != nil {
			// What precedes it is not to be cancelled: others rely on that, too.
			patience := time.NewTimer(time.Until(deadline))
			defer patience.Stop()
			select {
			case <-arrived:
			case <-c.ended:
				return
			case <-patience.C:
			}
		}
		link.cancel(c.ended, deadline)
	}()
}

// stopCancelling is called when the statement that was executing has ended. It reports whether its end was being
// hastened: then a cancel request may come to bear only now, on what is executing next.
func (p *pipeline) stopCancelling() bool {
	x := p.exchange
	x.mu.Lock()
	c := p.cancel
	p.cancel = nil
	x.mu.Unlock()
	if c == nil {
		return false
	}
	close(c.ended)
	<-c.done
	return true
}

// silence is stopCancelling for good.
func (p *pipeline) silence() {
	p.exchange.mu.Lock()
	p.mute = true
	p.exchange.mu.Unlock()
	p.stopCancelling()
}

func (p *pipeline) startTrace(r *request) {
	if p.state.tracer == nil || r.traced != nil {
		return
	}
	r.traceCtx = p.state.tracer.TraceQueryStart(r.ctx, p.conn, pgx.TraceQueryStartData{SQL: r.sql, Args: r.args})
	r.traced = p // unless it has panicked
}

// trace tells pgx's tracer that r has ended. If it panics, that is the call's end, and the connection's, but not of what
// the lane has to do. By runtime.Goexit it ends the lane too: so it is told when all that it could keep from being done is.
func (p *pipeline) trace(r *request) {
	if r.traced == nil {
		return
	}
	r.traced = nil
	told := false
	defer func() {
		if !told {
			p.doomed = true
			p.call.fail(unwound(recover()))
		}
	}()
	p.state.tracer.TraceQueryEnd(r.traceCtx, p.conn, pgx.TraceQueryEndData{CommandTag: r.tag, Err: r.err})
	told = true
}

// tellDropped is trace for what has been dropped.
func (p *pipeline) tellDropped() {
	if len(p.dropped) == 0 {
		return
	}
	p.exchange.mu.Lock()
	defer p.exchange.mu.Unlock()
	for _, r := range p.dropped {
		p.trace(r)
	}
	p.dropped = nil
}

// untrace has the tracer told of the end of a request that a lane has sent which is lost, and that no other lane will send.
func (r *request) untrace() {
	if r.traced != nil {
		r.traced.trace(r)
	}
}

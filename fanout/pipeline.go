package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A pipeline is a lane of a Pipelined call: one goroutine with one connection, on which statements of several query
// functions are under way at once. Each is followed by a Sync of its own, which makes it the transaction that it would be
// if it had been sent alone, and keeps its error from the others; but quick ones that only read may share a Sync, see
// mayShareSync.
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
	lostBy   error         // what others are told if he has lost it
	broken   error         // why nothing can be sent any more
	doomed   bool          // the connection is not to be used again
	inflight []*request    // sent, in this order
	since    time.Duration // after epoch, when the first of them may have begun to execute
	picked   time.Duration // what it has picked up and is about to send is expected to take
	feeding  *request      // the lane waits for its function to take rows
	cancel   *cancelling
	mute     bool // no cancel request is to be sent any more
	driver   *driver

	// The lane's own.
	ended     bool            // it only waits for functions to run on
	prepared  map[string]bool // in a transaction of the caller's: statements, by this call; false while that is under way
	conn      *pgx.Conn       // the link's; its type map serves functions that still decode when the lane has ended
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
	trips     int              // to the server with nothing under way before, since work was added to
	work      time.Duration    // of the statements so far with these, as turns count it
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
	unable    bool          // to find out whether a text can be coalesced, for a reason that says nothing of the text
	spoiled   bool          // an error has aborted the transaction of a snapshot call: what is under way will fail
	haunted   bool          // a cancel request may yet come to bear on what is under way
	deadline  time.Time     // of what follows a cancel request
}

// run is the goroutine of a lane that has been started.
func (p *pipeline) run() error {
	growStackToWait()
	c, x := p.call, p.exchange
	p.driver = &driver{exchange: x, lane: p}
	if c.borrowed != nil {
		p.use(c.borrowed, c.borrowedDB)
	} else if !p.tryAcquire() {
		x.started(p, false)
		return nil
	}
	p.conn = p.link.conn
	p.state = stateOf(p.conn)
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
	if p.link == nil {
		return // the connection had gone back
	}
	p.link.sever() // nothing that has been written is to be sent now, or that is still to come read
	p.lost(err)
}

// unwound is the error of a goroutine that a panic with value v has ended, or with v nil runtime.Goexit.
func unwound(v any) error {
	switch v := v.(type) {
	case nil:
		return errGoexit
	case *PanicError: // of a nested call
		return v
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
					p.fail(cmp.Or(p.lostBy, errConnectionLost))
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
				x.seal(p)
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

// dispensable reports whether the call can do without this lane from now on. The one that has exported the call's snapshot
// stays as long as any may yet have to import; not until the end, since somebody else's DDL may wait for a table that it has
// read, and a function of another lane behind that. It is called with mu held.
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
	}
	return !p.exports() || x.settled(p)
}

// exports reports whether the lane has exported the call's snapshot, or is about to.
func (p *pipeline) exports() bool {
	if p.transaction == nil {
		return false
	}
	exporter, _ := p.call.snapshot.exportedBy(p.transaction)
	return exporter
}

// grant gives the connection to one function until it is given back.
func (p *pipeline) grant(r *request) {
	p.owner = r.handle
	r.handle.link, r.handle.db = p.link, p.db
	r.answered = true
	p.driver.answer(r)
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
			if r.unsent {
				r.err = errUnsent{err}
			}
		}
		r.answered = true
		ended = append(ended, r)
		p.driver.answer(r)
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
// what was under way, it has not begun with the others: they can go by another lane. A pooler's words, which name no routine
// of the server's source, do not tell how far the server behind it has come.
func (p *pipeline) lost(err error) {
	p.unprologue(err)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "FATAL" && pgErr.Routine != "" &&
		(strings.HasPrefix(pgErr.Code, "57P") || pgErr.Code == "40001") {
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
		// So it is to what could not be sent now, which has been handed back, or is unsent; not to what was under way before.
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
	most := p.call.shared.maxConns // as many may have died in the pool, but not all that are opened
	for i, r := range p.inflight {
		keep := func(m *request) bool {
			if i < n || !m.binds || m.abandoned || m.streamed {
				return true
			}
			if m.handedBack > most {
				m.unsent = true
				return true
			}
			m.handedBack++
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
		if r.prologue != nil {
			_ = r.prologue.conclude(nil, err)
		}
	}
}

// quieten leaves pipeline mode when nothing is under way, where others are to use the connection or a round trip is due.
func (p *pipeline) quieten() {
	if len(p.inflight) > 0 {
		return
	}
	if p.haunted {
		p.ordinary()
		p.link.absorb(p.deadline)
		p.haunted = false
		if p.link.closed() {
			p.fail(errConnectionLost)
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
	defer p.exchange.left(p) // also if a tracer of the pool ends the goroutine
	if p.link != nil {
		if doomed && p.call.borrowed == nil {
			p.link.destroy()
		}
		p.release()
	}
}

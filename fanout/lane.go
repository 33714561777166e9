package fanout

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"time"
)

// A lane is one goroutine of a call, or a coroutine, with one connection, on which it runs one unit after the other.
type lane struct {
	call        *call
	link        *link        // nil between connections
	db          DBTX         // what statements are sent to: the link's conn, or a transaction on it
	transaction *transaction // in a snapshot call, db; otherwise nil
	attempt     int          // at the unit that is running
	earlier     []error      // of the attempts at it before

	now atomic.Pointer[handle] // of the unit that is running; siblings may look
}

// runLane is the goroutine of a lane.
func (c *call) runLane() error {
	growStackToWait()
	l := &lane{call: c}
	k := c.enlist(l)
	c.snapshot.letIn(c.acquireCtx, k)
	return l.run()
}

// run runs units until none is left. It returns nil: failures are reported when they happen, by call.fail.
func (l *lane) run() error {
	c := l.call
	if l.link == nil && c.borrowed != nil {
		l.use(c.borrowed, c.borrowedDB)
	}
	completed := false
	defer l.release()
	defer func() {
		if !completed {
			l.interrupted(recover())
		}
	}()
	for c.waiting() {
		if l.link == nil && l.acquire(c.acquireCtx) != nil {
			break
		}
		i, ok := c.take(l)
		if !ok {
			break
		}
		l.runUnit(i)
		if l.link != nil && !l.reusable() {
			l.release()
			if c.borrowed != nil {
				break
			}
		}
	}
	completed = true
	return nil
}

// runOnlyLane is runLane for a call with one lane, and returns when that has ended. The caller has nothing else to do
// meanwhile, so the lane is a coroutine of its goroutine: starting another goroutine wakes a thread that looks for work,
// which on two cores made a single look-up take one and a half times as long. A plain call of runLane would be quicker
// still, but then runtime.Goexit in a query function would end the caller.
func (c *call) runOnlyLane() {
	next, stop := iter.Pull(func(yield func(struct{}) bool) {
		completed := false
		defer func() {
			if !completed {
				yield(struct{}{})
			}
		}()
		_ = c.runLane()
		completed = true
	})
	if _, exiting := next(); exiting {
		// Whoever resumes the coroutine is the one to exit with it.
		c.group.Go(func() error { stop(); return nil })
	}
}

// growStackToWait is growStack for a lane that waits for the network itself, which takes twice as much: otherwise its stack is
// copied with all that is on it, in every call, which is about a twentieth of what a single look-up takes.
//
//go:noinline
func growStackToWait() byte {
	var stack [5000]byte
	return stack[len(stackUse)]
}

// acquire gets the lane its connection. If it cannot, the other lanes go on with theirs; the call learns of it only if
// units are left when all lanes have ended.
func (l *lane) acquire(ctx context.Context) error {
	c := l.call
	link, err := l.fromPool(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if cause := context.Cause(c.acquireCtx); cause == errAcquireTimeout {
			err = cause
		} else if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			err = errNoAnswer{err}
		} else if lostInHook(err) {
			err = fmt.Errorf("%w: %w", errConnectionLost, err)
		}
		if c.noConn == nil && (c.next < c.n || c.exchange != nil) && context.Cause(ctx) != errNotNeeded {
			c.noConn = err
		}
		return err
	}
	if !c.connected {
		c.connected = true
		if c.timer != nil {
			c.timer.Stop()
		}
	}
	l.use(link, link.conn)
	return nil
}

// fromPool takes a connection from the pool. Where an attempt has failed before, that may have been by a dead one, and all
// that the pool has may be dead, as after a failover: they are passed by, for each would take an attempt.
func (l *lane) fromPool(ctx context.Context) (*link, error) {
	c := l.call
	takesTurn := c.takesTurn()
	again := c.attempt > 1 || len(l.earlier) > 0
	for passed := 0; ; passed++ {
		if takesTurn {
			c.shared.turns.ours.Add(1)
		}
		res, err := c.pool.Acquire(postdated{ctx})
		if err != nil {
			if takesTurn {
				c.shared.turns.ours.Add(-1)
			}
			return nil, err
		}
		link := &link{conn: res.Conn(), res: res, beforeClose: c.shared.beforeClose}
		if !again || passed == c.shared.maxConns || link.answers() {
			return link, nil
		}
		link.release()
	}
}

// A postdated is a ctx that ends when it ends, but says that it will be later, by the grace that a server has. pgxpool pings a
// connection that has been idle, and lets that go on when the wait for it has been cancelled; but a deadline it hands on,
// which would cost the connection, while without any, one that does not answer would keep its place for a minute.
type postdated struct{ context.Context }

func (c postdated) Deadline() (deadline time.Time, ok bool) {
	deadline, ok = c.Context.Deadline()
	return deadline.Add(cancelGrace), ok
}

// acquireAgain gets the lane another connection, after the pause before another attempt at its unit. An attempt that gets
// none has failed, too, and if the reason is one that passes, it is not the last.
func (l *lane) acquireAgain() bool {
	c := l.call
	for pause(c.ctx, l.attempt) {
		err := l.acquire(c.ctx)
		if err == nil {
			return true
		}
		l.earlier = append(l.earlier, err)
		l.attempt++
		if l.attempt > c.retries || !transient(err) {
			break
		}
	}
	return false
}

// use makes link the lane's, and db what its statements are sent to, or in a snapshot call a transaction on it.
func (l *lane) use(link *link, db DBTX) {
	l.link, l.db = link, db
	if s := l.call.snapshot; s != nil {
		l.transaction = &transaction{snapshot: s, link: link, conn: link.conn, left: make(chan struct{})}
		l.db = l.transaction
	}
}

// reusable reports whether the connection can serve another unit. What the caller of a nested call or the owner of a
// transaction sees of its connection is for them to judge.
func (l *lane) reusable() bool {
	if l.transaction != nil {
		return l.transaction.usable()
	}
	return l.call.borrowed != nil || l.link.idle()
}

// release ends the lane's transaction, if any, and gives up the connection, unless it is the caller's.
func (l *lane) release() {
	if l.transaction != nil {
		if err := l.transaction.leave(l.call.transactionsTaken()); err != nil {
			l.call.failSnapshot(err)
		}
		l.transaction = nil
	}
	if l.call.borrowed == nil && l.link != nil {
		l.giveBack()
	}
}

// giveBack gives the connection back to the pool, and survives what a tracer of that may do. pgxpool has let go of the
// connection by then.
func (l *lane) giveBack() {
	completed := false
	defer func() {
		if !completed {
			l.call.fail(unwound(recover()))
		}
	}()
	link := l.link
	l.link = nil
	link.release()
	completed = true
}

// runUnit runs the function of unit i and settles what comes of it; once more on another connection, if it may and the
// first has turned out to be dead. A panic in the function passes through.
func (l *lane) runUnit(i int) {
	c := l.call
	for l.attempt = c.attempt; ; l.attempt++ {
		h := newHandle(l, i)
		l.now.Store(h)
		err := c.run(&h.ctx, i, h)
		if !l.settle(err) {
			break
		}
		l.now.Store(nil)
		l.release()
		if !l.acquireAgain() {
			l.giveUp(h)
			break
		}
	}
	l.earlier = nil
}

// giveUp ends h's unit, which was to run again: its last attempt was the last.
func (l *lane) giveUp(h *handle) {
	last := len(l.earlier) - 1
	err := afterEarlier(l.earlier[last], l.earlier[:last])
	l.report(h, l.call.failUnit(nil, h.unit, h.name, err))
}

// settle ends the unit that is running, whose function has returned err, and leaves the connection quiet. It reports
// whether the unit is to run again: then it is still l.now, and err is in l.earlier.
func (l *lane) settle(err error) (again bool) {
	c, h := l.call, l.now.Load()
	if c.observe != nil {
		h.finished = time.Now()
	}
	abandoned, unseen := h.finish()
	switch {
	case abandoned != nil:
		// What the function returned was put together beside a running statement: it cannot be trusted.
		err = errAbandoned
	case err == nil && unseen != nil:
		err = unseen
	case err == nil && l.transaction != nil && l.transaction.ended():
		err = errEndedTransaction
	case err == nil && l.transaction == nil && l.call.borrowed == nil && l.link.leftOpen():
		err = errOpenTx
	}
	if err != nil && abandoned == nil && c.unitAgain(h, l.attempt, err) {
		l.earlier = append(l.earlier, err)
		return true
	}
	l.now.Store(nil)
	if err == nil && c.done != nil {
		c.done(h.unit)
	}
	if err != nil {
		free := l
		if abandoned != nil {
			free = nil
		}
		if abandoned == nil && (h.lost || l.link.closed()) && !unencoded(err) {
			err = fmt.Errorf("%w: %w", errConnectionLost, err)
		}
		err = c.failUnit(free, h.unit, h.name, afterEarlier(err, l.earlier))
	}
	if abandoned != nil {
		<-abandoned
	}
	l.report(h, err)
	return false
}

// report hands the finished unit's span to Observe.
func (l *lane) report(h *handle, err error) {
	c := l.call
	if c.observe == nil {
		return
	}
	span := Span{
		Name:       h.name,
		Queued:     c.queued,
		Started:    h.started,
		Finished:   h.finished,
		Statements: h.statements,
		Rows:       h.rows,
		Err:        err,
		Strategy:   h.ran(),
		Shared:     h.shared,
		Attempt:    l.attempt,
	}
	span.Index, _ = c.locate(h.unit)
	if h.exchange != nil {
		span.PID = h.pid
	} else if l.link != nil && l.link.conn != nil {
		span.PID = l.link.conn.PgConn().PID()
	}
	c.shared.observing.Lock()
	defer c.shared.observing.Unlock()
	c.observe(c.parent, span)
}

// survive calls f, which calls Observe, in a goroutine that is unwinding already. It returns what that has panicked with,
// which would end the process here. If it is Goexit once more, the caller does not go on.
func (c *call) survive(f func()) (v any) {
	completed := false
	defer func() {
		if v = recover(); !completed && v == nil {
			c.fail(errGoexit)
		}
	}()
	f()
	completed = true
	return nil
}

// interrupted ends a lane whose goroutine is unwinding, by a panic with value v or, with v nil, by runtime.Goexit.
func (l *lane) interrupted(v any) {
	c := l.call
	if v == nil {
		if l.now.Load() == nil {
			c.fail(errGoexit) // in a hook of the pool, or in Observe
			return
		}
		if v = l.call.survive(func() { _ = l.settle(errGoexit) }); v != nil {
			l.interrupted(v)
			return
		}
		// This goroutine is lost. If the other units are wanted all the same, another one goes on with them, on this
		// connection if it can: in a snapshot call it may be the only one that has the snapshot.
		heir := &lane{call: c}
		if l.link != nil && l.reusable() {
			heir.link, heir.db, heir.transaction = l.link, l.db, l.transaction
			l.link, l.db, l.transaction = nil, nil, nil
		}
		l.release()
		c.enlist(heir)
		c.group.Go(heir.run)
		return
	}
	c.fail(unwound(v))
	if h := l.now.Load(); h != nil {
		if abandoned := h.finishUnwound(); abandoned != nil {
			<-abandoned
		}
	}
	if c.borrowed == nil && l.link != nil {
		l.link.destroy()
	}
}

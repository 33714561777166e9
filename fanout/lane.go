package fanout

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// closeTimeout bounds how long a lane waits for the network when it closes a connection that must not be used again.
const closeTimeout = time.Second

// A lane is one goroutine of a call with one connection, on which it runs one unit after the other.
type lane struct {
	call *call
	res  *pgxpool.Conn // nil: the connection is the caller's, and not the lane's to give back or to destroy
	conn *pgx.Conn     // nil before acquire, and for a pgx.Tx that is not on a connection of pgx
	db   DBTX          // what statements are sent to: conn, or a transaction on it
	now  *handle       // of the unit that is running
}

// runLane is the goroutine of a lane. It returns nil: failures are reported when they happen, by call.fail.
func (c *call) runLane() error {
	l := c.borrowed
	if l == nil {
		l = &lane{call: c}
	}
	completed := false
	defer func() {
		if !completed {
			l.interrupted(recover())
		}
		l.release()
	}()
	for c.waiting() {
		if l.db == nil && !l.acquire() {
			break
		}
		i, ok := c.take()
		if !ok {
			break
		}
		l.runUnit(i)
		if l.res != nil && !l.reusable() {
			l.release()
		}
	}
	completed = true
	return nil
}

// acquire gets the lane its connection. If it cannot, the other lanes go on with theirs; the call learns of it only if
// units are left when all lanes have ended.
func (l *lane) acquire() bool {
	c := l.call
	res, err := c.pool.Acquire(c.acquireCtx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if cause := context.Cause(c.acquireCtx); cause == errAcquireTimeout {
			err = cause
		}
		if c.noConn == nil && c.next < c.n {
			c.noConn = err
		}
		return false
	}
	if !c.connected {
		c.connected = true
		if c.timer != nil {
			c.timer.Stop()
		}
	}
	l.res, l.conn, l.db = res, res.Conn(), res.Conn()
	return true
}

// release gives the lane's own connection back. The pool destroys one that is closed, busy or in a transaction.
func (l *lane) release() {
	if l.res != nil {
		l.res.Release()
		l.res, l.conn, l.db = nil, nil, nil
	}
}

// reusable reports whether the connection can serve another unit.
func (l *lane) reusable() bool {
	pg := l.conn.PgConn()
	return !pg.IsClosed() && !pg.IsBusy() && pg.TxStatus() == 'I'
}

// runUnit runs the function of unit i and settles what comes of it. A panic in the function passes through.
func (l *lane) runUnit(i int) {
	c := l.call
	l.now = newHandle(l, i)
	err := c.run(&l.now.ctx, i, l.now)
	l.settle(err)
}

// settle ends the unit that is running, whose function has returned err, and leaves the connection quiet.
func (l *lane) settle(err error) {
	c, h := l.call, l.now
	l.now = nil
	abandoned := h.finish()
	switch {
	case abandoned != nil:
		// What the function returned was put together beside a running statement: it cannot be trusted.
		err = errAbandoned
	case err == nil && l.res != nil && !l.conn.IsClosed() && l.conn.PgConn().TxStatus() != 'I':
		err = errOpenTx
	}
	if err != nil {
		c.failUnit(h.unit, h.name, err)
	}
	if abandoned != nil {
		<-abandoned
	}
	if c.observe != nil {
		l.report(h, err)
	}
}

// report hands the finished unit's span to Observe.
func (l *lane) report(h *handle, err error) {
	c := l.call
	span := Span{
		Name:       h.name,
		Queued:     c.queued,
		Started:    h.started,
		Finished:   time.Now(),
		Statements: h.statements,
		Rows:       h.rows,
		Err:        err,
		Strategy:   c.strategy(),
		Attempt:    1,
	}
	span.Index, _ = c.locate(h.unit)
	if l.conn != nil {
		span.PID = l.conn.PgConn().PID()
	}
	c.shared.observing.Lock()
	defer c.shared.observing.Unlock()
	c.observe(c.parent, span)
}

// interrupted ends a lane whose goroutine is unwinding, by a panic with value v or, with v nil, by runtime.Goexit.
func (l *lane) interrupted(v any) {
	c := l.call
	if v == nil {
		if l.now == nil {
			c.fail(errGoexit) // in a hook of the pool, or in Observe
			return
		}
		l.settle(errGoexit)
		// This goroutine is lost. If the other units are wanted all the same, another one goes on with them.
		l.release()
		c.group.Go(c.runLane)
		return
	}
	p, ok := v.(*PanicError)
	if !ok { // else it comes from a nested call
		p = &PanicError{Value: v, Stack: debug.Stack()}
	}
	c.fail(p)
	if h := l.now; h != nil {
		if abandoned := h.finish(); abandoned != nil {
			<-abandoned
		}
	}
	if l.res != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = l.conn.Close(ctx) // the pool does not keep a closed connection
	}
}

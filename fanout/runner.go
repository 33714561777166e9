package fanout

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
)

// A runner is a coroutine of a Pipelined call in which query functions run, one after the other. It has no connection:
// what the functions ask for goes by way of the exchange.
type runner struct {
	lane     // what settles and reports units; its link is that of a function which has a connection to itself
	exchange *exchange

	// next runs the coroutine on until it parks again or ends; yield, called in it, parks. resuming is held from the
	// one to the other, since an answer may be there before the coroutine has parked.
	next     func() (struct{}, bool)
	yield    func(struct{}) bool
	resuming sync.Mutex

	none   link
	driver *driver // that runs it; guarded by the exchange's mu

	// What its first unit needs, and the first statement. Mostly there are no others, and then this is all in one piece.
	handle handle
	rows   bufferedRows
}

// newRunners are n runners of units of c.
func newRunners(n int, c *call) []*runner {
	all, runners := make([]runner, n), make([]*runner, n)
	for i := range runners {
		all[i].exchange, all[i].call = c.exchange, c
		runners[i] = &all[i]
	}
	return runners
}

// start makes the coroutine. That is for the driver to do: a query function, which starts the runners of a nested call, may
// have locked its goroutine to a thread, which the coroutine would then be bound to as well.
func (w *runner) start() {
	w.next, _ = iter.Pull(func(yield func(struct{}) bool) { // never stopped: it runs to its end
		w.yield = yield
		growStack()
		w.run()
	})
}

// growStack gives a new coroutine the stack that a generated function needs down to here. Otherwise it would grow step by
// step, and be copied each time with all that is on it, which was an eighth of a call's time.
//
//go:noinline
func growStack() byte {
	var stack [2500]byte
	return stack[len(stackUse)]
}

// stackUse keeps the compiler from knowing which byte is read.
var stackUse []byte

// resume runs the coroutine on until it parks or ends.
func (w *runner) resume() {
	w.resuming.Lock()
	defer w.resuming.Unlock()
	if w.next == nil {
		w.start()
	}
	w.next()
}

// park is called in the coroutine, and returns when resume is called.
func (w *runner) park() { w.yield(struct{}{}) }

// run runs one unit after the other. Failures are reported when they happen, by call.fail.
func (w *runner) run() {
	completed := false
	defer w.exchange.leave(w)
	defer func() {
		if !completed {
			w.interrupted(recover())
		}
	}()
	for {
		i, ok := w.call.take(&w.lane)
		if !ok {
			break
		}
		w.runUnit(i)
	}
	completed = true
}

// runUnit runs the function of unit i and settles what comes of it; once more if it may.
func (w *runner) runUnit(i int) {
	c := w.call
	for w.attempt = c.attempt; ; w.attempt++ {
		h := w.newHandle(i)
		h.follow()
		w.now.Store(h)
		err := c.run(&h.ctx, i, h)
		again := w.end(h, err)
		if !again {
			break
		}
		w.now.Store(nil)
		if !pause(c.ctx, w.attempt) {
			w.giveUp(h)
			break
		}
		w.exchange.tryAgain()
	}
	w.earlier = nil
}

func (w *runner) newHandle(unit int) *handle {
	h := &w.handle
	if h.call != nil {
		h = new(handle)
	}
	h.init(&w.lane, unit)
	h.exchange, h.runner = w.exchange, w
	return h
}

// newRows are the rows of r. It is called with h in use, so that nobody else does.
func (h *handle) newRows(r *request) *bufferedRows {
	rows, p := &h.runner.rows, h.pipeline
	if rows.conn != nil {
		rows = new(bufferedRows)
	}
	rows.request, rows.conn, rows.state, rows.fields = r, p.conn, p.state, r.fields
	rows.types.mu = &p.state.types
	return rows
}

// end settles the unit whose function has returned err, and takes leave of its lane.
func (w *runner) end(h *handle, err error) (again bool) {
	x := w.exchange
	h.mu.Lock()
	alone, kept := h.alone, h.keeps
	h.keeps = h.keeps || alone // until it is settled
	h.mu.Unlock()
	x.mu.Lock()
	p := h.pipeline
	x.mu.Unlock()
	// The connection can be looked at only by who has it to himself. Otherwise it tells no more than its process id.
	w.link, w.transaction = &w.none, nil
	if p != nil {
		h.pid = p.conn.PgConn().PID()
	}
	if alone {
		w.link, w.transaction = p.link, p.transaction
	}
	defer func() { // also if Observe panics
		w.link, w.transaction = nil, nil
		// What it has left in the session is the outer function's.
		h.leaveLane(alone && kept && !again && w.call.outer != nil && w.call.n == 1)
	}()
	return w.settle(err)
}

// interrupted ends a runner whose goroutine is unwinding, by a panic with value v or, with v nil, by runtime.Goexit.
func (w *runner) interrupted(v any) {
	c, h := w.call, w.now.Load()
	if v == nil {
		if h == nil {
			c.fail(errGoexit) // in Observe
			w.exchange.mu.Lock()
			defer w.exchange.mu.Unlock()
			w.driver.detach() // the goroutine is lost, and the lane is not to be
			return
		}
		if v = c.survive(func() { _ = w.end(h, errGoexit) }); v != nil {
			w.interrupted(v)
			return
		}
		w.exchange.replace(w)
		return
	}
	c.fail(unwound(v))
	if h == nil {
		return
	}
	if c.outer == nil {
		w.exchange.doom(h)
	}
	if abandoned := h.finishUnwound(); abandoned != nil {
		<-abandoned
	}
	h.leaveLane(c.outer != nil)
}

// leaveLane takes h off its lane; with up, that is left to the outer function, unless it goes by another one by now. The
// connection is given back if h still has it to itself.
func (h *handle) leaveLane(up bool) {
	if up {
		h.handUp()
	} else {
		h.exchange.quit(h)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.alone {
		h.giveBack()
	}
}

// replace starts another runner in place of one that is lost with the goroutine of its driver.
func (x *exchange) replace(w *runner) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.live++
	if w.call.outer != nil {
		w.call.runners++
	}
	x.runOn(w.driver, newRunners(1, w.call)...)
	w.driver.detach()
}

// doom has the lane of h, whose function has panicked, destroy its connection: who knows in what state it is.
func (x *exchange) doom(h *handle) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := h.pipeline; p != nil {
		p.doomed = true
		p.wakeUp()
	}
}

// quit takes h off its lane, when nothing of its function runs any more: until then another goroutine of the function may
// have got it one.
func (x *exchange) quit(h *handle) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := h.pipeline; p != nil {
		p.units--
		p.wakeUp()
	}
}

// submit asks for a statement of h's function. Mostly it is sent with those of others, and rows are its result. Otherwise
// rows is nil, the connection is the function's, and the statement is to be sent with the ctx that submit returns.
func (h *handle) submit(ctx context.Context, sql string, args []any, exec bool) (_ context.Context, rows *bufferedRows, err error) {
	if l := h.call.lender; l != nil && l.mayChangeSession(l.call.shared.statements.get(sql), args, exec) {
		l.keepSession()
	}
	if h.exchange == nil {
		ctx, err = h.begin(ctx, statementName(sql), 1)
		return ctx, nil, err
	}
	t := h.exchange.call.shared.statements.get(sql) // also for a joined call: lanes tell texts apart by identity
	if shares, err := h.start(ctx, t, args, exec); err != nil {
		return nil, nil, err
	} else if !shares {
		ctx, err = h.begin(ctx, t.name, 1)
		return ctx, nil, err
	}
	r := newRequest(h, ctx, t, args)
	underWay := false
	defer func() {
		if !underWay {
			err = h.end(err)
		}
	}()
	err = h.ask(r)
	h.shared += r.shared
	h.begins(r.firstSent)
	switch {
	case err != nil:
		return nil, nil, err
	case r.text == nil: // a lane has been granted, not a result
		h.mu.Lock()
		defer h.mu.Unlock()
		h.alone, underWay = true, true
		return h.supervise(ctx), nil, nil
	}
	underWay = true
	return ctx, h.newRows(r), nil
}

// shares reports whether a statement can travel with those of other functions. It cannot if it may change the session, have a
// transaction of its own, or be several statements in one: then its function has the connection to itself until it returns;
// nor if it leaves something in the transaction of a snapshot, which another savepoint is to follow, or if pgx's options are
// among the arguments. It is called with mu held.
func (h *handle) shares(t *text, args []any, exec bool) bool {
	if h.mayChangeSession(t, args, exec) && h.state == idle {
		h.keeps = true
	}
	return !h.keeps && t.sql != "" && !(t.leaves && h.exchange.call.wantSnapshot) && !hasOptions(args)
}

// mayChangeSession reports whether t, sent with these arguments, may change the session or have a transaction of its own.
func (h *handle) mayChangeSession(t *text, args []any, exec bool) bool {
	return t.utility || h.call.shared.several(t.sql, args, exec)
}

// keepFor is keepSession if one of b's statements may change the session.
func (h *handle) keepFor(b *pgx.Batch) {
	s := h.call.shared
	if slices.ContainsFunc(b.QueuedQueries, func(q *pgx.QueuedQuery) bool {
		return s.statements.get(q.SQL).utility || s.severalQueued(q)
	}) {
		h.keepSession()
	}
}

// keepSession has the function keep the connection that it has to itself, and those that have lent it theirs.
func (h *handle) keepSession() {
	for ; h != nil; h = h.call.lender {
		if h.exchange != nil {
			h.mu.Lock()
			h.keeps = true
			h.mu.Unlock()
		}
	}
}

// start is begin for a statement that shares; for any other it does nothing.
func (h *handle) start(ctx context.Context, t *text, args []any, exec bool) (shares bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.shares(t, args, exec) {
		return false, nil
	}
	err = h.take(ctx, t.name, 1)
	return err == nil, err
}

// reserve gets the function of a Pipelined call a connection to itself. It is called with mu held, which is let go of
// meanwhile: the state says that the handle is in use.
func (h *handle) reserve(ctx context.Context) error {
	if h.exchange == nil || h.alone {
		return nil
	}
	h.mu.Unlock()
	err := h.ask(&request{handle: h, ctx: ctx})
	if err == nil {
		// From now on the function waits for the network in its driver's goroutine.
		h.exchange.mu.Lock()
		h.runner.driver.detach()
		h.exchange.mu.Unlock()
	}
	h.mu.Lock()
	h.alone = err == nil
	return err
}

// keepsTransaction reports whether the function, which has the connection to itself, has begun a transaction on it in a
// way that could not be seen before, or has ended that of the snapshot call: it is the function's to answer for.
func (h *handle) keepsTransaction() bool {
	if t, ok := h.db.(*transaction); ok {
		return t.ended()
	}
	return h.link.leftOpen()
}

// lockTypes has the functions that still decode rows of the lane wait while this one uses the connection as pgx does, which
// encodes and decodes without a lock, and remembers in the type map and its codecs what it has come across. A copy of the
// map would have the codecs in common. It is called with mu held.
func (h *handle) lockTypes() {
	if h.alone && !h.decoding {
		h.pipeline.state.types.Lock()
		h.decoding = true
	}
}

// unlockTypes ends that, if it is so. It is called with mu held.
func (h *handle) unlockTypes() {
	if h.decoding {
		h.decoding = false
		h.pipeline.state.types.Unlock()
	}
}

// locksTypes reports whether h's function, or one that its call is nested in, has locked the types of conn: it waits for the
// nested call.
func (h *handle) locksTypes(conn *pgx.Conn) bool {
	for ; h != nil; h, _ = h.call.parent.Value(poolKey{h.call.pool}).(*handle) {
		h.mu.Lock()
		locks := h.decoding && h.link.conn == conn
		h.mu.Unlock()
		if locks {
			return true
		}
	}
	return false
}

// tellOthers has those fail by err that wait for the connection which h's function, or one that its call is nested in, has to
// itself, if that has been lost: they may come to their ends before the function does.
func (h *handle) tellOthers(err error) {
	h.mu.Lock()
	uses := h.alone || h.exchange == nil // elsewhere others may be using it now
	h.mu.Unlock()
	for owner := h; uses && owner != nil; owner = owner.call.lender {
		owner.mu.Lock()
		lost := owner.alone && owner.link.closed()
		owner.mu.Unlock()
		if !lost {
			continue
		}
		who := "another query"
		if h.name != "" {
			who += " (" + h.name + ")"
		}
		cause := fmt.Errorf("%w by %s: %v", errConnectionLost, who, err)
		if unencoded(err) {
			cause = errors.New(cause.Error()) // another attempt would come to the same
		}
		x := owner.exchange
		x.mu.Lock()
		owner.pipeline.lostBy = cause
		x.mu.Unlock()
	}
}

// giveBack ends what reserve began. It is called with mu held.
func (h *handle) giveBack() {
	h.alone, h.keeps = false, false
	x := h.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	h.pipeline.owner = nil
	h.pipeline.used = true
	h.pipeline.wakeUp()
}

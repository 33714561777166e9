package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// A call is one Gather, Collect, Stream or Run in progress: the engine behind all of them. It has n units of work, each
// one query function to run. Lanes, each with one connection, take units from a common counter until none is left. The
// call is not generic: what is typed stays in the closure run.
//
// Units are taken in order, and only by a lane that has its connection already; in a Pipelined call by runners, which begin
// with the first connection. So a call makes progress as soon as it has one connection, whatever happens to the other lanes'
// requests for one; and those requests end, by unneeded, the moment that nothing is left for them.
type call struct {
	parent       context.Context // the caller's
	pool         *pgxpool.Pool
	shared       *shared
	tx           pgx.Tx // where the caller gave one
	limit        int
	serial       bool
	pipelined    bool
	coalesced    bool
	auto         bool
	partial      bool
	wantSnapshot bool
	timeout      time.Duration // for the first connection; 0 for none
	retries      int
	observe      func(context.Context, Span)

	n      int
	run    func(ctx context.Context, i int, tx DBTX) error // unit i, called once an attempt
	locate func(i int) (index, query int)                  // where unit i stands in the caller's arguments
	failed func(*Error)                                    // with partial: told of each failed unit, with mu held
	done   func(i int)                                     // told of each unit that has succeeded; nil: nobody asks

	// restart has what the units have returned in this attempt forgotten, so that there can be another one; false if it
	// is too late for that. Called with mu held. Nil: there is nothing to forget.
	restart func() bool

	attempt int     // from 1
	earlier []error // of the attempts before

	// Set by execute.
	queued        time.Time
	group         *errgroup.Group
	ctx           context.Context // the group's: ends with parent, or when the first unit fails
	acquireCtx    context.Context // ends with ctx, or when nothing is left to acquire for
	stopAcquiring context.CancelCauseFunc
	waitsFrom     time.Time // for its first connection
	timer         *time.Timer
	borrowed      *link     // a nested call's or a transaction's connection; nil: lanes acquire their own
	borrowedDB    DBTX      // what its statements are sent to
	lender        *handle   // of the function that a nested call has borrowed it from; nil also if the call has joined
	snapshot      *snapshot // nil: each statement sees its own
	exchange      *exchange // nil: lanes run the units themselves
	turn          turn      // at being at work, with auto; guarded by the mu of turns
	outer         *handle   // of the function that a joined call is nested in, whose exchange it has; see join
	runners       int       // of a joined call, that have not ended; guarded by the exchange's mu

	elsewhere atomic.Bool // a function of it has made a call that may have written elsewhere

	mu        sync.Mutex     // guards what is below
	next      int            // the unit to be taken next
	connected bool           // a lane has had a connection
	noConn    error          // the first failure to get one while units were waiting
	first     *Error         // of the unit whose failure ends the call
	panicked  *PanicError    // the first panic, whatever has failed before it
	taken     []*transaction // of the lanes that have had a unit, or a statement to send
	lanes     []*lane        // all there are

	restarting bool // the attempt has failed, and there will be another one
}

// newCall is a call on s of n units, one for each query of the caller; locate and failed may be changed.
func newCall[Q any](ctx context.Context, s *Source[Q], n int, run func(ctx context.Context, i int, q Q) error) *call {
	c := &call{
		parent:       ctx,
		pool:         s.pool,
		shared:       s.shared,
		tx:           s.tx,
		limit:        s.Limit,
		serial:       s.Strategy == Serial,
		pipelined:    s.Strategy >= Pipelined,
		coalesced:    s.Strategy >= Coalesced,
		auto:         s.Strategy == Auto,
		partial:      s.Partial,
		wantSnapshot: s.Snapshot,
		timeout:      s.AcquireTimeout,
		retries:      s.Retries,
		observe:      s.Observe,
		n:            n,
		locate:       func(i int) (int, int) { return i, 0 },
	}
	bind := s.bind
	c.run = func(ctx context.Context, i int, tx DBTX) error { return run(ctx, i, bind(tx)) }
	return c
}

// errAcquireTimeout is the cause with which acquireCtx ends when Source.AcquireTimeout runs out.
var errAcquireTimeout = errors.New("acquire timeout")

// execute runs the units and returns when all is over: no goroutine of the call runs, no connection of it is held. It
// returns a *PanicError, not a panic; the error of the unit that failed first, as an *Error; or, where no unit is to
// blame, why units were not started. With partial, failed units are reported to c.failed alone.
func (c *call) execute() error {
	if c.n == 0 {
		return nil
	}
	c.queued = time.Now()
	if c.parent.Err() == nil {
		giveBack, err := c.borrow()
		if err != nil {
			return c.notStarted(err)
		}
		defer giveBack()
		err = c.runLanes()
		if c.panicked != nil {
			return c.panicked
		}
		if err != nil {
			return err
		}
	}
	return c.unstarted()
}

// borrow sets c.borrowed if the call is to run on a connection that the caller holds: in a transaction handed in by
// Source.On, or nested in a query function of another call on the same pool, recognised by its ctx.
func (c *call) borrow() (giveBack func(), err error) {
	outer, nested := c.parent.Value(poolKey{c.pool}).(*handle)
	c.writesElsewhere()
	var outerTx pgx.Tx // in which statements of several functions may be under way
	if nested && outer.exchange != nil {
		outerTx = outer.exchange.call.tx
	}
	if c.tx != nil && !sameTx(c.tx, outerTx) {
		conn := c.tx.Conn()
		if conn != nil && outerTx != nil && outerTx.Conn() == conn {
			return nil, errOtherTx
		}
		if conn != nil {
			// Once the transaction has ended, its connection may be somebody else's. An empty batch costs nothing, and says so.
			// Then each query is told, by the transaction.
			switch err := c.tx.SendBatch(c.parent, &pgx.Batch{}).Close(); {
			case errors.Is(err, pgx.ErrTxClosed):
				conn = nil
			case err != nil:
				c.pipelined = false // a pipeline goes past a transaction that does not take batches
			}
		}
		if conn != nil && conn.PgConn().IsBusy() {
			return nil, fmt.Errorf("fanout: the connection of the transaction is busy: %w", errRowsOpen)
		}
		if nested {
			c.pipelined = c.pipelined && !outer.locksTypes(conn) // which a lane would wait for
		}
		c.borrowed, c.borrowedDB = &link{conn: conn}, c.tx
		return func() {}, nil
	}
	if !nested {
		return func() {}, nil
	}
	joined, err := outer.lend(c.parent, c.joins(outer.exchange))
	if err != nil {
		return nil, err
	}
	if outer.call.auto && outer.exchange == nil {
		c.shared.nesting.Store(true)
	}
	if joined {
		c.outer, c.exchange = outer, outer.exchange
		return outer.takeBack, nil
	}
	c.borrowed, c.borrowedDB, c.lender = outer.link, outer.db, outer
	if !c.pipelines() { // which would lock for itself
		outer.mu.Lock()
		defer outer.mu.Unlock()
		outer.lockTypes()
	}
	return outer.takeBack, nil
}

// writesElsewhere notes in the functions around the call, on whatever pool, and in their calls, that they have sent anything,
// perhaps, by another pool or in a transaction that is not theirs: they are not to be run again. No lock is taken: a tracer
// may make such a call, while whoever has called it holds one.
func (c *call) writesElsewhere() {
	for ctx := c.parent; ; {
		h, nested := ctx.Value(handleKey{}).(*handle)
		if !nested {
			return
		}
		if h.call.pool != c.pool || c.tx != nil && !sameTx(c.tx, h.call.tx) {
			h.elsewhere.Store(true)
			h.call.elsewhere.Store(true)
		}
		ctx = h.call.parent
	}
}

// sameTx reports whether a is b, which may be nil. A Tx of the user's own may be of a type that cannot be compared.
func sameTx(a, b pgx.Tx) bool {
	return b != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(a).Comparable() && a == b
}

// around is the function that the call is nested in, and runs on the connection of; nil if it has its own.
func (c *call) around() *handle { return cmp.Or(c.lender, c.outer) }

// runLanes starts the lanes and waits for them.
func (c *call) runLanes() (err error) {
	parent := c.parent
	if outer := c.around(); outer != nil && c.parent.Done() != outer.ctx.Done() {
		// The function may have made a ctx that does not end with its own. Its connection is the outer call's.
		within, cancel := context.WithCancel(c.parent)
		defer cancel()
		stop := context.AfterFunc(&outer.ctx, cancel)
		defer func() {
			if !stop() {
				<-within.Done()
			}
		}()
		parent = within
	}
	c.group, c.ctx = errgroup.WithContext(parent)
	if c.outer != nil {
		c.join()
		return c.group.Wait()
	}
	c.acquireCtx, c.stopAcquiring = context.WithCancelCause(c.ctx)
	defer c.stopAcquiring(nil)
	if c.timeout > 0 && c.borrowed == nil {
		stop := c.stopAcquiring // this attempt's: the timer may be late
		c.timer = time.AfterFunc(c.timeout-time.Since(c.waitsFrom), func() { stop(errAcquireTimeout) })
		defer c.timer.Stop()
	}
	if c.borrowed == nil {
		c.shared.calls.Add(1)
		defer c.shared.calls.Add(-1)
	}
	if c.takesTurn() {
		patience := turnPatience
		if c.timeout > 0 {
			patience = min(patience, c.timeout/2) // the rest is for the connection
		}
		c.turn = c.shared.turns.take(c.acquireCtx, patience)
		c.turn.snapshot = c.wantSnapshot
		defer func() {
			if err != nil || !c.connected {
				c.shared.turns.miss(&c.turn) // it has waited for what it did not get
			}
			c.shared.turns.end(&c.turn)
		}()
	}
	width := c.width()
	if c.wantSnapshot && !c.inside() {
		c.snapshot = &snapshot{shared: c.shared, ctx: c.ctx, alone: width == 1, settled: make(chan struct{})}
	}
	switch {
	case c.pipelines():
		c.runPipelined(width)
		defer c.exchange.end()
	case width == 1:
		c.runOnlyLane()
	default:
		for range width {
			c.group.Go(c.runLane)
		}
	}
	return c.group.Wait()
}

// takesTurn reports whether the call waits until it is its turn to be at work.
func (c *call) takesTurn() bool { return c.auto && !c.guest() && c.n > 1 }

// pipelines reports whether statements go by pipelines: the call's own lanes or, if it is joined, the outer call's. Any
// other nested call has its statements sent one by one.
func (c *call) pipelines() bool {
	switch {
	case c.borrowed != nil:
		return c.pipelined && c.tx != nil && c.borrowed.conn != nil
	case c.auto && c.n == 1 && c.exchange == nil:
		return c.shared.nesting.Load() // otherwise there is nothing to send it with
	}
	return c.pipelined
}

// guest reports whether the call runs on connections that are not its own.
func (c *call) guest() bool { return c.borrowed != nil || c.outer != nil }

// inside reports whether the call runs in a transaction already, the caller's or an outer snapshot call's. Then there is
// no other snapshot for it to have.
func (c *call) inside() bool {
	if c.borrowed == nil {
		return false
	}
	_, ok := c.borrowedDB.(*transaction)
	return ok || c.tx != nil || !c.borrowed.outside()
}

// width is how many lanes the call starts.
func (c *call) width() int {
	if c.serial || c.borrowed != nil {
		return 1
	}
	limit := c.shared.maxConns
	if c.limit > 0 {
		limit = min(limit, c.limit)
	}
	return min(limit, c.n)
}

// strategy is the one that the units really run by.
func (c *call) strategy() Strategy {
	switch {
	case c.exchange != nil && c.auto:
		return Auto
	case c.exchange != nil && c.coalesced && c.exchange.call.tx == nil:
		return Coalesced
	case c.exchange != nil:
		return Pipelined
	case c.serial || c.borrowed != nil:
		return Serial
	default:
		return Parallel
	}
}

// waiting reports whether a lane still has something to do.
func (c *call) waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next < c.n && c.ctx.Err() == nil
}

// take hands out the next unit to l, if any. With the last one, nobody needs a further connection.
func (c *call) take(l *lane) (i int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == c.n || c.ctx.Err() != nil {
		return 0, false
	}
	if l.transaction != nil && !slices.Contains(c.taken, l.transaction) {
		if c.snapshot.gone() {
			return 0, false // others have it still, or nobody
		}
		c.taken = append(c.taken, l.transaction)
	}
	i = c.next
	c.next++
	if c.next == c.n && c.exchange == nil {
		c.unneeded(c.stopAcquiring)
	}
	return i, true
}

// hookTime is how long a hook of the pool may take with a connection that turns out not to be needed.
const hookTime = 100 * time.Millisecond

// unneeded ends, by stop, the wait for connections that the call does not need any more. It is the hooks' ctx, too, and to
// interrupt a round trip that they make would cost the connection. Where the pool has places left nobody waits long, and
// they are given time.
func (c *call) unneeded(stop context.CancelCauseFunc) {
	if c.shared.hooks {
		if stat := c.pool.Stat(); stat.ConstructingConns() == 0 && stat.AcquiredConns() < stat.MaxConns() {
			time.AfterFunc(hookTime, func() { stop(errNotNeeded) })
			return
		}
	}
	stop(errNotNeeded)
}

// noOther is why nothing runs any more when connections have been lost, and no other was to be had. It is called with mu held.
func (c *call) noOther() error {
	err := fmt.Errorf("fanout: %w, and there is no other", errConnectionLost)
	if c.noConn != nil {
		err = fmt.Errorf("%w: %w", err, c.noConn)
	}
	return err
}

// takes notes that a lane's transaction has something to send.
func (c *call) takes(t *transaction) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.taken, t) {
		c.taken = append(c.taken, t)
	}
}

// transactionsTaken are those of the lanes that have had a unit, and so may have something to send.
func (c *call) transactionsTaken() []*transaction {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.taken)
}

// fail ends the call: its ctx ends at once, and the first err that fail is given is the call's error. It reports by way
// of a goroutine of the group, because a lane that has failed may have to clean up before it can return err itself, and
// one that is leaving by runtime.Goexit cannot return anything. A panic is the call's error also after others.
func (c *call) fail(err error) {
	if p, ok := err.(*PanicError); ok {
		c.mu.Lock()
		c.panicked = cmp.Or(c.panicked, p)
		c.mu.Unlock()
	}
	c.group.Go(func() error { return err })
	<-c.ctx.Done()
}

// enlist makes l known to its siblings, and returns how many there were before.
func (c *call) enlist(l *lane) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lanes = append(c.lanes, l)
	return len(c.lanes) - 1
}

// failUnit records that unit i has failed, which without partial ends the call. Then l, unless it is nil, ends what its
// siblings run. It returns the error for the unit's span: one that has been ended may say so in words of its own.
func (c *call) failUnit(l *lane, i int, name string, err error) (seen error) {
	e, seen, fatal := c.noteFailure(c.attribute(i, name, err))
	if fatal {
		running := c.claimSiblings(l)
		c.fail(e)
		running.cancel()
	}
	return seen
}

// noteFailure settles what e means for the call: whether it ends the attempt, or the call, and by which error. Its lock is
// let go of by defer: the methods of an error that a query function has made may panic, as those of a nil pointer do.
func (c *call) noteFailure(e *Error) (first *Error, seen error, fatal bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ended := c.ctx.Err()
	again := c.restarting || ended == nil && c.startAgain(e.Err)
	if !again {
		e.Err = afterEarlier(e.Err, c.earlier)
	}
	seen = endedBy(ended, e.Err)
	if c.partial && !again {
		c.failed(e)
		return e, seen, false
	}
	c.first = cmp.Or(c.first, e) // a sibling that is being ended because of it may fail by itself meanwhile
	return c.first, seen, true
}

// failSnapshot ends the call because its queries may not all have seen the same snapshot. None of them is to blame.
func (c *call) failSnapshot(cause error) {
	err := fmt.Errorf("%w: %w", errSnapshotLost, cause)
	c.mu.Lock()
	if !c.restarting && (c.ctx.Err() != nil || !c.startAgain(err)) {
		err = afterEarlier(err, c.earlier)
	}
	c.mu.Unlock()
	c.fail(err)
}

// attribute makes an *Error for unit i. When the caller's ctx has ended, that is the cause, however the driver or the
// server put it.
func (c *call) attribute(i int, name string, err error) *Error {
	index, query := c.locate(i)
	return &Error{Index: index, Query: query, Name: name, Err: endedBy(c.parent.Err(), err)}
}

// endedBy is err, so that it matches the error of the ctx that has ended, if one has.
func endedBy(ended, err error) error {
	if ended == nil || errors.Is(err, ended) {
		return err
	}
	return fmt.Errorf("%w: %w", ended, err)
}

// unstarted is called when no lane runs any more. It returns nil if every unit was taken; otherwise why the rest was not.
func (c *call) unstarted() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == c.n {
		return nil
	}
	err := c.parent.Err()
	if outer := c.around(); err == nil && outer != nil {
		err = outer.ctx.Err() // its end is the call's, whatever ctx that was made with
	}
	if !c.connected && !c.guest() {
		err = c.noConnection(cmp.Or(err, c.noConn))
	} else if err == nil && c.snapshot != nil && c.snapshot.gone() {
		err = errSnapshotLost
	} else if err == nil {
		err = c.noOther()
	}
	if c.startAgain(err) {
		return err
	}
	err = afterEarlier(err, c.earlier)
	if !c.partial && (c.connected || c.guest()) {
		return c.attribute(c.next, "", err)
	}
	return c.notStarted(err) // without partial: no query is to blame
}

// notStarted returns why the units that nobody has taken were not started, or with partial reports it for each of them.
func (c *call) notStarted(err error) error {
	if !c.partial {
		return err
	}
	for i := c.next; i < c.n; i++ {
		c.failed(c.attribute(i, "", err))
	}
	return nil
}

// noConnection words why the call did not get its first connection.
func (c *call) noConnection(err error) error {
	if c.ctx == nil {
		return fmt.Errorf("fanout: not started: %w", err) // ctx had ended before
	}
	stat := c.pool.Stat()
	inUse := fmt.Sprintf("%d of %d in use", stat.AcquiredConns(), stat.MaxConns())
	if opening := stat.ConstructingConns(); opening > 0 {
		inUse += fmt.Sprintf(", %d being opened", opening)
	}
	if stat.AcquiredConns() == stat.MaxConns() {
		inUse += " (if the caller holds one of them itself, it must release it first, or run the call in its transaction with Source.On)"
	}
	switch {
	case errors.Is(err, errAcquireTimeout):
		return fmt.Errorf("fanout: no connection within %v: %s: %w", c.timeout, inUse, context.DeadlineExceeded)
	case errors.Is(err, c.parent.Err()) && errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("fanout: no connection within %v: %s: %w", time.Since(c.queued).Round(time.Millisecond), inUse, err)
	case errors.Is(err, c.parent.Err()):
		return fmt.Errorf("fanout: no connection: %s: %w", inUse, err)
	default:
		return fmt.Errorf("fanout: no connection: %w", err)
	}
}

// runAll executes the call and returns its error as Gather, Collect and Run do: a PanicError as a panic, and with partial
// the failed units as Errors in the order of the caller's arguments.
func (c *call) runAll() error {
	var errs Errors
	c.failed = func(e *Error) { errs = append(errs, e) }
	forget := c.restart
	c.restart = func() bool {
		errs = nil
		return forget == nil || forget()
	}
	err := c.executeRetrying()
	raise(err)
	if err != nil {
		return err
	}
	if len(errs) == 0 {
		return nil
	}
	slices.SortFunc(errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Query, b.Query))
	})
	return errs
}

// raise panics if err is a PanicError, in the goroutine that made the call.
func raise(err error) {
	if p, ok := err.(*PanicError); ok {
		panic(p)
	}
}

package fanout

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A handle is the DBTX of one running unit: what the q of its query function sends statements to. It is where statement
// names are read, spans are measured, statements are cancelled when their ctx ends, and misuse of the connection becomes
// an error instead of a broken protocol.
//
// At any time one party may use the connection: state says which. Every use begins with a step from idle and ends with
// the step back, under mu; who has made the first step may touch the connection until the second. So no lock is held
// while a statement runs.
type handle struct {
	call *call
	link *link
	db   DBTX // what statements are sent to
	unit int
	ctx  queryCtx // what the query function is given

	// In a Pipelined call, where link and db are there only while the function has a connection to itself.
	exchange *exchange
	runner   *runner
	pipeline *pipeline // the lane that its statements go by, once the first has; guarded by the exchange's mu
	alone    bool      // it has the connection to itself
	keeps    bool      // until it returns
	lost     bool      // it has had one to itself, and given it back closed
	decoding bool      // it holds the lock of the connection's type map, which pgx uses now
	pid      uint32    // of that lane's backend

	elsewhere atomic.Bool // it has done what cannot be done again, by other means than its own statements

	mu       sync.Mutex
	state    handleState
	returned bool          // the query function has returned: nobody may begin a use any more
	open     result        // in state reading: what is to be read or closed
	quiet    chan struct{} // closed by the end of the use that outlives the function; nil if none does

	*supervision // of the statement; nil until there is one on a connection that the function has to itself

	// What the spans and errors say. Written by who has the use of the connection.
	name       string
	sent       bool // something of a statement may have reached the server
	statements int
	shared     int
	rows       int
	started    time.Time // only where someone observes, as is
	finished   time.Time
}

// A supervision is what it takes to end a statement when its ctx ends.
type supervision struct {
	watching    bool           // from begin to end
	stops       [2]func() bool // of the watched ctxs; the second only if the statement has one of its own
	watchers    sync.WaitGroup // their functions that are running or may yet run
	interrupted error          // why the statement was cancelled; nil if it was not
	ended       chan struct{}  // closed when the interrupted statement has ended
	deadline    time.Time      // of the interrupted statement's grace
	signals     int            // how often siblings have had it cancelled
	requested   bool           // cancel requests have been made for it
}

type handleState int

const (
	idle    handleState = iota
	running             // a method is sending a statement or waiting for its result
	reading             // the function holds rows, a row or batch results
	lent                // a nested call runs on the connection, or has joined the function's
)

// A result is what a function still has to read or close: rows, a row, or the results of a batch.
type result interface {
	// discard closes the result because the query function has returned. Its error is the statement's.
	discard() error
}

func newHandle(l *lane, unit int) *handle {
	both := &struct {
		handle
		supervision
	}{}
	h := &both.handle
	h.supervision = &both.supervision // it will have one
	h.init(l, unit)
	return h
}

func (h *handle) init(l *lane, unit int) {
	h.call, h.link, h.db, h.unit = l.call, l.link, l.db, unit
	h.ctx = queryCtx{l.call.ctx, h}
}

// queryCtx is the ctx that a query function is given. It ends with its call, and it is how a nested call finds the
// connection that the function already holds. It is a part of the handle, which saves a context.WithValue per query.
type queryCtx struct {
	context.Context
	handle *handle
}

// poolKey is the key under which a queryCtx holds the handle of a connection of pool.
type poolKey struct{ pool *pgxpool.Pool }

// handleKey is the key under which it holds that of any.
type handleKey struct{}

func (c *queryCtx) Value(key any) any {
	switch key := key.(type) {
	case poolKey:
		if key.pool == c.handle.call.pool {
			return c.handle
		}
	case handleKey:
		return c.handle
	}
	return c.Context.Value(key)
}

// begin takes the connection for n statements, or says why it cannot be had. It returns the ctx to send them with, which
// never ends: the end of ctx is watched here.
func (h *handle) begin(ctx context.Context, name string, n int) (context.Context, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.take(ctx, name, n); err != nil {
		return nil, err
	}
	if err := h.reserve(ctx); err != nil {
		h.rest()
		return nil, err
	}
	h.begins(time.Time{})
	return h.supervise(ctx), nil
}

// take is the step from idle to running for n statements, or says why there is none. It is called with mu held.
func (h *handle) take(ctx context.Context, name string, n int) error {
	if err := h.refusal(); err != nil {
		return err
	}
	if n > 0 {
		h.name = name
	}
	h.statements += n
	if err := ctx.Err(); err != nil {
		h.begins(time.Time{})
		return fmt.Errorf("fanout: the statement was not sent: %w", err)
	}
	h.state = running
	return nil
}

// begins notes, for the span, when the first statement was sent; without a time, that it is about to be, or has failed to be.
func (h *handle) begins(sent time.Time) {
	if h.call.observe == nil || !h.started.IsZero() {
		return
	}
	if sent.IsZero() {
		sent = time.Now()
	}
	h.started = sent
}

// supervise has the statement that is about to be sent interrupted when ctx ends, and returns the ctx to send it with. It
// is called with mu held.
func (h *handle) supervise(ctx context.Context) context.Context {
	h.lockTypes()
	if h.link.conn == nil {
		return ctx
	}
	if h.supervision == nil {
		h.supervision = new(supervision)
	}
	h.watching = true
	h.watch(0, ctx)
	if ctx.Done() != h.ctx.Done() {
		// A ctx that the function has made for this statement, or one that has nothing to do with the call.
		h.watch(1, &h.ctx)
	}
	if _, ok := h.db.(*transaction); ok {
		return uncancelled{context.WithoutCancel(ctx), ctx}
	}
	return context.WithoutCancel(ctx)
}

// An uncancelled is the ctx of a statement in a snapshot call: it does not end, since the handle sees to that of what is
// sent, but what has to wait before it can be sent is told when it should.
type uncancelled struct {
	context.Context
	ends context.Context
}

// watch has the statement interrupted when ctx ends. It is called with mu held.
func (h *handle) watch(i int, ctx context.Context) {
	h.watchers.Add(1)
	h.stops[i] = context.AfterFunc(ctx, func() {
		defer h.watchers.Done()
		h.interrupt(ctx.Err())
	})
}

// interrupt ends the running statement, if there still is one, and returns when it has ended.
func (h *handle) interrupt(cause error) {
	deadline := time.Now().Add(cancelGrace)
	ended := h.endsBy(deadline, cause)
	if ended == nil || endsWithin(h.call.shared.patience(), ended) {
		return
	}
	h.request()
	h.link.cancel(ended, deadline)
}

// endsBy notes that the statement is about to be ended, so that nobody else does, and returns the channel that is closed
// when it has ended; nil if there is nothing to end.
func (h *handle) endsBy(deadline time.Time, cause error) (ended chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.watching || h.interrupted != nil {
		return nil
	}
	h.interrupted, h.ended, h.deadline = cause, make(chan struct{}), deadline
	return h.ended
}

// end is called when a statement has ended with err: its result is read, or will not be. It returns what the query
// function is to be told, and leaves the connection ready for the next use.
func (h *handle) end(err error) error {
	if h.supervision == nil {
		return h.settled(err)
	}
	h.mu.Lock()
	h.watching = false
	if h.ended != nil {
		close(h.ended)
	}
	stops := h.stops
	h.stops = [2]func() bool{}
	h.mu.Unlock()
	for _, stop := range stops {
		if stop != nil && stop() {
			h.watchers.Done() // it will not run
		}
	}
	h.watchers.Wait()
	if h.ended != nil && !h.usedUp(err) {
		h.link.absorb(h.deadline)
	}
	err = h.explain(err)
	h.mu.Lock()
	h.interrupted, h.ended, h.signals, h.requested = nil, nil, 0, false
	h.mu.Unlock()
	return h.settled(err)
}

// settled is the step back to idle after a statement, about which the function is told err.
func (h *handle) settled(err error) error {
	if err != nil {
		h.tellOthers(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.rest() // also if a method of err's panics, which may be of an encoder
	h.sent = h.sent || err == nil || !pgconn.SafeToRetry(err)
	return err
}

// endUnless is end, but if the statement has not completed, because a panic unwinds the function, its connection does not
// go back to its lane before the call has ended: others would fail by the state that it is in, and be taken for the cause.
func (h *handle) endUnless(completed bool, err error) error {
	if !completed {
		h.mu.Lock()
		h.keeps = true
		h.mu.Unlock()
	}
	return h.end(err)
}

// explain makes the error of an interrupted statement match the error of the ctx that has ended, as pgx's would.
func (h *handle) explain(err error) error {
	if err == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.supervision == nil || h.interrupted == nil {
		return err
	}
	return fmt.Errorf("%w: %w", h.interrupted, err)
}

// rest is the step back to idle. It is called with mu held.
func (h *handle) rest() {
	h.state = idle
	h.open = nil
	if h.alone && !h.keeps && h.keepsTransaction() {
		h.keeps = true
	}
	h.unlockTypes()
	if h.alone && !h.keeps {
		h.lost = h.lost || h.link.closed()
		h.giveBack()
	}
	if h.quiet != nil {
		close(h.quiet)
	}
}

// lend takes the connection for a nested call with this ctx, or says why it cannot be had. In a Pipelined call, a nested one
// that joins gets none to itself, unless the function has it already.
func (h *handle) lend(ctx context.Context, joins bool) (joined bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.refusal(); err != nil {
		return false, err
	}
	h.state = lent
	if joins && !h.alone && !h.keeps {
		return true, nil
	}
	if err := h.reserve(ctx); err != nil {
		h.rest()
		return false, err
	}
	return false, nil
}

// takeBack ends what lend began. The nested call may have sent anything: it is not for Retries to have it made again.
func (h *handle) takeBack() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent = true
	h.rest()
}

// refusal is why the connection cannot be taken now; nil if it can. It is called with mu held.
func (h *handle) refusal() error {
	switch {
	case h.returned:
		return errReturned
	case h.state == running:
		return errConcurrent
	case h.state == lent:
		return errLent
	case h.state == reading:
		return errRowsOpen
	}
	return nil
}

// read passes from running to reading: r is now to be read or closed.
func (h *handle) read(r result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = reading
	h.open = r
	h.unlockTypes() // until r decodes: what the function does in between may depend on others that do
}

// count adds rows that the function has read.
func (h *handle) count(rows int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rows += rows
	h.sent = h.sent || rows > 0
}

// executed notes that the function's own code reads a result. If it fails, its error says nothing of the statement: not that
// it is safe to send that once more, though it may be so of what the code has asked elsewhere.
func (h *handle) executed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent = true
}

// holds reports whether r is what the function is reading. If it is not, and the function has returned, the connection
// may be at work for others already, and err says so.
func (h *handle) holds(r result) (ok bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == r {
		return true, nil
	}
	if h.returned {
		return false, errReturned
	}
	return false, nil
}

// readNow passes from reading to running, if r is what the function is to read: the end of it is that of the use.
func (h *handle) readNow(r result) (ok bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.open == r && h.state == reading:
		h.state = running // also if the function has returned meanwhile: whoever waits for this use waits for its end
		return true, nil
	case h.returned:
		return false, errReturned
	case h.open == r:
		return false, errConcurrent
	}
	return false, nil
}

// finish is called when the query function has returned. What it left unread is discarded; err is what becomes known of
// the statement only then: an insert in a batch that nobody has looked at must not fail unseen. If another goroutine still
// runs a statement, or a nested call, finish returns a channel that is closed when that has ended; until then the
// connection must be left alone.
func (h *handle) finish() (abandoned <-chan struct{}, err error) {
	h.mu.Lock()
	h.returned = true
	open := h.open
	switch h.state {
	case running, lent:
		h.quiet = make(chan struct{})
		open = nil // another goroutine reads it
	case reading:
		h.state = running // nobody else begins to
	}
	quiet := h.quiet
	h.mu.Unlock()
	if open != nil {
		// Whoever panics at the end of a result, a tracer of pgx's, has done so in the function, or does it now: the use of
		// the connection is over all the same, and so is the watch of the ctx.
		defer func() {
			if ok, _ := h.holds(open); ok {
				_ = h.end(nil)
			}
		}()
		err = open.discard()
	}
	return quiet, err
}

// finishUnwound is finish for a function that a panic has ended. What has panicked may panic again: there is nothing new in
// that, and nobody left to tell.
func (h *handle) finishUnwound() (abandoned <-chan struct{}) {
	defer func() { _ = recover() }()
	abandoned, _ = h.finish()
	return abandoned
}

func (h *handle) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	ctx, rows, err := h.submit(ctx, sql, args, true)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	// In a defer, here and below, because an argument's encoder may panic.
	completed := false
	defer func() { err = h.endUnless(completed, err) }()
	if rows != nil {
		rows.Close()
		completed = true
		return rows.CommandTag(), rows.Err()
	}
	tag, err = h.db.Exec(ctx, sql, args...)
	completed = true
	return tag, err
}

func (h *handle) Query(ctx context.Context, sql string, args ...any) (_ pgx.Rows, err error) {
	ctx, buffered, err := h.submit(ctx, sql, args, false)
	if err != nil {
		return failedRows{err}, err
	}
	var r *rows
	completed := false
	defer func() {
		if r == nil {
			err = h.endUnless(completed, err)
		}
	}()
	if buffered != nil {
		r = &buffered.outer
		r.Rows, r.handle = buffered, h
	} else {
		pgxRows, err := h.db.Query(ctx, sql, args...)
		if err != nil {
			completed = true
			return pgxRows, err
		}
		r = &rows{Rows: pgxRows, handle: h, types: h.typesLock()}
	}
	h.read(r)
	return r, nil
}

func (h *handle) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, buffered, err := h.submit(ctx, sql, args, false)
	if err != nil {
		return h.failedRow(err)
	}
	var r *row
	defer func() {
		if r == nil {
			_ = h.endUnless(false, nil)
		}
	}()
	if buffered != nil {
		r = &row{row: firstRow{buffered}, handle: h}
	} else {
		r = &row{row: h.db.QueryRow(ctx, sql, args...), handle: h, types: h.typesLock()}
	}
	h.read(r)
	return r
}

// failedRow is the row of a statement that has ended with err already. Elsewhere the function learns that by Scan; and if it
// does not look, finish does.
func (h *handle) failedRow(err error) pgx.Row {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !isServerError(err) || h.refusal() != nil {
		return failedRows{err}
	}
	r := &row{row: failedRows{err}, handle: h}
	h.state, h.open = reading, r
	return r
}

func (h *handle) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (n int64, err error) {
	// sqlc puts no name on a copy, because there is no SQL to put it on; the table is the best there is.
	ctx, err = h.begin(ctx, "copy "+table.Sanitize(), 1)
	if err != nil {
		return 0, err
	}
	completed := false
	defer func() { err = h.endUnless(completed, err) }()
	read := &copySource{CopyFromSource: source, conn: h.link.conn}
	n, err = h.db.CopyFrom(ctx, table, columns, read)
	read.conclude(h)
	completed = true
	return n, err
}

func (h *handle) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	name := ""
	if b.Len() > 0 {
		name = statementName(b.QueuedQueries[0].SQL)
	}
	ctx, err := h.begin(ctx, name, b.Len())
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	h.keepFor(b)
	var r *batchResults
	defer func() {
		if r == nil {
			_ = h.endUnless(false, nil)
		}
	}()
	pgxResults := h.db.SendBatch(ctx, b)
	r = &batchResults{BatchResults: pgxResults, handle: h, queued: b}
	r.adopt()
	h.read(r)
	return r
}

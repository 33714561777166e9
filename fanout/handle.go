package fanout

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A handle is the DBTX of one running unit: what the q of its query function sends statements to. It is where statement
// names are read, spans are measured, and misuse of the connection becomes an error instead of a broken protocol.
//
// At any time one party may use the connection: state says which. Every use begins with a step from idle and ends with
// the step back, under mu; who has made the first step may touch the connection until the second. So no lock is held
// while a statement runs.
type handle struct {
	lane *lane
	unit int
	ctx  queryCtx // what the query function is given

	mu       sync.Mutex
	state    handleState
	returned bool          // the query function has returned: nobody may begin a use any more
	open     result        // in state reading: what is to be read or closed
	quiet    chan struct{} // closed by the end of the use that outlives the function; nil if none does

	// What the spans and errors say. Written in the steps above, under mu.
	name       string
	statements int
	rows       int
	started    time.Time // only where someone observes
}

type handleState int

const (
	idle    handleState = iota
	running             // a method is sending a statement or waiting for its result
	reading             // the function holds rows, a row or batch results
	lent                // a nested call runs on the connection
)

// A result is what a function still has to read or close: rows, a row, or the results of a batch.
type result interface {
	discard()
}

func newHandle(l *lane, unit int) *handle {
	h := &handle{lane: l, unit: unit}
	h.ctx = queryCtx{l.call.ctx, h}
	return h
}

// queryCtx is the ctx that a query function is given. It ends with its call, and it is how a nested call finds the
// connection that the function already holds. It is a part of the handle, which saves a context.WithValue per query.
type queryCtx struct {
	context.Context
	handle *handle
}

// poolKey is the key under which a queryCtx holds the handle of a connection of pool.
type poolKey struct{ pool *pgxpool.Pool }

func (c *queryCtx) Value(key any) any {
	if key, ok := key.(poolKey); ok && key.pool == c.handle.lane.call.pool {
		return c.handle
	}
	return c.Context.Value(key)
}

// begin takes the connection for n statements, the first of them sql, or says why it cannot be had.
func (h *handle) begin(name string, n int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.refusal(); err != nil {
		return err
	}
	h.state = running
	h.name = name
	if h.statements == 0 && h.lane.call.observe != nil {
		h.started = time.Now()
	}
	h.statements += n
	return nil
}

// lend takes the connection for a nested call, or says why it cannot be had.
func (h *handle) lend() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.refusal(); err != nil {
		return err
	}
	h.state = lent
	return nil
}

// refusal is why the connection cannot be taken now; nil if it can.
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
}

// count adds rows that the function has read.
func (h *handle) count(rows int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rows += rows
}

// leave ends a use of the connection.
func (h *handle) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = idle
	h.open = nil
	if h.quiet != nil {
		close(h.quiet)
	}
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

// finish is called when the query function has returned. What it left unread is discarded. If another goroutine still
// runs a statement, or a nested call, finish returns a channel that is closed when that has ended; until then the
// connection must be left alone.
func (h *handle) finish() (abandoned <-chan struct{}) {
	h.mu.Lock()
	h.returned = true
	open := h.open
	if h.state == running || h.state == lent {
		h.quiet = make(chan struct{})
	}
	h.mu.Unlock()
	if open != nil {
		open.discard()
		h.leave()
	}
	return h.quiet
}

func (h *handle) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := h.begin(statementName(sql), 1); err != nil {
		return pgconn.CommandTag{}, err
	}
	defer h.leave()
	return h.lane.db.Exec(ctx, sql, args...)
}

func (h *handle) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := h.begin(statementName(sql), 1); err != nil {
		return refusedRows{err}, err
	}
	handedOut := false
	defer func() {
		if !handedOut { // an error, or a panic of an argument's encoder
			h.leave()
		}
	}()
	pgxRows, err := h.lane.db.Query(ctx, sql, args...)
	if err != nil {
		return pgxRows, err
	}
	r := &rows{Rows: pgxRows, handle: h}
	h.read(r)
	handedOut = true
	return r, nil
}

func (h *handle) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := h.begin(statementName(sql), 1); err != nil {
		return refusedRows{err}
	}
	handedOut := false
	defer func() {
		if !handedOut {
			h.leave()
		}
	}()
	r := &row{row: h.lane.db.QueryRow(ctx, sql, args...), handle: h}
	h.read(r)
	handedOut = true
	return r
}

func (h *handle) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error) {
	// sqlc puts no name on a copy, because there is no SQL to put it on; the table is the best there is.
	if err := h.begin("copy "+table.Sanitize(), 1); err != nil {
		return 0, err
	}
	defer h.leave()
	return h.lane.db.CopyFrom(ctx, table, columns, source)
}

func (h *handle) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	name := ""
	if b.Len() > 0 {
		name = statementName(b.QueuedQueries[0].SQL)
	}
	if err := h.begin(name, b.Len()); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	handedOut := false
	defer func() {
		if !handedOut {
			h.leave()
		}
	}()
	r := &batchResults{BatchResults: h.lane.db.SendBatch(ctx, b), handle: h}
	h.read(r)
	handedOut = true
	return r
}

var _ DBTX = (*handle)(nil)

package fanout

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// rows passes everything on to pgx's rows, counts, and tells the handle when they are closed: by Close, by Next at the
// end, or by an error in Scan or Values.
type rows struct {
	pgx.Rows
	handle *handle

	// mu is held by Next, which waits for the network: it may be called by a goroutine that the query function has left
	// behind, for whom there is nothing more to read once discarded is set. Scan is not held back: twice as many locks for
	// each row were measured to cost four per cent of a call with long results.
	mu        sync.Mutex
	discarded atomic.Bool

	read   int
	closed bool
	fields []pgconn.FieldDescription // once closed, where the connection may be at work for others by then
	err    error                     // once closed
	batch  bool                      // of a batch, whose other results are still to come: the connection stays in use
	left   bool                      // likewise, and not read to the end when the next result was asked for
	types  typesLock                 // of the connection, where the function has that only until the rows are closed
}

// errNextResult is of a result of a batch that is read too late: pgx would read what is read now.
var errNextResult = errors.New("fanout: a result of a batch was read after the next one was asked for, or the batch was closed")

// failure is why there is nothing to be read. Rows that have been left fail when somebody goes on reading them: to him
// their end would look like that of the result.
func (r *rows) failure() error {
	if r.left && r.err == nil {
		r.err = errNextResult
	}
	return r.err
}

func (r *rows) Next() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed && r.Rows.Next() && !r.discarded.Load() {
		r.read++
		return true
	}
	_ = r.failure()
	r.close()
	if r.discarded.Load() {
		r.err = errReturned
	}
	return false
}

// Close leaves rows that are being read to whoever does: he finds them closed by the handle, once the function has returned.
func (r *rows) Close() {
	if r.mu.TryLock() {
		defer r.mu.Unlock()
		r.close()
	}
}

func (r *rows) close() {
	if r.closed {
		return // and the connection may be at work for others
	}
	r.closed = true
	r.Rows.Close()
	// pgx has one place for the columns of all of a connection's results. Of ";" alone, by the simple protocol, there is none,
	// and then it panics.
	if r.types.mu != nil && (r.read > 0 || r.Rows.Err() != nil || r.Rows.CommandTag().String() != "") {
		r.fields = slices.Clone(r.Rows.FieldDescriptions())
	}
	r.handle.count(r.read)
	r.err = r.Rows.Err()
	if r.batch {
		r.err = r.handle.explain(r.err)
	} else {
		r.err = r.handle.end(r.err)
	}
}

func (r *rows) FieldDescriptions() []pgconn.FieldDescription {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed && r.types.mu != nil {
		return r.fields
	}
	return r.Rows.FieldDescriptions()
}

func (r *rows) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return r.err
	}
	return r.Rows.Err()
}

func (r *rows) Scan(dest ...any) error {
	if err := r.failure(); err != nil {
		return err
	}
	err := r.scan(dest)
	if err != nil {
		r.Close() // as pgx has done with its own
	}
	return err
}

func (r *rows) scan(dest []any) error {
	if r.types.lock() {
		defer r.types.unlock()
	}
	return r.Rows.Scan(dest...)
}

func (r *rows) Values() ([]any, error) {
	if err := r.failure(); err != nil {
		return nil, err
	}
	values, err := r.values()
	if err != nil {
		r.Close()
	}
	return values, err
}

func (r *rows) values() ([]any, error) {
	if r.types.lock() {
		defer r.types.unlock()
	}
	return r.Rows.Values()
}

// A typesLock is the lock of a connection's type map, for a result whose rows are decoded by it.
type typesLock struct {
	mu   *sync.Mutex // nil where nobody else uses the map
	held bool
}

// lock locks the map while a row is decoded, or scanned as a whole, unless it is a destination of that row which has another
// one decoded. If it returns true, unlock is to follow.
func (l *typesLock) lock() bool {
	if l.mu == nil || l.held {
		return false
	}
	l.mu.Lock()
	l.held = true
	return true
}

func (l *typesLock) unlock() {
	l.held = false
	l.mu.Unlock()
}

// typesLock is for results that pgx reads from the connection of h.
func (h *handle) typesLock() typesLock {
	if h.exchange == nil {
		return typesLock{}
	}
	return typesLock{mu: &h.pipeline.state.types}
}

// discard closes rows that were still open when the query function returned. Their end must not look like the end of the
// result to a goroutine that has kept them.
func (r *rows) discard() error {
	r.discarded.Store(true)
	alone := r.mu.TryLock()
	if !alone {
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	r.close()
	err := r.err
	r.err = errReturned
	if !alone {
		return errAbandoned
	}
	return err
}

// row passes Scan on to pgx's row and tells the handle that the row is read.
type row struct {
	row    pgx.Row
	handle *handle
	batch  *batchResults // of a batch
	types  typesLock
}

func (r *row) Scan(dest ...any) (err error) {
	if r.batch != nil {
		if _, err := r.handle.holds(r.batch); err != nil {
			return err
		}
		if r.batch.row != r {
			return errNextResult
		}
	} else {
		ok, err := r.handle.readNow(r)
		if err != nil {
			return err
		}
		if !ok {
			return r.row.Scan(dest...) // for the second time: pgx has the answer
		}
	}
	completed := false
	defer func() {
		if !completed { // a destination has panicked; pgx has left the row open
			_ = r.row.Scan()
		}
		if r.batch != nil {
			err = r.handle.explain(err)
		} else {
			err = r.handle.endUnless(completed, err)
		}
	}()
	if scanner, ok := rowScanner(dest); ok {
		dest = []any{&notedScanner{scanner, r.handle}}
	}
	err = r.scan(dest)
	if err != nil && errors.As(err, new(pgx.ScanArgError)) {
		r.handle.executed()
	}
	completed = true
	if err == nil {
		r.handle.count(1)
	}
	return err
}

func (r *row) scan(dest []any) error {
	if r.types.lock() {
		defer r.types.unlock()
	}
	return r.row.Scan(dest...)
}

// discard closes a row that was never scanned, and reads what is behind it: pgx offers no other way than to scan it. Of its
// errors only the server's are the statement's; another one says that there is no row.
func (r *row) discard() error {
	err := r.handle.end(r.row.Scan(nothing{}))
	if isServerError(err) {
		return err
	}
	return nil
}

// A notedScanner is one of the function's own, which is called where there is a row.
type notedScanner struct {
	pgx.RowScanner
	handle *handle
}

func (s *notedScanner) ScanRow(rows pgx.Rows) error {
	s.handle.executed()
	return s.RowScanner.ScanRow(rows)
}

// nothing is a destination for a whole row, of which it takes nothing.
type nothing struct{}

func (nothing) ScanRow(pgx.Rows) error { return nil }

// batchResults passes everything on to pgx's, counts rows, and tells the handle when the batch is closed.
type batchResults struct {
	pgx.BatchResults
	handle *handle
	queued *pgx.Batch
	rows   *rows // read last; nil if that is no rows
	row    *row  // likewise
}

// leave ends what has been read last. Whoever still held it would read the next result: pgx has one reader for all of a
// connection's results.
func (b *batchResults) leave() {
	if b.rows != nil && !b.rows.closed {
		b.rows.left = true
		b.rows.Close()
	}
	b.rows, b.row = nil, nil
}

func (b *batchResults) Exec() (pgconn.CommandTag, error) {
	b.leave()
	tag, err := b.BatchResults.Exec()
	return tag, b.handle.explain(err)
}

func (b *batchResults) Query() (pgx.Rows, error) {
	b.leave()
	pgxRows, err := b.BatchResults.Query()
	if err != nil {
		err = b.handle.explain(err)
		return failedRows{err}, err
	}
	b.rows = &rows{Rows: pgxRows, handle: b.handle, batch: true, types: b.handle.typesLock()}
	return b.rows, nil
}

func (b *batchResults) QueryRow() pgx.Row {
	b.leave()
	b.row = &row{row: b.BatchResults.QueryRow(), handle: b.handle, batch: b, types: b.handle.typesLock()}
	return b.row
}

func (b *batchResults) Close() error {
	if _, err := b.handle.holds(b); err != nil {
		return err
	}
	b.leave()
	err := b.BatchResults.Close()
	b.leave() // what a function that is queued has kept
	if ok, _ := b.handle.holds(b); ok {
		err = b.handle.end(err)
	}
	return err
}

// adopt has the functions that are queued with the batch's statements, which pgx would hand its own results, read these.
func (b *batchResults) adopt() {
	for _, q := range b.queued.QueuedQueries {
		if read := q.Fn; read != nil {
			q.Fn = func(results pgx.BatchResults) error {
				b.handle.executed()
				if _, adopted := results.(*batchResults); !adopted { // which they are if the batch is sent again
					results = b
				}
				return read(results)
			}
		}
	}
}

// discard closes the batch because the query function has returned, or panicked. The functions that it has queued with its
// statements are not called any more: one of them may be what has panicked.
func (b *batchResults) discard() error {
	for _, q := range b.queued.QueuedQueries {
		q.Fn = nil
	}
	if b.rows != nil && !b.rows.closed {
		_ = b.rows.discard()
	}
	b.leave()
	return b.handle.end(b.BatchResults.Close())
}

// failedRows are the rows, and the row, of a statement that was not sent.
type failedRows struct{ err error }

func (r failedRows) Close()                                       {}
func (r failedRows) Err() error                                   { return r.err }
func (r failedRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (r failedRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (r failedRows) Next() bool                                   { return false }
func (r failedRows) Scan(...any) error                            { return r.err }
func (r failedRows) Values() ([]any, error)                       { return nil, r.err }
func (r failedRows) RawValues() [][]byte                          { return nil }
func (r failedRows) Conn() *pgx.Conn                              { return nil }
func (r failedRows) TypeMap() *pgtype.Map                         { return nil }

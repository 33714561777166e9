package fanout

import (
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// rows passes everything on to pgx's rows, counts, and tells the handle when they are closed: by Close, by Next at the
// end, or by an error in Scan or Values.
type rows struct {
	pgx.Rows
	handle *handle
	read   int
	closed bool
	err    error // once closed
	batch  bool  // of a batch, whose other results are still to come: the connection stays in use
}

func (r *rows) Next() bool {
	if !r.closed && r.Rows.Next() {
		r.read++
		return true
	}
	r.Close()
	return false
}

func (r *rows) Close() {
	if r.closed {
		return // and the connection may be at work for others
	}
	r.closed = true
	r.Rows.Close()
	r.handle.count(r.read)
	r.err = r.Rows.Err()
	if r.batch {
		r.err = r.handle.explain(r.err)
	} else {
		r.err = r.handle.end(r.err)
	}
}

func (r *rows) Err() error {
	if r.closed {
		return r.err
	}
	return r.Rows.Err()
}

func (r *rows) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close() // as pgx has done with its own
	}
	return err
}

func (r *rows) Values() ([]any, error) {
	if r.err != nil {
		return nil, r.err
	}
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

// discard closes rows that were still open when the query function returned. Their end must not look like the end of the
// result to a goroutine that has kept them.
func (r *rows) discard() error {
	r.Close()
	err := r.err
	r.err = errReturned
	return err
}

// row passes Scan on to pgx's row and tells the handle that the row is read.
type row struct {
	row    pgx.Row
	handle *handle
	batch  bool
}

func (r *row) Scan(dest ...any) (err error) {
	if !r.batch {
		ok, err := r.handle.holds(r)
		if err != nil {
			return err
		}
		if !ok {
			return r.row.Scan(dest...) // for the second time: pgx has the answer
		}
	}
	defer func() {
		if r.batch {
			err = r.handle.explain(err)
		} else {
			err = r.handle.end(err)
		}
	}()
	err = r.row.Scan(dest...)
	if err == nil {
		r.handle.count(1)
	}
	return err
}

// discard closes a row that was never scanned. Scanning into nothing does that: pgx offers no other way. Of its errors
// only the server's are the statement's; the others say that there is nothing to scan into, or no row.
func (r *row) discard() error {
	err := r.handle.end(r.row.Scan())
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return err
	}
	return nil
}

// batchResults passes everything on to pgx's, counts rows, and tells the handle when the batch is closed.
type batchResults struct {
	pgx.BatchResults
	handle *handle
}

func (b *batchResults) Exec() (pgconn.CommandTag, error) {
	tag, err := b.BatchResults.Exec()
	return tag, b.handle.explain(err)
}

func (b *batchResults) Query() (pgx.Rows, error) {
	pgxRows, err := b.BatchResults.Query()
	return &rows{Rows: pgxRows, handle: b.handle, batch: true}, b.handle.explain(err)
}

func (b *batchResults) QueryRow() pgx.Row {
	return &row{row: b.BatchResults.QueryRow(), handle: b.handle, batch: true}
}

func (b *batchResults) Close() error {
	ok, err := b.handle.holds(b)
	if err != nil {
		return err
	}
	err = b.BatchResults.Close()
	if ok {
		err = b.handle.end(err)
	}
	return err
}

func (b *batchResults) discard() error { return b.handle.end(b.BatchResults.Close()) }

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

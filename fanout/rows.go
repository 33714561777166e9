package fanout

import (
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
	cut    bool // closed by the end of the query function, not by the function
	batch  bool // of a batch, whose other results are still to come: the connection stays in use
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
	if !r.batch {
		r.handle.leave()
	}
}

func (r *rows) Scan(dest ...any) error {
	if r.cut {
		return errReturned
	}
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close() // as pgx has done with its own
	}
	return err
}

func (r *rows) Values() ([]any, error) {
	if r.cut {
		return nil, errReturned
	}
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

// Err is errReturned for rows that were still open when the query function returned: that they end there must not look
// like the end of the result.
func (r *rows) Err() error {
	if r.cut {
		return errReturned
	}
	return r.Rows.Err()
}

func (r *rows) discard() {
	r.closed, r.cut = true, true
	r.Rows.Close()
	r.handle.count(r.read)
}

// row passes Scan on to pgx's row and tells the handle that the row is read.
type row struct {
	row    pgx.Row
	handle *handle
	batch  bool
}

func (r *row) Scan(dest ...any) error {
	if r.batch {
		return r.scan(dest...)
	}
	ok, err := r.handle.holds(r)
	if err != nil {
		return err
	}
	if !ok {
		return r.row.Scan(dest...) // for the second time: pgx has the answer
	}
	defer r.handle.leave()
	return r.scan(dest...)
}

func (r *row) scan(dest ...any) error {
	err := r.row.Scan(dest...)
	if err == nil {
		r.handle.count(1)
	}
	return err
}

// discard closes a row that was never scanned. Scanning into nothing does that: pgx offers no other way.
func (r *row) discard() { _ = r.row.Scan() }

// batchResults passes everything on to pgx's, counts rows, and tells the handle when the batch is closed.
type batchResults struct {
	pgx.BatchResults
	handle *handle
}

func (b *batchResults) Query() (pgx.Rows, error) {
	pgxRows, err := b.BatchResults.Query()
	return &rows{Rows: pgxRows, handle: b.handle, batch: true}, err
}

func (b *batchResults) QueryRow() pgx.Row {
	return &row{row: b.BatchResults.QueryRow(), handle: b.handle, batch: true}
}

func (b *batchResults) Close() error {
	ok, err := b.handle.holds(b)
	if err != nil {
		return err
	}
	if ok {
		defer b.handle.leave()
	}
	return b.BatchResults.Close()
}

func (b *batchResults) discard() { _ = b.BatchResults.Close() }

// refusedRows are the rows, and the row, of a statement that was not sent.
type refusedRows struct{ err error }

func (r refusedRows) Close()                                       {}
func (r refusedRows) Err() error                                   { return r.err }
func (r refusedRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (r refusedRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (r refusedRows) Next() bool                                   { return false }
func (r refusedRows) Scan(...any) error                            { return r.err }
func (r refusedRows) Values() ([]any, error)                       { return nil, r.err }
func (r refusedRows) RawValues() [][]byte                          { return nil }
func (r refusedRows) Conn() *pgx.Conn                              { return nil }
func (r refusedRows) TypeMap() *pgtype.Map                         { return nil }

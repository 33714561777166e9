package fanout

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// bufferedRows are the rows of a request's result, as pgx's rows are those of a connection: a query function decodes
// them in its own goroutine, beside the lane, which goes on with other statements.
type bufferedRows struct {
	request *request          // nil once closed
	tag     pgconn.CommandTag // once closed
	conn    *pgx.Conn
	state   *connState // whose type map several functions of the lane decode by
	fields  []pgconn.FieldDescription
	told    []pgconn.FieldDescription // to the function

	chunk  chunk
	row    int // next in the chunk
	value  int
	offset int
	values [][]byte // of the row that is being read

	plans  *scanPlans
	types  typesLock
	closed bool
	err    error

	outer rows // what the function gets, if it has asked for rows; here because both live as long
}

// scanPlans are how the columns of a result are decoded. They are kept from row to row, as pgx does, and from one execution
// of a statement to the next.
type scanPlans struct {
	fields []pgconn.FieldDescription
	types  []*pgtype.Type // of the columns; nil where the connection knows none
	plans  []pgtype.ScanPlan
	dests  []reflect.Type // that the plans are for
}

// FieldDescriptions returns a copy, which is the function's to change: others have the same fields.
func (r *bufferedRows) FieldDescriptions() []pgconn.FieldDescription {
	if r.told == nil {
		r.told = slices.Clone(r.fields)
	}
	return r.told
}

func (r *bufferedRows) CommandTag() pgconn.CommandTag {
	return r.tag
}
func (r *bufferedRows) Err() error           { return r.err }
func (r *bufferedRows) RawValues() [][]byte  { return r.values }
func (r *bufferedRows) Conn() *pgx.Conn      { return r.conn }
func (r *bufferedRows) TypeMap() *pgtype.Map { return r.conn.TypeMap() }

func (r *bufferedRows) Next() bool {
	if r.closed {
		return false
	}
	if r.row == r.chunk.rows {
		next, more, err := r.nextChunk()
		if !more {
			r.finish(err)
			return false
		}
		r.chunk, r.row, r.value, r.offset = next, 0, 0, 0
	}
	r.row++
	if r.values == nil {
		r.values = resized(r.request.values, len(r.fields))
		r.request.values = r.values
	}
	for i := range r.values {
		n := int(r.chunk.lengths[r.value])
		r.value++
		switch n {
		case -1:
			r.values[i] = nil
			continue
		case 0:
			r.values[i] = []byte{} // not nil, whatever data is: it is not NULL
			continue
		}
		r.values[i] = r.chunk.data[r.offset : r.offset+n : r.offset+n]
		r.offset += n
	}
	return true
}

// Close waits for the end of the result: only then is it known whether the statement has succeeded.
func (r *bufferedRows) Close() {
	if r.closed {
		return
	}
	for {
		_, more, err := r.nextChunk()
		if !more {
			r.finish(err)
			return
		}
	}
}

// nextChunk is the handle's, which may wait for the server. Others do not wait for the type map meanwhile, if a destination that
// has failed closes the rows.
func (r *bufferedRows) nextChunk() (c chunk, more bool, err error) {
	if r.types.held {
		r.types.unlock()
		defer r.types.lock()
	}
	return r.request.handle.nextChunk(r.request)
}

func (r *bufferedRows) finish(err error) {
	r.closed = true
	r.tag = r.request.tag
	r.request.recycle()
	r.request = nil
	r.chunk, r.values, r.plans = chunk{}, nil, nil
	if r.err == nil {
		r.err = err
	}
}

// fail ends the rows by an error on this side.
func (r *bufferedRows) fail(err error) error {
	if r.err == nil {
		r.err = err
	}
	r.Close()
	return err
}

func (r *bufferedRows) Scan(dest ...any) error {
	if scanner, ok := rowScanner(dest); ok {
		if err := r.scanRow(scanner); err != nil {
			return r.fail(err)
		}
		return nil
	}
	if len(r.values) != len(r.fields) {
		return r.fail(errValues(len(r.fields), len(r.values))) // Next has not been called
	}
	if len(dest) != len(r.fields) {
		return r.fail(fmt.Errorf("number of field descriptions must equal number of destinations, got %d and %d", len(r.fields), len(dest)))
	}
	if len(dest) == 0 {
		return nil
	}
	if i, err := r.decode(dest); err != nil {
		return r.fail(pgx.ScanArgError{ColumnIndex: i, FieldName: r.fields[i].Name, Err: err})
	}
	return nil
}

// scanRow has a row scanned as a whole, which may be by the type map itself.
func (r *bufferedRows) scanRow(scanner pgx.RowScanner) error {
	if r.types.lock() {
		defer r.types.unlock()
	}
	return scanner.ScanRow(r)
}

// decode stores the row in dest, and returns the column that could not be.
func (r *bufferedRows) decode(dest []any) (column int, err error) {
	if r.types.lock() {
		defer r.types.unlock()
	}
	if r.plans == nil {
		r.plans = r.plansFor()
	}
	p := r.plans
	for i, d := range dest {
		if d == nil {
			continue
		}
		if t := reflect.TypeOf(d); p.plans[i] == nil || t != p.dests[i] {
			p.plans[i] = r.conn.TypeMap().PlanScan(r.fields[i].DataTypeOID, r.fields[i].Format, d)
			p.dests[i] = t
		}
		if err := p.plans[i].Scan(r.values[i], d); err != nil {
			return i, err
		}
	}
	return 0, nil
}

// plansFor returns the plans of the execution before, if its result had the same columns, of types that nobody has
// registered anew meanwhile.
func (r *bufferedRows) plansFor() *scanPlans {
	kept := r.state.plans[r.request.text.sql]
	if kept != nil && len(kept.fields) > 0 && &kept.fields[0] == &r.fields[0] {
		// Fields are kept too: see kept.
		same := true
		for i, field := range r.fields {
			known, _ := r.conn.TypeMap().TypeForOID(field.DataTypeOID)
			same = same && known == kept.types[i]
		}
		if same {
			return kept
		}
	}
	columns := len(r.fields)
	p := &scanPlans{r.fields, make([]*pgtype.Type, columns), make([]pgtype.ScanPlan, columns), make([]reflect.Type, columns)}
	for i, field := range r.fields {
		p.types[i], _ = r.conn.TypeMap().TypeForOID(field.DataTypeOID)
	}
	if kept != nil || len(r.state.plans) < maxDescriptions {
		r.state.plans[r.request.text.sql] = p
	}
	return p
}

func (r *bufferedRows) Values() ([]any, error) {
	if r.closed {
		return nil, errors.New("rows is closed")
	}
	if len(r.values) != len(r.fields) {
		return nil, r.fail(errValues(len(r.fields), len(r.values)))
	}
	values, err := r.decodeAny()
	if err != nil {
		return nil, r.fail(err)
	}
	return values, nil
}

func (r *bufferedRows) decodeAny() ([]any, error) {
	if r.types.lock() {
		defer r.types.unlock()
	}
	types := r.conn.TypeMap()
	values := make([]any, len(r.values))
	for i, raw := range r.values {
		field := r.fields[i]
		known, ok := types.TypeForOID(field.DataTypeOID)
		var err error
		switch {
		case raw == nil:
		case ok:
			values[i], err = known.Codec.DecodeValue(types, field.DataTypeOID, field.Format, raw)
		case field.Format == pgx.TextFormatCode:
			values[i] = string(raw)
		default:
			values[i] = append([]byte(nil), raw...)
		}
		if err != nil {
			return nil, err
		}
	}
	return values, nil
}

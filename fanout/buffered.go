package fanout

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// bufferedRows are the rows of a request's result, as pgx's rows are those of a connection: a query function decodes
// them in its own goroutine, beside the lane, which goes on with other statements.
type bufferedRows struct {
	request *request
	conn    *pgx.Conn
	state   *connState // whose type map several functions of the lane decode by
	fields  []pgconn.FieldDescription

	chunk  *chunk
	row    int // next in the chunk
	value  int
	offset int
	values [][]byte // of the row that is being read

	plans  []pgtype.ScanPlan
	dests  []reflect.Type // that the plans are for
	closed bool
	err    error
}

func (r *bufferedRows) FieldDescriptions() []pgconn.FieldDescription { return r.fields }
func (r *bufferedRows) CommandTag() pgconn.CommandTag {
	if !r.closed {
		return pgconn.CommandTag{}
	}
	return r.request.tag
}
func (r *bufferedRows) Err() error           { return r.err }
func (r *bufferedRows) RawValues() [][]byte  { return r.values }
func (r *bufferedRows) Conn() *pgx.Conn      { return r.conn }
func (r *bufferedRows) TypeMap() *pgtype.Map { return r.conn.TypeMap() }

func (r *bufferedRows) Next() bool {
	if r.closed {
		return false
	}
	if r.chunk == nil || r.row == r.chunk.rows {
		more, err := r.request.handle.nextChunk(r.request)
		if more == nil {
			r.finish(err)
			return false
		}
		r.chunk, r.row, r.value, r.offset = more, 0, 0, 0
	}
	r.row++
	if r.values == nil {
		r.values = make([][]byte, len(r.fields))
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
		more, err := r.request.handle.nextChunk(r.request)
		if more == nil {
			r.finish(err)
			return
		}
	}
}

func (r *bufferedRows) finish(err error) {
	r.closed = true
	r.chunk, r.values, r.plans, r.dests = nil, nil, nil, nil
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
	if len(dest) == 1 {
		if scanner, ok := dest[0].(pgx.RowScanner); ok {
			if err := scanner.ScanRow(r); err != nil {
				return r.fail(err)
			}
			return nil
		}
	}
	if len(r.values) != len(r.fields) {
		return r.fail(fmt.Errorf("number of field descriptions must equal number of values, got %d and %d", len(r.fields), len(r.values)))
	}
	if len(dest) != len(r.fields) {
		return r.fail(fmt.Errorf("number of field descriptions must equal number of destinations, got %d and %d", len(r.fields), len(dest)))
	}
	if i, err := r.decode(dest); err != nil {
		return r.fail(pgx.ScanArgError{ColumnIndex: i, FieldName: r.fields[i].Name, Err: err})
	}
	return nil
}

// decode stores the row in dest, and returns the column that could not be. Plans are kept from row to row, as pgx does.
func (r *bufferedRows) decode(dest []any) (column int, err error) {
	r.state.types.Lock()
	defer r.state.types.Unlock()
	if r.plans == nil {
		r.plans = make([]pgtype.ScanPlan, len(dest))
		r.dests = make([]reflect.Type, len(dest))
	}
	for i, d := range dest {
		if d == nil {
			continue
		}
		if t := reflect.TypeOf(d); r.plans[i] == nil || t != r.dests[i] {
			r.plans[i] = r.conn.TypeMap().PlanScan(r.fields[i].DataTypeOID, r.fields[i].Format, d)
			r.dests[i] = t
		}
		if err := r.plans[i].Scan(r.values[i], d); err != nil {
			return i, err
		}
	}
	return 0, nil
}

func (r *bufferedRows) Values() ([]any, error) {
	if r.closed {
		return nil, errors.New("rows is closed")
	}
	values, err := r.decodeAny()
	if err != nil {
		return nil, r.fail(err)
	}
	return values, nil
}

func (r *bufferedRows) decodeAny() ([]any, error) {
	r.state.types.Lock()
	defer r.state.types.Unlock()
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

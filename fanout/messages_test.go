package fanout_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// An edited is the network between a pool and its server, on which the server's messages are edited: edit returns the bytes that
// arrive in place of one. Nil, it is a network as any other.
type edited struct {
	edit atomic.Pointer[edit]
}

type edit func(c *editedConn, kind byte, body []byte) []byte

type editedConn struct {
	net.Conn
	by       *edited
	last     byte   // the kind of the message before
	arriving []byte // what is left of one
}

func (e *edited) attach(config *pgxpool.Config) {
	fanouttest.Over(func(conn net.Conn) net.Conn { return &editedConn{Conn: conn, by: e} })(config)
}

func (e *edited) set(f edit) {
	if f == nil {
		e.edit.Store(nil)
		return
	}
	e.edit.Store(&f)
}

func (c *editedConn) Read(b []byte) (int, error) {
	for len(c.arriving) == 0 {
		head := make([]byte, 5)
		if _, err := io.ReadFull(c.Conn, head); err != nil {
			return 0, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(c.Conn, body); err != nil {
			return 0, err
		}
		if f := c.by.edit.Load(); f != nil && c.last != 0 { // not the server's first word
			c.arriving = (*f)(c, head[0], body)
		} else {
			c.arriving = message(head[0], body)
		}
		c.last = head[0]
	}
	n := copy(b, c.arriving)
	c.arriving = c.arriving[n:]
	return n, nil
}

func message(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
}

// malformed is the body of a row without the last of its values, or with a NULL behind them.
func malformed(row []byte, by int) []byte {
	values := binary.BigEndian.Uint16(row)
	switch by {
	case -1:
		last := 2
		for at, i := 2, uint16(0); i < values; i++ {
			last = at
			at += 4 + int(max(0, int32(binary.BigEndian.Uint32(row[at:]))))
		}
		row = row[:last]
	case 1:
		row = append(row, 0xff, 0xff, 0xff, 0xff)
	}
	binary.BigEndian.PutUint16(row, uint16(int(values)+by))
	return row
}

// A row that has not as many values as there are columns is its query's error, also where statements share a result, and the
// connection serves on.
func TestMalformedRows(t *testing.T) {
	const want = "number of field descriptions must equal number of values, got 2 and "
	type pair struct{ N, M int32 }
	ways := map[string]fanout.Query[fanout.DBTX, pair]{}
	for way, row := range map[string]func(pgx.CollectableRow) (pair, error){
		"Scan": func(row pgx.CollectableRow) (p pair, err error) { return p, row.Scan(&p.N, &p.M) },
		"Values": func(row pgx.CollectableRow) (pair, error) {
			values, err := row.Values()
			if err != nil {
				return pair{}, err
			}
			return pair{values[0].(int32), values[1].(int32)}, nil
		},
	} {
		ways[way] = func(ctx context.Context, tx fanout.DBTX) ([]pair, error) {
			rows, err := tx.Query(ctx, "-- name: Pairs :many\nselect n, n from numbers where n < $1 order by n", 4)
			if err != nil {
				return nil, err
			}
			return pgx.CollectRows(rows, row)
		}
	}
	var e edited
	pool := pgtest.Pool(t, 1, e.attach)
	if _, err := pool.Exec(t.Context(), "create table numbers (n int not null); insert into numbers values (1), (2), (3)"); err != nil {
		t.Fatal(err)
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		for way, query := range ways {
			for _, n := range []int{1, 8} {
				for _, more := range []int{0, -1, 0, 1, 0} {
					e.set(func(_ *editedConn, kind byte, body []byte) []byte {
						if kind == 'D' {
							body = malformed(body, more)
						}
						return message(kind, body)
					})
					lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(n, query)...)
					e.set(nil)
					switch {
					case more != 0:
						fanouttest.Mention(t, err, want)
					case err != nil:
						t.Errorf("%v, %s, %d queries: %v", s, way, n, err)
					default:
						for _, list := range lists {
							if len(list) != 3 || list[2] != (pair{3, 3}) {
								t.Errorf("%v, %s, %d queries: %v", s, way, n, list)
							}
						}
					}
				}
			}
		}
	}
	if n := pool.Stat().NewConnsCount(); n != 1 {
		t.Errorf("%d connections were opened", n)
	}
	fanouttest.Serves(t, pool)
}

// A malformed row in one of several writes that share a Sync in the caller's transaction: the others must not be executed twice.
func TestMalformedRowDoesNotRepeatWrites(t *testing.T) {
	for _, s := range fanouttest.Pipelining {
		var e edited
		pool := pgtest.Pool(t, 1, e.attach)
		if _, err := pool.Exec(t.Context(), "create table written (n int)"); err != nil {
			t.Fatal(err)
		}
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		src := fanouttest.Raw(pool).On(tx)
		src.Strategy, src.Partial = s, true
		queries := make([]fanout.Query[fanout.DBTX, int32], 8)
		for i := range queries {
			queries[i] = fanouttest.Statement[int32]("insert into written values ($1) returning n", i)
		}
		for range 4 {
			if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tx.Exec(t.Context(), "delete from written"); err != nil {
			t.Fatal(err)
		}
		rows := 0
		e.set(func(_ *editedConn, kind byte, body []byte) []byte {
			if kind == 'D' {
				if rows++; rows == 2 {
					body = malformed(body, 1)
				}
			}
			return message(kind, body)
		})
		lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
		e.set(nil)
		var n, distinct int
		if err := tx.QueryRow(t.Context(), "select count(*), count(distinct n) from written").Scan(&n, &distinct); err != nil {
			t.Fatal(err)
		}
		if n != 8 || distinct != 8 || fanouttest.AsError(t, err).Index != 1 {
			t.Errorf("%v: %d rows of %d were written: %v, %v", s, n, distinct, lists, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Nor does what the package asks the server for itself have to be well-formed, or to be answered at all.
func TestMalformedRowsOfItsOwn(t *testing.T) {
	for _, dropped := range []bool{false, true} {
		for _, snapshot := range []bool{false, true} {
			for _, s := range fanouttest.Strategies {
				var e edited
				pool := pgtest.Pool(t, 2, e.attach)
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot = s, snapshot
				e.set(func(_ *editedConn, kind byte, body []byte) []byte {
					switch {
					case kind == 'D' && dropped:
						return nil
					case kind == 'D':
						body = malformed(body, -1)
					}
					return message(kind, body)
				})
				_, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(8, fanouttest.Statement[int32]("-- name: N :many\nselect $1::int", 7))...)
				e.set(nil)
				if err == nil && !dropped {
					t.Errorf("%v, snapshot %v: no error", s, snapshot)
				}
				fanouttest.Serves(t, pool)
			}
		}
	}
}

// An error ahead of the answer to an empty round trip, as poolers may have it, is nobody's: what follows is not shifted.
func TestErrorAtEmptySync(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		for _, s := range fanouttest.Pipelining {
			var e edited
			pool := pgtest.Pool(t, 1, e.attach)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot, src.Partial = s, snapshot, true
			queries := make([]fanout.Query[fanout.DBTX, int32], 8)
			for i := range queries {
				queries[i] = fanouttest.Statement[int32]("select $1::int", i)
			}
			if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
				t.Fatal(err)
			}
			said := false
			e.set(func(c *editedConn, kind byte, body []byte) []byte {
				if kind == 'Z' && c.last == 'Z' && !said {
					said = true
					return append(message('E', []byte("SERROR\x00VERROR\x00C53300\x00Mno server connection to be had\x00\x00")), message(kind, body)...)
				}
				return message(kind, body)
			})
			for range 20 {
				lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
				if err != nil {
					t.Errorf("%v, snapshot %v: %v", s, snapshot, err)
				}
				for i, list := range lists {
					if len(list) != 1 || list[0] != int32(i) {
						t.Errorf("%v, snapshot %v: query %d got %v", s, snapshot, i, list)
					}
				}
			}
			e.set(nil)
			if !said {
				t.Errorf("%v, snapshot %v: there was no empty round trip", s, snapshot)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// Somebody between here and the server ends the connection by the server's code, while that goes on with what it has been sent:
// nothing of it is sent once more. If the server itself has ended it, what it has not begun with goes by another connection.
func TestTerminatedBySomebodyBetween(t *testing.T) {
	for _, routine := range []string{"", "RProcessInterrupts\x00"} {
		for _, s := range fanouttest.Pipelining {
			var e edited
			pool := pgtest.Pool(t, 1, e.attach)
			if _, err := pool.Exec(t.Context(), "create table written (n int)"); err != nil {
				t.Fatal(err)
			}
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = s, true
			queries := make([]fanout.Query[fanout.DBTX, int32], 8)
			for i := range queries {
				queries[i] = fanouttest.Statement[int32]("insert into written values ($1) returning n", i)
			}
			for range 2 { // until it is known how quick they are
				if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
					t.Fatal(err)
				}
			}
			rows := 0
			e.set(func(_ *editedConn, kind byte, body []byte) []byte {
				if kind == 'D' {
					if rows++; rows == 3 {
						return message('E', []byte("SFATAL\x00VFATAL\x00C57P01\x00Mterminating connection\x00"+routine+"\x00"))
					}
				}
				return message(kind, body)
			})
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			e.set(nil)
			var errs fanout.Errors
			if goesOn := routine != ""; !errors.As(err, &errs) || (len(errs) == 1) != goesOn {
				t.Errorf("%v, %q: %v, %v", s, routine, lists, err)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

package fanout_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A malforming is a connection on which each row, while it is on, has a value less or a value more than the server has sent.
type malforming struct {
	net.Conn
	by      *atomic.Int32
	message []byte // what is left of the last one
}

func (c *malforming) Read(b []byte) (int, error) {
	if len(c.message) == 0 {
		head := make([]byte, 5)
		if _, err := io.ReadFull(c.Conn, head); err != nil {
			return 0, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(c.Conn, body); err != nil {
			return 0, err
		}
		if head[0] == 'D' {
			body = malformed(body, int(c.by.Load()))
			binary.BigEndian.PutUint32(head[1:], uint32(len(body)+4))
		}
		c.message = append(head, body...)
	}
	n := copy(b, c.message)
	c.message = c.message[n:]
	return n, nil
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
	var by atomic.Int32
	pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) {
		dial := config.ConnConfig.DialFunc
		config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return &malforming{Conn: conn, by: &by}, err
		}
	})
	if _, err := pool.Exec(t.Context(), "create table numbers (n int not null); insert into numbers values (1), (2), (3)"); err != nil {
		t.Fatal(err)
	}
	for _, s := range strategies {
		src := raw(pool)
		src.Strategy = s
		for way, query := range ways {
			for _, n := range []int{1, 8} {
				for _, more := range []int32{0, -1, 0, 1, 0} {
					by.Store(more)
					lists, err := fanout.Collect(t.Context(), src, repeated(n, query)...)
					by.Store(0)
					switch {
					case more != 0:
						mention(t, err, want)
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
	serves(t, pool)
}

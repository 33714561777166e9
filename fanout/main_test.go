package fanout_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	sqlcfanout "github.com/sqlc-fanout/sqlc-fanout"
	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/shop"
)

// soak makes the random and repeated tests run for long: go test ./fanout -soak
var soak = flag.Bool("soak", false, "run the random and repeated tests for long")

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m, sqlcfanout.Schema, shop.Schema)) }

// strategies are those that are available.
var strategies = []fanout.Strategy{fanout.Parallel, fanout.Serial, fanout.Pipelined, fanout.Coalesced, fanout.Auto}

// pipelining are those that send the statements of several functions together.
var pipelining = []fanout.Strategy{fanout.Pipelined, fanout.Coalesced, fanout.Auto}

// eachStrategy runs f once for every strategy, on a pool of its own with n rows a_0 … in table a.
func eachStrategy(t *testing.T, conns, n int, f func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries])) {
	for _, s := range strategies {
		t.Run(s.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, conns)
			fill(t, pool, n)
			src := fanout.New(pool, db.New)
			src.Strategy = s
			f(t, pool, src)
		})
	}
}

// fill adds rows a_0 … a_(n-1) to table a. On a fresh database their ids are 1 to n.
func fill(t testing.TB, pool *pgxpool.Pool, n int) {
	t.Helper()
	data := make([]*string, n)
	for i := range data {
		text := fmt.Sprintf("a_%d", i)
		data[i] = &text
	}
	if _, err := db.New(pool).InsertAs(context.Background(), data); err != nil {
		t.Fatal(err)
	}
}

func id(a db.A) int32 { return a.ID }

// raw binds a Source to DBTX itself, for statements that no generated package has.
func raw(pool *pgxpool.Pool) fanout.Source[fanout.DBTX] {
	return fanout.New(pool, func(tx fanout.DBTX) fanout.DBTX { return tx })
}

// statement is a Query of one hand-written statement with one column.
func statement[T any](sql string, args ...any) fanout.Query[fanout.DBTX, T] {
	return func(ctx context.Context, tx fanout.DBTX) ([]T, error) {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[T])
	}
}

const (
	pidSQL   = "-- name: PID :one\nselect pg_backend_pid()"
	sleepSQL = "-- name: Sleep :one\nselect pg_sleep($1)::text"
	boomSQL  = "-- name: Boom :one\nselect 1 / $1::int"
)

var (
	pid   = statement[int32](pidSQL)
	sleep = statement[string](sleepSQL, 60) // seconds: to be interrupted
	boom  = statement[int32](boomSQL, 0)
)

// over has a pool's connections run over what wrap makes of them.
func over(wrap func(net.Conn) net.Conn) func(*pgxpool.Config) {
	return func(config *pgxpool.Config) {
		dial := config.ConnConfig.DialFunc
		config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}
	}
}

// serves checks that the pool is as good as new: nothing acquired, and every connection answers. It waits for connections
// that pgx closes in the background, because their ctx ended.
func serves(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); pool.Stat().AcquiredConns() != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections still acquired", pool.Stat().AcquiredConns())
		}
	}
	for range pool.Stat().MaxConns() {
		if _, err := db.New(pool).CountA(context.Background()); err != nil {
			t.Errorf("the pool does not serve: %v", err)
		}
	}
}

// awaiting is how many statements wait for an advisory lock.
func awaiting(t testing.TB, monitor *pgx.Conn) int {
	t.Helper()
	return pgtest.QueryRow[int](t, monitor, "select count(*)::int from pg_locks where locktype = 'advisory' and not granted")
}

// repeated is n times the same query.
func repeated[Q, T any](n int, query fanout.Query[Q, T]) []fanout.Query[Q, T] {
	return slices.Repeat([]fanout.Query[Q, T]{query}, n)
}

package fanouttest

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// ID is the primary key of table a.
func ID(a db.A) int32 { return a.ID }

// Raw binds a Source to DBTX itself, for statements that no generated package has.
func Raw(pool *pgxpool.Pool) fanout.Source[fanout.DBTX] {
	return fanout.New(pool, func(tx fanout.DBTX) fanout.DBTX { return tx })
}

// Statement is a Query of one hand-written statement with one column.
func Statement[T any](sql string, args ...any) fanout.Query[fanout.DBTX, T] {
	return func(ctx context.Context, tx fanout.DBTX) ([]T, error) {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[T])
	}
}

// What many of the tests execute.
const (
	PIDSQL   = "-- name: PID :one\nselect pg_backend_pid()"
	SleepSQL = "-- name: Sleep :one\nselect pg_sleep($1)::text"
	BoomSQL  = "-- name: Boom :one\nselect 1 / $1::int"
)

// The same as queries.
var (
	PID   = Statement[int32](PIDSQL)
	Sleep = Statement[string](SleepSQL, 60) // seconds: to be interrupted
	Boom  = Statement[int32](BoomSQL, 0)
)

// SlowRowsSQL sends $2 rows of a kilobyte, and sleeps $1 times a number that grows by one every thousand rows, at each.
const SlowRowsSQL = "select repeat('x', 1000), pg_sleep($1 * (n / 1000)) from generate_series(1, $2::int) n"

// InSnapshot is what every query of a snapshot call must see: a transaction, repeatable read, read only.
var InSnapshot = Statement[string]("select current_setting('transaction_isolation') || ' ' || current_setting('transaction_read_only') || ' ' || pg_current_snapshot()::text where 1 = $1", 1)

// Repeated is n times the same query.
func Repeated[Q, T any](n int, query fanout.Query[Q, T]) []fanout.Query[Q, T] {
	return slices.Repeat([]fanout.Query[Q, T]{query}, n)
}

// Do runs one function on src and returns its error.
func Do(t testing.TB, src fanout.Source[fanout.DBTX], f func(ctx context.Context, tx fanout.DBTX) error) error {
	t.Helper()
	return fanout.Run(t.Context(), src, fanout.Do(f))
}

// GiveUp sends a statement and does not wait for its end.
func GiveUp(ctx context.Context, tx fanout.DBTX) error {
	own, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := tx.Exec(own, "select pg_sleep(60), $1::text", "x"); !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("not abandoned: %w", err)
	}
	return nil
}

// Nest is a Query whose function makes a call of its own, which makes another, depth levels in all. It returns the PIDs
// that it met.
func Nest(src fanout.Source[fanout.DBTX], depth int) fanout.Query[fanout.DBTX, int32] {
	return func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		pids, err := PID(ctx, tx)
		if err != nil || depth == 0 {
			return pids, err
		}
		lists, err := fanout.Collect(ctx, src, Repeated(3, Nest(src, depth-1))...)
		for _, list := range lists {
			pids = append(pids, list...)
		}
		if err == nil {
			_, err = PID(ctx, tx) // the connection is the function's own again
		}
		return pids, err
	}
}

// KnownToBeSlow has the sleeping statements of the tests executed, so that none is sent ahead of others, which would wait
// for its end.
func KnownToBeSlow(t *testing.T, src fanout.Source[fanout.DBTX]) {
	t.Helper()
	err := Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		for range 2 {
			for sql, args := range map[string][]any{
				SleepSQL:    {0.05},
				SlowRowsSQL: {0.00001, 4000},
				BoomSQL:     {1},
				"-- name: Boom :one\nselect (1 / $1::int)::text from pg_sleep(0.02)": {1},
				"select 'quick'": nil,
				PIDSQL:           nil,
			} {
				if _, err := tx.Exec(ctx, sql, args...); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A Valuer is an argument whose encoder does as it is told.
type Valuer func() (driver.Value, error)

func (v Valuer) Value() (driver.Value, error) { return v() }

// CollectBy makes the call as one of the four kinds, and returns the lists by query.
func CollectBy(kind string, ctx context.Context, src fanout.Source[*db.Queries], queries []fanout.Query[*db.Queries, db.A]) ([][]db.A, error) {
	switch kind {
	case "Run":
		lists := make([][]db.A, len(queries))
		tasks := make([]fanout.Task[*db.Queries], len(queries))
		for i, query := range queries {
			tasks[i] = fanout.IntoFunc(&lists[i], query)
		}
		err := fanout.Run(ctx, src, tasks...)
		return lists, err
	case "Stream":
		lists := make([][]db.A, len(queries))
		var errs fanout.Errors
		for r, err := range fanout.Stream(ctx, src, queries...) {
			var e *fanout.Error
			switch {
			case err == nil:
				lists[r.Index] = r.Rows
			case src.Partial && errors.As(err, &e):
				errs = append(errs, e)
			default:
				return nil, err
			}
		}
		if errs == nil {
			return lists, nil
		}
		slices.SortFunc(errs, func(a, b *fanout.Error) int { return cmp.Compare(a.Index, b.Index) })
		return lists, errs
	default:
		return fanout.Collect(ctx, src, queries...)
	}
}

// Unencodable is a batch of which the second statement's argument cannot be encoded.
func Unencodable() *pgx.Batch {
	b := &pgx.Batch{}
	b.Queue("-- name: Bad :batchexec\nselect $1::int2", 1)
	b.Queue("-- name: Bad :batchexec\nselect $1::int2", 100_000)
	return b
}

// Asleep is a Query that runs another when so many statements of the database sleep, as the monitor sees it.
func Asleep(monitor *pgx.Conn, sleepers int, query fanout.Query[fanout.DBTX, string]) fanout.Query[fanout.DBTX, string] {
	return func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		for n := 0; n != sleepers; {
			err := monitor.QueryRow(ctx, "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'").Scan(&n)
			if err != nil {
				return nil, err
			}
		}
		return query(ctx, tx)
	}
}

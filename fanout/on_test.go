package fanout_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestOn(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	fanouttest.Fill(t, pool, 3)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	plain := fanout.New(pool, db.New)
	var spans []fanout.Span
	plain.Observe = func(_ context.Context, s fanout.Span) { spans = append(spans, s) }
	src := plain.On(tx)
	src.Snapshot, src.Retries, src.Limit = true, 3, 7 // which do not apply

	text := "new"
	row, err := db.New(tx).InsertA(t.Context(), &text)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fanout.Gather(t.Context(), src, fanouttest.ID, fanout.All((*db.Queries).ListA), fanout.One((*db.Queries).GetA, row.ID))
	if err != nil || len(got) != 4 {
		t.Errorf("the transaction's writes are not seen: %v, %v", got, err)
	}
	var written db.A
	err = fanout.Run(t.Context(), src,
		fanout.Into(&written, (*db.Queries).InsertA, &text),
		// A call on the pool, nested in the transaction's, sees what it has written.
		fanout.Do(func(ctx context.Context, q *db.Queries) error {
			rows, err := fanout.Gather(ctx, plain, fanouttest.ID, fanout.All((*db.Queries).ListA))
			if err == nil && len(rows) != 5 {
				t.Errorf("nested: %v", rows)
			}
			return err
		}))
	if err != nil {
		t.Error(err)
	}
	for _, s := range spans {
		if s.Strategy != fanout.Serial || s.PID != tx.Conn().PgConn().PID() {
			t.Errorf("span %+v", s)
		}
	}
	if outside, err := fanout.Gather(t.Context(), plain, fanouttest.ID, fanout.All((*db.Queries).ListA)); err != nil || len(outside) != 3 {
		t.Errorf("outside: %v, %v", outside, err)
	}

	// A failure leaves the transaction to the caller: aborted, and to be rolled back.
	src.Partial = true
	_, err = fanout.Collect(t.Context(), fanouttest.Raw(pool).On(tx), fanouttest.Boom)
	if fanouttest.AsError(t, err).Name != "Boom" {
		t.Error(err)
	}
	_, err = fanout.Collect(t.Context(), src, fanout.All((*db.Queries).ListA))
	if fanouttest.SQLState(err) != "25P02" {
		t.Error(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	_, err = fanout.Collect(t.Context(), src, fanout.All((*db.Queries).ListA))
	if !errors.Is(err, pgx.ErrTxClosed) {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

// The functions of a transaction's call may leave rows unread, panic and be cancelled: the transaction can be ended.
func TestOnAfterTrouble(t *testing.T) {
	for name, query := range map[string]fanout.Query[fanout.DBTX, string]{
		"rows left open": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			_, err := tx.Query(ctx, "select generate_series(1, 10000)")
			return nil, err
		},
		"panic with rows open": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			_, _ = tx.Query(ctx, "select generate_series(1, 10000)")
			panic("boom")
		},
		"scan error": fanouttest.Statement[string]("select 1"),
	} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t, 1)
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			func() {
				defer func() { _ = recover() }()
				_, _ = fanout.Collect(t.Context(), fanouttest.Raw(pool).On(tx), query)
			}()
			end := tx.Commit
			if strings.HasPrefix(name, "panic") {
				end = tx.Rollback // the open statement was cancelled, which aborts the transaction
			}
			if err := end(t.Context()); err != nil {
				t.Error(err)
			}
			fanouttest.Serves(t, pool)
		})
	}
}

func TestOnWithRowsOpen(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	rows, err := tx.Query(t.Context(), "select generate_series(1, 3)")
	if err != nil {
		t.Fatal(err)
	}
	_, err = fanout.Collect(t.Context(), fanouttest.Raw(pool).On(tx), fanouttest.PID)
	fanouttest.Mention(t, err, "rows of the last statement, or")
	rows.Close()
	if _, err = fanout.Collect(t.Context(), fanouttest.Raw(pool).On(tx), fanouttest.PID); err != nil {
		t.Error(err)
	}
}

// What a transaction has changed in the catalog is not taken for true elsewhere.
func TestOnDescribesForItselfAlone(t *testing.T) {
	const sql = "-- name: Find :many\nselect data from changed where id = $1"
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2, fanouttest.InMode(pgx.QueryExecModeCacheDescribe))
		if _, err := pool.Exec(t.Context(), "create table changed (id int, data text); insert into changed values (1, 'one')"); err != nil {
			t.Fatal(err)
		}
		src := fanouttest.Raw(pool)
		src.Strategy = s
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "alter table changed alter id type text"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			lists, err := fanout.Collect(t.Context(), src.On(tx), fanouttest.Statement[string](sql, "1"), fanouttest.Statement[string](sql, "2"))
			if err != nil || len(lists[0]) != 1 || len(lists[1]) != 0 {
				t.Errorf("%v, inside: %v, %v", s, lists, err)
			}
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		pool.Reset()
		lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(4, fanouttest.Statement[string](sql, "1"))...)
		if err != nil || len(lists[3]) != 1 {
			t.Errorf("%v, outside: %v, %v", s, lists, err)
		}
		fanouttest.Serves(t, pool)
	}
}

// A nested call in a savepoint would use the connection beside the outer call's lane, where that sends statements of several
// functions: it is refused, and the transaction goes on.
func TestOnASavepointOfTheOuterCalls(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 1)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		savepoint, err := tx.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			var nested error
			tasks := []fanout.Task[fanout.DBTX]{fanout.Do(func(ctx context.Context, _ fanout.DBTX) error {
				_, nested = fanout.Collect(ctx, src.On(savepoint), fanouttest.PID)
				return nil
			})}
			for range 10 {
				tasks = append(tasks, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
					_, err := tx.Exec(ctx, "select 1")
					return err
				}))
			}
			if err := fanout.Run(fanouttest.InTime(t), src.On(tx), tasks...); err != nil {
				t.Errorf("%v: %v", s, err)
			}
			pipelined := s != fanout.Parallel && s != fanout.Serial
			if refused := nested != nil && strings.Contains(nested.Error(), "another one on the connection"); refused != pipelined {
				t.Errorf("%v, nested: %v", s, nested)
			}
		}
		if err := savepoint.Commit(t.Context()); err != nil {
			t.Errorf("%v: %v", s, err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// The connection of a transaction that is over is left alone: it may be somebody else's by now.
func TestOnAfterTheEnd(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 1)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop, stopped := make(chan struct{}), make(chan error)
		go func() {
			var err error
			for running := true; running; {
				_, e := pool.Exec(context.Background(), "select pg_sleep($1)", 0.001)
				err = errors.Join(err, e)
				select {
				case <-stop:
					running = false
				default:
				}
			}
			stopped <- err
		}()
		for range 50 {
			if _, err := fanout.Collect(t.Context(), src.On(tx), fanouttest.PID, fanouttest.PID); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("%v: %v", s, err)
			}
		}
		close(stop)
		if err := <-stopped; err != nil {
			t.Errorf("%v: whoever has the connection: %v", s, err)
		}
	}
}

// Calls inside a transaction, nested twice: one that pipelines, in it one that does not, in it one that would. While the one
// in the middle runs, the outermost function has the connection's types to itself.
func TestOnNestedTwice(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	two := fanouttest.Statement[int32]("select 1 + $1::int", 1)
	for _, outer := range fanouttest.Strategies {
		for _, middle := range fanouttest.Strategies {
			for _, inner := range fanouttest.Strategies {
				for _, plain := range []bool{false, true} { // the one in the middle is nested by its ctx alone
					tx, err := pool.Begin(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					src := fanouttest.Raw(pool)
					a, b, c := src.On(tx), src.On(tx), src.On(tx)
					if plain {
						b = src
					}
					a.Strategy, b.Strategy, c.Strategy = outer, middle, inner
					lists, err := fanout.Collect(fanouttest.InTime(t), a, func(ctx context.Context, _ fanout.DBTX) ([]int32, error) {
						lists, err := fanout.Collect(ctx, b, func(ctx context.Context, _ fanout.DBTX) ([]int32, error) {
							lists, err := fanout.Collect(ctx, c, two, two)
							return slices.Concat(lists...), err
						})
						return slices.Concat(lists...), err
					})
					if err != nil || !slices.Equal(lists[0], []int32{2, 2}) {
						t.Errorf("%v, %v, %v: %v, %v", outer, middle, inner, lists, err)
					}
					if err := tx.Rollback(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
}

// A Tx of the user's own need not be of a type that can be compared.
func TestOnATxThatCannotBeCompared(t *testing.T) {
	type logged struct {
		pgx.Tx
		_ []string
	}
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		var txs []pgx.Tx
		for range 2 {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			txs = append(txs, tx)
		}
		err := fanouttest.Do(t, src.On(logged{Tx: txs[0]}), func(ctx context.Context, _ fanout.DBTX) error {
			_, err := fanout.Collect(ctx, src.On(logged{Tx: txs[1]}), fanouttest.PID)
			return err
		})
		if err != nil {
			t.Errorf("%v: %v", s, err)
		}
		for _, tx := range txs {
			if err := tx.Rollback(t.Context()); err != nil {
				t.Error(err)
			}
		}
		fanouttest.Serves(t, pool)
	}
}

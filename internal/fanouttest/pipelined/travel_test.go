package pipelined

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// everyWay runs f by each strategy, with and without a snapshot, on a pool of one connection, which has seen nothing yet.
func everyWay(t *testing.T, f func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]), configure ...func(*pgxpool.Config)) {
	pool := pgtest.Pool(t, 1, configure...)
	for _, s := range fanouttest.Strategies {
		for _, snapshot := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/snapshot=%v", s, snapshot), func(t *testing.T) {
				pool.Reset()
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot = s, snapshot
				f(t, pool, src)
			})
		}
	}
}

// Parameters get other types. As with pgx, whoever has prepared the statement may fail by that once, and no more.
func TestParametersOfOtherTypes(t *testing.T) {
	const id = "7f0e4a52-0b1a-4b39-8a0b-0d9bb13ea9a1"
	for name, c := range map[string]struct {
		from, to string
		old, new any
	}{
		"int to bigint": {"int", "bigint", 7, int64(3_000_000_000)},
		"text to uuid":  {"text", "uuid using id::uuid", id, id},
	} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
			t.Run(fmt.Sprintf("%s/%v", name, mode), func(t *testing.T) {
				everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
					if _, err := pool.Exec(t.Context(), "drop table if exists u; create table u (id "+c.from+", n int)"); err != nil {
						t.Fatal(err)
					}
					ask := func(id any) error {
						query := fanouttest.Statement[int32]("-- name: ByID :many\nselect n from u where id = $1", id)
						_, err := fanout.Collect(fanouttest.InTime(t), src, query, query)
						return err
					}
					for range 3 {
						if err := ask(c.old); err != nil {
							t.Fatal(err)
						}
					}
					if _, err := pool.Exec(t.Context(), "alter table u alter column id type "+c.to); err != nil {
						t.Fatal(err)
					}
					failures := 0
					for range 5 {
						if err := ask(c.new); err != nil {
							failures++
							t.Log(err)
						}
					}
					if most := map[bool]int{true: 1}[src.Strategy < fanout.Pipelined]; failures > most {
						t.Errorf("%d of 5 calls fail", failures)
					}
				}, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			})
		}
	}
}

// A call finds that out by some of its arguments, and has others that fit no type: each fails by itself, whatever the
// statement's description is dropped for beside it.
func TestParametersOfOtherTypesBesideMisfits(t *testing.T) {
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		src.Partial = true
		for round := range 5 {
			if _, err := pool.Exec(t.Context(), "drop table if exists u; create table u (id int, n int); insert into u values (7, 7)"); err != nil {
				t.Fatal(err)
			}
			ask := func(args []any) ([][]int32, error) {
				return fanout.Collect(fanouttest.InTime(t), src, fanout.Each(func(tx fanout.DBTX, ctx context.Context, arg any) ([]int32, error) {
					return fanouttest.Statement[int32]("select n from u where id = $1", arg)(ctx, tx)
				}, args...)...)
			}
			if _, err := ask([]any{7, 7, 7}); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), "alter table u alter column id type bigint"); err != nil {
				t.Fatal(err)
			}
			var args []any
			for i := range 40 {
				args = append(args, []any{7, int64(3_000_000_000), make(chan int), 7, 7}[(i+round)%5])
			}
			lists, err := ask(args)
			var errs fanout.Errors
			errors.As(err, &errs)
			for _, e := range errs {
				_, misfit := args[e.Index].(chan int)
				if !misfit && src.Strategy >= fanout.Pipelined { // elsewhere one statement may fail by the change, as with pgx
					t.Errorf("round %d, argument %v: %v", round, args[e.Index], e)
				}
			}
			for i, list := range lists {
				if len(list) != 1 && args[i] == 7 && src.Strategy >= fanout.Pipelined {
					t.Errorf("round %d, query %d: %v", round, i, list)
				}
			}
		}
	})
}

// What a hook of the pool deallocates is prepared anew.
func TestDeallocatedByAHook(t *testing.T) {
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		for i := range 4 {
			query := fanouttest.Statement[int32]("select $1::int + 1", i)
			if _, err := fanout.Collect(fanouttest.InTime(t), src, query, query); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		}
	}, func(c *pgxpool.Config) {
		c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) { return true, conn.DeallocateAll(ctx) }
	})
}

// In the caller's transaction too, which an error would abort. There, who is told that a table has changed is told once.
func TestDeallocatedByAHookBeforeATransaction(t *testing.T) {
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		change := func(sql string) {
			t.Helper()
			if _, err := pool.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		change("alter table a drop column if exists more")
		queries := []fanout.Query[fanout.DBTX, int32]{
			fanouttest.Statement[int32]("select $1::int + 1", 1), fanouttest.Statement[int32]("select $1::int + 1", 2), fanouttest.PID, fanouttest.PID,
			func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				_, err := values(ctx, tx, "select * from a where id = $1", 1)
				return nil, err
			},
		}
		inside := func() error {
			tx, err := pool.Begin(fanouttest.InTime(t))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(fanouttest.InTime(t)) }()
			for range 2 {
				if _, err := fanout.Collect(fanouttest.InTime(t), src.On(tx), append(queries, queries...)...); err != nil {
					return err
				}
			}
			return nil
		}
		for i := range 3 {
			if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
			if err := inside(); err != nil {
				t.Errorf("call %d, in a transaction: %v", i, err)
			}
			change([]string{"alter table a add column more integer", "alter table a drop column more"}[i%2])
			_ = inside()
			if err := inside(); err != nil {
				t.Errorf("call %d, in a transaction, after the change: %v", i, err)
			}
		}
	}, func(c *pgxpool.Config) {
		c.AfterRelease = func(conn *pgx.Conn) bool { return conn.DeallocateAll(context.Background()) == nil }
	})
}

// What is prepared by name can be executed by name.
func TestPreparedByName(t *testing.T) {
	names := []string{"answer", "select_one"}
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		for _, name := range names {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Statement[int32](name, 41), fanouttest.Statement[int32](name, 42))
			if err != nil || lists[0][0] != 42 || lists[1][0] != 43 {
				t.Errorf("%s: %v, %v", name, lists, err)
			}
		}
	}, func(c *pgxpool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			for _, name := range names {
				if _, err := conn.Prepare(ctx, name, "select $1::int + 1"); err != nil {
					return err
				}
			}
			return nil
		}
	})
}

// Who has pgx's cache of statements keep fewer, for the sake of the server's memory, has no more prepared by the package.
func TestStatementCacheCapacity(t *testing.T) {
	const capacity = 16
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		for range 2 {
			var queries []fanout.Query[fanout.DBTX, int32]
			for i := range 50 {
				queries = append(queries, fanouttest.Statement[int32](fmt.Sprintf("select $1::integer + %d", i), 1))
			}
			if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
				t.Fatal(err)
			}
		}
		var n int
		if err := pool.QueryRow(t.Context(), "select count(*) from pg_prepared_statements").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n > capacity+3 { // this one, the catalog's proof, and what is deallocated next time
			t.Errorf("%d statements stay prepared", n)
		}
	}, func(config *pgxpool.Config) { config.ConnConfig.StatementCacheCapacity = capacity })
}

// A row that scans itself has the connection's type map, by all ways.
func TestRowScannerHasTheConnection(t *testing.T) {
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
			return tx.QueryRow(ctx, "select $1::int", 1).Scan(rowScanner(func(rows pgx.Rows) error {
				if rows.Conn() == nil {
					t.Error("rows without a connection")
				}
				return nil
			}))
		})
		if err != nil {
			t.Error(err)
		}
	})
}

type rowScanner func(pgx.Rows) error

func (f rowScanner) ScanRow(rows pgx.Rows) error { return f(rows) }

// That is so by whatever it is set: also by a batch, and where the statement behind it could not be sent.
func TestSettingsOutliveErrors(t *testing.T) {
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
			set := &pgx.Batch{}
			set.Queue("select set_config('app.batch', 'x', false)")
			if err := tx.SendBatch(ctx, set).Close(); err != nil {
				return err
			}
			_, _ = fanouttest.Boom(ctx, tx)
			if _, err := tx.Exec(ctx, "select set_config('app.tenant', 'x', false)"); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "select $1::int", make(chan int)); err == nil {
				t.Error("a channel was encoded")
			}
			_, _ = fanouttest.Boom(ctx, tx)
			for _, name := range []string{"app.batch", "app.tenant"} {
				got, err := fanouttest.Statement[string]("select current_setting($1)", name)(ctx, tx)
				if err != nil || got[0] != "x" {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}, func(c *pgxpool.Config) {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // where an argument may fail before anything is sent
	})
}

// A cursor stays where it is when a statement fails, and moving it leaves nothing behind on the server.
func TestSnapshotCursor(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		wire := &fanouttest.Traffic{}
		pool := pgtest.Pool(t, 1, wire.Attach)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
			if _, err := tx.Exec(ctx, "declare c cursor for select generate_series(1, 1000)"); err != nil {
				return err
			}
			for i := range 100 {
				row, err := fanouttest.Statement[int32]("-- name: FetchC :many\nfetch 1 from c")(ctx, tx)
				if err != nil {
					return err
				}
				if len(row) != 1 || row[0] != int32(i+1) {
					t.Errorf("%v: fetch %d: %v", s, i, row)
				}
				if i%30 == 0 {
					_, _ = fanouttest.Boom(ctx, tx)
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("%v: %v", s, err)
		}
		if n := wire.Binds.Load(); n > 150 {
			t.Errorf("%v: %d statements for 100 rows: each is followed by a savepoint, which the server keeps until the end", s, n)
		}
		fanouttest.Serves(t, pool)
	}
}

// What a function sets in the session is there for its later statements, whatever fails between and whatever else goes by the
// connection.
func TestSettingsOfAFunction(t *testing.T) {
	everyWay(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		src.Limit = 1
		var queries []fanout.Query[fanout.DBTX, string]
		for i := range 30 {
			queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				want := fmt.Sprint(i)
				_, err := fanouttest.PID(ctx, tx) // from now on all of them ask the same lane
				if err != nil {
					return nil, err
				}
				switch i % 3 {
				case 0:
					_, err = tx.Exec(ctx, "select set_config('app.tenant', $1, false)", want)
				case 1:
					b := &pgx.Batch{}
					b.Queue("select 1")
					b.Queue("select set_config('app.tenant', $1, false)", want)
					err = tx.SendBatch(ctx, b).Close()
				case 2:
					_, err = tx.Exec(ctx, "select 1; set app.tenant = "+want)
				}
				if err != nil {
					return nil, err
				}
				if i%2 == 0 {
					_, _ = fanouttest.Boom(ctx, tx)
				}
				got, err := fanouttest.Statement[string]("select current_setting('app.tenant')")(ctx, tx)
				if err == nil && got[0] != want {
					t.Errorf("function %d reads %v", i, got)
				}
				return got, err
			})
		}
		if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
			t.Error(err)
		}
	})
}

// What a nested call of one query sets is set for the function that has made it, as long as that runs.
func TestSettingOfANestedCall(t *testing.T) {
	for _, nested := range []fanout.Strategy{fanout.Serial, fanout.Pipelined} {
		for _, s := range fanouttest.Strategies {
			for _, batch := range []bool{false, true} {
				pool := pgtest.Pool(t, 1)
				src, inner := fanouttest.Raw(pool), fanouttest.Raw(pool)
				src.Strategy, inner.Strategy = s, nested
				queries := make([]fanout.Query[fanout.DBTX, string], 4)
				for i := range queries {
					queries[i] = func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
						err := fanout.Run(ctx, inner, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
							const sql = "select set_config('app.tenant', $1, false)"
							if !batch {
								_, err := tx.Exec(ctx, sql, fmt.Sprint("t", i))
								return err
							}
							b := &pgx.Batch{}
							b.Queue(sql, fmt.Sprint("t", i))
							return tx.SendBatch(ctx, b).Close()
						}))
						if err != nil {
							return nil, err
						}
						time.Sleep(5 * time.Millisecond) // busy with something else
						return fanouttest.Statement[string]("select current_setting('app.tenant')")(ctx, tx)
					}
				}
				lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
				if got := fmt.Sprint(lists); err != nil || got != "[[t0] [t1] [t2] [t3]]" {
					t.Errorf("%v in %v, batch=%v: %v, %v", nested, s, batch, got, err)
				}
				fanouttest.Serves(t, pool)
			}
		}
	}
}

// A setting may come behind another statement, in the protocol that takes several in one.
func TestSettingBehindAnotherStatement(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		for _, s := range fanouttest.Strategies {
			pool := pgtest.Pool(t, 1)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot = s, snapshot
			queries := make([]fanout.Query[fanout.DBTX, string], 4)
			for i := range queries {
				queries[i] = func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					_, err := tx.Exec(ctx, fmt.Sprintf("select 1; set application_name = 'f%d'", i), pgx.QueryExecModeSimpleProtocol)
					if err != nil {
						return nil, err
					}
					_, _ = fanouttest.Boom(ctx, tx)
					time.Sleep(5 * time.Millisecond) // busy with something else
					return fanouttest.Statement[string]("select current_setting('application_name')")(ctx, tx)
				}
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			if got := fmt.Sprint(lists); err != nil || got != "[[f0] [f1] [f2] [f3]]" {
				t.Errorf("%v, snapshot=%v: %v, %v", s, snapshot, got, err)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// Types that are dropped and created anew, which is how one takes a value out of an enum, have another OID. A connection that
// has prepared the statement fails once, as with pgx alone, and not for as long as it lives.
func TestTypesCreatedAnew(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) { config.ConnConfig.DefaultQueryExecMode = mode })
		admin := pgtest.Connect(t, pool.Config().ConnString())
		for _, c := range []struct{ before, ddl, sql, arg string }{
			{"create type mood as enum ('a', 'b'); create table m (m mood); insert into m values ('a')",
				"alter table m alter m type text; drop type mood; create type mood as enum ('a'); alter table m alter m type mood using m::mood",
				"select m::text from m where m = $1", "a"},
			{"create type size as enum ('a', 'b')", "drop type size; create type size as enum ('a')", "select $1::size::text", "a"},
			{"create domain short as text check (length(value) < 9)",
				"drop domain short; create domain short as text check (length(value) < 5)", "select $1::text::short::text", "a"},
			{"create text search configuration c (copy = pg_catalog.english)",
				"drop text search configuration c; create text search configuration c (copy = pg_catalog.english)", "select to_tsvector('c', $1::text)::text", "cats"},
		} {
			pgtest.Exec(t, admin, c.before)
			for _, s := range []fanout.Strategy{fanout.Serial, fanout.Pipelined, fanout.Auto} {
				for _, snapshot := range []bool{false, true} {
					pool.Reset()
					src := fanouttest.Raw(pool)
					src.Strategy, src.Snapshot = s, snapshot
					queries := fanouttest.Repeated(3, fanouttest.Statement[string](c.sql, c.arg))
					if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
						t.Fatal(err)
					}
					pgtest.Exec(t, admin, c.ddl)
					_, first := fanout.Collect(fanouttest.InTime(t), src, queries...)
					for range 3 {
						if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
							t.Errorf("%s, %v, %v, snapshot=%v: first %v, then %v", c.sql, mode, s, snapshot, first, err)
						}
					}
				}
			}
		}
	}
}

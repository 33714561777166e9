package pipelined

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// pipelined is a Source of hand-written statements with Strategy Pipelined.
func pipelined(pool *pgxpool.Pool) fanout.Source[fanout.DBTX] {
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Pipelined
	return src
}

// lookUps are n queries of table a, of which Fill has made at least n rows.
func lookUps(n int) []fanout.Query[*db.Queries, db.A] {
	var args []string
	for i := range n {
		args = append(args, fmt.Sprint("a_", i))
	}
	return fanout.Each((*db.Queries).ListAByData, args...)
}

// Thirty look-ups on one connection take a few round trips, not thirty.
func TestPipelinedTravelsTogether(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		way := &fanouttest.Traffic{}
		pool := pgtest.Pool(t, 1, way.Attach)
		fanouttest.Fill(t, pool, 30)
		src := fanout.New(pool, db.New)
		src.Strategy, src.Snapshot = fanout.Pipelined, snapshot
		for range 20 { // until it is known what the statement costs
			if _, err := fanout.Collect(t.Context(), src, lookUps(30)...); err != nil {
				t.Fatal(err)
			}
		}
		least := int64(1000)
		for range 20 {
			before := way.Writes.Load()
			if _, err := fanout.Collect(t.Context(), src, lookUps(30)...); err != nil {
				t.Fatal(err)
			}
			least = min(least, way.Writes.Load()-before)
		}
		t.Logf("snapshot=%v: 30 look-ups in %d writes", snapshot, least)
		if least > 15 {
			t.Errorf("snapshot=%v: 30 look-ups took at least %d writes", snapshot, least)
		}
	}
}

// Statements that are proved to do nothing but read share a Sync, and with it a transaction, which an error ends: all the
// same it reaches only its own query, and the others have their rows.
func TestPipelinedSharedSync(t *testing.T) {
	const n = 30
	for _, snapshot := range []bool{false, true} {
		for _, s := range fanouttest.Pipelining {
			t.Run(fmt.Sprintf("%v/snapshot=%v", s, snapshot), func(t *testing.T) {
				way := &fanouttest.Traffic{}
				pool := pgtest.Pool(t, 1, way.Attach)
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot, src.Partial = s, snapshot, true
				var good, bad []fanout.Query[fanout.DBTX, int32]
				for i := range n {
					good = append(good, fanouttest.Statement[int32](fanouttest.BoomSQL, i+1))
					bad = append(bad, fanouttest.Statement[int32](fanouttest.BoomSQL, i%3))
				}
				call := func(queries []fanout.Query[fanout.DBTX, int32]) (lists [][]int32, binds, syncs int64, err error) {
					binds, syncs = way.Binds.Load(), way.Syncs.Load()
					lists, err = fanout.Collect(fanouttest.InTime(t), src, queries...)
					return lists, way.Binds.Load() - binds, way.Syncs.Load() - syncs, err
				}
				least := int64(1000)
				for range 20 { // until it is proved, and known what it costs
					_, _, syncs, err := call(good)
					if err != nil {
						t.Fatal(err)
					}
					least = min(least, syncs)
				}
				most := int64(0)
				for range 20 {
					lists, binds, _, err := call(bad)
					most = max(most, binds)
					var errs fanout.Errors
					if !errors.As(err, &errs) || len(errs) != n/3 {
						t.Fatal(err)
					}
					for i, e := range errs {
						if e.Index != 3*i || e.Name != "Boom" || fanouttest.SQLState(e) != "22012" {
							t.Errorf("%v", e)
						}
					}
					for i, list := range lists {
						if by := i % 3; by != 0 && (len(list) != 1 || list[0] != int32(1/by)) {
							t.Errorf("query %d: %v", i, list)
						}
					}
				}
				t.Logf("%d executions with %d Syncs; with errors %d executions", n, least, most)
				if least > n/2 {
					t.Errorf("%d executions had at least %d Syncs", n, least)
				}
				if s == fanout.Pipelined && most <= n {
					t.Errorf("no execution was skipped for another one's error and sent again")
				}
			})
		}
	}
}

// Statements that may write share no transaction, however quick and alike they are: an error undoes nothing of the others.
func TestPipelinedWritesAreOnTheirOwn(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	_, err := pool.Exec(t.Context(), `
		create function written(text) returns int language plpgsql as $$
		begin insert into a (data) values ($1); return 1; end $$`)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range fanouttest.Pipelining {
		for _, sql := range []string{
			"insert into a (data) select $1::text where 1 / $2::int >= 0 returning 1",
			"select written($1::text) / $2::int",
		} {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = s, true
			for round := range 20 {
				var queries []fanout.Query[fanout.DBTX, int32]
				for i := range 30 {
					by := 1
					if round > 5 { // when it is known that they are quick
						by = i % 3
					}
					queries = append(queries, fanouttest.Statement[int32](sql, fmt.Sprint(i), by))
				}
				lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
				var errs fanout.Errors
				if errors.As(err, &errs); err != nil && (len(errs) != 10 || round <= 5) {
					t.Fatal(err)
				}
				var want []string
				for i, list := range lists {
					if len(list) == 1 {
						want = append(want, fmt.Sprint(i))
					}
				}
				got, err := fanouttest.Statement[string]("delete from a returning data")(t.Context(), pool)
				if err != nil {
					t.Fatal(err)
				}
				slices.Sort(got)
				slices.Sort(want)
				if len(want) != 30-len(errs) || !slices.Equal(got, want) {
					t.Fatalf("%v, %s, round %d: %d rows written of %d", s, sql, round, len(got), len(want))
				}
			}
		}
	}
}

// With a long way to the server, many queries on few connections take about as long as few.
func TestPipelinedFarAway(t *testing.T) {
	const latency = 10 * time.Millisecond
	way := &fanouttest.Traffic{Latency: latency}
	pool := pgtest.Pool(t, 2, way.Attach)
	fanouttest.Fill(t, pool, 30)
	src := fanout.New(pool, db.New)
	src.Strategy = fanout.Pipelined
	for range 20 { // until it is known what the statement costs, and the way
		if _, err := fanout.Collect(t.Context(), src, lookUps(30)...); err != nil {
			t.Fatal(err)
		}
	}
	best := time.Hour
	for range 10 {
		start := time.Now()
		if _, err := fanout.Collect(t.Context(), src, lookUps(30)...); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	t.Logf("30 look-ups on 2 connections, %v away: %v", latency, best)
	if best > 10*latency { // one by one it would be 15 each
		t.Errorf("the best of ten calls took %v", best)
	}
}

// Query functions of every shape, many at once on few connections.
func TestPipelinedFunctions(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, snapshot := range []bool{false, true} {
			t.Run(fmt.Sprintf("conns=%d/snapshot=%v", conns, snapshot), func(t *testing.T) {
				fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
					src.Strategy, src.Snapshot = fanout.Pipelined, snapshot
					queries := functions(t, src, snapshot)
					for range 3 {
						queries = append(queries, queries...)
						lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
						if err != nil {
							t.Fatal(err)
						}
						for i, list := range lists {
							if want := int32(i % len(functions(t, src, snapshot))); len(list) != 1 || list[0] != want {
								t.Errorf("function %d returned %v", want, list)
							}
						}
					}
				})
			})
		}
	}
}

// functions are query functions of many shapes; each returns its own number.
func functions(t *testing.T, src fanout.Source[fanout.DBTX], readOnly bool) []fanout.Query[fanout.DBTX, int32] {
	shapes := []func(ctx context.Context, tx fanout.DBTX) error{
		// Statements that depend on the one before.
		func(ctx context.Context, tx fanout.DBTX) error {
			sum := int32(0)
			for range 10 {
				if err := tx.QueryRow(ctx, "select $1::int + 1", sum).Scan(&sum); err != nil {
					return err
				}
			}
			if sum != 10 {
				return fmt.Errorf("sum %d", sum)
			}
			return nil
		},
		// Query, QueryRow and Exec in turn.
		func(ctx context.Context, tx fanout.DBTX) error {
			for n := range 3 {
				rows, err := tx.Query(ctx, "select generate_series(1, $1::int)", n)
				if err != nil {
					return err
				}
				got, err := pgx.CollectRows(rows, pgx.RowTo[int])
				if err != nil || len(got) != n {
					return fmt.Errorf("%v, %w", got, err)
				}
				tag, err := tx.Exec(ctx, "select generate_series(1, $1::int)", n)
				if err != nil || tag.RowsAffected() != int64(n) {
					return fmt.Errorf("%v, %w", tag, err)
				}
				err = tx.QueryRow(ctx, "select 1 where $1::int > 0", n).Scan(new(int))
				if n == 0 && !errors.Is(err, pgx.ErrNoRows) || n > 0 && err != nil {
					return fmt.Errorf("n=%d: %w", n, err)
				}
			}
			return nil
		},
		// Rows not read to the end, and closed.
		func(ctx context.Context, tx fanout.DBTX) error {
			for range 2 {
				rows, err := tx.Query(ctx, "select generate_series(1, 50000)")
				if err != nil {
					return err
				}
				rows.Next()
				rows.Close()
				if rows.Err() != nil || rows.CommandTag().RowsAffected() != 50000 {
					return fmt.Errorf("%v, %w", rows.CommandTag(), rows.Err())
				}
			}
			return nil
		},
		// Rows and a row left to the call to close.
		func(ctx context.Context, tx fanout.DBTX) error {
			rows, err := tx.Query(ctx, "select generate_series(1, 50000)")
			rows.Next()
			return err
		},
		func(ctx context.Context, tx fanout.DBTX) error {
			tx.QueryRow(ctx, "select generate_series(1, 5)")
			return nil
		},
		// No statement at all.
		func(ctx context.Context, tx fanout.DBTX) error { return nil },
		// An error that the function does not mind.
		func(ctx context.Context, tx fanout.DBTX) error {
			_, err := fanouttest.Statement[int32](fanouttest.BoomSQL, 0)(ctx, tx)
			if fanouttest.SQLState(err) != "22012" {
				return fmt.Errorf("boom: %w", err)
			}
			_, err = tx.Exec(ctx, "select")
			return err
		},
		// A batch.
		func(ctx context.Context, tx fanout.DBTX) error {
			b := &pgx.Batch{}
			for n := range 3 {
				b.Queue("select $1::int", n)
			}
			results := tx.SendBatch(ctx, b)
			for n := range 3 {
				var got int
				if err := results.QueryRow().Scan(&got); err != nil || got != n {
					return fmt.Errorf("%d, %w", got, err)
				}
			}
			return results.Close()
		},
		// Nested calls of every strategy.
		func(ctx context.Context, tx fanout.DBTX) error {
			for _, s := range fanouttest.Strategies {
				inner := src
				inner.Strategy = s
				lists, err := fanout.Collect(ctx, inner, fanouttest.Statement[int]("select 1"), fanouttest.Statement[int]("select $1::int", 2))
				if err != nil || lists[0][0] != 1 || lists[1][0] != 2 {
					return fmt.Errorf("nested %v: %v, %w", s, lists, err)
				}
			}
			return nil
		},
		// A statement with pgx's options, and named arguments.
		func(ctx context.Context, tx fanout.DBTX) error {
			var n, m int
			if err := tx.QueryRow(ctx, "select $1::int", pgx.QueryExecModeExec, 7).Scan(&n); err != nil || n != 7 {
				return fmt.Errorf("%d, %w", n, err)
			}
			err := tx.QueryRow(ctx, "select @n::int + @m::int", pgx.NamedArgs{"n": 1, "m": 2}).Scan(&m)
			if err != nil || m != 3 {
				return fmt.Errorf("%d, %w", m, err)
			}
			return nil
		},
		// Several statements in one, and comments.
		func(ctx context.Context, tx fanout.DBTX) error {
			if _, err := tx.Exec(ctx, "select 1; select 2;"); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "/* one */ select 1 -- two"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "")
			return err
		},
	}
	if !readOnly {
		shapes = append(shapes,
			// A copy, and a transaction and a temporary table of the function's own.
			func(ctx context.Context, tx fanout.DBTX) error {
				for _, sql := range []string{"begin", "create temp table mine (n int) on commit drop"} {
					if _, err := tx.Exec(ctx, sql); err != nil {
						return err
					}
				}
				n, err := tx.CopyFrom(ctx, pgx.Identifier{"mine"}, []string{"n"}, pgx.CopyFromRows([][]any{{1}, {2}}))
				if err != nil || n != 2 {
					return fmt.Errorf("%d, %w", n, err)
				}
				var sum int
				if err := tx.QueryRow(ctx, "select sum(n) from mine").Scan(&sum); err != nil || sum != 3 {
					return fmt.Errorf("%d, %w", sum, err)
				}
				_, err = tx.Exec(ctx, "commit")
				return err
			},
			// A setting that the function relies on until it returns.
			func(ctx context.Context, tx fanout.DBTX) error {
				if _, err := tx.Exec(ctx, "set fanout.mine = 'yes'"); err != nil {
					return err
				}
				var s string
				if err := tx.QueryRow(ctx, "select current_setting('fanout.mine')").Scan(&s); err != nil || s != "yes" {
					return fmt.Errorf("%q, %w", s, err)
				}
				_, err := tx.Exec(ctx, "reset fanout.mine")
				return err
			})
	}
	var queries []fanout.Query[fanout.DBTX, int32]
	for i, shape := range shapes {
		queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if err := shape(ctx, tx); err != nil {
				return nil, err
			}
			return []int32{int32(i)}, nil
		})
	}
	return queries
}

// A call with another strategy nested in a Pipelined one, and the other way round, on one connection.
func TestPipelinedNested(t *testing.T) {
	for _, outer := range fanouttest.Strategies {
		t.Run(outer.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 2)
			for i := range 4 * len(fanouttest.Strategies) {
				inner, snapshots := fanouttest.Strategies[i/4], i%4
				out, in := fanouttest.Raw(pool), fanouttest.Raw(pool)
				out.Strategy, in.Strategy = outer, inner
				out.Snapshot, in.Snapshot = snapshots&1 != 0, snapshots&2 != 0
				query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					before, err := fanouttest.PID(ctx, tx)
					if err != nil {
						return nil, err
					}
					lists, err := fanout.Collect(ctx, in, fanouttest.PID, fanouttest.PID, fanouttest.Nest(in, 1))
					if err != nil {
						return nil, err
					}
					after, err := fanouttest.PID(ctx, tx)
					return slices.Concat(before, slices.Concat(lists...), after), err
				}
				lists, err := fanout.Collect(fanouttest.InTime(t), out, fanouttest.Repeated(8, fanout.Query[fanout.DBTX, int32](query))...)
				if err != nil {
					t.Fatalf("%v in %v, snapshots %d: %v", inner, outer, snapshots, err)
				}
				for _, list := range lists {
					if slices.Min(list) != slices.Max(list) || len(list) != 8 {
						t.Errorf("%v in %v, snapshots %d: %v", inner, outer, snapshots, list)
					}
				}
				fanouttest.Serves(t, pool)
			}
		})
	}
}

// A function that is busy with something else stalls nobody, wherever it is: before its first statement, between two, or
// in the middle of its rows.
func TestPipelinedBusyFunction(t *testing.T) {
	const row = "-- name: One :one\nselect 1"
	phases := map[string]func(ctx context.Context, tx fanout.DBTX, wait func()) error{
		"before": func(ctx context.Context, tx fanout.DBTX, wait func()) error {
			wait()
			return tx.QueryRow(ctx, row).Scan(new(int))
		},
		"between": func(ctx context.Context, tx fanout.DBTX, wait func()) error {
			if err := tx.QueryRow(ctx, row).Scan(new(int)); err != nil {
				return err
			}
			wait()
			return tx.QueryRow(ctx, row).Scan(new(int))
		},
		"in the middle of rows": func(ctx context.Context, tx fanout.DBTX, wait func()) error {
			rows, err := tx.Query(ctx, "select generate_series(1, 200000)")
			if err != nil {
				return err
			}
			rows.Next()
			wait()
			n := 1
			for rows.Next() {
				n++
			}
			if n != 200000 || rows.Err() != nil {
				return fmt.Errorf("%d rows, %w", n, rows.Err())
			}
			return nil
		},
	}
	for name, phase := range phases {
		for _, conns := range []int{1, 2} {
			for _, known := range []bool{false, true} {
				for _, statements := range []int{1, 5} {
					t.Run(fmt.Sprintf("%s/conns=%d/known=%v/%d", name, conns, known, statements), func(t *testing.T) {
						pool := pgtest.Pool(t, conns)
						src := pipelined(pool)
						ctx := fanouttest.InTime(t)
						if known {
							for range 10 {
								if _, err := fanout.Collect(ctx, src, fanouttest.Repeated(10, fanouttest.Statement[int](row))...); err != nil {
									t.Fatal(err)
								}
							}
						}
						const others = 5
						var left atomic.Int32
						left.Store(others)
						done, waiting := make(chan struct{}), make(chan struct{})
						tasks := []fanout.Task[fanout.DBTX]{fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
							return phase(ctx, tx, func() {
								close(waiting)
								select {
								case <-done:
								case <-ctx.Done():
								}
							})
						})}
						for i := range others {
							tasks = append(tasks, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
								if i%2 == 1 { // comes when the function is busy already
									select {
									case <-waiting:
									case <-ctx.Done():
									}
								}
								for range statements {
									if err := tx.QueryRow(ctx, row).Scan(new(int)); err != nil {
										return err
									}
								}
								if left.Add(-1) == 0 {
									close(done)
								}
								return nil
							}))
						}
						if err := fanout.Run(ctx, src, tasks...); err != nil {
							t.Error(err)
						}
						fanouttest.Serves(t, pool)
					})
				}
			}
		}
	}
}

// Others do not wait the longer for a function that does not take its rows, the more of them come.
func TestPipelinedRowsNotTakenWhileOthersCome(t *testing.T) {
	const most = 5000
	pool := pgtest.Pool(t, 1)
	waiting, through := make(chan struct{}), make(chan struct{})
	err := fanout.Run(fanouttest.InTime(t), pipelined(pool),
		fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			rows, err := tx.Query(ctx, "select generate_series(1, 100000)")
			if err != nil {
				return err
			}
			defer rows.Close()
			rows.Next()
			close(waiting)
			select {
			case <-through:
			case <-ctx.Done():
			}
			for rows.Next() {
			}
			return rows.Err()
		}),
		fanout.Do(func(ctx context.Context, tx fanout.DBTX) (err error) {
			defer close(through)
			select {
			case <-waiting:
			case <-ctx.Done():
			}
			for range most {
				own, cancel := context.WithCancel(ctx)
				go func() { // a timer would be too coarse
					for end := time.Now().Add(300 * time.Microsecond); time.Now().Before(end); {
					}
					cancel() // then the next one comes
				}()
				if err = tx.QueryRow(own, "select 1").Scan(new(int)); err == nil {
					cancel()
					break
				}
			}
			return err
		}))
	if err != nil {
		t.Errorf("%d statements had to wait, one after the other: %v", most, err)
	}
	fanouttest.Serves(t, pool)
}

// Others wait for a busy function no longer than a few milliseconds, whether it waits, as for an HTTP call, or computes:
// their statements are through long before it is.
func TestPipelinedBusyFunctionHoldsUpNobody(t *testing.T) {
	const (
		busy  = 500 * time.Millisecond
		bound = 50 * time.Millisecond // for the best of several rounds, on a loaded machine
	)
	ways := map[string]func(through <-chan struct{}){
		"waits": func(through <-chan struct{}) {
			select {
			case <-through:
			case <-time.After(busy):
			}
		},
		"computes": func(through <-chan struct{}) {
			for end := time.Now().Add(busy); time.Now().Before(end); {
				select {
				case <-through:
					return
				default:
				}
			}
		},
	}
	pool := pgtest.Pool(t, 2)
	fanouttest.Warm(t, pool)
	for how, work := range ways {
		for i := range 8 {
			limit, known, before := 1+i%2, i&2 != 0, i/4
			for _, s := range fanouttest.Pipelining {
				t.Run(fmt.Sprintf("%s/%v/limit=%d/known=%v/before=%d", how, s, limit, known, before), func(t *testing.T) {
					src := fanouttest.Raw(pool)
					src.Strategy, src.Limit = s, limit
					if known {
						for range 2 {
							besideBusy(t, src, before, work)
						}
					}
					best := time.Hour
					for round := 0; round < 20 && best > bound; round++ {
						best = min(best, besideBusy(t, src, before, work))
						if !known {
							src = fanouttest.Raw(pool)
							src.Strategy, src.Limit = s, limit
						}
					}
					t.Logf("the others took %v", best)
					if best > bound {
						t.Errorf("the others took at least %v beside a function that was busy for %v", best, busy)
					}
				})
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// besideBusy runs a function that, after so many statements, does some other work, together with ten of five statements
// each, of which each depends on the one before. It returns when those had finished, from the start of the call; then
// through is closed.
func besideBusy(t *testing.T, src fanout.Source[fanout.DBTX], before int, work func(through <-chan struct{})) time.Duration {
	t.Helper()
	const (
		row    = "-- name: Next :one\nselect $1::int + 1"
		others = 10
	)
	through, finished := make(chan struct{}), 0
	var end time.Time
	src.Observe = func(_ context.Context, s fanout.Span) {
		if s.Index == 0 {
			return
		}
		if finished++; finished == others {
			end = s.Finished
			close(through)
		}
	}
	tasks := []fanout.Task[fanout.DBTX]{fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
		for range before {
			if err := tx.QueryRow(ctx, row, 0).Scan(new(int)); err != nil {
				return err
			}
		}
		work(through)
		return tx.QueryRow(ctx, row, 0).Scan(new(int))
	})}
	for range others {
		tasks = append(tasks, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			n := 0
			for range 5 {
				if err := tx.QueryRow(ctx, row, n).Scan(&n); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	start := time.Now()
	if err := fanout.Run(fanouttest.InTime(t), src, tasks...); err != nil {
		t.Fatal(err)
	}
	return end.Sub(start)
}

// slowly is a statement of 200 ms.
func slowly(text string) fanout.Query[fanout.DBTX, string] {
	return fanouttest.Statement[string]("-- name: Slow :one\nselect coalesce(pg_sleep(0.2)::text, 'slept') as "+text+" where $1 = 1", 1)
}

var quickly = fanouttest.Statement[string]("-- name: Quick :one\nselect 'quick' where $1 = 1", 1)

// Slow statements that are known to be slow run beside each other, and beside quick ones; of unknown ones none waits for
// more than one other.
func TestPipelinedSlowStatements(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	fanouttest.Warm(t, pool)
	for _, s := range fanouttest.Pipelining {
		for i, at := range [][4]int{{0, 1, 2, 3}, {36, 37, 38, 39}, {3, 4, 20, 39}} {
			for _, text := range []string{"same", "different"} {
				if s != fanout.Pipelined && (i != 1 || text == "same") {
					continue // those take longest
				}
				snapshot := (i == 0) != (text == "same")
				t.Run(fmt.Sprintf("%v/%v/%s texts/snapshot=%v", s, at, text, snapshot), func(t *testing.T) {
					src := fanouttest.Raw(pool) // knows nothing yet
					src.Strategy, src.Snapshot = s, snapshot
					queries := fanouttest.Repeated(40, quickly)
					for i, at := range at {
						queries[at] = slowly(text)
						if text == "different" {
							queries[at] = slowly(fmt.Sprint(text, i))
						}
					}
					for _, most := range []int{2, 1} { // at first, and when they are known
						slow, seen := map[uint32]int{}, 0
						for _, s := range fanouttest.SpansOf(t, src, queries...) {
							if s.Name == "Slow" {
								slow[s.PID]++
								seen++
							}
						}
						if seen != len(at) {
							t.Errorf("%d slow statements, not %d", seen, len(at))
						}
						for pid, n := range slow {
							if n > most {
								t.Errorf("%d slow statements one after the other on backend %d, not %d", n, pid, most)
							}
						}
					}
				})
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// A statement that has to be described first, and so is executed in a second round, has none executed before it that is
// known to be slow, or not known to be quick.
func TestPipelinedDescribedFirst(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, s := range fanouttest.Pipelining {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		for range 2 { // once it is learned what it takes
			if _, err := fanout.Collect(t.Context(), src, slowly("known")); err != nil {
				t.Fatal(err)
			}
		}
		var order []string
		src.Observe = func(_ context.Context, s fanout.Span) { order = append(order, s.Name) }
		for round, slow := range []string{"known", "unknown"} {
			order = nil
			quick := fanouttest.Statement[string](fmt.Sprintf("-- name: Quick :one\nselect '%v' where $1 = %d", s, round), round)
			if _, err := fanout.Collect(t.Context(), src, quick, slowly(slow), slowly(slow+"2")); err != nil {
				t.Fatal(err)
			}
			if order[0] != "Quick" {
				t.Errorf("%v, %s: %v", s, slow, order)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// Quick statements do not wait for slow ones that hold all lanes but one.
func TestPipelinedQuickBesideSlow(t *testing.T) {
	const bound = 100 * time.Millisecond // for the best of several rounds
	pool := pgtest.Pool(t, 4)
	fanouttest.Warm(t, pool)
	for _, s := range fanouttest.Pipelining {
		for _, snapshot := range []bool{false, true} {
			if snapshot && s != fanout.Pipelined {
				continue
			}
			t.Run(fmt.Sprintf("%v/snapshot=%v", s, snapshot), func(t *testing.T) {
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot = s, snapshot
				var start, end time.Time // of the quick ones
				quick := 0
				src.Observe = func(_ context.Context, s fanout.Span) {
					if s.Name == "Quick" {
						quick++
						end = s.Finished
					}
				}
				queries := fanouttest.Repeated(40, quickly)
				for i := range 3 {
					queries[i*i] = slowly("s")
				}
				best := time.Hour
				for round := 0; round < 10 && best > bound; round++ { // the first to learn what they cost
					quick, start = 0, time.Now()
					if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
						t.Fatal(err)
					}
					best = min(best, end.Sub(start))
					if quick != 37 {
						t.Errorf("%d quick statements", quick)
					}
				}
				t.Logf("37 quick statements took %v", best)
				if best > bound {
					t.Errorf("37 quick statements beside 3 slow ones took at least %v", best)
				}
			})
		}
	}
	fanouttest.Serves(t, pool)
}

// Other users of the pool leave one connection, or none for a while, or only the call's first.
func TestPipelinedProgress(t *testing.T) {
	pool := pgtest.Pool(t, 3)
	src := pipelined(pool)
	ctx := fanouttest.InTime(t)
	var held []*pgxpool.Conn
	for range 2 {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	for _, snapshot := range []bool{false, true} {
		src.Snapshot = snapshot
		for _, query := range []fanout.Query[fanout.DBTX, int32]{fanouttest.PID, fanouttest.Nest(src, 2)} {
			for range 3 {
				if _, err := fanout.Collect(ctx, src, fanouttest.Repeated(20, query)...); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	held[0].Release()
	held[1].Release()

	// Nothing is left to do while lanes still wait for a connection: the call does not wait for them.
	src.Snapshot = false
	for range 2 {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
	impatient := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		own, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		if _, err := fanouttest.Sleep(own, tx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		return nil, nil
	}
	if _, err := fanout.Collect(ctx, src, fanouttest.Repeated(12, fanout.Query[fanout.DBTX, string](impatient))...); err != nil {
		t.Error(err)
	}
}

// A connection that freezes while somebody's transaction is rolled back has its place in the pool free at once, though pgx
// is still at cleaning up.
func TestPipelinedOpenTransactionFrozen(t *testing.T) {
	w := &fanouttest.Wire{}
	pool := pgtest.Pool(t, 1, w.Attach)
	fanouttest.Warm(t, pool)
	defer w.Thaw()
	_, err := fanout.Collect(fanouttest.InTime(t), pipelined(pool), func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		_, err := tx.Exec(ctx, "begin")
		w.FreezeBut(nil)
		return nil, err
	})
	fanouttest.Mention(t, err, "left a transaction open")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := pool.Exec(ctx, "select"); err != nil {
		t.Error(err)
	}
}

// A transaction left open is its own function's error, however it was begun, and does not cost the others their statements.
func TestPipelinedOpenTransaction(t *testing.T) {
	for name, sql := range map[string]string{
		"begin":           "begin",
		"in the middle":   "select 1; begin",
		"behind comments": "-- a comment\n/* another one */ begin",
	} {
		for _, conns := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/conns=%d", name, conns), func(t *testing.T) {
				pool := pgtest.Pool(t, conns)
				src := pipelined(pool)
				src.Partial = true
				open := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					if _, err := fanouttest.PID(ctx, tx); err != nil {
						return nil, err
					}
					_, err := tx.Exec(ctx, sql)
					return nil, err
				}
				two := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					for range 10 {
						if _, err := fanouttest.PID(ctx, tx); err != nil {
							return nil, err
						}
					}
					return fanouttest.Statement[int32]("select 1 where pg_current_xact_id_if_assigned() is null")(ctx, tx)
				}
				queries := fanouttest.Repeated(12, fanout.Query[fanout.DBTX, int32](two))
				queries[2], queries[7] = open, open
				lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
				var errs fanout.Errors
				if !errors.As(err, &errs) || len(errs) != 2 || errs[0].Index != 2 || errs[1].Index != 7 {
					t.Fatalf("%v", err)
				}
				for _, e := range errs {
					fanouttest.Mention(t, e, "left a transaction open")
				}
				for i, list := range lists {
					if i != 2 && i != 7 && len(list) != 1 {
						t.Errorf("query %d: %v", i, list)
					}
				}
				fanouttest.Serves(t, pool)
			})
		}
	}
}

// Many queries cost no goroutine each.
func TestPipelinedManyQueries(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	src := pipelined(pool)
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	var running, most atomic.Int32
	query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		now := running.Add(1)
		defer running.Add(-1)
		for {
			before := most.Load()
			if now <= before || most.CompareAndSwap(before, now) {
				break
			}
		}
		return fanouttest.PID(ctx, tx)
	}
	lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(n, fanout.Query[fanout.DBTX, int32](query))...)
	if err != nil {
		t.Fatal(err)
	}
	backends := map[int32]int{}
	for _, list := range lists {
		backends[list[0]]++
	}
	t.Logf("%d queries, at most %d functions at once, by backend %v", n, most.Load(), backends)
	if most.Load() > 4*32 {
		t.Errorf("%d functions ran at once", most.Load())
	}
	fanouttest.Serves(t, pool)
}

func TestPipelinedSpans(t *testing.T) {
	pool := pgtest.Pool(t, 3)
	src := pipelined(pool)
	for _, snapshot := range []bool{false, true} {
		src.Snapshot = snapshot
		pids := map[int]uint32{}
		src.Observe = func(_ context.Context, s fanout.Span) {
			if s.Strategy != fanout.Pipelined || s.Statements != 2 || s.Rows != 2 || s.Name != "PID" || s.Attempt != 1 || s.Err != nil {
				t.Errorf("%+v", s)
			}
			if s.Queued.After(s.Started) || s.Started.After(s.Finished) {
				t.Errorf("%+v", s)
			}
			pids[s.Index] = s.PID
		}
		two := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if _, err := fanouttest.PID(ctx, tx); err != nil {
				return nil, err
			}
			return fanouttest.PID(ctx, tx)
		}
		lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(50, fanout.Query[fanout.DBTX, int32](two))...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			if uint32(list[0]) != pids[i] {
				t.Errorf("query %d ran on %d, its span says %d", i, list[0], pids[i])
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// Statements that do not travel with others have a start, too.
func TestPipelinedSpansOfTheSimpleProtocol(t *testing.T) {
	pool := pgtest.Pool(t, 2, func(config *pgxpool.Config) { config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol })
	src := pipelined(pool)
	spans := fanouttest.SpansOf(t, src, fanouttest.Repeated(4, fanouttest.PID)...)
	for _, s := range spans {
		if s.Queued.After(s.Started) || s.Started.After(s.Finished) || s.Statements != 1 {
			t.Errorf("%+v", s)
		}
	}
	if len(spans) != 4 {
		t.Errorf("%d spans", len(spans))
	}
	fanouttest.Serves(t, pool)
}

// An argument that cannot be encoded costs nothing but its query, whatever was to be sent ahead of it.
func TestPipelinedArgumentThatCannotBeEncoded(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		fanouttest.SameBackends(t, 1, func(src fanout.Source[fanout.DBTX]) {
			src.Strategy, src.Snapshot = fanout.Pipelined, snapshot
			for range 50 {
				_, err := fanout.Collect(t.Context(), src, fanouttest.Statement[string]("select $1::int::text", struct{}{}))
				fanouttest.Mention(t, err, "failed to encode args[0]")
			}
		})
	}
}

// What rows say of their columns stays as it is when they have been read, although the connection is at work for another
// function then.
func TestPipelinedFieldsAfterTheEnd(t *testing.T) {
	src := pipelined(pgtest.Pool(t, 1))
	read, through := make(chan struct{}), make(chan struct{})
	err := fanout.Run(fanouttest.InTime(t), src,
		fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			rows, err := tx.Query(ctx, "select 1 as mine", pgx.QueryExecModeExec) // by itself
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			close(read)
			if err := fanouttest.After(ctx, through); err != nil {
				return err
			}
			if fields := rows.FieldDescriptions(); len(fields) != 1 || fields[0].Name != "mine" {
				t.Errorf("%v", fields)
			}
			return rows.Err()
		}),
		fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			defer close(through)
			_ = fanouttest.After(ctx, read)
			_, err := tx.Exec(ctx, "select 2 as others, 3 as theirs")
			return err
		}))
	if err != nil {
		t.Error(err)
	}
}

// Rows that have failed before there were any, or of a statement that has none, can be closed, and say what columns there are.
func TestRowsWithoutRows(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		fails := fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			b := &pgx.Batch{}
			b.Queue("select 1 / $1::int", 0)
			b.Queue("select 2")
			results := tx.SendBatch(ctx, b)
			for range 3 { // as a generated :batchmany method goes on
				rows, err := results.Query()
				fanouttest.Mention(t, err, "division by zero")
				rows.Close()
			}
			return results.Close()
		})
		fanouttest.Mention(t, fanout.Run(fanouttest.InTime(t), src, fails), "division by zero")
		midway := fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			rows, err := tx.Query(ctx, "select 1 / i as d from generate_series(0, 2) i where i >= $1", pgx.QueryExecModeExec, 0)
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			if fields := rows.FieldDescriptions(); len(fields) != 1 || fields[0].Name != "d" {
				t.Errorf("%v: %v", s, fields)
			}
			return rows.Err()
		})
		fanouttest.Mention(t, fanout.Run(fanouttest.InTime(t), src, midway), "division by zero")
		empty := fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			rows, err := tx.Query(ctx, ";", pgx.QueryExecModeSimpleProtocol)
			if err == nil {
				rows.Close()
				err = rows.Err()
			}
			return err
		})
		if err := fanout.Run(fanouttest.InTime(t), src, empty, empty); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// pgx sends an Exec by the simple protocol if no arguments are left behind its options, whatever mode these name: it may be several
// statements then. And nobody knows what a QueryRewriter of the user's own makes of a statement. Either may change the session.
func TestSessionChangedBehindOptions(t *testing.T) {
	const sets = "set application_name = 'changed'"
	exec := func(sql string, option any) func(ctx context.Context, tx fanout.DBTX) error {
		return func(ctx context.Context, tx fanout.DBTX) error {
			_, err := tx.Exec(ctx, sql, option)
			return err
		}
	}
	for name, change := range map[string]func(ctx context.Context, tx fanout.DBTX) error{
		"mode":     exec("select 1; "+sets, pgx.QueryExecModeExec),
		"named":    exec("select 1; "+sets, pgx.NamedArgs{}),
		"rewriter": exec("select 1", rewriter(sets)),
		"batch": func(ctx context.Context, tx fanout.DBTX) error {
			var batch pgx.Batch
			batch.Queue("select 1", rewriter(sets))
			return tx.SendBatch(ctx, &batch).Close()
		},
	} {
		for _, s := range fanouttest.Strategies {
			pool := pgtest.Pool(t, 1)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			changes := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				if err := change(ctx, tx); err != nil {
					return nil, err
				}
				for range 20 {
					if _, err := tx.Exec(ctx, "select $1::int", 1); err != nil {
						return nil, err
					}
				}
				_, err := tx.Exec(ctx, "reset application_name")
				return nil, err
			}
			look := func(ctx context.Context, tx fanout.DBTX) (seen []string, err error) {
				for i := range 5 {
					list, err := fanouttest.Statement[string]("select current_setting('application_name') || left($1::text, 0)", fmt.Sprint(i))(ctx, tx)
					if err != nil {
						return nil, err
					}
					seen = append(seen, list...)
				}
				return seen, nil
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, look, changes, look, look)
			if err != nil {
				t.Fatal(err)
			}
			for i, list := range lists {
				if slices.Contains(list, "changed") {
					t.Errorf("%v, %s: query %d sees what query 1 has set: %q", s, name, i, list)
				}
			}
		}
	}
}

// A rewriter is a QueryRewriter that makes every statement this one.
type rewriter string

func (r rewriter) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	return string(r), nil, nil
}

// Reads of different partitions that share a transaction hold their locks together: if that is a deadlock with a migration, they go
// by themselves.
func TestPipelinedReadsDoNotDeadlock(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		t.Run(s.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 1, func(c *pgxpool.Config) {
				c.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_custom_plan"
			})
			if _, err := pool.Exec(t.Context(), `create table part (k int, v int) partition by list (k);
				create table part1 partition of part for values in (1);
				create table part2 partition of part for values in (2);
				insert into part select 1 + i % 2, i from generate_series(1, 10) i`); err != nil {
				t.Fatal(err)
			}
			src := fanouttest.Raw(pool)
			src.Strategy = s
			const sql = "select v from part where k = $1"
			var queries []fanout.Query[fanout.DBTX, int32]
			for i := range 40 {
				queries = append(queries, fanouttest.Statement[int32](sql, 1+i%2))
			}
			for range 20 {
				if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
					t.Fatal(err)
				}
			}
			ddl := pgtest.Connect(t, pool.Config().ConnString())
			tx, err := ddl.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if _, err := tx.Exec(t.Context(), "lock table part2 in access exclusive mode"); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				time.Sleep(300 * time.Millisecond)
				_, err := tx.Exec(context.Background(), "lock table part1 in access exclusive mode")
				if err == nil {
					err = tx.Commit(context.Background())
				}
				done <- err
			}()
			_, err = fanout.Collect(t.Context(), src, fanouttest.Statement[int32](sql, 1), fanouttest.Statement[int32](sql, 2))
			if err != nil {
				t.Errorf("the call: %v", err)
			}
			if err := <-done; err != nil {
				t.Errorf("the DDL: %v", err)
			}
		})
	}
}

package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestKeptAfterReturn(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	var (
		ctx  context.Context
		kept fanout.DBTX
		rows pgx.Rows
		row  pgx.Row
		res  pgx.BatchResults
		part pgx.Rows
		one  pgx.Row
	)
	// Each function leaves something open as well, which the call closes.
	for _, f := range []func(ctx context.Context, tx fanout.DBTX) error{
		func(c context.Context, tx fanout.DBTX) (err error) {
			ctx, kept = c, tx
			rows, err = tx.Query(c, "select generate_series(1, 1000)")
			rows.Next()
			return err
		},
		func(c context.Context, tx fanout.DBTX) error {
			row = tx.QueryRow(c, "select 1")
			return nil
		},
		func(c context.Context, tx fanout.DBTX) error {
			b := &pgx.Batch{}
			b.Queue("select 1")
			res = tx.SendBatch(c, b)
			one = res.QueryRow()
			return nil
		},
		func(c context.Context, tx fanout.DBTX) (err error) {
			b := &pgx.Batch{}
			b.Queue("select generate_series(1, 1000)")
			part, err = tx.SendBatch(c, b).Query()
			part.Next()
			return err
		},
	} {
		if err := fanouttest.Do(t, src, f); err != nil {
			t.Error(err)
		}
	}
	const want = "after the query function had returned"
	ctx = context.WithoutCancel(ctx)
	_, err := kept.Exec(ctx, "select 1")
	fanouttest.Mention(t, err, want)
	again, err := kept.Query(ctx, "select 1")
	fanouttest.Mention(t, err, want)
	if again.Next() {
		t.Error("a refused query has rows")
	}
	_, err = pgx.CollectRows(again, pgx.RowTo[int])
	fanouttest.Mention(t, err, want)
	fanouttest.Mention(t, kept.QueryRow(ctx, "select 1").Scan(), want)
	_, err = kept.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromRows(nil))
	fanouttest.Mention(t, err, want)
	b := &pgx.Batch{}
	b.Queue("select 1")
	fanouttest.Mention(t, kept.SendBatch(ctx, b).Close(), want)
	_, err = fanout.Collect(ctx, src, fanouttest.PID) // a nested call of a function that has returned
	fanouttest.Mention(t, err, want)

	if rows.Next() {
		t.Error("rows go on after the function returned")
	}
	fanouttest.Mention(t, rows.Err(), want)
	fanouttest.Mention(t, rows.Scan(new(int)), want)
	_, err = rows.Values()
	fanouttest.Mention(t, err, want)
	rows.Close()
	fanouttest.Mention(t, row.Scan(new(int)), want)
	fanouttest.Mention(t, res.Close(), want)
	fanouttest.Mention(t, one.Scan(new(int)), want)
	if part.Next() {
		t.Error("rows of a batch go on after the function returned")
	}
	fanouttest.Mention(t, part.Err(), want)
	fanouttest.Serves(t, pool)
	if n := pool.Stat().NewConnsCount(); n != 1 {
		t.Errorf("%d connections opened: leaving things open must cost none", n)
	}
}

// A statement whose result the function has not looked at must not fail unseen; and what the function has returned beside it
// is nobody's.
func TestUnseenFailure(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	const wrong = "insert into a (data) values ((1 / (length($1) - 1))::text) returning 1"
	for name, f := range map[string]func(ctx context.Context, tx fanout.DBTX){
		"batch": func(ctx context.Context, tx fanout.DBTX) {
			b := &pgx.Batch{}
			b.Queue(wrong, "x")
			tx.SendBatch(ctx, b)
		},
		"row":  func(ctx context.Context, tx fanout.DBTX) { tx.QueryRow(ctx, wrong, "x") },
		"rows": func(ctx context.Context, tx fanout.DBTX) { _, _ = tx.Query(ctx, wrong, "x") },
	} {
		for _, s := range fanouttest.Strategies {
			if name == "rows" && s >= fanout.Pipelined {
				continue // Query itself returns the error there, as pgx's may
			}
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = s, true
			bad := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				f(ctx, tx)
				return []int32{1}, nil
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, bad, fanouttest.PID)
			if fanouttest.SQLState(err) != "22012" || len(lists) != 2 || lists[0] != nil || len(lists[1]) != 1 {
				t.Errorf("%v, %s: %v, %v", s, name, lists, err)
			}
			yielded := 0
			for _, err := range fanout.Stream(fanouttest.InTime(t), src, bad, fanouttest.PID) {
				yielded++
				if err != nil && fanouttest.SQLState(err) != "22012" {
					t.Errorf("%v, %s: %v", s, name, err)
				}
			}
			if yielded != 2 {
				t.Errorf("%v, %s: Stream has yielded %d of two queries", s, name, yielded)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// Nor one whose first row has come, and which fails after it.
func TestUnseenFailureBehindARow(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	if _, err := pool.Exec(t.Context(), "create table late (n int unique deferrable initially deferred); insert into late values (1)"); err != nil {
		t.Fatal(err)
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
			tx.QueryRow(ctx, "insert into late values ($1) returning n", 1) // refused at the commit
			return nil
		})
		if fanouttest.SQLState(err) != "23505" {
			t.Errorf("%v: %v", s, err)
		}
	}
	fanouttest.Serves(t, pool)
}

// Rows of a batch that are still open when the batch is closed do not read what comes on the connection later.
func TestRowsOfAClosedBatch(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		first := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			b := &pgx.Batch{}
			b.Queue("select generate_series(1, 50)")
			b.Queue("select 1")
			results := tx.SendBatch(ctx, b)
			rows, err := results.Query()
			if err != nil {
				return nil, err
			}
			defer rows.Close()
			var n int32
			if rows.Next() {
				err = rows.Scan(&n)
			}
			late := results.QueryRow()
			if err := rows.Err(); err != nil {
				t.Errorf("%v: rows that nobody goes on reading fail: %v", s, err)
			}
			if rows.Next() {
				t.Errorf("%v: rows go on beside the next result", s)
			}
			fanouttest.Mention(t, rows.Err(), "after the next one was asked for")
			fanouttest.Mention(t, rows.Scan(&n), "after the next one was asked for")
			if err := errors.Join(err, results.Close()); err != nil {
				return nil, err
			}
			fanouttest.Mention(t, late.Scan(&n), "the batch was closed")
			time.Sleep(3 * time.Millisecond) // the lane is at work for others
			return []int32{n}, nil
		}
		queries := []fanout.Query[fanout.DBTX, int32]{first}
		for i := range 20 {
			queries = append(queries, fanouttest.Statement[int32]("select generate_series($1::int, $1::int + 200)", i))
		}
		lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			if i == 0 && len(list) != 1 || i > 0 && (len(list) != 201 || list[0] != int32(i-1)) {
				t.Errorf("%v: query %d has %d rows", s, i, len(list))
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// Nor does a row that a function queued with a batch has kept.
func TestRowKeptByAQueuedFunction(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		counted := 0
		src.Observe = func(_ context.Context, s fanout.Span) {
			if s.Index == 0 {
				counted = s.Rows
			}
		}
		keep := func(ctx context.Context, tx fanout.DBTX) (got []int32, err error) {
			b := &pgx.Batch{}
			var row pgx.Row
			b.Queue("select generate_series(1, 50)").Query(func(rows pgx.Rows) (err error) {
				got, err = pgx.CollectRows(rows, pgx.RowTo[int32])
				return err
			})
			b.Queue("select 1").QueryRow(func(r pgx.Row) error {
				row = r
				return nil
			})
			if err := tx.SendBatch(ctx, b).Close(); err != nil {
				return nil, err
			}
			time.Sleep(3 * time.Millisecond) // the lane is at work for others
			fanouttest.Mention(t, row.Scan(new(int32)), "the batch was closed")
			return got, nil
		}
		queries := []fanout.Query[fanout.DBTX, int32]{keep}
		for i := range 20 {
			queries = append(queries, fanouttest.Statement[int32]("select generate_series($1::int, $1::int + 5000)", i))
		}
		lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			if i == 0 && (len(list) != 50 || counted != 50) || i > 0 && (len(list) != 5001 || list[0] != int32(i-1)) {
				t.Errorf("%v: query %d has %d rows, %d counted", s, i, len(list), counted)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

func TestSeveralGoroutines(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	const want = "by several goroutines at once"
	// A copy source is called in the middle of a statement: the same as from another goroutine, but without chance.
	err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromFunc(func() ([]any, error) {
			_, err := tx.Exec(ctx, "select 1")
			return nil, err
		}))
		return err
	})
	fanouttest.Mention(t, err, want)
	err = fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromFunc(func() ([]any, error) {
			_, err := fanout.Collect(ctx, src, fanouttest.PID)
			return nil, err
		}))
		return err
	})
	fanouttest.Mention(t, err, want)

	// And from goroutines, by chance: every statement either runs or is refused.
	err = fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		errs := make(chan error, 8)
		for range cap(errs) {
			go func() {
				var n int
				errs <- tx.QueryRow(ctx, "select 1").Scan(&n)
			}()
		}
		ran := 0
		for range cap(errs) {
			if err := <-errs; err == nil {
				ran++
			} else if !strings.Contains(err.Error(), "are still open") {
				fanouttest.Mention(t, err, want)
			}
		}
		if ran == 0 {
			t.Error("not one statement ran")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

func TestStatementWhileRowsAreOpen(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	err := fanouttest.Do(t, fanouttest.Raw(pool), func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select generate_series(1, 3)")
		if err != nil {
			return err
		}
		rows.Next()
		_, err = tx.Exec(ctx, "select 1")
		fanouttest.Mention(t, err, "rows of the last statement, or")
		n := 1
		for rows.Next() {
			n++
		}
		if n != 3 || rows.Err() != nil {
			t.Errorf("%d rows, %v", n, rows.Err())
		}
		_, err = tx.Exec(ctx, "select 1")
		return err
	})
	if err != nil {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

// A function returns while a goroutine of its own still runs a statement: the call waits for that.
func TestAbandonedStatement(t *testing.T) {
	for _, partial := range []bool{false, true} {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Partial = partial
		var ended atomic.Bool
		err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
			sent, returned := make(chan struct{}), make(chan struct{})
			defer close(returned)
			go func() {
				_, _ = tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromFunc(func() ([]any, error) {
					close(sent)
					<-returned
					if !partial {
						<-ctx.Done() // what the error of the call brings about
					}
					for range 1000 {
						runtime.Gosched()
					}
					ended.Store(true)
					return nil, nil
				}))
			}()
			<-sent
			return nil
		})
		fanouttest.Mention(t, err, "returned while another goroutine was still running a statement")
		if fanouttest.AsError(t, err).Index != 0 {
			t.Error(err)
		}
		if !ended.Load() {
			t.Error("the call returned before the statement had ended")
		}
		fanouttest.Serves(t, pool)
	}
}

func TestTransactionLeftOpen(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	src.Partial = true
	begin := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		_, err := tx.Exec(ctx, "begin; set local fanout.inside = 'yes'")
		return nil, err
	}
	inside := fanouttest.Statement[string]("select coalesce(current_setting('fanout.inside', true), '')")
	lists, err := fanout.Collect(t.Context(), src, begin, inside, inside)
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 0 {
		t.Fatal(err)
	}
	fanouttest.Mention(t, err, "left a transaction open")
	if lists[1][0] != "" || lists[2][0] != "" {
		t.Errorf("the next query ran inside it: %v", lists)
	}
	fanouttest.Serves(t, pool)
}

func TestGoexit(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		exit := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if _, err := fanouttest.PID(ctx, tx); err != nil {
				return nil, err
			}
			runtime.Goexit()
			return nil, nil
		}
		_, err := fanout.Collect(t.Context(), src, fanouttest.PID, exit, fanouttest.PID)
		if e := fanouttest.AsError(t, err); e.Index != 1 || e.Name != "PID" {
			t.Errorf("%v: %v", s, err)
		}
		fanouttest.Mention(t, err, "runtime.Goexit")
		fanouttest.Serves(t, pool)

		// A single query's goroutine is not the caller's either.
		lists, err := fanout.Collect(t.Context(), src, exit)
		if e := fanouttest.AsError(t, err); lists != nil || e.Index != 0 || e.Name != "PID" {
			t.Errorf("%v: %v, %v", s, lists, err)
		}
		fanouttest.Mention(t, err, "runtime.Goexit")
		fanouttest.Serves(t, pool)

		// With Partial, every other query is run.
		src.Partial = true
		queries := fanouttest.Repeated(12, fanout.Query[fanout.DBTX, int32](exit))
		queries[3], queries[11] = fanouttest.PID, fanouttest.PID
		lists, err = fanout.Collect(t.Context(), src, queries...)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 10 || len(lists[3]) != 1 || len(lists[11]) != 1 {
			t.Errorf("%v: %v, %v", s, lists, err)
		}
		fanouttest.Serves(t, pool)
	}
}

// A function returns while a goroutine of its own waits for its row, or its rows: the call waits for that, the function's
// error says so, and nobody else's rows get lost.
func TestFunctionLeavesAReaderBehind(t *testing.T) {
	const waiting = "select 1 from pg_advisory_xact_lock_shared(1)"
	// The server sends so much before it waits that Query returns, and Next waits.
	const begun = "select case i when 1 then 'x' when 2 then repeat('x', 20000) else pg_advisory_xact_lock_shared(1)::text end from generate_series(1, 3) i"
	dsn := pgtest.DSN(t)
	pool := pgtest.PoolOn(t, dsn, 1)
	locker, watcher := pgtest.Connect(t, dsn), pgtest.Connect(t, dsn)
	for _, s := range fanouttest.Strategies {
		for _, many := range []bool{false, true} {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = s, true
			pgtest.Exec(t, locker, "select pg_advisory_lock(1)")
			var got []string // by the goroutine
			var left error
			var wg sync.WaitGroup
			leaves := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				wg.Go(func() {
					if !many {
						var n int32
						left, got = tx.QueryRow(ctx, waiting).Scan(&n), make([]string, 3)
						return
					}
					rows, _ := tx.Query(ctx, begun)
					got, left = pgx.CollectRows(rows, pgx.RowTo[string])
				})
				for fanouttest.Awaiting(t, watcher) == 0 {
				}
				wg.Go(func() {
					time.Sleep(20 * time.Millisecond) // the call is to be waiting by then
					if _, err := locker.Exec(context.Background(), "select pg_advisory_unlock(1)"); err != nil {
						t.Error(err)
					}
				})
				return nil, nil
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, leaves, fanouttest.Statement[int32]("select 7"))
			wg.Wait()
			var errs fanout.Errors
			if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 0 || len(lists[1]) != 1 || lists[1][0] != 7 {
				t.Errorf("%v, many=%v: %v, %v", s, many, lists, err)
			} else {
				fanouttest.Mention(t, err, "returned while another goroutine was still running a statement")
			}
			if left == nil && len(got) != 3 {
				t.Errorf("%v: the goroutine has %v, and takes it for the result", s, got)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// An endTracer is called at the end of a statement.
type endTracer func(context.Context)

func (endTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (f endTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) { f(ctx) }

// A tracer that makes a call of its own with the ctx of a statement is refused, also if its function has gone on.
func TestCallOfATracer(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		var src fanout.Source[fanout.DBTX]
		var busy atomic.Bool
		var refused atomic.Value
		end := endTracer(func(ctx context.Context) {
			if busy.CompareAndSwap(false, true) {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				_, err := fanout.Collect(ctx, src, fanouttest.Statement[int]("select 1"))
				refused.Store(fmt.Sprint(err))
			}
		})
		pool := pgtest.Pool(t, 2, func(c *pgxpool.Config) { c.ConnConfig.Tracer = end })
		src = fanouttest.Raw(pool)
		src.Strategy = s
		done := make(chan error, 1)
		go func() {
			_, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
				if err := fanouttest.GiveUp(ctx, tx); err != nil {
					return nil, err
				}
				for !busy.Load() && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				return nil, nil
			})
			done <- err
		}()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%v: %v", s, err)
			}
			if r, _ := refused.Load().(string); r == "<nil>" || r == "" {
				t.Errorf("%v: not refused: %q", s, r)
			}
		case <-time.After(20 * time.Second): // the call's own ctx has ended long since
			t.Fatalf("%v: the call does not end", s)
		}
	}
}

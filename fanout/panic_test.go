package fanout_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func explode(ctx context.Context, tx fanout.DBTX) ([]string, error) {
	if _, err := tx.Exec(ctx, "select 1"); err != nil {
		return nil, err
	}
	panic("boom")
}

func TestPanicReachesTheCaller(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, partial := range []bool{false, true} {
			pool := pgtest.Pool(t, 4)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = s, partial
			queries := []fanout.Query[fanout.DBTX, string]{explode, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep}
			var dst []string
			start := time.Now()
			for name, call := range map[string]func(){
				"Collect": func() { _, _ = fanout.Collect(t.Context(), src, queries...) },
				"Gather": func() {
					_, _ = fanout.Gather(t.Context(), src, func(s string) string { return s }, queries...)
				},
				"Stream": func() {
					for range fanout.Stream(t.Context(), src, queries...) {
					}
				},
				"Run": func() {
					_ = fanout.Run(t.Context(), src, fanout.IntoFunc(&dst, queries[0]), fanout.IntoFunc(&dst, queries[1]))
				},
			} {
				p := fanouttest.Panicked(t, call)
				if p.Value != "boom" || !strings.Contains(string(p.Stack), "explode") || !strings.Contains(p.Error(), "boom") {
					t.Errorf("%s: %v", name, p)
				}
				if p.Unwrap() != nil {
					t.Errorf("%s: unwraps to %v", name, p.Unwrap())
				}
				fanouttest.Serves(t, pool)
			}
			if s == fanout.Parallel && time.Since(start) > 8*time.Second {
				t.Error("a panic waited for its siblings")
			}
		}
	}
}

func TestPanicCostsOnlyItsConnection(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		for _, others := range []int{0, 6} {
			fanouttest.Warm(t, pool)
			before := pgtest.Backends(t, pool)
			var lost uint32
			p := fanouttest.Panicked(t, func() {
				_, _ = fanout.Collect(t.Context(), src, append(fanouttest.Repeated(others, fanouttest.PID), func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					pids, err := fanouttest.PID(ctx, tx)
					if err != nil {
						return nil, err
					}
					lost = uint32(pids[0])
					panic(errors.New("an error as a value"))
				})...)
			})
			if p.Unwrap() == nil || p.Unwrap().Error() != "an error as a value" {
				t.Errorf("unwraps to %v", p.Unwrap())
			}
			after := slices.DeleteFunc(before, func(pid uint32) bool { return pid == lost })
			if left := pgtest.Backends(t, pool); len(after) != 1 || !slices.Equal(left, after) {
				t.Errorf("%v: the pool has the backends %v; it had %v besides that of the query that panicked, %d", s, left, after, lost)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// A panic is the call's end also when another query has failed before it; and nothing is run again after it.
func TestPanicAfterFailure(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		if s == fanout.Serial {
			continue // nothing runs beside what has failed
		}
		for _, again := range []bool{false, true} {
			pool := pgtest.Pool(t, 2)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			if again {
				src.Snapshot, src.Retries = true, 1
			}
			var ran atomic.Int32
			told := make(chan struct{})
			late := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				if _, err := fanouttest.PID(ctx, tx); err != nil {
					return nil, err
				}
				close(told)
				<-ctx.Done()
				ran.Add(1)
				panic("late")
			}
			p := fanouttest.Panicked(t, func() {
				_, _ = fanout.Collect(fanouttest.InTime(t), src, late, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					select {
					case <-told:
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					_, err := tx.Exec(ctx, "do $$ begin raise exception 'x' using errcode = '40001'; end $$")
					return nil, err
				})
			})
			if p.Value != "late" || ran.Load() != 1 {
				t.Errorf("%v, again=%v: %v, after %d runs", s, again, p.Value, ran.Load())
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// The functions that are queued with a batch are not called again once one of them has panicked, or when nobody has closed
// the batch.
func TestPanicInABatch(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, others := range []int{0, 2} {
			pool := pgtest.Pool(t, 2)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			calls := 0
			batch := func(ctx context.Context, tx fanout.DBTX) pgx.BatchResults {
				b := &pgx.Batch{}
				for range 3 {
					b.Queue("select 1").QueryRow(func(pgx.Row) error {
						calls++
						panic("queued")
					})
				}
				return tx.SendBatch(ctx, b)
			}
			p := fanouttest.Panicked(t, func() {
				_, _ = fanout.Collect(fanouttest.InTime(t), src, append(fanouttest.Repeated(others, fanouttest.PID), func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					return nil, batch(ctx, tx).Close()
				})...)
			})
			if p.Value != "queued" || calls != 1 {
				t.Errorf("%v, %d others: %v after %d calls", s, others, p.Value, calls)
			}
			err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
				batch(ctx, tx)
				return nil
			})
			if err != nil || calls != 1 {
				t.Errorf("%v, %d others: %v, %d calls", s, others, err, calls)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

type explosive struct{}

func (explosive) Scan(any) error { panic("scanned") }

// A destination panics while the function has the connection to itself: the lane goes on with it, if at all, when the row has
// been read.
func TestPanicOfADestination(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, recovers := range []bool{false, true} {
			pool := pgtest.Pool(t, 1)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = s, recovers
			cause := errors.New("recovered")
			bad := func(ctx context.Context, tx fanout.DBTX) (_ []int32, err error) {
				defer func() {
					if recovers {
						_ = recover()
						err = cause
					}
					time.Sleep(5 * time.Millisecond) // the lane may be at work for others
				}()
				return nil, tx.QueryRow(ctx, "select pg_sleep(0.005)::text", pgx.QueryResultFormats{0}).Scan(new(explosive))
			}
			twice := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				if _, err := fanouttest.PID(ctx, tx); err != nil {
					return nil, err
				}
				time.Sleep(4 * time.Millisecond) // busy with something else
				return fanouttest.PID(ctx, tx)
			}
			queries := fanouttest.Repeated(20, fanout.Query[fanout.DBTX, int32](twice))
			queries[2] = bad
			if recovers {
				_, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
				var errs fanout.Errors
				if !errors.As(err, &errs) || len(errs) != 1 || !errors.Is(err, cause) {
					t.Errorf("%v: %d errors, %v", s, len(errs), err)
				}
			} else if p := fanouttest.Panicked(t, func() { _, _ = fanout.Collect(fanouttest.InTime(t), src, queries...) }); p.Value != "scanned" {
				t.Errorf("%v: %v", s, p.Value)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// One of pgx's tracers that panics is no different.
func TestPanicOfATracer(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, snapshot := range []bool{false, true} {
			pool := pgtest.Pool(t, 2, func(c *pgxpool.Config) { c.ConnConfig.Tracer = panickingTracer{} })
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot = s, snapshot
			p := fanouttest.Panicked(t, func() {
				_, _ = fanout.Collect(fanouttest.InTime(t), src, fanouttest.Statement[int32]("select $1::int + 1", 1))
			})
			if p.Value != "traced" {
				t.Errorf("%v, snapshot=%v: %v", s, snapshot, p.Value)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

type panickingTracer struct{}

func (panickingTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(d.SQL, "select $1") {
		panic("traced")
	}
	return ctx
}

func (panickingTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Nor is one that panics when a statement has ended, wherever that is: in the function or when it has returned, and again
// when what it has left is discarded.
func TestPanicOfATracerAtTheEnd(t *testing.T) {
	two := func() *pgx.Batch {
		b := &pgx.Batch{}
		b.Queue("select 1")
		b.Queue("select 2")
		return b
	}
	forms := []func(ctx context.Context, tx fanout.DBTX) error{
		func(ctx context.Context, tx fanout.DBTX) error {
			_, err := fanouttest.Statement[int32]("select $1::int", 1)(ctx, tx)
			return err
		},
		func(ctx context.Context, tx fanout.DBTX) error {
			return tx.QueryRow(ctx, "select $1::int", 1).Scan(new(int32))
		},
		func(ctx context.Context, tx fanout.DBTX) error {
			_, err := tx.Exec(ctx, "select $1::int", 1)
			return err
		},
		func(ctx context.Context, tx fanout.DBTX) error {
			_, err := tx.Exec(ctx, "select $1::int", make(chan int)) // which cannot be encoded
			return err
		},
		func(ctx context.Context, tx fanout.DBTX) error {
			_, err := tx.Query(ctx, "select $1::int", 1)
			return err
		},
		func(ctx context.Context, tx fanout.DBTX) error { return tx.SendBatch(ctx, two()).Close() },
		func(ctx context.Context, tx fanout.DBTX) error {
			tx.SendBatch(ctx, two())
			return nil
		},
	}
	for _, s := range fanouttest.Strategies {
		for _, snapshot := range []bool{false, true} {
			tracer := &lateTracer{}
			pool := pgtest.Pool(t, 2, func(c *pgxpool.Config) {
				c.ConnConfig.Tracer = tracer
				c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // where an argument may fail before anything is sent
			})
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot = s, snapshot
			for i, f := range forms {
				tracer.panics.Store(true)
				p := fanouttest.Panicked(t, func() {
					_ = fanout.Run(fanouttest.InTime(t), src, fanout.Do(f), fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
						<-ctx.Done()
						return ctx.Err()
					}))
				})
				if strings.Contains(fanouttest.Stacks(), "(*handle).interrupt(") {
					t.Errorf("%v, snapshot=%v, form %d: the statement's watch outlives the call", s, snapshot, i)
				}
				tracer.panics.Store(false)
				if p != nil && p.Value != "traced" {
					t.Errorf("%v, snapshot=%v, form %d: %v", s, snapshot, i, p.Value)
				}
				fanouttest.Serves(t, pool)
			}
		}
	}
}

type lateTracer struct{ panics atomic.Bool }

func (l *lateTracer) end() {
	if l.panics.Load() {
		panic("traced")
	}
}

func (*lateTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*lateTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (l *lateTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData)     { l.end() }
func (l *lateTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) { l.end() }
func (l *lateTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     { l.end() }

// What the pool's owner or the caller supplies besides query functions runs in goroutines of the call too.
func TestPanicOfObserve(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		src.Observe = func(context.Context, fanout.Span) { panic("observed") }
		p := fanouttest.Panicked(t, func() { _, _ = fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID, fanouttest.PID) })
		if p.Value != "observed" {
			t.Errorf("%v: %v", s, p)
		}
		fanouttest.Serves(t, pool)
	}
}

// Also if it is told of a function that has ended its goroutine, whose end it is then called in. What ends the goroutine once
// more, as a test does that fails in both, is an error.
func TestPanicOfObserveAfterGoexit(t *testing.T) {
	exit := func(context.Context, fanout.DBTX) ([]int32, error) {
		runtime.Goexit()
		return nil, nil
	}
	for _, s := range fanouttest.Strategies {
		for _, conns := range []int{1, 2} {
			for _, partial := range []bool{false, true} {
				pool := pgtest.Pool(t, conns)
				src := fanouttest.Raw(pool)
				src.Strategy, src.Partial = s, partial
				for _, end := range []func(){func() { panic("observed") }, runtime.Goexit} {
					src.Observe = func(_ context.Context, span fanout.Span) {
						if span.Index == 1 {
							end()
						}
					}
					err := fanouttest.OrPanic(func() error {
						_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID, exit, fanouttest.PID)
						return err
					})
					var p *fanout.PanicError
					if errors.As(err, &p) && p.Value != "observed" || err == nil {
						t.Errorf("%v on %d, partial=%v: %v", s, conns, partial, err)
					}
					fanouttest.Serves(t, pool)
				}
			}
		}
	}
}

func TestPanicOfKey(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := fanouttest.Raw(pool)
	first, m := "untouched", map[int32]int32{1: 1}
	defer func() {
		if r := recover(); r != "key" {
			t.Errorf("recovered %v", r)
		}
		if first != "untouched" || len(m) != 1 {
			t.Errorf("destinations were written: %q, %v", first, m)
		}
		fanouttest.Serves(t, pool)
	}()
	_ = fanout.Run(t.Context(), src,
		fanout.IntoFunc(&first, func(context.Context, fanout.DBTX) (string, error) { return "written", nil }),
		fanout.IntoMap(&m, func(int32) int32 { panic("key") }, fanouttest.PID))
}

// unwinding is a transaction of the caller's own that unwinds the goroutine when it is asked whether it has ended.
type unwinding struct {
	pgx.Tx
	unwind func()
}

func (tx unwinding) SendBatch(context.Context, *pgx.Batch) pgx.BatchResults {
	tx.unwind()
	return nil
}

// A transaction of the caller's own that panics, or calls Goexit, ends the loop of a Stream as a query function does.
func TestStreamInUnwindingTx(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	src := fanouttest.Raw(pool)
	p := fanouttest.Panicked(t, func() {
		for range fanout.Stream(t.Context(), src.On(unwinding{tx, func() { panic("boom") }}), fanouttest.PID) {
			t.Error("the loop has had something")
		}
	})
	if p != nil && p.Value != "boom" {
		t.Errorf("panicked with %v", p)
	}
	for _, err := range fanout.Stream(t.Context(), src.On(unwinding{tx, runtime.Goexit}), fanouttest.PID) {
		if err == nil {
			t.Error("a result")
		} else {
			fanouttest.Mention(t, err, "Goexit")
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

// Goexit in Observe is the call's error, not the process's end, whatever else runs.
func TestGoexitInObserve(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, s := range fanouttest.Strategies {
		for _, partial := range []bool{false, true} {
			for _, last := range []int{1, 2, 3, 6} {
				for range 5 {
					src := fanouttest.Raw(pool)
					src.Strategy, src.Partial = s, partial
					n := 0
					src.Observe = func(context.Context, fanout.Span) {
						if n++; n == last {
							runtime.Goexit() // as t.FailNow does
						}
					}
					if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(6, fanouttest.PID)...); err == nil {
						t.Errorf("%v, partial=%v, of query %d: no error", s, partial, last)
					}
					fanouttest.Serves(t, pool)
				}
			}
		}
	}
}

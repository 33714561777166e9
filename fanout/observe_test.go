package fanout_test

import (
	"context"
	"errors"
	"slices"
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

func TestObserve(t *testing.T) {
	type key struct{}
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 3)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		var spans []fanout.Span
		var inside atomic.Int32
		src.Observe = func(ctx context.Context, s fanout.Span) {
			if inside.Add(1) != 1 {
				t.Error("two goroutines at once")
			}
			if ctx.Value(key{}) != "of the call" {
				t.Error("not the ctx of the call")
			}
			spans = append(spans, s)
			inside.Add(-1)
		}
		batch := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			b := &pgx.Batch{}
			for range 3 {
				b.Queue("-- name: InBatch :batchmany\nselect generate_series(1, 5)")
			}
			b.Queue("select 1")
			results := tx.SendBatch(ctx, b)
			for range 3 {
				rows, err := results.Query()
				if err != nil {
					return nil, err
				}
				if _, err := pgx.CollectRows(rows, pgx.RowTo[int32]); err != nil {
					return nil, err
				}
			}
			if err := results.QueryRow().Scan(new(int)); err != nil {
				return nil, err
			}
			return nil, results.Close()
		}
		copied := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromRows([][]any{{"x"}}))
			return nil, err
		}
		two := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			var n int
			if err := tx.QueryRow(ctx, "-- name: First :one\nselect 1").Scan(&n); err != nil {
				return nil, err
			}
			_, err := tx.Exec(ctx, "-- name: Second :exec\nselect 2")
			return nil, err
		}
		nothing := func(context.Context, fanout.DBTX) ([]int32, error) { return nil, nil }
		ctx := context.WithValue(t.Context(), key{}, "of the call")
		lists, err := fanout.Collect(ctx, src, fanouttest.PID, fanouttest.Boom, fanouttest.Statement[int32]("select generate_series(1, 7)"), batch, copied, two, nothing)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 1 {
			t.Fatal(err)
		}
		if len(spans) != 7 {
			t.Fatalf("%d spans", len(spans))
		}
		slices.SortFunc(spans, func(a, b fanout.Span) int { return a.Index - b.Index })
		by := s
		if s == fanout.Auto {
			by = fanout.Pipelined // there is nothing to be coalesced
		}
		for i, want := range []struct {
			name             string
			statements, rows int
		}{{"PID", 1, 1}, {"Boom", 1, 0}, {"", 1, 7}, {"InBatch", 4, 16}, {`copy "a"`, 1, 0}, {"Second", 2, 1}, {"", 0, 0}} {
			got := spans[i]
			if got.Index != i || got.Name != want.name || got.Statements != want.statements || got.Rows != want.rows {
				t.Errorf("%v: span %d: %+v, want %+v", s, i, got, want)
			}
			if got.Strategy != by || got.Attempt != 1 || got.Shared != 0 || (got.Err != nil) != (i == 1) ||
				(got.PID == 0) != (i == 6 && s >= fanout.Pipelined) {
				t.Errorf("%v: span %d: %+v", s, i, got)
			}
			if i < 6 && got.Started.Before(got.Queued) || got.Finished.Before(got.Started) || got.Started.IsZero() != (i == 6) {
				t.Errorf("%v: span %d: queued %v, started %v, finished %v", s, i, got.Queued, got.Started, got.Finished)
			}
		}
		if uint32(lists[0][0]) != spans[0].PID {
			t.Errorf("%v: ran on %d, the span says %d", s, lists[0][0], spans[0].PID)
		}
	}
}

// One goroutine at a time holds for all calls of a Source, nested ones and copies included.
func TestObserveAcrossCalls(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	src := fanouttest.Raw(pool)
	spans := 0
	src.Observe = func(context.Context, fanout.Span) { spans++ } // a data race if it were otherwise
	done := make(chan error)
	for i := range 4 {
		src := src
		src.Limit = 1 + i
		go func() {
			_, err := fanout.Collect(context.Background(), src, fanouttest.Repeated(5, fanouttest.Nest(src, 1))...)
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if spans != 4*5*(1+3) {
		t.Errorf("%d spans", spans)
	}
}

// The error in a span is that of Error, also where the function had words of its own.
func TestSpanErrIsThatOfError(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 1)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		var span fanout.Span
		src.Observe = func(_ context.Context, s fanout.Span) { span = s }
		ctx, cancel := context.WithCancel(t.Context())
		_, err := fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			cancel()
			<-ctx.Done()
			return nil, errors.New("its own words") // say, a status of gRPC
		})
		if !errors.Is(fanouttest.AsError(t, err), context.Canceled) || !errors.Is(span.Err, context.Canceled) {
			t.Errorf("%v: Error says %q, Span.Err %q", s, err, span.Err)
		}
	}
}

// That of a query which another one's failure has ended matches context.Canceled, whatever its function says.
func TestSpanErrOfACancelledQuery(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		if s == fanout.Serial {
			continue
		}
		pool := pgtest.Pool(t, 2)
		fanouttest.Warm(t, pool)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		spans := map[int]fanout.Span{}
		src.Observe = func(_ context.Context, s fanout.Span) { spans[s.Index] = s }
		started := make(chan struct{})
		_, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			close(started)
			<-ctx.Done()
			return nil, errors.New("its own words")
		}, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			<-started
			return fanouttest.Boom(ctx, tx)
		})
		if !errors.Is(spans[0].Err, context.Canceled) {
			t.Errorf("%v: %v; Span.Err of the other one: %v", s, err, spans[0].Err)
		}
	}
}

// After Retries, the errors of earlier attempts are in it.
func TestSpanErrAfterRetries(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	fanouttest.Failable(t, pool)
	first := errors.New("the first attempt's")
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot, src.Retries = s, true, 1
		var span fanout.Span
		src.Observe = func(_ context.Context, s fanout.Span) { span = s }
		n := 0
		_, err := fanout.Collect(t.Context(), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, err := fanouttest.Statement[int32]("select fail($1)", "40001")(ctx, tx)
			if n++; n == 1 {
				err = errors.Join(err, first)
			}
			return nil, err
		})
		if !errors.Is(err, first) || span.Attempt != 2 {
			t.Error(s, err)
		}
		if !errors.Is(span.Err, first) {
			t.Errorf("%v: Error says %q, Span.Err %q", s, err, span.Err)
		}
	}
}

// A query that fails has finished when its function returned, not when the others have been cancelled.
func TestFinishedOfTheQueryThatFailed(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		t.Run(s.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 4)
			fanouttest.Warm(t, pool)
			if _, err := pool.Exec(t.Context(), `create function stubborn() returns text language plpgsql as $$
				declare until timestamptz := clock_timestamp() + '0.7 s';
				begin
					while clock_timestamp() < until loop
						begin perform pg_sleep(0.1); exception when query_canceled then null; end;
					end loop;
					raise exception 'late';
				end $$`); err != nil {
				t.Fatal(err)
			}
			src := fanouttest.Raw(pool)
			src.Strategy = s
			var span fanout.Span
			src.Observe = func(_ context.Context, s fanout.Span) {
				if s.Index == 0 {
					span = s
				}
			}
			var returned time.Time
			stubborn := fanouttest.Statement[string]("-- name: Stubborn :one\nselect stubborn()")
			_, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				_, err := tx.Exec(ctx, "select pg_sleep(0.2)")
				returned = time.Now()
				return nil, errors.Join(err, errors.New("the cause"))
			}, stubborn, stubborn)
			if late := span.Finished.Sub(returned); late < 0 || late > 100*time.Millisecond {
				t.Errorf("Finished is %v after the function had returned; %v", late, err)
			}
		})
	}
}

// A statement that is refused because its ctx has ended is named and counted: the error must not blame the one before.
func TestNameOfAStatementThatWasNotSent(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		var span fanout.Span
		src.Observe = func(_ context.Context, s fanout.Span) { span = s }
		for _, statements := range []int{1, 2} {
			_, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				if statements == 2 {
					if _, err := fanouttest.Statement[int32]("-- name: Succeeds :one\nselect 1")(ctx, tx); err != nil {
						return nil, err
					}
				}
				ctx, cancel := context.WithCancel(ctx)
				cancel()
				return fanouttest.Statement[int32]("-- name: IsNotSent :one\nselect 2")(ctx, tx)
			})
			if e := fanouttest.AsError(t, err); e.Name != "IsNotSent" || !errors.Is(err, context.Canceled) || span.Statements != statements {
				t.Errorf("%v: name %q, %d statements: %v", s, e.Name, span.Statements, err)
			}
		}
	}
}

// A statement whose own ctx has ended has been asked for, and has failed to be sent; one that is misuse has not been asked for.
func TestSpanOfARefusedStatement(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 1)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		spans := map[int]fanout.Span{}
		src.Observe = func(_ context.Context, s fanout.Span) { spans[s.Index] = s }
		_, err := fanout.Collect(t.Context(), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			tx.QueryRow(ctx, "-- name: F :one\nselect 1") // not scanned
			_, err := tx.Exec(ctx, "-- name: G :exec\nselect 1")
			return nil, err
		}, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			own, cancel := context.WithCancel(ctx)
			cancel()
			_, err := tx.Exec(own, "-- name: C :exec\nselect 1")
			return nil, err
		})
		if err == nil {
			t.Errorf("%v: no error", s)
		}
		if spans[0].Statements != 1 || spans[0].Name != "F" {
			t.Errorf("%v: %+v", s, spans[0])
		}
		if spans[1].Statements != 1 || spans[1].Name != "C" || spans[1].Started.IsZero() {
			t.Errorf("%v: %+v", s, spans[1])
		}
	}
}

// A batch of no statements leaves the name of the last one.
func TestNameAfterAnEmptyBatch(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pgtest.Pool(t, 1))
		src.Strategy = s
		_, err := fanout.Collect(t.Context(), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if _, err := tx.Exec(ctx, "-- name: D :exec\nselect 1"); err != nil {
				return nil, err
			}
			if err := tx.SendBatch(ctx, &pgx.Batch{}).Close(); err != nil {
				return nil, err
			}
			return nil, errors.New("mine")
		})
		fanouttest.Mention(t, err, "query 0 (D): mine")
	}
}

// A beginTracer notes when the statement with an argument was first sent.
type beginTracer struct {
	mu    sync.Mutex
	began map[int]time.Time
}

func (b *beginTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(d.Args) == 1 {
		b.began[d.Args[0].(int)] = time.Now()
	}
	return ctx
}

func (b *beginTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Started is when the first statement was sent, also if it has been sent once more: by itself, when one that it was coalesced
// with has failed.
func TestStartedOfAStatementSentAgain(t *testing.T) {
	tracer := &beginTracer{began: map[int]time.Time{}}
	pool := pgtest.Pool(t, 1, func(c *pgxpool.Config) { c.ConnConfig.Tracer = tracer })
	src := fanouttest.Raw(pool)
	src.Strategy, src.Partial = fanout.Coalesced, true
	const sql = "select (10 / $1::int)::text from (select count(*) from generate_series(1, 400000 + $1::int)) n"
	for round, args := range [][]int{{1, 2}, {1, 2}, {0, 1, 2, 3}} { // two to learn of the statement
		var spans []fanout.Span
		src.Observe = func(_ context.Context, s fanout.Span) { spans = append(spans, s) }
		_, _ = fanout.Collect(fanouttest.InTime(t), src, fanout.Each(func(tx fanout.DBTX, ctx context.Context, i int) ([]string, error) {
			return fanouttest.Statement[string](sql, i)(ctx, tx)
		}, args...)...)
		for _, s := range spans {
			// It is noted before the tracer is told of it.
			if late := s.Started.Sub(tracer.began[args[s.Index]]); late > 0 {
				t.Errorf("round %d, query %d: Started is %v after the statement was sent", round, s.Index, late)
			}
		}
	}
}

// In a transaction of the caller's nothing is coalesced, and the span says so.
func TestStrategyOfASpanInATransaction(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Coalesced
	var spans []fanout.Span
	src.Observe = func(_ context.Context, s fanout.Span) { spans = append(spans, s) }
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := fanout.Collect(t.Context(), src.On(tx), fanouttest.Statement[string]("select $1::int::text", 1), fanouttest.Statement[string]("select $1::int::text", 2)); err != nil {
		t.Fatal(err)
	}
	for _, s := range spans {
		if s.Strategy != fanout.Pipelined {
			t.Errorf("%v, shared %d", s.Strategy, s.Shared)
		}
	}
}

package fanout_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// failing is a Query that raises an error of this SQLSTATE the first n times, and counts how often it ran.
func failing(state string, n int, ran *atomic.Int32) fanout.Query[fanout.DBTX, int32] {
	return func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if int(ran.Add(1)) <= n {
			_, err := tx.Exec(ctx, "do $$ begin raise exception 'once more' using errcode = '"+state+"'; end $$")
			return nil, err
		}
		return pid(ctx, tx)
	}
}

func TestSnapshotCallStartsAgain(t *testing.T) {
	for _, state := range []string{"40001", "40P01"} {
		for _, partial := range []bool{false, true} {
			for _, kind := range []string{"Collect", "Run", "Stream"} {
				pool := pgtest.Pool(t, 2)
				fill(t, pool, 3)
				src := fanout.New(pool, db.New)
				src.Snapshot, src.Partial, src.Retries = true, partial, 3
				var runs atomic.Int32
				flaky := func(ctx context.Context, q *db.Queries) ([]db.A, error) {
					var ran atomic.Int32
					if runs.Add(1) <= 2 {
						// The query set has no statement that raises: a nested call runs on the same connection.
						_, err := fanout.Collect(ctx, raw(pool), failing(state, 1, &ran))
						return nil, err
					}
					return q.ListA(ctx)
				}
				all := fanout.All((*db.Queries).ListA)
				// One connection is the lane of all, so that Stream has yielded nothing when the failure comes.
				src.Strategy = fanout.Serial
				lists, err := collectBy(kind, t.Context(), src, []fanout.Query[*db.Queries, db.A]{flaky, all, all})
				if err != nil || len(lists[0]) != 3 || len(lists[2]) != 3 || runs.Load() != 3 {
					t.Errorf("%s %s partial=%v: %v, %v after %d runs", state, kind, partial, lists, err, runs.Load())
				}
				serves(t, pool)
			}
		}
	}
}

// Every attempt's error is told if the last one fails; what is not transient is not tried again.
func TestRetriesRunOut(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := raw(pool)
	src.Snapshot, src.Retries = true, 2
	for _, partial := range []bool{false, true} {
		src.Partial = partial
		var ran atomic.Int32
		_, err := fanout.Collect(t.Context(), src, pid, failing("40001", 100, &ran))
		if ran.Load() != 3 || sqlState(err) != "40001" || strings.Count(err.Error(), "once more") != 3 {
			t.Errorf("partial %v: ran %d times: %v", partial, ran.Load(), err)
		}
		if e := asError(t, err); e.Index != 1 {
			t.Error(err)
		}
		mention(t, err, "attempt 3; before: ")

		ran.Store(0)
		_, err = fanout.Collect(t.Context(), src, pid, failing("22012", 1, &ran))
		if ran.Load() != 1 || sqlState(err) != "22012" {
			t.Errorf("partial %v: ran %d times: %v", partial, ran.Load(), err)
		}
	}
	serves(t, pool)
}

// A backend is terminated in the middle of a snapshot call: it starts again, and every query has its rows.
func TestSnapshotCallSurvivesALostBackend(t *testing.T) {
	for _, conns := range []int{1, 3} {
		pool := pgtest.Pool(t, conns)
		src := raw(pool)
		src.Snapshot, src.Retries = true, 3
		var spans []int
		src.Observe = func(_ context.Context, s fanout.Span) { spans = append(spans, s.Attempt) }
		var ran atomic.Int32
		kill := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			if ran.Add(1) == 1 {
				return statement[string]("select pg_terminate_backend(pg_backend_pid())::text")(ctx, tx)
			}
			return inSnapshot(ctx, tx)
		}
		queries := repeated(8, inSnapshot)
		queries[4] = kill
		lists, err := fanout.Collect(t.Context(), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			if len(list) != 1 || list[0] != lists[0][0] {
				t.Errorf("query %d sees %v, query 0 %v", i, list, lists[0])
			}
		}
		if last := spans[len(spans)-1]; last != 2 {
			t.Errorf("the last span is of attempt %d", last)
		}
		serves(t, pool)
	}
}

// What may have written is never repeated: the connection is lost in the middle of a write, before its answer.
func TestWritesAreNotRepeated(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	if _, err := pool.Exec(t.Context(), "create table counter (n int); insert into counter values (0)"); err != nil {
		t.Fatal(err)
	}
	src := raw(pool)
	src.Retries, src.Partial = 5, true
	runs := 0
	err := do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		runs++
		if _, err := tx.Exec(ctx, "update counter set n = n + 1"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
		return err
	})
	mention(t, err, "the connection was lost")
	var n int
	if err := pool.QueryRow(t.Context(), "select n from counter").Scan(&n); err != nil || n != 1 || runs != 1 {
		t.Errorf("written %d times by %d runs, %v", n, runs, err)
	}
	serves(t, pool)
}

// A query whose connection turns out to be dead before anything of it was sent runs again, alone, on another one.
func TestUnsentQueryRunsAgain(t *testing.T) {
	w := &wire{}
	pool := pgtest.Pool(t, 1, w.attach)
	fill(t, pool, 3)
	src := fanout.New(pool, db.New)
	src.Strategy, src.Retries = fanout.Serial, 2
	var spans []fanout.Span
	src.Observe = func(_ context.Context, s fanout.Span) { spans = append(spans, s) }
	for _, partial := range []bool{false, true} {
		src.Partial = partial
		for last := range 3 { // also of the last query, when the call asks for no more connections
			spans = nil
			queries := repeated(3, fanout.All((*db.Queries).ListA))
			queries[last] = func(ctx context.Context, q *db.Queries) ([]db.A, error) {
				if len(spans) == last && w.hits.Load() == 0 {
					w.arm(cut, 1) // the write of the next statement
				}
				return q.ListA(ctx)
			}
			w.hits.Store(0)
			lists, err := fanout.Collect(t.Context(), src, queries...)
			w.disarm()
			if err != nil || len(lists[last]) != 3 || w.hits.Load() != 1 {
				t.Fatalf("query %d: %v, %v after %d cuts", last, lists, err, w.hits.Load())
			}
			if s := spans[last]; s.Attempt != 2 || s.Index != last {
				t.Errorf("query %d: %+v", last, s)
			}
		}
	}
	// And where there is no other connection to be had.
	src.Retries, src.Partial = 1, true
	closing := func(ctx context.Context, q *db.Queries) ([]db.A, error) {
		w.arm(cut, 1)
		w.closed.Store(true)
		return q.ListA(ctx)
	}
	_, err := fanout.Collect(t.Context(), src, closing, fanout.All((*db.Queries).ListA))
	w.closed.Store(false)
	w.disarm()
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 2 || errs[0].Name != "ListA" {
		t.Errorf("%v", err)
	}

	src.Retries = 0
	warm(t, pool)
	w.arm(cut, 1)
	_, err = fanout.Collect(t.Context(), src, fanout.All((*db.Queries).ListA))
	w.disarm()
	if asError(t, err).Name != "ListA" {
		t.Error(err)
	}
	serves(t, pool)
}

func TestRetriesStopWithCtx(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := raw(pool)
	src.Snapshot, src.Retries = true, 1_000_000
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ran atomic.Int32
	query := failing("40001", 1_000_000, &ran)
	_, err := fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if ran.Load() == 2 {
			cancel()
		}
		return query(ctx, tx)
	})
	if !errors.Is(err, context.Canceled) || ran.Load() > 3 {
		t.Errorf("after %d runs: %v", ran.Load(), err)
	}
	serves(t, pool)
}

func TestNoServerIsTriedAgain(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), "host=127.0.0.1 port=1 user=u sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	src := raw(pool)
	src.Retries = 2
	_, err = fanout.Collect(t.Context(), src, pid)
	if n := strings.Count(err.Error(), "fanout: no connection"); n != 3 {
		t.Errorf("%d attempts: %v", n, err)
	}
}

// What a nested call has written is not written again when the outer function's own statement cannot be sent.
func TestRetriesDoNotRepeatNestedCalls(t *testing.T) {
	for _, s := range strategies {
		for _, inner := range strategies {
			w := &wire{}
			pool := pgtest.Pool(t, 1, w.attach)
			src := raw(pool)
			src.Strategy, src.Retries = s, 2
			nested := src
			nested.Strategy = inner
			runs := 0
			err := do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
				runs++
				err := fanout.Run(ctx, nested, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
					_, err := tx.Exec(ctx, "create table written (n int)")
					return err
				}))
				if err != nil {
					return err
				}
				w.arm(cut, 1)
				_, err = tx.Exec(ctx, "select 1")
				return err
			})
			// A function whose nested call has joined has no connection yet: its statement can be sent by another one.
			joined := s >= fanout.Pipelined && s < fanout.Auto && inner >= fanout.Pipelined // a single query of Auto runs as with Parallel
			if (err == nil) != joined || runs != 1 {
				t.Errorf("%v in %v: ran %d times: %v", inner, s, runs, err)
			}
			serves(t, pool)
		}
	}
}

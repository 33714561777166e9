package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// One query fails while nine sleep for ten seconds: the call ends at once, and names the cause, not a sibling's
// cancellation.
func TestFirstFailureIsTheCause(t *testing.T) {
	pool := pgtest.Pool(t, 10)
	src := fanouttest.Raw(pool)
	for failing := range 10 {
		queries := fanouttest.Repeated(10, fanouttest.Sleep)
		queries[failing] = fanouttest.Statement[string]("-- name: Boom :one\nselect (1 / $1::int)::text", 0)
		start := time.Now()
		lists, err := fanout.Collect(t.Context(), src, queries...)
		if lists != nil {
			t.Errorf("lists: %v", lists)
		}
		if e := fanouttest.AsError(t, err); e.Index != failing || e.Name != "Boom" || fanouttest.SQLState(err) != "22012" {
			t.Errorf("query %d failed; reported: %v", failing, err)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("the call waited for its siblings: %v", d)
		}
	}
	fanouttest.Serves(t, pool)
}

func TestPartialKeepsTheRest(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 3)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		var queries []fanout.Query[fanout.DBTX, int32]
		for i := range 20 {
			queries = append(queries, fanouttest.Statement[int32](fanouttest.BoomSQL, i%4)) // every fourth divides by zero
		}
		lists, err := fanout.Collect(t.Context(), src, queries...)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 5 {
			t.Fatalf("%v: %v", s, err)
		}
		for i, e := range errs {
			if e.Index != 4*i || e.Name != "Boom" || fanouttest.SQLState(e) != "22012" {
				t.Errorf("%v: error %d: %v", s, i, e)
			}
		}
		for i, list := range lists {
			if failed := i%4 == 0; failed != (list == nil) {
				t.Errorf("%v: list %d is %v", s, i, list)
			}
		}
		fanouttest.Mention(t, err, "and 4 more")
		fanouttest.Serves(t, pool)
	}
}

func TestPartialWithNothingLeft(t *testing.T) {
	pool := pgtest.Pool(t, 3)
	src := fanouttest.Raw(pool)
	src.Partial = true
	m, err := fanout.Gather(t.Context(), src, func(n int32) int32 { return n }, fanouttest.Boom, fanouttest.Boom)
	var errs fanout.Errors
	if m != nil || !errors.As(err, &errs) || len(errs) != 2 {
		t.Errorf("%v, %v", m, err)
	}
}

func TestScanError(t *testing.T) {
	eachStrategy(t, 2, 1, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		raw := fanouttest.Raw(pool)
		raw.Strategy = src.Strategy
		_, err := fanout.Collect(t.Context(), raw, fanouttest.Statement[int]("-- name: Text :one\nselect 'not a number'::text"))
		var scan pgx.ScanArgError
		if e := fanouttest.AsError(t, err); e.Name != "Text" || !errors.As(err, &scan) {
			t.Errorf("%v", err)
		}
		fanouttest.Serves(t, pool)
	})
}

func TestCtxEndedBefore(t *testing.T) {
	eachStrategy(t, 2, 1, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		before := pool.Stat().AcquireCount()
		m, err := fanout.Gather(ctx, src, fanouttest.ID, fanout.All((*db.Queries).ListA))
		if m != nil || !errors.Is(err, context.Canceled) || err.Error() != "fanout: not started: context canceled" {
			t.Errorf("%v, %v", m, err)
		}
		src.Partial = true
		_, err = fanout.Collect(ctx, src, fanouttest.Repeated(3, fanout.All((*db.Queries).ListA))...)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 3 || !errors.Is(errs[2], context.Canceled) {
			t.Errorf("partial: %v", err)
		}
		if n := pool.Stat().AcquireCount() - before; n != 0 {
			t.Errorf("%d connections acquired", n)
		}
	})
}

// The caller's ctx ends while some queries run and others have not started: by cancel, and by a deadline.
func TestCtxEndsInTheMiddle(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, partial := range []bool{false, true} {
			for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
				t.Run(fmt.Sprintf("%v/partial=%v/%v", s, partial, want), func(t *testing.T) {
					pool := pgtest.Pool(t, 2)
					fanouttest.Warm(t, pool)
					src := fanouttest.Raw(pool)
					src.Strategy, src.Partial = s, partial
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if want == context.DeadlineExceeded {
						ctx, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
						defer cancel()
					}
					queries := fanouttest.Repeated(5, fanouttest.Sleep)
					queries[0] = func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
						if want == context.Canceled {
							time.AfterFunc(20*time.Millisecond, cancel)
						}
						return fanouttest.Sleep(ctx, tx)
					}
					start := time.Now()
					lists, err := fanout.Collect(ctx, src, queries...)
					if lists != nil || !errors.Is(err, want) || !errors.Is(err, ctx.Err()) {
						t.Errorf("%v, %v", lists, err)
					}
					if d := time.Since(start); d > 8*time.Second {
						t.Errorf("took %v", d)
					}
					// On a stalled machine ctx may have ended before the statement was sent, which then has no name.
					if e := fanouttest.AsError(t, err); e.Name != "Sleep" && !strings.Contains(e.Error(), "the statement was not sent") {
						t.Errorf("%v", err)
					}
					var errs fanout.Errors
					if errors.As(err, &errs) != partial || partial && len(errs) != 5 {
						t.Errorf("%v", err)
					}
					for i, e := range errs {
						if e.Index != i || !errors.Is(e, want) {
							t.Errorf("error %d: %v", i, e)
						}
					}
					fanouttest.Serves(t, pool)
				})
			}
		}
	}
}

// A query function that answers the end of ctx with an error of its own: the caller's ctx is the cause all the same.
func TestCtxIsTheCauseWhateverTheFunctionSays(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	own := errors.New("its own words")
	err := fanout.Run(ctx, fanouttest.Raw(pool), fanout.Do(func(ctx context.Context, _ fanout.DBTX) error {
		cancel()
		<-ctx.Done()
		return own
	}))
	if !errors.Is(err, context.Canceled) || !errors.Is(err, own) {
		t.Error(err)
	}
}

func TestBackendTerminatedInTheMiddle(t *testing.T) {
	pool := pgtest.Pool(t, 3)
	kill := fanouttest.Statement[string]("-- name: Kill :one\nselect pg_terminate_backend(pg_backend_pid())::text")
	_, err := fanout.Collect(t.Context(), fanouttest.Raw(pool), fanouttest.Sleep, kill, fanouttest.Sleep)
	if e := fanouttest.AsError(t, err); e.Index != 1 || e.Name != "Kill" || fanouttest.SQLState(err) != "57P01" {
		t.Errorf("%v", err)
	}
	fanouttest.Serves(t, pool)

	// With Partial the lane goes on with another connection.
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		queries := fanouttest.Repeated(9, fanouttest.Statement[string]("select 'here'"))
		queries[1], queries[4] = kill, kill
		lists, err := fanout.Collect(t.Context(), src, queries...)
		var errs fanout.Errors
		if !errors.As(err, &errs) {
			t.Fatalf("%v: %v", s, err)
		}
		failed := map[int]bool{}
		for _, e := range errs {
			failed[e.Index] = true
			// What was under way behind it on its connection may be lost with it.
			if fanouttest.Mention(t, e, "the connection was lost"); e.Index != 1 && e.Index != 4 && s < fanout.Pipelined {
				t.Errorf("%v: %v", s, e)
			}
		}
		if !failed[1] || !failed[4] {
			t.Errorf("%v: %v", s, err)
		}
		for i, list := range lists {
			if failed[i] != (len(list) == 0) {
				t.Errorf("%v: list %d is %v", s, i, list)
			}
		}
		fanouttest.Serves(t, pool)
	}
}

// The pool is closed while a call runs: the call ends with what its connections allow, the next one gets one clear error.
func TestPoolClosedInTheMiddle(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	closed := make(chan struct{})
	first := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		go func() {
			defer close(closed)
			pool.Close()
		}()
		untilClosing(ctx)
		return fanouttest.PID(ctx, tx)
	}
	lists, err := fanout.Collect(t.Context(), fanouttest.Raw(pool), append([]fanout.Query[fanout.DBTX, int32]{first}, fanouttest.Repeated(5, fanouttest.PID)...)...)
	if err != nil || len(lists) != 6 {
		t.Errorf("%v, %v", lists, err)
	}
	<-closed
	_, err = fanout.Collect(t.Context(), fanouttest.Raw(pool), fanouttest.PID)
	if err == nil || err.Error() != "fanout: no connection: closed pool" {
		t.Errorf("%v", err)
	}
}

func TestConnectionLostForGood(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	src.Partial = true
	kill := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		go pool.Close()
		untilClosing(ctx)
		_, err := tx.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
		return nil, err
	}
	lists, err := fanout.Collect(t.Context(), src, fanouttest.PID, kill, fanouttest.PID, fanouttest.PID)
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 3 || len(lists[0]) != 1 {
		t.Fatalf("%v, %v", lists, err)
	}
	for _, e := range errs[1:] {
		fanouttest.Mention(t, e, "the connection was lost, and there is no other: closed pool")
	}
}

func TestNoServer(t *testing.T) {
	for name, c := range map[string]struct{ dsn, want string }{
		"nobody listens": {"host=127.0.0.1 port=1 user=u password=secret sslmode=disable", "connection refused"},
		"no such socket": {"host=/nonexistent user=u password=secret", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			pool, err := pgxpool.New(t.Context(), c.dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			lists, err := fanout.Collect(t.Context(), fanouttest.Raw(pool), fanouttest.Repeated(5, fanouttest.PID)...)
			if lists != nil || !strings.HasPrefix(err.Error(), "fanout: no connection: failed to connect") {
				t.Errorf("%v, %v", lists, err)
			}
			fanouttest.Mention(t, err, c.want)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the password is in %q", err)
			}
			src := fanouttest.Raw(pool)
			src.Partial = true
			_, err = fanout.Collect(t.Context(), src, fanouttest.Repeated(5, fanouttest.PID)...)
			var errs fanout.Errors
			if !errors.As(err, &errs) || len(errs) != 5 {
				t.Errorf("partial: %v", err)
			}
		})
	}
}

// untilClosing returns when pool.Close, called elsewhere, waits for the connections in use: pool takes no requests any
// more. pgxpool does not say so itself.
func untilClosing(ctx context.Context) {
	for ctx.Err() == nil {
		for stack := range strings.SplitSeq(fanouttest.Stacks(), "\n\n") {
			if strings.Contains(stack, "puddle/v2.(*Pool[...]).Close(") && strings.Contains(stack, "sync.(*WaitGroup).Wait(") {
				return
			}
		}
		runtime.Gosched()
	}
}

// Queries that fail by themselves at the same time: whichever is the cause, its error is not that of an ended ctx.
func TestSeveralFailAtOnce(t *testing.T) {
	pool := pgtest.Pool(t, 6)
	fanouttest.Warm(t, pool)
	for range 500 {
		_, err := fanout.Collect(t.Context(), fanouttest.Raw(pool), fanouttest.Repeated(6, fanouttest.Boom)...)
		if errors.Is(err, context.Canceled) || fanouttest.SQLState(err) != "22012" {
			t.Fatal(err)
		}
	}
	fanouttest.Serves(t, pool)
}

// With Partial, a connection that is in use is what each query has failed by.
func TestPartialWhereTheConnectionIsBusy(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	check := func(t *testing.T, ctx context.Context, src fanout.Source[fanout.DBTX]) {
		src.Partial = true
		var errs fanout.Errors
		if _, err := fanout.Collect(ctx, src, fanouttest.PID, fanouttest.PID); !errors.As(err, &errs) || len(errs) != 2 {
			t.Errorf("Collect returns a %T: %v", err, err)
		}
		if err := fanout.Run(ctx, src, fanout.Do(func(context.Context, fanout.DBTX) error { return nil })); !errors.As(err, &errs) {
			t.Errorf("Run returns a %T: %v", err, err)
		}
		n := 0
		for _, err := range fanout.Stream(ctx, src, fanouttest.PID, fanouttest.PID) {
			if _, ok := err.(*fanout.Error); !ok {
				t.Errorf("Stream yields a %T: %v", err, err)
			}
			n++
		}
		if n != 2 {
			t.Errorf("Stream yields %d errors of 2 queries", n)
		}
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		t.Run(s.String()+"/On", func(t *testing.T) {
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			rows, err := tx.Query(t.Context(), "select generate_series(1, 3)")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			check(t, t.Context(), src.On(tx))
		})
		t.Run(s.String()+"/nested", func(t *testing.T) {
			_ = fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
				rows, err := tx.Query(ctx, "select generate_series(1, 3)")
				if err != nil {
					return err
				}
				defer rows.Close()
				check(t, ctx, src)
				return nil
			})
		})
	}
}

// A program may have pgx close connections for errors of its choice. Whatever else was under way fails because the connection
// is lost, and not by another query's error.
func TestErrorThatClosesTheConnection(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) {
			config.ConnConfig.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) bool {
				return err.Severity != "FATAL" && err.Code != "22012"
			}
		})
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		var queries []fanout.Query[fanout.DBTX, int32]
		for i := range 10 {
			queries = append(queries, fanouttest.Statement[int32]("select 10 / ($1::int - 4)", i))
		}
		for range 4 { // the first may have to learn
			_, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			var errs fanout.Errors
			if !errors.As(err, &errs) {
				t.Fatal(err)
			}
			for _, e := range errs {
				if divided := fanouttest.SQLState(e) == "22012"; divided != (e.Index == 4) {
					t.Errorf("%v, query %d: %v", s, e.Index, e)
				}
			}
		}
	}
}

// A function that returns a nil pointer as its error, which is not nil then, has the call panic: methods of such an error do.
func TestErrorThatPanics(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Retries = s, 1
		panicked := func(queries ...fanout.Query[fanout.DBTX, int]) (v any) {
			defer func() { v = recover() }()
			_, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			t.Errorf("%v: %v", s, err)
			return nil
		}
		// Retries look into it.
		v := panicked(func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
			_, err := tx.Exec(ctx, "select 1")
			var pgErr *pgconn.PgError
			if errors.As(err, &pgErr) {
				return nil, err
			}
			return []int{1}, pgErr
		})
		fanouttest.Mention(t, v, "nil pointer")
		// And so does a call that is ending.
		if s == fanout.Serial {
			continue // which runs no other then
		}
		src.Retries = 0
		begun := make(chan struct{})
		v = panicked(
			func(ctx context.Context, _ fanout.DBTX) ([]int, error) {
				close(begun)
				<-ctx.Done()
				var err *fanout.Error
				return nil, err
			},
			func(ctx context.Context, _ fanout.DBTX) ([]int, error) {
				<-begun
				return nil, errors.New("another")
			})
		fanouttest.Mention(t, v, "nil pointer")
		fanouttest.Serves(t, pool)
	}
}

package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestFailureCostsNoConnection(t *testing.T) {
	fanouttest.SameBackends(t, 8, func(src fanout.Source[fanout.DBTX]) {
		queries := fanouttest.Repeated(8, fanouttest.Sleep)
		queries[5] = fanouttest.Statement[string](fanouttest.BoomSQL, 0)
		_, err := fanout.Collect(t.Context(), src, queries...)
		if e := fanouttest.AsError(t, err); e.Index != 5 || fanouttest.SQLState(err) != "22012" {
			t.Error(err)
		}
	})
}

func TestEndOfCtxCostsNoConnection(t *testing.T) {
	fanouttest.SameBackends(t, 4, func(src fanout.Source[fanout.DBTX]) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := fanout.Collect(ctx, src, fanouttest.Repeated(8, fanouttest.Sleep)...)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestLeavingAStreamCostsNoConnection(t *testing.T) {
	fanouttest.SameBackends(t, 4, func(src fanout.Source[fanout.DBTX]) {
		quick := fanouttest.Statement[string]("select 'quick'")
		for range fanout.Stream(t.Context(), src, quick, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep) {
			break
		}
	})
}

// A panic costs the connection of the query that panicked, and no other.
func TestPanicCostsOneConnection(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	fanouttest.Panicked(t, func() {
		_, _ = fanout.Collect(t.Context(), fanouttest.Raw(pool), fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, explode)
	})
	fanouttest.Serves(t, pool)
	if n := pool.Stat().NewConnsCount(); n > 5 {
		t.Errorf("%d connections were opened", n)
	}
}

// A ctx that the function has made for one statement ends that statement alone: the function and the call go on.
func TestStatementCtx(t *testing.T) {
	statements := map[string]func(ctx context.Context, tx fanout.DBTX) error{
		"Query": func(ctx context.Context, tx fanout.DBTX) error {
			_, err := fanouttest.Sleep(ctx, tx)
			return err
		},
		"QueryRow": func(ctx context.Context, tx fanout.DBTX) error {
			return tx.QueryRow(ctx, "select pg_sleep(10)::text").Scan(new(string))
		},
		"Exec": func(ctx context.Context, tx fanout.DBTX) error {
			_, err := tx.Exec(ctx, "select pg_sleep($1)", 10)
			return err
		},
		"SendBatch": func(ctx context.Context, tx fanout.DBTX) error {
			b := &pgx.Batch{}
			b.Queue("select pg_sleep(10)")
			return tx.SendBatch(ctx, b).Close()
		},
		"BatchResults.Exec": func(ctx context.Context, tx fanout.DBTX) error {
			b := &pgx.Batch{}
			b.Queue("select pg_sleep(10)")
			results := tx.SendBatch(ctx, b)
			_, err := results.Exec()
			_ = results.Close()
			return err
		},
		"CopyFrom": func(ctx context.Context, tx fanout.DBTX) error {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromFunc(func() ([]any, error) {
				return []any{"endless"}, nil
			}))
			return err
		},
	}
	for name, f := range statements {
		// One ctx is derived from the function's, the other has nothing to do with it.
		for _, parent := range []context.Context{nil, context.Background()} {
			t.Run(name, func(t *testing.T) {
				fanouttest.SameBackends(t, 2, func(src fanout.Source[fanout.DBTX]) {
					err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
						own := ctx
						if parent != nil {
							own = parent
						}
						own, cancel := context.WithTimeout(own, 250*time.Millisecond)
						defer cancel()
						err := f(own, tx)
						if !errors.Is(err, context.DeadlineExceeded) || fanouttest.SQLState(err) != "57014" {
							t.Errorf("%v", err)
						}
						if ctx.Err() != nil {
							t.Error("the function's ctx has ended too")
						}
						if err := f(own, tx); !errors.Is(err, context.DeadlineExceeded) || fanouttest.SQLState(err) != "" {
							t.Errorf("with a ctx that has ended: %v", err)
						}
						_, err = fanouttest.PID(ctx, tx)
						return err
					})
					if err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// A statement on a ctx that has nothing to do with the call's ends with the call all the same.
func TestForeignCtxEndsWithTheCall(t *testing.T) {
	fanouttest.SameBackends(t, 2, func(src fanout.Source[fanout.DBTX]) {
		_, err := fanout.Collect(t.Context(), src,
			func(_ context.Context, tx fanout.DBTX) ([]string, error) {
				return fanouttest.Sleep(context.Background(), tx)
			},
			fanouttest.Statement[string](fanouttest.BoomSQL, 0))
		if e := fanouttest.AsError(t, err); e.Index != 1 {
			t.Error(err)
		}
	})
}

// No late cancel hits the next statement: after each failing call, every connection runs one at once.
func TestNoLateCancel(t *testing.T) {
	rounds := 300
	if *fanouttest.Soak {
		rounds = 10_000
	}
	pool := pgtest.Pool(t, 4)
	src := fanouttest.Raw(pool)
	quick := fanouttest.Statement[string]("select 'quick'")
	for i := range rounds {
		_, err := fanout.Collect(t.Context(), src, fanouttest.Sleep, fanouttest.Statement[string](fanouttest.BoomSQL, 0), fanouttest.Sleep, quick)
		if e := fanouttest.AsError(t, err); e.Index != 1 {
			t.Fatalf("round %d: %v", i, err)
		}
		if _, err := fanout.Collect(t.Context(), src, quick, quick, quick, quick); err != nil {
			t.Fatalf("round %d: the next call: %v", i, err)
		}
	}
	if n := pool.Stat().NewConnsCount(); n != 4 {
		t.Errorf("%d connections were opened in all", n)
	}
}

// What is under way when a call ends is mostly quick: it may end by itself. A cancel request for each would have the server
// fork as many processes, and took ten times as long.
func TestQuickStatementsMayEnd(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, kind := range []string{"failure", "break", "cancel"} {
			t.Run(fmt.Sprint(s, " ", kind), func(t *testing.T) {
				var dialled atomic.Int32
				pool := pgtest.Pool(t, 2, dials(&dialled))
				fanouttest.Warm(t, pool)
				src := fanouttest.Raw(pool)
				src.Strategy = s
				var quick []fanout.Query[fanout.DBTX, int32]
				for i := range 30 {
					quick = append(quick, fanouttest.Statement[int32]("select $1::int + random()::int", i))
				}
				for range adapts {
					if _, err := fanout.Collect(t.Context(), src, quick...); err != nil {
						t.Fatal(err)
					}
				}
				calls, without := 0, 0
				// A busy server may take its time; if it is busy now, perhaps not for long.
				for ; calls < 20 || calls < 100 && without < calls/3; calls++ {
					before := dialled.Load()
					ctx, cancel := context.WithCancel(t.Context())
					switch kind {
					case "failure":
						_, err := fanout.Collect(ctx, src, slices.Insert(slices.Clone(quick), 0, fanouttest.Boom)...)
						if fanouttest.SQLState(err) != "22012" {
							t.Error(err)
						}
					case "break":
						for _, err := range fanout.Stream(ctx, src, quick...) {
							if err != nil {
								t.Error(err)
							}
							break
						}
					case "cancel":
						// After the first answer, when what follows is on its way.
						src := src
						src.Observe = func(context.Context, fanout.Span) { time.AfterFunc(20*time.Microsecond, cancel) }
						if _, err := fanout.Collect(ctx, src, quick...); err != nil && !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
					}
					cancel()
					if dialled.Load() == before {
						without++
					}
				}
				if without < calls/3 {
					t.Errorf("%d of %d calls sent no cancel request", without, calls)
				}
				if opened := pool.Stat().NewConnsCount(); opened > 2 {
					t.Errorf("%d connections were opened", opened)
				}
			})
		}
	}
}

// Inside the caller's transaction a cancelled statement aborts it, and leaves it to the caller to roll back.
func TestCancelInsideATransaction(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	_, err = fanout.Collect(ctx, fanouttest.Raw(pool).On(tx), fanouttest.Sleep)
	if !errors.Is(err, context.DeadlineExceeded) || fanouttest.SQLState(err) != "57014" {
		t.Error(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := db.New(pool).CountA(t.Context()); err != nil {
		t.Error(err)
	}
	if n := pool.Stat().NewConnsCount(); n != 1 {
		t.Errorf("%d connections were opened", n)
	}
}

// A nested call runs on its outer function's connection and ends with the outer call, whatever ctx it has been given, as that
// function's statements do.
func TestNestedCtxThatDoesNotEnd(t *testing.T) {
	for _, outer := range fanouttest.Strategies {
		for _, inner := range []fanout.Strategy{fanout.Parallel, fanout.Pipelined, fanout.Coalesced} {
			fanouttest.SameBackends(t, 2, func(src fanout.Source[fanout.DBTX]) {
				src.Strategy = outer
				nested := src
				nested.Strategy = inner
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				start := time.Now()
				_, err := fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					lists, err := fanout.Collect(context.WithoutCancel(ctx), nested, fanouttest.Sleep)
					return slices.Concat(lists...), err
				})
				if d := time.Since(start); d > 10*time.Second || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v in %v: after %v: %v", inner, outer, d, err)
				}
			})
		}
	}
}

// It ends also with a call that is nested itself, which fails or whose ctx ends while those around it go on. What it has not
// begun says so, and not that a connection was lost.
func TestNestedCtxThatDoesNotEndInAnother(t *testing.T) {
	cause := errors.New("the cause")
	for _, middle := range fanouttest.Strategies {
		for _, inner := range []fanout.Strategy{fanout.Parallel, fanout.Coalesced} {
			for _, failing := range []bool{false, true} {
				if failing && middle < fanout.Pipelined {
					continue // nested, it runs one query after the other
				}
				fanouttest.SameBackends(t, 2, func(src fanout.Source[fanout.DBTX]) {
					src.Strategy = fanout.Pipelined
					between, nested := src, src
					between.Strategy, nested.Strategy, nested.Partial = middle, inner, true
					start := time.Now()
					err := fanouttest.Do(t, src, func(ctx context.Context, _ fanout.DBTX) error {
						own, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
						if failing {
							own, cancel = context.WithCancel(ctx)
						}
						defer cancel()
						begun := make(chan struct{})
						queries := []fanout.Query[fanout.DBTX, string]{func(ctx context.Context, _ fanout.DBTX) ([]string, error) {
							close(begun)
							var errs fanout.Errors
							_, err := fanout.Collect(context.WithoutCancel(ctx), nested, fanouttest.Repeated(40, fanouttest.Sleep)...)
							if !errors.As(err, &errs) || len(errs) != 40 {
								t.Errorf("%v in %v: %v", inner, middle, err)
							}
							for _, e := range errs {
								if !errors.Is(e, context.Canceled) && !errors.Is(e, context.DeadlineExceeded) {
									t.Errorf("%v in %v: %v", inner, middle, e)
									break
								}
							}
							return nil, err
						}}
						if failing {
							queries = append(queries, func(context.Context, fanout.DBTX) ([]string, error) {
								<-begun
								time.Sleep(50 * time.Millisecond)
								return nil, cause
							})
						}
						_, err := fanout.Collect(own, between, queries...)
						if want := own.Err(); failing && !errors.Is(err, cause) || !failing && !errors.Is(err, want) {
							t.Errorf("%v in %v: %v", inner, middle, err)
						}
						return nil
					})
					if d := time.Since(start); d > 10*time.Second || err != nil {
						t.Errorf("%v in %v: after %v: %v", inner, middle, d, err)
					}
				})
			}
		}
	}
}

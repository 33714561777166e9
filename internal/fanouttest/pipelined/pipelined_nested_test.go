package pipelined

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// nestedLookUps is a query of m look-ups in a nested call, after a statement of its own if first is set.
func nestedLookUps(src fanout.Source[*db.Queries], m int, first bool) fanout.Query[*db.Queries, db.A] {
	return func(ctx context.Context, q *db.Queries) ([]db.A, error) {
		if first {
			if _, err := q.CountA(ctx); err != nil {
				return nil, err
			}
		}
		lists, err := fanout.Collect(ctx, src, lookUps(m)...)
		return slices.Concat(lists...), err
	}
}

// The nested calls of many functions travel together, whether or not their functions have sent anything before.
func TestNestedTravelsTogether(t *testing.T) {
	const n, m = 8, 4
	for _, first := range []bool{false, true} {
		for _, snapshot := range []bool{false, true} {
			t.Run(fmt.Sprintf("first=%v/snapshot=%v", first, snapshot), func(t *testing.T) {
				way := &fanouttest.Traffic{Latency: 2 * time.Millisecond}
				pool := pgtest.Pool(t, 1, way.Attach)
				fanouttest.Fill(t, pool, m)
				src := fanout.New(pool, db.New)
				serial, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(n, nestedLookUps(src, m, first))...)
				if err != nil {
					t.Fatal(err)
				}
				src.Strategy, src.Snapshot = fanout.Pipelined, snapshot
				least, quickest := int64(1000), time.Hour
				for range 40 { // until it is known what the statements cost, and the way
					before, start := way.Writes.Load(), time.Now()
					lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(n, nestedLookUps(src, m, first))...)
					if err != nil {
						t.Fatal(err)
					}
					least, quickest = min(least, way.Writes.Load()-before), min(quickest, time.Since(start))
					if diff := gocmp.Diff(serial, lists); diff != "" {
						t.Fatalf("(-serial +got)\n%s", diff)
					}
				}
				t.Logf("%d nested calls of %d look-ups: %d writes, %v", n, m, least, quickest)
				if least > 10 { // one by one it would be at least 32
					t.Errorf("%d nested calls of %d look-ups took at least %d writes", n, m, least)
				}
			})
		}
	}
}

// levels is a query whose function makes a nested call of width such queries, depth levels in all, with a statement of its
// own before and after. It returns the number of functions that have run.
func levels(src fanout.Source[fanout.DBTX], width, depth int) fanout.Query[fanout.DBTX, int32] {
	return func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if depth%2 == 0 {
			if _, err := fanouttest.PID(ctx, tx); err != nil {
				return nil, err
			}
		}
		n := int32(1)
		if depth > 0 {
			lists, err := fanout.Collect(ctx, src, fanouttest.Repeated(width, levels(src, width, depth-1))...)
			if err != nil {
				return nil, err
			}
			for _, list := range lists {
				n += list[0]
			}
		}
		_, err := fanouttest.PID(ctx, tx)
		return []int32{n}, err
	}
}

func TestNestedLevels(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, snapshot := range []bool{false, true} {
			fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
				src.Strategy, src.Snapshot = fanout.Pipelined, snapshot
				lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(5, levels(src, 3, 4))...)
				if err != nil {
					t.Fatal(err)
				}
				for _, list := range lists {
					if list[0] != 1+3+9+27+81 {
						t.Errorf("%d functions ran", list[0])
					}
				}
			})
		}
	}
}

// More nested calls than an exchange has runners for, each with more queries than run at once.
func TestNestedManyQueries(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := pipelined(pool)
	lists, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		lists, err := fanout.Collect(ctx, src, fanouttest.Repeated(2000, fanouttest.PID)...)
		return slices.Concat(lists...), err
	})
	if err != nil || len(lists[0]) != 2000 {
		t.Errorf("%d rows, %v", len(lists[0]), err)
	}
	many := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		lists, err := fanout.Collect(ctx, src, fanouttest.Repeated(40, levels(src, 2, 1))...)
		return slices.Concat(lists...), err
	}
	lists, err = fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(40, fanout.Query[fanout.DBTX, int32](many))...)
	if err != nil || len(lists[39]) != 40 || lists[39][39] != 3 {
		t.Errorf("%v", err)
	}
	fanouttest.Serves(t, pool)
}

// A span of a nested query says how it ran; errors name the query, siblings keep their results.
func TestNestedPartial(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, snapshot := range []bool{false, true} {
			fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
				src.Strategy, src.Snapshot = fanout.Pipelined, snapshot
				inner := src
				inner.Partial = true
				var spans, failed int
				inner.Observe = func(_ context.Context, s fanout.Span) {
					spans++
					if s.Strategy != fanout.Pipelined || s.Name != "Boom" || s.Statements != 1 || s.PID == 0 || (s.Err != nil) != (s.Index == 2) {
						t.Errorf("%+v", s)
					}
					if s.Err != nil {
						failed++
					}
				}
				one := fanouttest.Statement[int32](fanouttest.BoomSQL, 1)
				query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					lists, err := fanout.Collect(ctx, inner, one, one, fanouttest.Boom, one)
					var errs fanout.Errors
					if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 2 || errs[0].Name != "Boom" || fanouttest.SQLState(errs[0]) != "22012" {
						return nil, fmt.Errorf("nested: %w", err)
					}
					return append(slices.Concat(lists...), 4), nil
				}
				lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(10, fanout.Query[fanout.DBTX, int32](query))...)
				if err != nil {
					t.Fatal(err)
				}
				for _, list := range lists {
					if !slices.Equal(list, []int32{1, 1, 1, 4}) {
						t.Errorf("%v", list)
					}
				}
				if spans != 40 || failed != 10 {
					t.Errorf("%d spans, %d of them failed", spans, failed)
				}
			})
		}
	}
}

// A failing nested query ends its siblings, at whatever they are, and nothing else: the outer function and the others go on.
func TestNestedFailureEndsSiblings(t *testing.T) {
	cause := errors.New("the cause")
	fails := map[string]fanout.Query[fanout.DBTX, string]{
		"statement": fanouttest.Statement[string](fanouttest.BoomSQL, 0),
		"function": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			_, _ = fanouttest.PID(ctx, tx)
			return nil, cause
		},
		"no statement": func(context.Context, fanout.DBTX) ([]string, error) { return nil, cause },
		"late": func(context.Context, fanout.DBTX) ([]string, error) {
			time.Sleep(20 * time.Millisecond) // busy with something else: not a synchronisation
			return nil, cause
		},
	}
	siblings := map[string]fanout.Query[fanout.DBTX, string]{
		"quick":     fanouttest.Statement[string]("select 'quick'"),
		"sleeping":  fanouttest.Sleep,
		"streaming": fanouttest.Statement[string]("select repeat('x', 100) from generate_series(1, 20000)"),
		"own lane": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			b := &pgx.Batch{}
			b.Queue(fanouttest.SleepSQL, 10)
			return nil, tx.SendBatch(ctx, b).Close()
		},
		"nested": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			lists, err := fanout.Collect(ctx, pipelined(poolOf[fanout.DBTX](ctx)), fanouttest.Repeated(3, fanouttest.Sleep)...)
			return slices.Concat(lists...), err
		},
	}
	for _, conns := range []int{1, 3} {
		pool := pgtest.Pool(t, conns)
		src := pipelined(pool)
		for name, bad := range fails {
			for kind, sibling := range siblings {
				if slow := kind != "quick" && kind != "streaming"; slow && name != "late" && name != "no statement" {
					continue // it may be sent behind them
				}
				t.Run(fmt.Sprintf("conns=%d/%s/%s", conns, name, kind), func(t *testing.T) {
					query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
						_, err := fanout.Collect(ctx, src, sibling, sibling, bad, sibling)
						if e := fanouttest.AsError(t, err); e.Index != 2 || errors.Is(err, context.Canceled) || !errors.Is(err, cause) && fanouttest.SQLState(err) != "22012" {
							t.Errorf("nested: %v", err)
						}
						return fanouttest.PID(ctx, tx)
					}
					queries := fanouttest.Repeated(6, fanouttest.PID)
					queries[1], queries[4] = query, query
					lists, err := fanout.Collect(withPool(fanouttest.InTime(t), pool), src, queries...)
					if err != nil {
						t.Fatal(err)
					}
					for i, list := range lists {
						if len(list) != 1 {
							t.Errorf("query %d: %v", i, list)
						}
					}
				})
			}
		}
		fanouttest.Serves(t, pool)
		if n := pool.Stat().NewConnsCount(); n > int64(conns) {
			t.Errorf("%d connections were opened in all", n)
		}
	}
}

// The nested call's ctx ends, by a timeout of the outer function's or with the whole call: whoever waits goes on.
func TestNestedCtxEnds(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, snapshot := range []bool{false, true} {
			for _, whole := range []bool{false, true} {
				t.Run(fmt.Sprintf("conns=%d/snapshot=%v/whole=%v", conns, snapshot, whole), func(t *testing.T) {
					fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
						src.Strategy, src.Snapshot = fanout.Pipelined, snapshot
						fanouttest.KnownToBeSlow(t, src)
						inner := src
						inner.Partial = true
						deep := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
							lists, err := fanout.Collect(ctx, src, fanouttest.Repeated(3, fanouttest.Sleep)...)
							return slices.Concat(lists...), err
						}
						query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
							for _, nested := range []fanout.Source[fanout.DBTX]{src, inner} {
								own, cancel := ctx, context.CancelFunc(func() {})
								if !whole {
									own, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
								}
								defer cancel()
								queries := fanouttest.Repeated(20, fanouttest.Sleep)
								queries[3] = deep
								_, err := fanout.Collect(own, nested, queries...)
								if !errors.Is(err, own.Err()) {
									t.Errorf("%v", err)
								}
							}
							return fanouttest.PID(ctx, tx)
						}
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
						if whole {
							ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
						}
						defer cancel()
						start := time.Now()
						_, err := fanout.Collect(ctx, src, fanouttest.Repeated(4, fanout.Query[fanout.DBTX, int32](query))...)
						if whole && !errors.Is(err, context.DeadlineExceeded) || !whole && err != nil {
							t.Error(err)
						}
						if d := time.Since(start); d > 4*time.Second {
							t.Errorf("took %v", d)
						}
					})
				})
			}
		}
	}
}

// A panic in a nested function is the outer call's, unless the outer function recovers: then nobody else is concerned.
func TestNestedPanic(t *testing.T) {
	panics := map[string]fanout.Query[fanout.DBTX, int32]{
		"at once": func(context.Context, fanout.DBTX) ([]int32, error) { panic("boom") },
		"after a statement": func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, _ = fanouttest.PID(ctx, tx)
			panic("boom")
		},
		"with rows": func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, _ = tx.Query(ctx, "select generate_series(1, 100000)")
			panic("boom")
		},
		"with the lane": func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, _ = tx.Exec(ctx, "begin")
			panic("boom")
		},
		"encoder": fanouttest.Statement[int32]("select length($1::text)", fanouttest.Valuer(func() (driver.Value, error) { panic("boom") })),
		"encoder, alone": func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			b := &pgx.Batch{}
			b.Queue("select $1::text", fanouttest.Valuer(func() (driver.Value, error) { panic("boom") }))
			return nil, tx.SendBatch(ctx, b).Close()
		},
	}
	for _, conns := range []int{1, 3} {
		pool := pgtest.Pool(t, conns)
		src := pipelined(pool)
		src.Partial = true
		for name, bad := range panics {
			for i := range 4 {
				first, recovers := i&1 != 0, i&2 != 0
				if recovers && name == "encoder, alone" {
					continue // pgx leaves the connection busy
				}
				t.Run(fmt.Sprintf("conns=%d/%s/first=%v/recovers=%v", conns, name, first, recovers), func(t *testing.T) {
					query := func(ctx context.Context, tx fanout.DBTX) (_ []int32, err error) {
						if first {
							if _, err := fanouttest.PID(ctx, tx); err != nil {
								return nil, err
							}
						}
						defer func() {
							if !recovers {
								return
							}
							if p, ok := recover().(*fanout.PanicError); !ok || p.Value != "boom" {
								t.Errorf("recovered %v", p)
							}
							_, err = tx.Exec(ctx, "rollback")
						}()
						_, err = fanout.Collect(ctx, src, fanouttest.PID, levels(src, 3, 1), bad, fanouttest.PID)
						return nil, err
					}
					for range 2 {
						queries := fanouttest.Repeated(8, levels(src, 3, 1))
						queries[3], queries[6] = query, query
						ctx := fanouttest.InTime(t)
						if recovers {
							lists, err := fanout.Collect(ctx, src, queries...)
							if err != nil || lists[7][0] != 4 {
								t.Fatalf("%v", err)
							}
						} else if p := fanouttest.Panicked(t, func() { _, _ = fanout.Collect(ctx, src, queries...) }); p == nil || p.Value != "boom" {
							t.Fatalf("%v", p)
						}
					}
				})
			}
		}
		fanouttest.Serves(t, pool)
	}
}

func TestNestedGoexit(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, snapshot := range []bool{false, true} {
			for _, late := range []bool{false, true} {
				pool := pgtest.Pool(t, conns)
				src := pipelined(pool)
				src.Partial, src.Snapshot = true, snapshot
				exit := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					if _, err := fanouttest.PID(ctx, tx); err != nil {
						return nil, err
					}
					if late {
						time.Sleep(5 * time.Millisecond) // longer than the others wait for it: not a synchronisation
					}
					runtime.Goexit()
					return nil, nil
				}
				query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					lists, err := fanout.Collect(ctx, src, fanouttest.PID, exit, fanouttest.PID, exit, fanouttest.PID, exit)
					var errs fanout.Errors
					if !errors.As(err, &errs) || len(errs) != 3 || errs[1].Index != 3 || len(lists[4]) != 1 {
						return nil, fmt.Errorf("nested: %v, %w", lists, err)
					}
					fanouttest.Mention(t, err, "runtime.Goexit")
					return fanouttest.PID(ctx, tx)
				}
				lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(6, fanout.Query[fanout.DBTX, int32](query))...)
				if err != nil || len(lists[5]) != 1 {
					t.Errorf("%v", err)
				}
				fanouttest.Serves(t, pool)
			}
		}
	}
}

// Nested calls join those of a Snapshot call, and see what it sees; one that wants a snapshot where the outer call has none
// still has it.
func TestNestedSnapshots(t *testing.T) {
	fanouttest.SameBackends(t, 3, func(src fanout.Source[fanout.DBTX]) {
		src.Strategy = fanout.Pipelined
		snapshot := src
		snapshot.Snapshot = true
		see := func(inner fanout.Source[fanout.DBTX], first bool) fanout.Query[fanout.DBTX, string] {
			return func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				if first {
					if _, err := fanouttest.InSnapshot(ctx, tx); err != nil {
						return nil, err
					}
				}
				lists, err := fanout.Collect(ctx, inner, fanouttest.Repeated(5, fanouttest.InSnapshot)...)
				return slices.Concat(lists...), err
			}
		}
		for range 10 {
			for _, inner := range []fanout.Source[fanout.DBTX]{src, snapshot} {
				queries := append(fanouttest.Repeated(6, see(inner, true)), fanouttest.Repeated(6, see(inner, false))...)
				lists, err := fanout.Collect(fanouttest.InTime(t), snapshot, queries...)
				if err != nil {
					t.Fatal(err)
				}
				for _, seen := range slices.Concat(lists...) {
					if seen != lists[0][0] {
						t.Fatalf("%v", lists)
					}
				}
				fanouttest.Mention(t, lists[0][0], "repeatable read on")
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(6, see(snapshot, true))...)
			if err != nil {
				t.Fatal(err)
			}
			for _, list := range lists {
				if len(list) != 5 || slices.Min(list) != slices.Max(list) {
					t.Errorf("%v", list)
				}
				fanouttest.Mention(t, list[0], "repeatable read on")
			}
		}
	})
}

// In the caller's transaction nested calls join by either Source, and one that fails on this side leaves it usable.
func TestNestedOn(t *testing.T) {
	way := &fanouttest.Traffic{}
	pool := pgtest.Pool(t, 2, way.Attach)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	plain := pipelined(pool)
	on := plain.On(tx)
	if _, err := tx.Exec(t.Context(), "create temp table seen (n int) on commit drop"); err != nil {
		t.Fatal(err)
	}
	spans := 0
	plain.Observe = func(_ context.Context, s fanout.Span) {
		spans++
		if s.Strategy != fanout.Pipelined || s.Statements > 0 && s.PID != tx.Conn().PgConn().PID() {
			t.Errorf("%+v", s)
		}
	}
	write := fanouttest.Statement[int32]("insert into seen values ($1) returning n", 1)
	missing := fanout.One(func(tx fanout.DBTX, ctx context.Context, n int) (int, error) {
		err := tx.QueryRow(ctx, "select n from seen where n = $1", n).Scan(&n)
		return n, err
	}, -1)
	failing := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		err := fanout.Run(ctx, plain, fanout.IntoFunc(new([]string), fanouttest.Statement[string]("select pg_sleep(0.02)::text")),
			fanout.IntoFunc(new([]int), missing), fanout.IntoFunc(new([]string), fanouttest.Statement[string]("select pg_sleep(0.02)::text")))
		if !errors.Is(err, pgx.ErrNoRows) {
			return nil, fmt.Errorf("missing: %w", err)
		}
		return write(ctx, tx)
	}
	query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		lists, err := fanout.Collect(ctx, plain, write, write, func(ctx context.Context, _ fanout.DBTX) ([]int32, error) {
			lists, err := fanout.Collect(ctx, on, write, write)
			return slices.Concat(lists...), err
		})
		return slices.Concat(lists...), err
	}
	queries := fanouttest.Repeated(8, fanout.Query[fanout.DBTX, int32](query))
	queries = append(queries, failing, failing)
	if _, err := fanout.Collect(fanouttest.InTime(t), on, queries...); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := tx.QueryRow(t.Context(), "select count(*) from seen").Scan(&n); err != nil || n != 8*4+2 {
		t.Errorf("%d rows, %v", n, err)
	}
	if spans != 8*3+2*3 {
		t.Errorf("%d spans", spans)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Error(err)
	}
}

// What needs the connection alone has it alone in a nested function as well.
func TestNestedAlone(t *testing.T) {
	for _, conns := range []int{1, 3} {
		fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
			src.Strategy = fanout.Pipelined
			shapes := functions(t, src, false)
			query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				lists, err := fanout.Collect(ctx, src, shapes...)
				return slices.Concat(lists...), err
			}
			for range 3 {
				lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(5, fanout.Query[fanout.DBTX, int32](query))...)
				if err != nil {
					t.Fatal(err)
				}
				for _, list := range lists {
					if len(list) != len(shapes) || list[3] != 3 {
						t.Errorf("%v", list)
					}
				}
			}
			err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
				_, err := fanout.Collect(ctx, src, fanouttest.PID, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					_, err := tx.Exec(ctx, "begin")
					return nil, err
				})
				if e := fanouttest.AsError(t, err); e.Index != 1 {
					t.Error(err)
				}
				fanouttest.Mention(t, err, "left a transaction open")
				_, err = fanouttest.Statement[int32]("select 1 where pg_current_xact_id_if_assigned() is null")(ctx, tx)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// The outer function of a nested Stream takes results while others are still to come, may leave the loop, and cannot use
// its q meanwhile.
func TestNestedStream(t *testing.T) {
	for _, conns := range []int{1, 3} {
		fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
			src.Strategy = fanout.Pipelined
			fanouttest.KnownToBeSlow(t, src)
			query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				n := 0
				for r, err := range fanout.Stream(ctx, src, fanouttest.Repeated(20, fanouttest.PID)...) {
					if err != nil || len(r.Rows) != 1 {
						return nil, err
					}
					n++
					if _, err := fanouttest.PID(ctx, tx); err != nil { // else the nested call has ended already
						fanouttest.Mention(t, err, "while a nested call runs on the query function's connection")
					}
				}
				if n != 20 {
					return nil, fmt.Errorf("%d results", n)
				}
				slow := fanouttest.Statement[string](fanouttest.SleepSQL, 0.2) // it may come to stand in front of the quick one
				for range fanout.Stream(ctx, src, fanouttest.Statement[string]("select 'quick'"), slow, slow) {
					break
				}
				return fanouttest.PID(ctx, tx)
			}
			for range 3 {
				lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(6, fanout.Query[fanout.DBTX, int32](query))...)
				if err != nil || len(lists[5]) != 1 {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestNestedMisuse(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := pipelined(pool)
	const lent = "while a nested call runs on the query function's connection"
	err := fanouttest.Do(t, src, func(ctx context.Context, outer fanout.DBTX) error {
		_, err := fanout.Collect(ctx, src, func(inner context.Context, tx fanout.DBTX) ([]int32, error) {
			_, err := outer.Exec(inner, "select 1")
			fanouttest.Mention(t, err, lent)
			_, err = fanout.Collect(ctx, src, fanouttest.PID)
			fanouttest.Mention(t, err, lent)
			return fanouttest.PID(inner, tx)
		})
		if err != nil {
			return err
		}
		rows, err := outer.Query(ctx, "select generate_series(1, 3)")
		if err != nil {
			return err
		}
		_, err = fanout.Collect(ctx, src, fanouttest.PID)
		fanouttest.Mention(t, err, "are still open")
		rows.Close()
		_, err = fanout.Collect(ctx, src, fanouttest.PID)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// The nested call outlives its outer function.
	err = fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		begun := make(chan struct{})
		go func() {
			_, _ = fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				close(begun)
				return fanouttest.Sleep(ctx, tx)
			})
		}()
		<-begun
		return nil
	})
	fanouttest.Mention(t, err, "still")
	fanouttest.Serves(t, pool)
}

// A lost connection fails the nested queries that wait, and their outer functions; those of others go on.
func TestNestedLostConnection(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, snapshot := range []bool{false, true} {
			for _, partial := range []bool{false, true} {
				t.Run(fmt.Sprintf("conns=%d/snapshot=%v/partial=%v", conns, snapshot, partial), func(t *testing.T) {
					w := &fanouttest.Wire{}
					pool := pgtest.Pool(t, conns, w.Attach)
					src := pipelined(pool)
					src.Snapshot, src.Partial = snapshot, partial
					if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(10, levels(src, 3, 2))...); err != nil {
						t.Fatal(err)
					}
					for round := range 12 {
						var cuts atomic.Int32
						cutting := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
							if cuts.Add(1) == 5 {
								w.Arm(fanouttest.Cut, int64(1+round*170))
							}
							return fanouttest.PID(ctx, tx)
						}
						query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
							if round%2 == 0 {
								if _, err := fanouttest.PID(ctx, tx); err != nil {
									return nil, err
								}
							}
							lists, err := fanout.Collect(ctx, src, levels(src, 3, 1), cutting, fanouttest.PID, fanouttest.PID)
							return slices.Concat(lists...), err
						}
						_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(10, fanout.Query[fanout.DBTX, int32](query))...)
						if errors.Is(err, context.DeadlineExceeded) {
							t.Fatalf("round %d: %v", round, err)
						}
						w.Disarm()
					}
					fanouttest.Serves(t, pool)
				})
			}
		}
	}
}

// A nested query is not run again by itself; a Snapshot call starts again as a whole.
func TestNestedRetries(t *testing.T) {
	w := &fanouttest.Wire{}
	pool := pgtest.Pool(t, 1, w.Attach)
	src := pipelined(pool)
	src.Retries = 3
	var runs atomic.Int32
	err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		if _, err := fanouttest.PID(ctx, tx); err != nil {
			return err
		}
		_, err := fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			runs.Add(1)
			w.Arm(fanouttest.Cut, 1)
			return fanouttest.PID(ctx, tx)
		})
		return err
	})
	if err == nil || runs.Load() != 1 {
		t.Errorf("ran %d times: %v", runs.Load(), err)
	}
	w.Mend(t)
	fanouttest.Serves(t, pool)

	src.Snapshot = true
	runs.Store(0)
	err = fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		if _, err := fanouttest.PID(ctx, tx); err != nil {
			return err
		}
		_, err := fanout.Collect(ctx, src, fanouttest.PID, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if runs.Add(1) == 1 {
				w.Arm(fanouttest.Cut, 1)
			}
			return fanouttest.PID(ctx, tx)
		})
		return err
	})
	if err != nil || runs.Load() != 2 {
		t.Errorf("ran %d times: %v", runs.Load(), err)
	}
	fanouttest.Serves(t, pool)
}

// What a nested call has asked for goes by another lane if the one of the function that it is nested in is lost meanwhile.
// That one is given back, though the nested call's function would have kept the connection.
func TestNestedByAnotherLane(t *testing.T) {
	src := pipelined(pgtest.Pool(t, 2))
	src.Snapshot, src.Partial = true, true
	for range 20 {
		_, _ = fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID, fanouttest.PID, fanouttest.PID) // so that it is known to be quick, and two go together
	}
	for attempt := range 20 {
		var outer, killer []int32
		asks := make(chan struct{})
		_, err := fanout.Collect(fanouttest.InTime(t), src,
			func(ctx context.Context, tx fanout.DBTX) (_ []int32, err error) {
				if outer, err = fanouttest.PID(ctx, tx); err != nil {
					return nil, err
				}
				if err := fanouttest.After(ctx, asks); err != nil {
					return nil, err
				}
				time.Sleep(50 * time.Millisecond)
				_, err = fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					_, err := tx.Exec(ctx, "set local work_mem = '1MB'")
					return nil, err
				})
				return nil, err
			},
			func(ctx context.Context, tx fanout.DBTX) (_ []int32, err error) {
				killer, err = fanouttest.PID(ctx, tx)
				close(asks)
				if err != nil {
					return nil, err
				}
				return fanouttest.Statement[int32]("select pg_terminate_backend(pg_backend_pid())::int from pg_sleep(0.2)")(ctx, tx)
			},
			fanouttest.Statement[int32]("select 1 from pg_sleep(0.4)"))
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if len(outer) > 0 && slices.Equal(outer, killer) {
			t.Logf("%d: %v", attempt, err)
			return
		}
	}
	t.Error("they never had the same lane")
}

// A nested call waits no longer than its own ctx for the connection, which another function has to itself.
func TestNestedWaitEndsWithItsCtx(t *testing.T) {
	for _, s := range fanouttest.Pipelining {
		for _, strategy := range []fanout.Strategy{fanout.Serial, fanout.Parallel} {
			src := fanouttest.Raw(pgtest.Pool(t, 1))
			src.Strategy = s
			nested := src
			nested.Strategy = strategy
			kept, over := make(chan struct{}), make(chan struct{})
			_, err := fanout.Collect(fanouttest.InTime(t), src,
				func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
					if _, err := tx.Exec(ctx, "set work_mem = '1MB'"); err != nil {
						return nil, err
					}
					close(kept)
					return nil, fanouttest.After(ctx, over)
				},
				func(ctx context.Context, _ fanout.DBTX) ([]int, error) {
					defer close(over)
					if err := fanouttest.After(ctx, kept); err != nil {
						return nil, err
					}
					own, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
					defer cancel()
					if _, err := fanout.Collect(own, nested, fanouttest.Statement[int]("select 1")); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%v: %v", s, err)
					}
					return nil, ctx.Err()
				})
			if err != nil {
				t.Errorf("%v, nested %v: %v", s, strategy, err)
			}
		}
	}
}

// Who fails because a nested call has lost the connection is told why.
func TestNestedLostToOthers(t *testing.T) {
	for _, s := range fanouttest.Pipelining {
		src := fanouttest.Raw(pgtest.Pool(t, 1))
		src.Strategy = s
		nested := src
		nested.Strategy = fanout.Serial
		lost := func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
			return nil, tx.SendBatch(ctx, fanouttest.Unencodable()).Close()
		}
		begun, ended := make(chan struct{}), make(chan struct{})
		var told error
		_, err := fanout.Collect(fanouttest.InTime(t), src,
			func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
				if _, err := fanouttest.Statement[int]("select 1")(ctx, tx); err != nil {
					return nil, err
				}
				if err := fanouttest.After(ctx, begun); err != nil {
					return nil, err
				}
				_, err := fanout.Collect(ctx, nested, lost)
				_ = fanouttest.After(ctx, ended)
				return nil, err
			},
			func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
				defer close(ended)
				_, told = fanouttest.Statement[int]("select 1")(ctx, tx)
				close(begun)
				for told == nil {
					_, told = fanouttest.Statement[int]("select 1")(ctx, tx)
				}
				return nil, told
			})
		fanouttest.Mention(t, told, "by another query (Bad)")
		fanouttest.Mention(t, err, "greater than maximum value for int2")
	}
}

// Whether a nested call's statements are coalesced is for its own Source to say, whatever the call around it does.
func TestNestedStrategyIsItsOwn(t *testing.T) {
	for _, s := range []fanout.Strategy{fanout.Pipelined, fanout.Coalesced, fanout.Auto} {
		for _, nested := range []fanout.Strategy{fanout.Pipelined, fanout.Coalesced, fanout.Auto} {
			pool := pgtest.Pool(t, 1)
			if _, err := pool.Exec(t.Context(), "create table tiny (id int primary key); insert into tiny select generate_series(1, 100)"); err != nil {
				t.Fatal(err)
			}
			src := fanouttest.Raw(pool)
			src.Strategy = s
			inner := src
			inner.Strategy = nested
			shared := 0
			inner.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
			var queries []fanout.Query[fanout.DBTX, int]
			for i := range 30 {
				queries = append(queries, fanouttest.Statement[int]("-- name: Tiny :many\nselect id from tiny where id = $1", i))
			}
			for range 5 {
				if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(2, func(ctx context.Context, _ fanout.DBTX) ([]int, error) {
					lists, err := fanout.Collect(ctx, inner, queries...)
					return slices.Concat(lists...), err
				})...); err != nil {
					t.Fatal(err)
				}
			}
			if (shared > 0) != (nested != fanout.Pipelined) {
				t.Errorf("%v in %v: %d with another", nested, s, shared)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// In the caller's transaction a failure ends no statement beside it, however deep that is: it would end the transaction.
func TestNestedOnSparesWhatIsBelow(t *testing.T) {
	cause := errors.New("the cause")
	var deep func(src fanout.Source[fanout.DBTX], depth int) fanout.Query[fanout.DBTX, string]
	deep = func(src fanout.Source[fanout.DBTX], depth int) fanout.Query[fanout.DBTX, string] {
		if depth == 0 {
			return fanouttest.Statement[string]("select pg_sleep(0.1)::text")
		}
		return func(ctx context.Context, _ fanout.DBTX) ([]string, error) {
			lists, err := fanout.Collect(ctx, src, deep(src, depth-1))
			return slices.Concat(lists...), err
		}
	}
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		for depth := range 3 {
			src := fanouttest.Raw(pool)
			src.Strategy = s
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := fanouttest.Do(t, src.On(tx), func(ctx context.Context, tx fanout.DBTX) error {
				_, err := fanout.Collect(ctx, src, deep(src, depth), func(context.Context, fanout.DBTX) ([]string, error) {
					time.Sleep(20 * time.Millisecond)
					return nil, cause
				})
				if !errors.Is(err, cause) {
					t.Errorf("%v, depth %d: %v", s, depth, err)
				}
				_, err = fanouttest.PID(ctx, tx)
				return err
			}); err != nil {
				t.Errorf("%v, depth %d: %v", s, depth, err)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// What is spared so ends with the ctx of the outer call, whatever ctx the nested one has.
func TestNestedOnEndsWithTheOuterCall(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Pipelined
	for i := range 20 {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		start := time.Now()
		err = fanout.Run(ctx, src.On(tx), fanout.Do(func(ctx context.Context, _ fanout.DBTX) error {
			_, err := fanout.Collect(context.WithoutCancel(ctx), src, fanouttest.Statement[string]("select pg_sleep(20)::text"))
			return err
		}))
		if d := time.Since(start); d > 10*time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("call %d: after %v: %v", i, d, err)
		}
		cancel()
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fanouttest.Serves(t, pool)
}

// An auditor writes down on another pool, by a call with the ctx that it is given, that a statement has ended.
type auditor struct {
	src   fanout.Source[fanout.DBTX]
	ended chan struct{}
}

func (a *auditor) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, a, data.SQL)
}

func (a *auditor) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if sql, _ := ctx.Value(a).(string); !strings.Contains(sql, "pg_sleep") {
		return
	}
	close(a.ended)
	time.Sleep(50 * time.Millisecond) // so that the function goes on meanwhile
	_ = fanout.Run(context.WithoutCancel(ctx), a.src, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
		_, err := tx.Exec(ctx, "select 1")
		return err
	}))
}

// A tracer may make a call on another pool, also while a nested function unwinds.
func TestNestedPanicBesideATracersCall(t *testing.T) {
	a := &auditor{src: fanouttest.Raw(pgtest.Pool(t, 1)), ended: make(chan struct{})}
	pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) { config.ConnConfig.Tracer = a })
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Pipelined
	done := make(chan any)
	go func() {
		defer func() { done <- recover() }()
		_, _ = fanout.Collect(t.Context(), src, func(ctx context.Context, _ fanout.DBTX) ([]int, error) {
			return nil, fanout.Run(ctx, src, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
				ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				_, _ = tx.Exec(ctx, "select pg_sleep($1)", 0.3)
				<-a.ended
				panic("boom")
			}))
		})
	}()
	select {
	case v := <-done:
		fanouttest.Mention(t, v, "boom")
	case <-time.After(20 * time.Second):
		t.Fatal("the call has not ended")
	}
	fanouttest.Serves(t, pool)
}

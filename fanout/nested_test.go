package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// nest is a Query whose function makes a call of its own, which makes another, depth levels in all. It returns the PIDs
// that it met.
func nest(src fanout.Source[fanout.DBTX], depth int) fanout.Query[fanout.DBTX, int32] {
	return func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		pids, err := pid(ctx, tx)
		if err != nil || depth == 0 {
			return pids, err
		}
		lists, err := fanout.Collect(ctx, src, repeated(3, nest(src, depth-1))...)
		for _, list := range lists {
			pids = append(pids, list...)
		}
		if err == nil {
			_, err = pid(ctx, tx) // the connection is the function's own again
		}
		return pids, err
	}
}

func TestNestedCallsRunOnTheirParentsConnection(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, s := range strategies {
			pool := pgtest.Pool(t, conns)
			src := raw(pool)
			src.Strategy = s
			lists, err := fanout.Collect(t.Context(), src, repeated(5, nest(src, 3))...)
			if err != nil {
				t.Fatal(err)
			}
			for i, pids := range lists {
				if len(pids) != 1+3+9+27 {
					t.Errorf("query %d: %d functions ran", i, len(pids))
				}
				for _, p := range pids {
					if p != pids[0] {
						t.Errorf("query %d ran on several backends: %v", i, pids)
						break
					}
				}
			}
			serves(t, pool)
		}
	}
}

// A nested call may use another query set of the same pool, and every kind of call.
func TestNestedCallsOfEveryKind(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	fill(t, pool, 5)
	src := fanout.New(pool, db.New)
	err := do(t, raw(pool), func(ctx context.Context, tx fanout.DBTX) error {
		m, err := fanout.Gather(ctx, src, id, fanout.All((*db.Queries).ListA))
		if err != nil || len(m) != 5 {
			t.Errorf("Gather: %v, %v", m, err)
		}
		n := 0
		for r, err := range fanout.Stream(ctx, src, fanout.Each((*db.Queries).ListAByData, "a_1", "a_2", "a_3")...) {
			if err != nil || len(r.Rows) != 1 {
				t.Errorf("Stream: %v, %v", r, err)
			}
			n++
			if _, err = pid(ctx, tx); err != nil { // else the nested call has ended already
				mention(t, err, "while a nested call runs on the query function's connection")
			}
		}
		if n != 3 {
			t.Errorf("Stream: %d results", n)
		}
		for range fanout.Stream(ctx, src, repeated(10, fanout.All((*db.Queries).ListA))...) {
			break
		}
		var a db.A
		return fanout.Run(ctx, src, fanout.Into(&a, (*db.Queries).GetA, 1))
	})
	if err != nil {
		t.Error(err)
	}
	serves(t, pool)
}

func TestNestedCallWhileRowsAreOpen(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := raw(pool)
	err := do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select generate_series(1, 3)")
		if err != nil {
			return err
		}
		for rows.Next() {
			_, err := fanout.Collect(ctx, src, pid)
			mention(t, err, "rows of the last statement, or")
		}
		if err := rows.Err(); err != nil {
			return err
		}
		_, err = fanout.Collect(ctx, src, pid)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	serves(t, pool)
}

// The inner failure reaches the outer caller through both Errors, and so does a panic, as it is.
func TestNestedFailure(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := raw(pool)
	outer := func(inner fanout.Query[fanout.DBTX, int32]) error {
		_, err := fanout.Collect(t.Context(), src, pid, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, err := fanout.Collect(ctx, src, pid, pid, inner)
			return nil, err
		})
		return err
	}
	err := outer(boom)
	e := asError(t, err)
	if e.Index != 1 || sqlState(err) != "22012" {
		t.Error(err)
	}
	if inner := asError(t, e.Err); inner.Index != 2 || inner.Name != "Boom" {
		t.Error(inner)
	}
	serves(t, pool)

	cause := errors.New("the cause")
	func() {
		defer func() {
			p, ok := recover().(*fanout.PanicError)
			if !ok || p.Value != cause || !errors.Is(p, cause) {
				t.Errorf("recovered %v", p)
			}
		}()
		_ = outer(func(context.Context, fanout.DBTX) ([]int32, error) { panic(cause) })
		t.Error("no panic")
	}()
	serves(t, pool)
}

// More calls than connections, each with nested calls: none blocks another for good.
func TestManyCallsOnFewConnections(t *testing.T) {
	for conns := 1; conns <= 3; conns++ {
		pool := pgtest.Pool(t, conns)
		manyCalls(t, raw(pool), 30, func(src fanout.Source[fanout.DBTX], _ int) fanout.Query[fanout.DBTX, int32] {
			return nest(src, 1)
		})
		serves(t, pool)
	}
}

// manyCalls makes so many calls at once, of four queries each, for each strategy, and then of all strategies together.
func manyCalls(t *testing.T, src fanout.Source[fanout.DBTX], calls int, query func(src fanout.Source[fanout.DBTX], i int) fanout.Query[fanout.DBTX, int32]) {
	t.Helper()
	for n := range len(strategies) + 1 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		errs := make(chan error)
		for i := range calls {
			src := src
			if src.Strategy = strategies[i%len(strategies)]; n < len(strategies) {
				src.Strategy = strategies[n]
			}
			go func() {
				lists, err := fanout.Collect(ctx, src, repeated(4, query(src, i))...)
				if err == nil && len(lists) != 4 {
					err = fmt.Errorf("%d lists", len(lists))
				}
				if err != nil {
					err = fmt.Errorf("round %d, call %d, %v: %w", n, i, src.Strategy, err)
				}
				errs <- err
			}()
		}
		for range calls {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		cancel()
	}
}

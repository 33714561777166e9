package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestNestedCallsRunOnTheirParentsConnection(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, s := range fanouttest.Strategies {
			pool := pgtest.Pool(t, conns)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(5, fanouttest.Nest(src, 3))...)
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
			fanouttest.Serves(t, pool)
		}
	}
}

// A nested call may use another query set of the same pool, and every kind of call.
func TestNestedCallsOfEveryKind(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	fanouttest.Fill(t, pool, 5)
	src := fanout.New(pool, db.New)
	err := fanouttest.Do(t, fanouttest.Raw(pool), func(ctx context.Context, tx fanout.DBTX) error {
		m, err := fanout.Gather(ctx, src, fanouttest.ID, fanout.All((*db.Queries).ListA))
		if err != nil || len(m) != 5 {
			t.Errorf("Gather: %v, %v", m, err)
		}
		n := 0
		for r, err := range fanout.Stream(ctx, src, fanout.Each((*db.Queries).ListAByData, "a_1", "a_2", "a_3")...) {
			if err != nil || len(r.Rows) != 1 {
				t.Errorf("Stream: %v, %v", r, err)
			}
			n++
			if _, err = fanouttest.PID(ctx, tx); err != nil { // else the nested call has ended already
				fanouttest.Mention(t, err, "while a nested call runs on the query function's connection")
			}
		}
		if n != 3 {
			t.Errorf("Stream: %d results", n)
		}
		for range fanout.Stream(ctx, src, fanouttest.Repeated(10, fanout.All((*db.Queries).ListA))...) {
			break
		}
		var a db.A
		return fanout.Run(ctx, src, fanout.Into(&a, (*db.Queries).GetA, 1))
	})
	if err != nil {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

func TestNestedCallWhileRowsAreOpen(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := fanouttest.Raw(pool)
	err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select generate_series(1, 3)")
		if err != nil {
			return err
		}
		for rows.Next() {
			_, err := fanout.Collect(ctx, src, fanouttest.PID)
			fanouttest.Mention(t, err, "rows of the last statement, or")
		}
		if err := rows.Err(); err != nil {
			return err
		}
		_, err = fanout.Collect(ctx, src, fanouttest.PID)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

// The inner failure reaches the outer caller through both Errors, and so does a panic, as it is.
func TestNestedFailure(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := fanouttest.Raw(pool)
	outer := func(inner fanout.Query[fanout.DBTX, int32]) error {
		_, err := fanout.Collect(t.Context(), src, fanouttest.PID, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, err := fanout.Collect(ctx, src, fanouttest.PID, fanouttest.PID, inner)
			return nil, err
		})
		return err
	}
	err := outer(fanouttest.Boom)
	e := fanouttest.AsError(t, err)
	if e.Index != 1 || fanouttest.SQLState(err) != "22012" {
		t.Error(err)
	}
	if inner := fanouttest.AsError(t, e.Err); inner.Index != 2 || inner.Name != "Boom" {
		t.Error(inner)
	}
	fanouttest.Serves(t, pool)

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
	fanouttest.Serves(t, pool)
}

// More calls than connections, each with nested calls: none blocks another for good.
func TestManyCallsOnFewConnections(t *testing.T) {
	for conns := 1; conns <= 3; conns++ {
		pool := pgtest.Pool(t, conns)
		manyCalls(t, fanouttest.Raw(pool), 30, func(src fanout.Source[fanout.DBTX], _ int) fanout.Query[fanout.DBTX, int32] {
			return fanouttest.Nest(src, 1)
		})
		fanouttest.Serves(t, pool)
	}
}

// manyCalls makes so many calls at once, of four queries each, for each strategy, and then of all strategies together.
func manyCalls(t *testing.T, src fanout.Source[fanout.DBTX], calls int, query func(src fanout.Source[fanout.DBTX], i int) fanout.Query[fanout.DBTX, int32]) {
	t.Helper()
	for n := range len(fanouttest.Strategies) + 1 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		errs := make(chan error)
		for i := range calls {
			src := src
			if src.Strategy = fanouttest.Strategies[i%len(fanouttest.Strategies)]; n < len(fanouttest.Strategies) {
				src.Strategy = fanouttest.Strategies[n]
			}
			go func() {
				lists, err := fanout.Collect(ctx, src, fanouttest.Repeated(4, query(src, i))...)
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

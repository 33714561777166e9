package fanout_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestStream(t *testing.T) {
	eachStrategy(t, 3, 20, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		var queries []fanout.Query[*db.Queries, db.A]
		for i := range 20 {
			queries = append(queries, fanout.One((*db.Queries).GetA, int32(i+1)))
		}
		results := fanout.Stream(t.Context(), src, queries...)
		for range 2 { // each range runs the queries anew
			seen := map[int]bool{}
			last := -1
			for r, err := range results {
				if err != nil || len(r.Rows) != 1 || int(r.Rows[0].ID) != r.Index+1 || seen[r.Index] {
					t.Errorf("%v, %v", r, err)
				}
				if src.Strategy == fanout.Serial && r.Index != last+1 {
					t.Errorf("result %d comes after %d", r.Index, last)
				}
				seen[r.Index], last = true, r.Index
				// The loop body may use the same pool, even if it has but one connection.
				if _, err := db.New(pool).CountA(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if len(seen) != 20 {
				t.Errorf("%d results", len(seen))
			}
		}
		fanouttest.Serves(t, pool)
	})
}

// A result comes when its query has finished, not when all have.
func TestStreamYieldsEarly(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, s := range fanouttest.Strategies {
		if s == fanout.Serial {
			continue // the second waits for the first
		}
		src := fanouttest.Raw(pool)
		src.Strategy = s
		yielded := make(chan struct{})
		late := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			select {
			case <-yielded:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return fanouttest.PID(ctx, tx)
		}
		var order []int
		for r, err := range fanout.Stream(fanouttest.InTime(t), src, late, fanouttest.PID) {
			if err != nil {
				t.Fatalf("%v: %v", s, err)
			}
			if r.Index == 1 {
				close(yielded)
			}
			order = append(order, r.Index)
		}
		if len(order) != 2 || order[0] != 1 {
			t.Errorf("%v: order %v", s, order)
		}
	}
	fanouttest.Serves(t, pool)
}

// With one connection the loop body's own use of the pool waits for the lane, which waits for nobody.
func TestStreamOnOneConnection(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		n := 0
		for _, err := range fanout.Stream(fanouttest.InTime(t), src, fanouttest.Repeated(50, fanouttest.PID)...) {
			if err != nil {
				t.Fatalf("%v: %v", s, err)
			}
			if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID, fanouttest.PID); err != nil {
				t.Fatalf("%v: %v", s, err)
			}
			n++
		}
		if n != 50 {
			t.Errorf("%v: %d results", s, n)
		}
	}
}

// Break, return and a panic of the loop body stop everything before the loop is left.
func TestStreamLeftEarly(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	fanouttest.Warm(t, pool)
	queries := []fanout.Query[fanout.DBTX, string]{fanouttest.Statement[string]("select 'quick'"), fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		fanouttest.KnownToBeSlow(t, src) // or the quick one may have been sent behind it
		start := time.Now()
		quiet := func(how string) {
			if n := pool.Stat().AcquiredConns(); n != 0 {
				t.Errorf("%v, %s: %d connections still acquired", s, how, n)
			}
		}
		for range fanout.Stream(t.Context(), src, queries...) {
			break
		}
		quiet("break")
		func() {
			for range fanout.Stream(t.Context(), src, queries...) {
				return
			}
		}()
		quiet("return")
		func() {
			defer func() {
				if r := recover(); r != "the body's own" {
					t.Errorf("%v: recovered %v", s, r)
				}
				quiet("panic")
			}()
			for range fanout.Stream(t.Context(), src, queries...) {
				panic("the body's own")
			}
		}()
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("%v: took %v", s, d)
		}
	}
	fanouttest.Serves(t, pool)
}

func TestStreamFailure(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		one := fanouttest.Statement[int32]("select 1")
		var last error
		n := 0
		for r, err := range fanout.Stream(t.Context(), src, one, fanouttest.Boom, one, fanouttest.Boom, one, one) {
			if last != nil {
				t.Errorf("%v: the sequence goes on after %v", s, last)
			}
			if last = err; err != nil && (r.Index != 0 || r.Rows != nil) {
				t.Errorf("%v: %v with %v", s, r, err)
			}
			n++
		}
		if e := fanouttest.AsError(t, last); e.Name != "Boom" || e.Index != 1 && e.Index != 3 || n > 6 {
			t.Errorf("%v: %v after %d", s, last, n)
		}
		fanouttest.Serves(t, pool)

		src.Partial = true
		failed, rows := map[int]bool{}, 0
		for r, err := range fanout.Stream(t.Context(), src, one, fanouttest.Boom, one, fanouttest.Boom, one, one) {
			if err == nil {
				rows += len(r.Rows)
				continue
			}
			e, ok := err.(*fanout.Error)
			if !ok || r.Rows != nil {
				t.Fatalf("%v: %v, %T", s, r, err)
			}
			failed[e.Index] = true
		}
		if rows != 4 || len(failed) != 2 || !failed[1] || !failed[3] {
			t.Errorf("%v: %d rows, failed %v", s, rows, failed)
		}
		fanouttest.Serves(t, pool)
	}
}

func TestStreamCtxEnds(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, s := range fanouttest.Strategies {
		for _, partial := range []bool{false, true} {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = s, partial
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			n := 0
			for _, err := range fanout.Stream(ctx, src, fanouttest.Repeated(5, fanouttest.Sleep)...) {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v: %v", s, err)
				}
				n++
			}
			cancel()
			if want := map[bool]int{false: 1, true: 5}[partial]; n != want {
				t.Errorf("%v, partial %v: %d errors, want %d", s, partial, n, want)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

func TestStreamWithoutConnection(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.AcquireTimeout = s, 10*time.Millisecond
		n := 0
		for _, err := range fanout.Stream(t.Context(), src, fanouttest.PID, fanouttest.PID) {
			fanouttest.Mention(t, err, "no connection within 10ms: 1 of 1 in use")
			n++
		}
		if n != 1 {
			t.Errorf("%v: %d errors", s, n)
		}
	}
}

package fanout_test

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"sync/atomic"
	"testing"
	"weak"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// numbered are so many rows that they are worth merging while queries run, from one on, with a mark of who has returned them.
func numbered(from, mark int) fanout.Query[fanout.DBTX, [2]int] {
	return func(ctx context.Context, tx fanout.DBTX) ([][2]int, error) {
		if _, err := fanouttest.PID(ctx, tx); err != nil {
			return nil, err
		}
		list := make([][2]int, 10_000)
		for i := range list {
			list[i] = [2]int{from + i, mark}
		}
		return list, nil
	}
}

// Long lists are merged while others are still to come, and the map is the same: the later query's row wins.
func TestGatherMergesMany(t *testing.T) {
	key := func(row [2]int) int { return row[0] }
	for _, s := range fanouttest.Strategies {
		for _, conns := range []int{1, 4} {
			pool := pgtest.Pool(t, conns)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			queries := []fanout.Query[fanout.DBTX, [2]int]{
				func(context.Context, fanout.DBTX) ([][2]int, error) { return nil, nil },
			}
			for i := range 20 {
				queries = append(queries, numbered(i%3*5000, i))
			}
			lists, err := fanout.Collect(t.Context(), src, queries...)
			if err != nil {
				t.Fatal(err)
			}
			want := fanout.Merge(key, lists...)
			for range 2 {
				got, err := fanout.Gather(t.Context(), src, key, queries...)
				if err != nil || !maps.Equal(got, want) {
					t.Errorf("%v: %d rows, %v; want %d", s, len(got), err, len(want))
				}
			}
			var one, other map[int][2]int
			if err := fanout.Run(t.Context(), src, fanout.IntoMap(&one, key, queries...), fanout.IntoMap(&other, key, queries...)); err != nil ||
				!maps.Equal(one, want) || !maps.Equal(other, want) {
				t.Errorf("%v, by Run: %d and %d rows, %v; want %d", s, len(one), len(other), err, len(want))
			}
			// Nested, and with an end before all is merged.
			boom := errors.New("boom")
			err = fanouttest.Do(t, src, func(ctx context.Context, _ fanout.DBTX) error {
				got, err := fanout.Gather(ctx, src, key, queries...)
				if err != nil || !maps.Equal(got, want) {
					t.Errorf("%v, nested: %d rows, %v; want %d", s, len(got), err, len(want))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			got, err := fanout.Gather(t.Context(), src, key, append(queries, func(context.Context, fanout.DBTX) ([][2]int, error) { return nil, boom })...)
			if got != nil || !errors.Is(err, boom) {
				t.Errorf("%v: %d rows, %v", s, len(got), err)
			}
			src.Partial = true
			queries[5] = func(context.Context, fanout.DBTX) ([][2]int, error) { return [][2]int{{-1, 5}}, boom }
			lists[5] = nil
			got, err = fanout.Gather(t.Context(), src, key, queries...)
			if errs := (fanout.Errors{}); !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 5 || !maps.Equal(got, fanout.Merge(key, lists...)) {
				t.Errorf("%v, in part: %d rows, %v", s, len(got), err)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// Rows that have been replaced are gone while the last query still runs.
func TestGatherLetsGoOfRows(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		ctx := fanouttest.InTime(t)
		var first weak.Pointer[[2]int]
		var keys atomic.Int64
		query := func(mark int) fanout.Query[fanout.DBTX, *[2]int] {
			return func(ctx context.Context, tx fanout.DBTX) ([]*[2]int, error) {
				rows, err := numbered(0, mark)(ctx, tx)
				list := make([]*[2]int, len(rows))
				for i, row := range rows {
					list[i] = &row
				}
				if mark == 0 {
					first = weak.Make(list[0])
				}
				return list, err
			}
		}
		last := func(ctx context.Context, tx fanout.DBTX) ([]*[2]int, error) {
			for keys.Load() < 20_000 && ctx.Err() == nil {
				runtime.Gosched()
			}
			for first.Value() != nil && ctx.Err() == nil {
				runtime.GC()
			}
			return nil, ctx.Err()
		}
		key := func(row *[2]int) int { keys.Add(1); return row[0] }
		merged, err := fanout.Gather(ctx, src, key, query(0), query(1), last)
		if err != nil || len(merged) != 10_000 || merged[0][1] != 1 {
			t.Errorf("%v: %d rows, %v", s, len(merged), err)
		}
	}
}

// What key does instead of returning meets the caller, in his goroutine, when the call is over.
func TestGatherWhereKeyDoesNotReturn(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		for name, instead := range map[string]func(){"panic": func() { panic("key") }, "Goexit": runtime.Goexit} {
			var over atomic.Int32
			ended := make(chan any)
			go func() {
				defer func() { ended <- recover() }()
				_, err := fanout.Gather(t.Context(), src, func(row [2]int) int {
					if row == [2]int{77, 1} {
						instead()
					}
					return row[0]
				}, numbered(0, 0), numbered(0, 1), numbered(0, 2), func(ctx context.Context, tx fanout.DBTX) ([][2]int, error) {
					defer over.Add(1)
					_, err := fanouttest.PID(ctx, tx)
					return nil, err
				})
				t.Errorf("%v, %s: Gather has returned: %v", s, name, err)
			}()
			v := <-ended
			if want := any("key"); name == "panic" && v != want || name == "Goexit" && v != nil || over.Load() != 1 {
				t.Errorf("%v, %s: recovered %v; %d queries were over", s, name, v, over.Load())
			}
			fanouttest.Serves(t, pool)
		}
	}
}

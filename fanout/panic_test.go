package fanout_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// panicked runs f and returns the *PanicError that it panics with.
func panicked(t testing.TB, f func()) (p *fanout.PanicError) {
	t.Helper()
	defer func() {
		t.Helper()
		r := recover()
		var ok bool
		if p, ok = r.(*fanout.PanicError); !ok {
			t.Errorf("recovered %v, want a *PanicError", r)
		}
	}()
	f()
	return nil
}

func explode(ctx context.Context, tx fanout.DBTX) ([]string, error) {
	if _, err := tx.Exec(ctx, "select 1"); err != nil {
		return nil, err
	}
	panic("boom")
}

func TestPanicReachesTheCaller(t *testing.T) {
	for _, s := range strategies {
		for _, partial := range []bool{false, true} {
			pool := pgtest.Pool(t, 4)
			src := raw(pool)
			src.Strategy, src.Partial = s, partial
			queries := []fanout.Query[fanout.DBTX, string]{explode, sleep, sleep, sleep, sleep, sleep}
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
				p := panicked(t, call)
				if p.Value != "boom" || !strings.Contains(string(p.Stack), "explode") || !strings.Contains(p.Error(), "boom") {
					t.Errorf("%s: %v", name, p)
				}
				if p.Unwrap() != nil {
					t.Errorf("%s: unwraps to %v", name, p.Unwrap())
				}
				serves(t, pool)
			}
			if s == fanout.Parallel && time.Since(start) > 8*time.Second {
				t.Error("a panic waited for its siblings")
			}
		}
	}
}

func TestPanicCostsOnlyItsConnection(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, s := range strategies {
		src := raw(pool)
		src.Strategy = s
		for _, others := range []int{0, 6} {
			warm(t, pool)
			before := pgtest.Backends(t, pool)
			var lost uint32
			p := panicked(t, func() {
				_, _ = fanout.Collect(t.Context(), src, append(repeated(others, pid), func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					pids, err := pid(ctx, tx)
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
			serves(t, pool)
		}
	}
}

// What the pool's owner or the caller supplies besides query functions runs in goroutines of the call too.
func TestPanicOfObserve(t *testing.T) {
	for _, s := range strategies {
		pool := pgtest.Pool(t, 2)
		src := raw(pool)
		src.Strategy = s
		src.Observe = func(context.Context, fanout.Span) { panic("observed") }
		p := panicked(t, func() { _, _ = fanout.Collect(inTime(t), src, pid, pid) })
		if p.Value != "observed" {
			t.Errorf("%v: %v", s, p)
		}
		serves(t, pool)
	}
}

func TestPanicOfKey(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := raw(pool)
	first, m := "untouched", map[int32]int32{1: 1}
	defer func() {
		if r := recover(); r != "key" {
			t.Errorf("recovered %v", r)
		}
		if first != "untouched" || len(m) != 1 {
			t.Errorf("destinations were written: %q, %v", first, m)
		}
		serves(t, pool)
	}()
	_ = fanout.Run(t.Context(), src,
		fanout.IntoFunc(&first, func(context.Context, fanout.DBTX) (string, error) { return "written", nil }),
		fanout.IntoMap(&m, func(int32) int32 { panic("key") }, pid))
}

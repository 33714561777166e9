package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestGatherMergesByKey(t *testing.T) {
	eachStrategy(t, 4, 100, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		var args []string
		for range 30 {
			args = append(args, fmt.Sprintf("a_%d", rand.IntN(100)))
		}
		got, err := fanout.Gather(t.Context(), src, fanouttest.ID, fanout.Each((*db.Queries).ListAByData, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		want := map[int32]db.A{}
		for _, arg := range args {
			rows, err := db.New(pool).ListAByData(t.Context(), arg)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range rows {
				want[row.ID] = row
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-one by one +Gather)\n%s", diff)
		}
	})
}

// The queries finish in reverse order, and the lists are in order all the same; with equal keys the later query wins.
func TestOrderFollowsTheQueries(t *testing.T) {
	pool := pgtest.Pool(t, 8)
	src := fanouttest.Raw(pool)
	type row struct{ key, value int }
	var queries []fanout.Query[fanout.DBTX, row]
	finished := make([]chan struct{}, 9)
	for i := range finished {
		finished[i] = make(chan struct{})
	}
	close(finished[8])
	for i := range 8 {
		queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]row, error) {
			<-finished[i+1]
			defer close(finished[i])
			var r row
			err := tx.QueryRow(ctx, "select 7, $1::int", i).Scan(&r.key, &r.value)
			return []row{r, {i, i}}, err
		})
	}
	lists, err := fanout.Collect(t.Context(), src, queries...)
	if err != nil {
		t.Fatal(err)
	}
	for i, list := range lists {
		if !slices.Equal(list, []row{{7, i}, {i, i}}) {
			t.Errorf("list %d is %v", i, list)
		}
	}
	merged := fanout.Merge(func(r row) int { return r.key }, lists...)
	if merged[7] != (row{7, 7}) || len(merged) != 8 {
		t.Errorf("merged: %v", merged)
	}
}

func TestNothingToDo(t *testing.T) {
	eachStrategy(t, 2, 0, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		before := pool.Stat().AcquireCount()
		// Without queries, whatever the ctx.
		for _, ctx := range []context.Context{t.Context(), ended} {
			if m, err := fanout.Gather[*db.Queries, db.A](ctx, src, fanouttest.ID); m == nil || len(m) != 0 || err != nil {
				t.Errorf("Gather: %v, %v", m, err)
			}
			if l, err := fanout.Collect[*db.Queries, db.A](ctx, src); l == nil || len(l) != 0 || err != nil {
				t.Errorf("Collect: %v, %v", l, err)
			}
			for r, err := range fanout.Stream[*db.Queries, db.A](ctx, src) {
				t.Errorf("Stream: %v, %v", r, err)
			}
			if err := fanout.Run(ctx, src); err != nil {
				t.Errorf("Run: %v", err)
			}
		}
		if after := pool.Stat().AcquireCount(); after != before {
			t.Errorf("%d connections acquired for nothing", after-before)
		}
		// Without rows.
		m, err := fanout.Gather(t.Context(), src, fanouttest.ID, fanout.All((*db.Queries).ListA))
		if m == nil || len(m) != 0 || err != nil {
			t.Errorf("Gather: %v, %v", m, err)
		}
		l, err := fanout.Collect(t.Context(), src, fanout.All((*db.Queries).ListA))
		if len(l) != 1 || len(l[0]) != 0 || err != nil {
			t.Errorf("Collect: %v, %v", l, err)
		}
	})
}

func TestAdaptors(t *testing.T) {
	eachStrategy(t, 3, 10, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		queries := []fanout.Query[*db.Queries, db.A]{
			fanout.Many((*db.Queries).ListAByData, "a_3"),
			fanout.All((*db.Queries).ListA),
			fanout.One((*db.Queries).GetA, 5),
			fanout.Maybe((*db.Queries).GetA, 6),
			fanout.Maybe((*db.Queries).GetA, 600),
		}
		queries = append(queries, fanout.Each((*db.Queries).ListAByData, "a_8", "nowhere")...)
		queries = append(queries, fanout.Chunk((*db.Queries).ListAByIDs, []int32{9, 2, 3, 1, 77}, 2)...)
		lists, err := fanout.Collect(t.Context(), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		var got [][]int32
		for _, list := range lists {
			var ids []int32
			for _, row := range list {
				ids = append(ids, row.ID)
			}
			got = append(got, ids)
		}
		want := [][]int32{{4}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {5}, {6}, nil, {9}, nil, {2, 9}, {1, 3}, nil}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ids (-want +got)\n%s", diff)
		}
	})
	if n := len(fanout.Chunk((*db.Queries).ListAByIDs, nil, 1)); n != 0 {
		t.Errorf("%d chunks of no keys", n)
	}
}

func TestOneWithoutRow(t *testing.T) {
	eachStrategy(t, 2, 1, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		m, err := fanout.Gather(t.Context(), src, fanouttest.ID, fanout.One((*db.Queries).GetA, 1), fanout.One((*db.Queries).GetA, 2))
		if m != nil || !errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("%v, %v", m, err)
		}
		var e *fanout.Error
		if !errors.As(err, &e) || e.Index != 1 || e.Name != "GetA" {
			t.Errorf("%#v", err)
		}
		if want := "fanout: query 1 (GetA): no rows in result set"; err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
		fanouttest.Serves(t, pool)
	})
}

func TestMistakesOfTheProgramPanic(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanout.New(pool, db.New)
	tooMuch := func(interface {
		db.DBTX
		Begin(context.Context) (pgx.Tx, error)
	}) *db.Queries {
		return nil
	}
	var none fanout.Query[*db.Queries, db.A]
	for name, c := range map[string]struct {
		want string
		f    func()
	}{
		"nil pool":         {"fanout: New: pool is not set", func() { fanout.New(nil, db.New) }},
		"nil newQueries":   {"fanout: New: newQueries is not set", func() { fanout.New[*db.Queries, db.DBTX](pool, nil) }},
		"DBTX with Begin":  {"missing method Begin", func() { fanout.New(pool, tooMuch) }},
		"DBTX is a struct": {"not *pgxpool.Conn", func() { fanout.New(pool, func(*pgxpool.Conn) *db.Queries { return nil }) }},
		"nil tx":           {"fanout: On: tx is not set", func() { src.On(nil) }},
		"zero Source": {"fanout: Collect: the Source was not made by fanout.New", func() {
			_, _ = fanout.Collect[*db.Queries, db.A](t.Context(), fanout.Source[*db.Queries]{})
		}},
		"nil key": {"fanout: Gather: key is not set", func() {
			_, _ = fanout.Gather[*db.Queries, db.A, int32](t.Context(), src, nil)
		}},
		"nil key of Merge":    {"fanout: Merge: key is not set", func() { fanout.Merge[int, db.A](nil) }},
		"nil key of IntoMap":  {"fanout: IntoMap: key is not set", func() { fanout.IntoMap[*db.Queries](new(map[int]db.A), nil) }},
		"nil key of Identity": {"fanout: NewIdentity: key is not set", func() { fanout.NewIdentity[int, db.A](nil) }},
		"nil query": {"fanout: Gather: query 1 is nil", func() {
			_, _ = fanout.Gather(t.Context(), src, fanouttest.ID, fanout.All((*db.Queries).ListA), none)
		}},
		"nil query of Stream": {"fanout: Stream: query 0 is nil", func() { fanout.Stream(t.Context(), src, none) }},
		"nil query of IntoMap": {"fanout: IntoMap: query 0 is nil", func() {
			fanout.IntoMap(new(map[int32]db.A), fanouttest.ID, none)
		}},
		"nil destination": {"fanout: Into: dst is not set", func() { fanout.Into(nil, (*db.Queries).GetA, 1) }},
		"nil method":      {"fanout: Many: method is not set", func() { fanout.Many[*db.Queries, db.A, int](nil, 1) }},
		"nil function":    {"fanout: Do: f is not set", func() { fanout.Do[*db.Queries](nil) }},
		"zero Task": {"fanout: Run: task 1 is the zero Task", func() {
			_ = fanout.Run(t.Context(), src, fanout.Exec((*db.Queries).DeleteA, 1), fanout.Task[*db.Queries]{})
		}},
		"chunk size": {"fanout: Chunk: size is 0; it must be 1 or more", func() { fanout.Chunk((*db.Queries).ListAByIDs, []int32{1}, 0) }},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() { fanouttest.Mention(t, recover(), c.want) }()
			c.f()
		})
	}
	if n := pool.Stat().AcquireCount(); n != 0 {
		t.Errorf("%d connections acquired", n)
	}
}

func TestSettingsOutOfRange(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for name, set := range map[string]func(*fanout.Source[fanout.DBTX]){
		"Limit is -1":            func(s *fanout.Source[fanout.DBTX]) { s.Limit = -1 },
		"AcquireTimeout is -1ns": func(s *fanout.Source[fanout.DBTX]) { s.AcquireTimeout = -1 },
		"Retries is -2":          func(s *fanout.Source[fanout.DBTX]) { s.Retries = -2 },
		"unknown Strategy(99)":   func(s *fanout.Source[fanout.DBTX]) { s.Strategy = 99 },
		"unknown Strategy(-1)":   func(s *fanout.Source[fanout.DBTX]) { s.Strategy = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			src := fanouttest.Raw(pool)
			set(&src)
			ran := false
			task := fanout.Do(func(context.Context, fanout.DBTX) error { ran = true; return nil })
			query := func(context.Context, fanout.DBTX) ([]int, error) { ran = true; return nil, nil }
			errs := []error{fanout.Run(t.Context(), src, task)}
			_, err := fanout.Collect(t.Context(), src, query)
			errs = append(errs, err)
			_, err = fanout.Gather(t.Context(), src, func(int) int { return 0 }, query)
			errs = append(errs, err)
			for _, err := range fanout.Stream(t.Context(), src, query) {
				errs = append(errs, err)
			}
			for _, err := range errs {
				fanouttest.Mention(t, err, name)
			}
			if ran || len(errs) != 4 {
				t.Errorf("ran: %v, %d errors", ran, len(errs))
			}
		})
	}
}

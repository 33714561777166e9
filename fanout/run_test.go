package fanout_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestRun(t *testing.T) {
	eachStrategy(t, 3, 10, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		var (
			one     db.A
			many    []db.A
			none    []db.A
			touched int64
			count   int64
			both    [2]db.A
			byID    map[int32]db.A
			empty   = map[int32]db.A{1: {}}
			did     bool
		)
		err := fanout.Run(t.Context(), src,
			fanout.Into(&one, (*db.Queries).GetA, 4),
			fanout.Into(&many, (*db.Queries).ListAByIDs, []int32{2, 3}),
			fanout.Into(&none, (*db.Queries).ListAByIDs, nil),
			fanout.Into(&touched, (*db.Queries).TouchA, 5),
			fanout.IntoFunc(&count, func(ctx context.Context, q *db.Queries) (int64, error) { return q.CountA(ctx) }),
			fanout.IntoFunc(&both, func(ctx context.Context, q *db.Queries) (pair [2]db.A, err error) {
				for i := range pair {
					if pair[i], err = q.GetA(ctx, int32(6+i)); err != nil {
						return pair, err
					}
				}
				return pair, nil
			}),
			fanout.IntoMap(&byID, fanouttest.ID, fanout.Each((*db.Queries).ListAByData, "a_0", "a_8", "nowhere", "a_0")...),
			fanout.IntoMap[*db.Queries](&empty, fanouttest.ID),
			fanout.Exec((*db.Queries).DeleteA, 99),
			fanout.Do(func(context.Context, *db.Queries) error { did = true; return nil }),
		)
		if err != nil {
			t.Fatal(err)
		}
		row := func(id int32) db.A {
			data := "a_" + string('0'+id-1)
			return db.A{ID: id, Data: &data}
		}
		for name, c := range map[string]struct{ want, got any }{
			"Into :one":      {row(4), one},
			"Into :many":     {[]db.A{row(2), row(3)}, many},
			"Into :execrows": {int64(1), touched},
			"IntoFunc":       {int64(10), count},
			"IntoFunc, two":  {[2]db.A{row(6), row(7)}, both},
			"IntoMap":        {map[int32]db.A{1: row(1), 9: row(9)}, byID},
			"IntoMap, empty": {map[int32]db.A{}, empty},
			"Do":             {true, did},
		} {
			if diff := cmp.Diff(c.want, c.got); diff != "" {
				t.Errorf("%s (-want +got)\n%s", name, diff)
			}
		}
		if len(none) != 0 {
			t.Errorf("no keys: %v", none)
		}
	})
}

func TestRunWritesNothingOnFailure(t *testing.T) {
	eachStrategy(t, 3, 10, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		one, many, byID := db.A{ID: -1}, []db.A{{ID: -2}}, map[int32]db.A{-3: {}}
		tasks := []fanout.Task[*db.Queries]{
			fanout.Into(&one, (*db.Queries).GetA, 4),
			fanout.Into(&many, (*db.Queries).ListAByIDs, []int32{2, 3}),
			fanout.IntoMap(&byID, fanouttest.ID, fanout.One((*db.Queries).GetA, 1), fanout.One((*db.Queries).GetA, 2), fanout.One((*db.Queries).GetA, 1000)),
		}
		err := fanout.Run(t.Context(), src, tasks...)
		e := fanouttest.AsError(t, err)
		if e.Index != 2 || e.Query != 2 || e.Name != "GetA" || !errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("%#v", e)
		}
		if want := "fanout: query 2.2 (GetA): no rows in result set"; err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
		if one.ID != -1 || many[0].ID != -2 || len(byID) != 1 {
			t.Errorf("written: %v, %v, %v", one, many, byID)
		}

		// With Partial each task is on its own, and an IntoMap is all or nothing.
		src.Partial = true
		err = fanout.Run(t.Context(), src, tasks...)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 2 || errs[0].Query != 2 {
			t.Errorf("%v", err)
		}
		if one.ID != 4 || len(many) != 2 {
			t.Errorf("not written: %v, %v", one, many)
		}
		if _, ok := byID[-3]; !ok || len(byID) != 1 {
			t.Errorf("the map was written: %v", byID)
		}
		fanouttest.Serves(t, pool)
	})
}

// Nothing is written while queries run: the last task looks at the others' destinations.
func TestRunWritesAtTheEnd(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	fanouttest.Fill(t, pool, 1)
	src := fanout.New(pool, db.New)
	var a db.A
	err := fanout.Run(t.Context(), src,
		fanout.Into(&a, (*db.Queries).GetA, 1),
		fanout.Do(func(context.Context, *db.Queries) error {
			if a.ID != 0 {
				t.Error("written while queries run")
			}
			return nil
		}))
	if err != nil || a.ID != 1 {
		t.Errorf("%v, %v", a, err)
	}
}

// A Task may be run again, also by several calls at once.
func TestTasksHoldNoState(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	fanouttest.Fill(t, pool, 3)
	src := fanout.New(pool, db.New)
	var byID map[int32]db.A
	task := fanout.IntoMap(&byID, fanouttest.ID, fanout.All((*db.Queries).ListA))
	for range 2 {
		if err := fanout.Run(t.Context(), src, task, task); err != nil || len(byID) != 3 {
			t.Errorf("%v, %v", byID, err)
		}
		byID = nil
	}
}

package equal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A randomQuery is a Query with what the reference property needs to know of it.
type randomQuery struct {
	name    string // for the failure report
	fails   bool
	ordered bool // its statement has an ORDER BY
	query   fanout.Query[*db.Queries, db.A]
}

// boomA fails in the middle of a function of two statements.
func boomA(ctx context.Context, q *db.Queries) ([]db.A, error) {
	if _, err := q.CountA(ctx); err != nil {
		return nil, err
	}
	_, err := q.GetA(ctx, -1)
	return nil, err
}

func drawQuery(t *rapid.T, src fanout.Source[*db.Queries]) randomQuery {
	n := rapid.IntRange(-3, 60).Draw(t, "n")
	switch kind := rapid.IntRange(0, 7).Draw(t, "kind"); kind {
	case 0:
		return randomQuery{"all", false, true, fanout.All((*db.Queries).ListA)}
	case 1:
		return randomQuery{fmt.Sprint("get ", n), n < 1 || n > 50, true, fanout.One((*db.Queries).GetA, int32(n))}
	case 2:
		return randomQuery{"boom", true, true, boomA}
	case 3:
		ids := rapid.SliceOfN(rapid.Int32Range(0, 60), 0, 20).Draw(t, "ids")
		return randomQuery{fmt.Sprint("ids ", ids), false, true, fanout.Many((*db.Queries).ListAByIDs, ids)}
	case 4: // nested, and in no order
		src.Strategy = rapid.SampledFrom(fanouttest.Strategies).Draw(t, "nested strategy")
		return randomQuery{"nested", false, false, func(ctx context.Context, q *db.Queries) ([]db.A, error) {
			rows, err := fanout.Gather(ctx, src, fanouttest.ID, fanout.Each((*db.Queries).ListAByData, fmt.Sprint("a_", n), "a_1", "a_2")...)
			var list []db.A
			for _, row := range rows {
				list = append(list, row)
			}
			return list, err
		}}
	case 5: // the row of another query again, changed: the later one must win in the merge
		return randomQuery{fmt.Sprint("changed ", n), false, true, func(ctx context.Context, q *db.Queries) ([]db.A, error) {
			rows, err := fanout.Maybe((*db.Queries).GetA, int32(n))(ctx, q)
			for i := range rows {
				text := fmt.Sprint("changed by ", n, len(rows))
				rows[i].Data = &text
			}
			return rows, err
		}}
	default:
		return randomQuery{fmt.Sprint("data ", n), false, true, fanout.Many((*db.Queries).ListAByData, fmt.Sprint("a_", n))}
	}
}

// outcome is what a call returned, in a form that can be compared: lists as multisets where the statement has no order,
// and of the errors which queries they name.
type outcome struct {
	Lists  [][]db.A
	Failed []string
}

func outcomeOf(t *rapid.T, queries []randomQuery, lists [][]db.A, err error) outcome {
	o := outcome{Lists: slices.Clone(lists)}
	for i := range o.Lists {
		o.Lists[i] = slices.Clone(o.Lists[i])
		if !queries[i].ordered {
			slices.SortFunc(o.Lists[i], func(a, b db.A) int { return cmp.Compare(a.ID, b.ID) })
		}
		if len(o.Lists[i]) == 0 {
			o.Lists[i] = nil
		}
	}
	var errs fanout.Errors
	if errors.As(err, &errs) {
		for _, e := range errs {
			o.Failed = append(o.Failed, fmt.Sprint(e.Index, e.Query, e.Name))
		}
	} else if err != nil {
		t.Fatalf("not Errors: %v", err)
	}
	return o
}

// Every strategy, at every width, in every kind of call, returns what Serial returns.
func TestEveryStrategyEqualsSerial(t *testing.T) {
	pool := pgtest.Pool(t, 5)
	fanouttest.Fill(t, pool, 50)
	src := fanout.New(pool, db.New)
	rapid.Check(t, func(t *rapid.T) {
		src := src
		queries := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) randomQuery { return drawQuery(t, src) }), 0, 40).Draw(t, "queries")
		var functions []fanout.Query[*db.Queries, db.A]
		anyFails := false
		for _, q := range queries {
			functions = append(functions, q.query)
			anyFails = anyFails || q.fails
		}
		serial := src
		serial.Strategy, serial.Partial = fanout.Serial, true
		lists, err := fanout.Collect(context.Background(), serial, functions...)
		want := outcomeOf(t, queries, lists, err)
		for i, q := range queries {
			name := fmt.Sprint(i, 0, "GetA")
			if q.fails != slices.Contains(want.Failed, name) {
				t.Fatalf("query %d, %s: failed is %v in %v", i, q.name, !q.fails, want.Failed)
			}
		}

		src.Strategy = rapid.SampledFrom(fanouttest.Strategies).Draw(t, "strategy")
		src.Limit = rapid.IntRange(0, 7).Draw(t, "limit")
		src.Partial = rapid.Bool().Draw(t, "partial")
		src.Snapshot = rapid.Bool().Draw(t, "snapshot")
		kind := rapid.SampledFrom([]string{"Collect", "Run", "Stream"}).Draw(t, "call")
		lists, err = fanouttest.CollectBy(kind, context.Background(), src, functions)
		if anyFails && !src.Partial {
			var e *fanout.Error
			if !errors.As(err, &e) || !queries[e.Index].fails || e.Name != "GetA" {
				t.Fatalf("%s: %v", kind, err)
			}
			return
		}
		got := outcomeOf(t, queries, lists, err)
		if len(want.Lists) == 0 || len(want.Failed) == len(queries) {
			want.Lists, got.Lists = nil, nil // Run and Stream have lists of their own
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatalf("%s (-serial +got)\n%s", kind, diff)
		}
		merged, _ := fanout.Gather(context.Background(), src, fanouttest.ID, functions...)
		var reference map[int32]db.A
		if len(want.Failed) < len(queries) || len(queries) == 0 {
			reference = fanout.Merge(fanouttest.ID, want.Lists...)
		}
		if diff := gocmp.Diff(reference, merged); diff != "" {
			t.Fatalf("Gather (-serial +got)\n%s", diff)
		}
	})
	fanouttest.Serves(t, pool)
}

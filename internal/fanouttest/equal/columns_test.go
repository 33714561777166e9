package equal

import (
	"context"
	"fmt"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A pairOfTexts is what pgx reads by the names of the columns.
type pairOfTexts struct{ A, B string }

// named has all executions read the row of their argument by the names of its columns, and compares it with want.
func named(t *testing.T, src fanout.Source[fanout.DBTX], where string, want pairOfTexts) (shared int) {
	t.Helper()
	src.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
	query := func(ctx context.Context, tx fanout.DBTX) ([]pairOfTexts, error) {
		rows, err := tx.Query(ctx, "select * from pairs where n = $1::text", "1")
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, func(row pgx.CollectableRow) (pairOfTexts, error) {
			r, err := pgx.RowToStructByName[struct {
				N string
				pairOfTexts
			}](row)
			return r.pairOfTexts, err
		})
	}
	lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(20, fanout.Query[fanout.DBTX, pairOfTexts](query))...)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	for i, list := range lists {
		if len(list) != 1 || list[0] != want {
			t.Fatalf("%s: query %d has %v, want %v", where, i, list, want)
		}
	}
	return shared
}

// Columns whose names have changed are called as they are now, on connections that knew the table before and on one that
// has what it knows from another.
func TestColumnsThatAreRenamed(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		for _, strategy := range []fanout.Strategy{fanout.Pipelined, fanout.Coalesced} {
			t.Run(fmt.Sprint(mode, strategy), func(t *testing.T) {
				pool := pgtest.Pool(t, 2, fanouttest.InMode(mode))
				if _, err := pool.Exec(t.Context(), "create table pairs (n text, a text, b text); insert into pairs values ('1', 'first', 'second')", pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatal(err)
				}
				src := fanouttest.Raw(pool)
				src.Strategy, src.Limit = strategy, 1
				want := pairOfTexts{"first", "second"}
				several := func(where string) {
					t.Helper()
					shared := 0
					for i := range 5 {
						shared += named(t, src, fmt.Sprint(where, ", call ", i), want)
					}
					if strategy == fanout.Coalesced && shared == 0 {
						t.Fatalf("%s: nothing was coalesced", where)
					}
				}
				swap := func() {
					if _, err := pool.Exec(t.Context(), "alter table pairs rename a to c; alter table pairs rename b to a; alter table pairs rename c to b", pgx.QueryExecModeSimpleProtocol); err != nil {
						t.Fatal(err)
					}
					want.A, want.B = want.B, want.A
				}
				several("at first")
				swap()
				several("after a change")
				swap()
				old, err := pool.Acquire(t.Context()) // the only one so far
				if err != nil {
					t.Fatal(err)
				}
				defer old.Release()
				several("on a new connection")
				old.Release()
				src.Limit = 2
				several("on both")
			})
		}
	}
}

// Columns that have become others of the same name and type are described as they are now.
func TestColumnsThatAreReplaced(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		for name, change := range map[string]string{
			"modifier": "alter table prices alter price type numeric(9, 3)",
			"place":    "alter table prices add other int; alter table prices drop price; alter table prices add price numeric(6, 2)",
			"table":    "alter table prices rename to old_prices; create table prices as table old_prices",
		} {
			t.Run(fmt.Sprint(mode, " ", name), func(t *testing.T) {
				pool := pgtest.Pool(t, 1, fanouttest.InMode(mode))
				exec := func(sql string) {
					t.Helper()
					if _, err := pool.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
						t.Fatal(err)
					}
				}
				exec("create table prices (id int, price numeric(6, 2)); insert into prices select n, n from generate_series(1, 9) n")
				s := shape{name: "Price", sql: "select price as p, $1::text from prices where id = $1::int", args: each("1", "2", "3")}
				src := fanouttest.Raw(pool)
				src.Strategy = fanout.Coalesced
				call := func(strategy fanout.Strategy) replies {
					t.Helper()
					src := src
					src.Strategy, src.Partial = strategy, true
					lists, err := fanout.Collect(fanouttest.InTime(t), src, s.executions()...)
					return repliesOf(t, len(s.args), lists, err)
				}
				call(fanout.Serial)
				coalesces(t, "at first", src, s.executions())
				exec(change)
				var got []replies
				for range 3 {
					got = append(got, call(fanout.Coalesced))
				}
				call(fanout.Serial) // which may fail: pgx reports what is out of date
				want := call(fanout.Serial)
				for i := range got {
					if diff := gocmp.Diff(want, got[i], ignoreDrawn); diff != "" {
						t.Errorf("call %d after the change (-serial +got)\n%s", i, diff)
					}
				}
				coalesces(t, "after the change", src, s.executions())
			})
		}
	}
}

// The same statement has columns of other names where names are resolved in other schemas.
func TestColumnsOfSearchPaths(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		t.Run(mode.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 2, fanouttest.InMode(mode), fanouttest.SearchPaths("s1", "s2"))
			if _, err := pool.Exec(t.Context(), `
				create schema s1; create table s1.pairs (n text, a text, b text); insert into s1.pairs values ('1', 'a', 'b');
				create schema s2; create table s2.pairs (n text, b text, a text); insert into s2.pairs values ('1', 'b', 'a');`,
				pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			src := fanouttest.Raw(pool)
			src.Strategy = fanout.Coalesced
			shared := map[string]int{}
			for round := range 5 {
				first, err := pool.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for range 2 { // on the one, then on the other
					second, err := pool.Acquire(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					var schema string
					if err := second.QueryRow(t.Context(), "select current_schema()").Scan(&schema); err != nil {
						t.Fatal(err)
					}
					second.Release()
					shared[schema] += named(t, src, fmt.Sprint(schema, ", round ", round), pairOfTexts{"a", "b"})
					if second, err = pool.Acquire(t.Context()); err != nil {
						t.Fatal(err)
					}
					first.Release()
					first = second
				}
				first.Release()
			}
			if shared["s1"] == 0 || shared["s2"] == 0 {
				t.Errorf("%v executions shared a statement", shared)
			}
		})
	}
}

// Rows are in the order of the column that has the name now, on this connection.
func TestOrderByNameOfAColumn(t *testing.T) {
	type triple struct{ N, A, B int }
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		t.Run(mode.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 2, fanouttest.InMode(mode), fanouttest.SearchPaths("s2", "s1"))
			if _, err := pool.Exec(t.Context(), `
				create schema s1; create table s1.pairs (n int, a int, b int); insert into s1.pairs select 1, i, 10 - i from generate_series(1, 5) i;
				create schema s2; create table s2.pairs (n int, b int, a int); insert into s2.pairs select 1, i, 10 - i from generate_series(1, 5) i;`,
				pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			src := fanouttest.Raw(pool)
			src.Strategy = fanout.Coalesced
			shared := 0
			src.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
			query := func(ctx context.Context, tx fanout.DBTX) ([]triple, error) {
				rows, err := tx.Query(ctx, "select * from pairs where n = $1 order by a", 1)
				if err != nil {
					return nil, err
				}
				return pgx.CollectRows(rows, pgx.RowToStructByName[triple])
			}
			ordered := func(where string) {
				t.Helper()
				for range 4 {
					lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(20, fanout.Query[fanout.DBTX, triple](query))...)
					if err != nil {
						t.Fatalf("%s: %v", where, err)
					}
					for i, list := range lists {
						if len(list) != 5 || !slices.IsSortedFunc(list, func(x, y triple) int { return x.A - y.A }) {
							t.Fatalf("%s: query %d has %v", where, i, list)
						}
					}
				}
			}
			for range 3 {
				held := fanouttest.AcquireAll(t, pool)
				for i := range held { // one connection, then the other
					var err error
					held[i].Release()
					ordered(fmt.Sprint("connection ", i))
					if held[i], err = pool.Acquire(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				for _, conn := range held {
					conn.Release()
				}
			}
			for i := range 3 {
				if _, err := pool.Exec(t.Context(), `
					alter table s1.pairs rename a to c; alter table s1.pairs rename b to a; alter table s1.pairs rename c to b;
					alter table s2.pairs rename a to c; alter table s2.pairs rename b to a; alter table s2.pairs rename c to b;`,
					pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatal(err)
				}
				pool.Reset()
				ordered(fmt.Sprint("change ", i))
			}
			if shared == 0 {
				t.Error("no executions shared a statement")
			}
		})
	}
}

// So are columns whose names look like those that executions have in common with their arguments.
func TestColumnsNamedLikeParameters(t *testing.T) {
	type outs struct {
		A int `db:"p_a"`
		B int `db:"p_b"`
	}
	pool := pgtest.Pool(t, 2, fanouttest.InMode(pgx.QueryExecModeCacheDescribe))
	create := func(out string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), "drop function if exists f; create function f(n int, "+out+`) returns setof record stable language plpgsql as
			$$ begin p_a := n; p_b := 10; return next; end $$`, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Coalesced
	shared := 0
	src.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
	for round, out := range []string{"out p_a int, out p_b int", "out p_b int, out p_a int"} {
		create(out)
		for range 4 {
			var queries []fanout.Query[fanout.DBTX, outs]
			for i := range 20 {
				queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]outs, error) {
					rows, err := tx.Query(ctx, "select * from f($1)", i)
					if err != nil {
						return nil, err
					}
					return pgx.CollectRows(rows, pgx.RowToStructByName[outs])
				})
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			if err != nil {
				t.Fatal(err)
			}
			for i, list := range lists {
				if len(list) != 1 || list[0] != (outs{i, 10}) {
					t.Fatalf("round %d: query %d has %v", round, i, list)
				}
			}
		}
	}
	if shared == 0 {
		t.Error("no executions shared a statement")
	}
}

// The descriptions of the columns are the function's own, to change as it likes.
func TestColumnsThatAFunctionRenames(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	type row struct {
		N int `db:"other"`
	}
	renamed := func(ctx context.Context, tx fanout.DBTX) ([]row, error) {
		rows, err := tx.Query(ctx, "select $1::int as n", 7)
		if err != nil {
			return nil, err
		}
		if name := &rows.FieldDescriptions()[0].Name; *name == "n" {
			*name = "other"
		}
		return pgx.CollectRows(rows, pgx.RowToStructByName[row])
	}
	named := func(ctx context.Context, tx fanout.DBTX) ([]row, error) {
		rows, err := tx.Query(ctx, "select $1::int as n", 7)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		if name := rows.FieldDescriptions()[0].Name; name != "n" {
			return nil, fmt.Errorf("the column is named %q", name)
		}
		return nil, nil
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		for range 3 {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, renamed, named, renamed, named)
			if err != nil || len(lists[2]) != 1 || lists[2][0].N != 7 {
				t.Errorf("%v: %v, %v", s, lists, err)
			}
		}
	}
}

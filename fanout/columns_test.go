package fanout_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
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
	lists, err := fanout.Collect(inTime(t), src, repeated(20, fanout.Query[fanout.DBTX, pairOfTexts](query))...)
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
				pool := pgtest.Pool(t, 2, inMode(mode))
				if _, err := pool.Exec(t.Context(), "create table pairs (n text, a text, b text); insert into pairs values ('1', 'first', 'second')", pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatal(err)
				}
				src := raw(pool)
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

// The same statement has columns of other names where names are resolved in other schemas.
func TestColumnsOfSearchPaths(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		t.Run(mode.String(), func(t *testing.T) {
			var opened atomic.Int32
			pool := pgtest.Pool(t, 2, inMode(mode), func(config *pgxpool.Config) {
				config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
					_, err := conn.Exec(ctx, fmt.Sprintf("set search_path to s%d", opened.Add(1)))
					return err
				}
			})
			if _, err := pool.Exec(t.Context(), `
				create schema s1; create table s1.pairs (n text, a text, b text); insert into s1.pairs values ('1', 'a', 'b');
				create schema s2; create table s2.pairs (n text, b text, a text); insert into s2.pairs values ('1', 'b', 'a');`,
				pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			src := raw(pool)
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

package fanout_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Long arguments of many executions are not all in one message: the server would take none that is too long, and would have
// them all in memory.
func TestCoalescedArgumentsInPortions(t *testing.T) {
	const length, executions, portion = 1 << 20, 32, 16
	pool := pgtest.Pool(t, 1)
	src := raw(pool)
	src.Strategy = fanout.Coalesced
	most := 0
	src.Observe = func(_ context.Context, s fanout.Span) { most = max(most, s.Shared+1) }
	argument := make([]byte, length)
	var queries []fanout.Query[fanout.DBTX, string]
	for i := range executions {
		queries = append(queries, statement[string]("select length($1::bytea) || ' ' || $2::int", argument[i:], i))
	}
	huge := make([]byte, 20*length)
	queries = append(queries, statement[string]("select length($1::bytea) || ' ' || $2::int", huge, 0))
	for range 2 {
		lists, err := fanout.Collect(inTime(t), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			want := fmt.Sprint(length-i, " ", i)
			if i == executions {
				want = fmt.Sprint(len(huge), " ", 0)
			}
			if len(list) != 1 || list[0] != want {
				t.Errorf("query %d has %v, want %q", i, list, want)
			}
		}
	}
	if most < 2 || most > portion+1 {
		t.Errorf("a statement stood for up to %d executions", most)
	}
	serves(t, pool)
}

// Where array_nulls is off, the text form of an array has no word for NULL.
func TestCoalescedNullsWithoutArrayNulls(t *testing.T) {
	for _, setting := range []string{"on", "off"} {
		t.Run(setting, func(t *testing.T) {
			pool := pgtest.Pool(t, 2, func(config *pgxpool.Config) {
				config.ConnConfig.RuntimeParams["array_nulls"] = setting
			})
			if _, err := pool.Exec(t.Context(), "create domain word as text; create type mood as enum ('sad', 'ok')"); err != nil {
				t.Fatal(err)
			}
			src := raw(pool)
			src.Strategy, src.Partial = fanout.Coalesced, true
			shared := make([]int, 4)
			src.Observe = func(_ context.Context, s fanout.Span) { shared[s.Index%4] += s.Shared }
			word := ptr("NULL") // travels as text, because pgx does not know the type
			arguments := [][]any{{nil, "sad", "x"}, {word, "sad", nil}, {(*string)(nil), "ok", "y"}, {word, "ok", "NULL"}}
			wants := []string{"none sad x", "NULL sad none", "none ok y", "NULL ok NULL"}
			var queries []fanout.Query[fanout.DBTX, string]
			for range 5 {
				for _, args := range arguments {
					queries = append(queries, statement[string](`select concat_ws(' ', coalesce($1::word, 'none'), $2::mood, coalesce($3::text, 'none'))`, args...))
				}
			}
			for range 3 {
				lists, err := fanout.Collect(inTime(t), src, queries...)
				if err != nil {
					t.Fatal(err)
				}
				for i, list := range lists {
					if len(list) != 1 || list[0] != wants[i%4] {
						t.Errorf("query %d has %v, want %q", i, list, wants[i%4])
					}
				}
			}
			if slices.Contains(shared, 0) {
				t.Errorf("of each kind, %v executions shared a statement", shared)
			}
		})
	}
}

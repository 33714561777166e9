package fanout_test

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"
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

// What pgx sends as an array in binary form means the same where executions are coalesced, for which it may have to be
// written as text.
func TestCoalescedArraysAsText(t *testing.T) {
	pool := pgtest.Pool(t, 2, func(config *pgxpool.Config) {
		config.ConnConfig.RuntimeParams["array_nulls"] = "off"
		config.ConnConfig.RuntimeParams["intervalstyle"] = "sql_standard"
	})
	for sql, args := range map[string][]any{
		"select coalesce(($1::text[])[2], 'none')":                           {[]*string{ptr("a"), nil}, []*string{ptr("b"), ptr("NULL")}, []string{"c", "d"}},
		"select extract(epoch from ($1::interval[])[1])::text":               {[]pgtype.Interval{{Months: -1, Days: 2, Microseconds: 5, Valid: true}}, []pgtype.Interval{{Days: -1, Microseconds: 3600e6, Valid: true}}},
		"select array_to_string($1::int4[], ',')":                            {[]byte("{3}"), []byte("{4,5}"), ptr([]byte("{6}"))},
		"select array_to_string($1::int2[], ',')":                            {valuer(func() (driver.Value, error) { return []byte("{1,2}"), nil }), []int16{7}, []int16{8}},
		"select array_to_string($1::date[], ',', 'none') || cardinality($1)": {[]string{"2024-01-01"}, []*string{nil}, []string{}},
	} {
		src := raw(pool)
		src.Partial = true
		outcome := func() string {
			var queries []fanout.Query[fanout.DBTX, string]
			for i := range 12 {
				queries = append(queries, statement[string](sql, args[i%len(args)]))
			}
			lists, err := fanout.Collect(inTime(t), src, queries...)
			return fmt.Sprint(lists, err)
		}
		src.Strategy = fanout.Serial
		want := outcome()
		src.Strategy = fanout.Coalesced
		for i := range 3 {
			if got := outcome(); got != want {
				t.Errorf("%s: call %d\n%s\nwant\n%s", sql, i, got, want)
			}
		}
	}
	serves(t, pool)
}

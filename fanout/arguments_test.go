package fanout_test

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
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

// Of some types the text form does not mean what the binary form does, which pgx sends where it can: executions with such
// arguments, in arrays or composites, are not coalesced.
func TestArgumentsThatMeanSomethingElseAsText(t *testing.T) {
	pool := pgtest.Pool(t, 2, func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			if _, err := conn.Exec(ctx, `do $$ begin
				perform pg_advisory_xact_lock(1);
				if to_regtype('labelled') is null then
					create type labelled as (label name, n int);
				end if;
			end $$`); err != nil {
				return err
			}
			types, err := conn.LoadTypes(ctx, []string{"labelled", "_labelled"})
			conn.TypeMap().RegisterTypes(types)
			return err
		}
	})
	for _, s := range []shape{
		{name: "EncodingOfXML", sql: "select $1::xml[]::text[] as docs", args: each(
			[]string{"<a/>"}, []string{`<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>`}, []string{"<b/>"})},
		{name: "RoundedToReal", sql: "select $1::real[] as n", args: each([]float64{0.5}, []float64{1.00000005960464477539062}, []float64{2})},
		{name: "LongName", sql: "select ($1::labelled).label as n", args: each(
			pgtype.CompositeFields{"a", 1}, pgtype.CompositeFields{strings.Repeat("n", 70), 2}, pgtype.CompositeFields{"b", 3})},
		{name: "NegativeTime", sql: "select $1::time[] as n", args: each(
			[]pgtype.Time{{Microseconds: 5, Valid: true}}, []pgtype.Time{{Microseconds: -1, Valid: true}}, []pgtype.Time{{Microseconds: 7, Valid: true}})},
	} {
		t.Run(s.name, func(t *testing.T) {
			src := raw(pool)
			src.Partial = true
			call := func(strategy fanout.Strategy) replies {
				src.Strategy = strategy
				lists, err := fanout.Collect(inTime(t), src, s.executions()...)
				return repliesOf(t, len(s.args), lists, err)
			}
			want := call(fanout.Serial)
			for range 3 {
				if diff := gocmp.Diff(want, call(fanout.Coalesced), ignoreDrawn); diff != "" {
					t.Fatalf("(-serial +coalesced)\n%s", diff)
				}
			}
		})
	}
}

// A text with very many parameters is sent as it is, at once: to find out whether it can be coalesced would take seconds.
func TestVeryManyParameters(t *testing.T) {
	const n = 20_000
	places, args := make([]string, n), make([]any, n)
	for i := range n {
		places[i], args[i] = fmt.Sprintf("cast($%d as int)", i+1), i
	}
	query := statement[int64]("select count(*) from generate_series(1, 9) g where g in ("+strings.Join(places, ", ")+")", args...)
	src := raw(pgtest.Pool(t, 2))
	for _, s := range strategies {
		src.Strategy = s
		for range 2 {
			lists, err := fanout.Collect(inTime(t), src, repeated(4, query)...)
			if err != nil || !slices.Equal(lists[3], []int64{9}) {
				t.Errorf("%v: %v, %v", s, lists, err)
			}
		}
	}
}

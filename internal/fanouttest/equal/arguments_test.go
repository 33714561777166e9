package equal

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Long arguments of many executions are not all in one message: the server would take none that is too long, and would have
// them all in memory.
func TestCoalescedArgumentsInPortions(t *testing.T) {
	const length, executions, portion = 1 << 20, 32, 16
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Coalesced
	most := 0
	src.Observe = func(_ context.Context, s fanout.Span) { most = max(most, s.Shared+1) }
	argument := make([]byte, length)
	var queries []fanout.Query[fanout.DBTX, string]
	for i := range executions {
		queries = append(queries, fanouttest.Statement[string]("select length($1::bytea) || ' ' || $2::int", argument[i:], i))
	}
	huge := make([]byte, 20*length)
	queries = append(queries, fanouttest.Statement[string]("select length($1::bytea) || ' ' || $2::int", huge, 0))
	for range 2 {
		lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
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
	fanouttest.Serves(t, pool)
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
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial = fanout.Coalesced, true
			shared := make([]int, 4)
			src.Observe = func(_ context.Context, s fanout.Span) { shared[s.Index%4] += s.Shared }
			word := ptr("NULL") // travels as text, because pgx does not know the type
			arguments := [][]any{{nil, "sad", "x"}, {word, "sad", nil}, {(*string)(nil), "ok", "y"}, {word, "ok", "NULL"}}
			wants := []string{"none sad x", "NULL sad none", "none ok y", "NULL ok NULL"}
			var queries []fanout.Query[fanout.DBTX, string]
			for range 5 {
				for _, args := range arguments {
					queries = append(queries, fanouttest.Statement[string](`select concat_ws(' ', coalesce($1::word, 'none'), $2::mood, coalesce($3::text, 'none'))`, args...))
				}
			}
			for range 3 {
				lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
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
		"select array_to_string($1::int2[], ',')":                            {fanouttest.Valuer(func() (driver.Value, error) { return []byte("{1,2}"), nil }), []int16{7}, []int16{8}},
		"select array_to_string($1::date[], ',', 'none') || cardinality($1)": {[]string{"2024-01-01"}, []*string{nil}, []string{}},
	} {
		src := fanouttest.Raw(pool)
		src.Partial = true
		outcome := func() string {
			var queries []fanout.Query[fanout.DBTX, string]
			for i := range 12 {
				queries = append(queries, fanouttest.Statement[string](sql, args[i%len(args)]))
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
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
	fanouttest.Serves(t, pool)
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
			equalsSerial(t, pool, s, fanout.Coalesced, fanout.Coalesced, fanout.Coalesced)
		})
	}
}

// equalsSerial makes a call of the shape by one strategy after the other, and fails where one gives not what Serial does.
func equalsSerial(t *testing.T, pool *pgxpool.Pool, s shape, strategies ...fanout.Strategy) {
	t.Helper()
	src := fanouttest.Raw(pool)
	src.Partial = true
	call := func(strategy fanout.Strategy) replies {
		src.Strategy = strategy
		lists, err := fanout.Collect(fanouttest.InTime(t), src, s.executions()...)
		return repliesOf(t, len(s.args), lists, err)
	}
	want := call(fanout.Serial)
	for _, strategy := range strategies {
		if diff := gocmp.Diff(want, call(strategy), ignoreDrawn); diff != "" {
			t.Fatalf("(-serial +%v)\n%s", strategy, diff)
		}
	}
}

// A text with very many parameters is sent as it is, at once: to find out whether it can be coalesced would take seconds.
func TestVeryManyParameters(t *testing.T) {
	const n = 20_000
	places, args := make([]string, n), make([]any, n)
	for i := range n {
		places[i], args[i] = fmt.Sprintf("cast($%d as int)", i+1), i
	}
	query := fanouttest.Statement[int64]("select count(*) from generate_series(1, 9) g where g in ("+strings.Join(places, ", ")+")", args...)
	src := fanouttest.Raw(pgtest.Pool(t, 2))
	for _, s := range fanouttest.Strategies {
		src.Strategy = s
		for range 2 {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(4, query)...)
			if err != nil || !slices.Equal(lists[3], []int64{9}) {
				t.Errorf("%v: %v, %v", s, lists, err)
			}
		}
	}
}

// pgx refuses more arguments than a message has room for before it sends anything, and the connection stays.
func TestTooManyArguments(t *testing.T) {
	const want = "extended protocol limited to 65535 parameters"
	var connected atomic.Int32
	pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) {
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
		config.AfterConnect = func(context.Context, *pgx.Conn) error {
			connected.Add(1)
			return nil
		}
	})
	args := make([]any, 65536)
	for i := range args {
		args[i] = i
	}
	_, err := pool.Exec(t.Context(), "select 1", args...)
	fanouttest.Mention(t, err, want)
	for _, snapshot := range []bool{false, true} {
		for _, s := range fanouttest.Strategies {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial, src.Snapshot = s, true, snapshot
			one := fanouttest.Statement[int]("select $1::int", 1)
			lists, err := fanout.Collect(fanouttest.InTime(t), src, one, fanouttest.Statement[int]("select 1", args...), one, one)
			fanouttest.Mention(t, err, want)
			for i, list := range lists {
				if (len(list) == 1) != (i != 1) {
					t.Errorf("%v, snapshot %v: query %d has %v", s, snapshot, i, list)
				}
			}
		}
	}
	if n := connected.Load(); n != 1 {
		t.Errorf("%d connections were opened", n)
	}
	fanouttest.Serves(t, pool)
}

// level is a number, and has a text form for columns of text.
type level int32

func (l level) TextValue() (pgtype.Text, error) {
	return pgtype.Text{String: []string{"10", "20", "30"}[l], Valid: true}, nil
}

type cents int64

func (c cents) TextValue() (pgtype.Text, error) {
	return pgtype.Text{String: fmt.Sprintf("%d.%02d", c/100, c%100), Valid: true}, nil
}

type document struct{ A int }

func (d document) TextValue() (pgtype.Text, error) {
	return pgtype.Text{String: fmt.Sprintf("[%d]", d.A), Valid: true}, nil
}

// arrayText is what lib/pq's pq.Array does: a driver.Valuer of the array's text form.
type arrayText string

func (a arrayText) Value() (driver.Value, error) { return string(a), nil }

type levelled struct {
	N level
	T string
}

type holder struct{ A arrayText }

// These print themselves rounded; a weekday by its name.
type (
	printedList []float64
	printedPair struct{ X, Y float64 }
	weekday     int32
)

// oddUUID says of itself that it is another one than the bytes that it consists of.
type oddUUID [16]byte

func (u oddUUID) String() string { return ownUUID{0xff}.String() }

func (l printedList) String() string { return fmt.Sprintf("{%.1f}", l[0]) }
func (p printedPair) String() string { return fmt.Sprintf("(%.1f,%.1f)", p.X, p.Y) }
func (d weekday) String() string     { return time.Weekday(d).String() }

// ownUUID is made as those of google/uuid and gofrs/uuid are.
type ownUUID [16]byte

func (u ownUUID) Value() (driver.Value, error) { return u.String(), nil }
func (u ownUUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Their lists are coalesced, as those of pgx's own are: their text is what pgx writes, too.
func TestListsOfUUIDsAreCoalesced(t *testing.T) {
	src := fanouttest.Raw(pgtest.Pool(t, 1))
	src.Strategy = fanout.Coalesced
	shared := 0
	src.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
	var queries []fanout.Query[fanout.DBTX, int]
	for i := range 20 {
		ids := []ownUUID{{1: 0xab, 15: 1}, {1: 0xab, 15: byte(i)}}
		queries = append(queries, fanouttest.Statement[int]("select cardinality($1::uuid[]) * 100 + get_byte(uuid_send(($1::uuid[])[2]), 15)", ids))
	}
	for range 5 {
		lists, err := fanout.Collect(t.Context(), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, rows := range lists {
			if len(rows) != 1 || rows[0] != 200+i {
				t.Errorf("query %d: %v", i, rows)
			}
		}
	}
	if shared == 0 {
		t.Error("none has shared a statement")
	}
}

// What pgx sends of an array or a composite in binary form may be something else than what a method of the user's own says as
// text.
func TestArgumentsThatHaveTheirOwnText(t *testing.T) {
	pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			types, err := conn.LoadTypes(ctx, []string{"levelled", "holder", "pair"})
			if err == nil {
				conn.TypeMap().RegisterTypes(types)
			}
			return nil
		}
	})
	if _, err := pool.Exec(t.Context(), "create type levelled as (n int, t text); create type holder as (a int[]); create type pair as (x float8, y float8)"); err != nil {
		t.Fatal(err)
	}
	pool.Reset()
	bits := func(b byte, n int32) []pgtype.Bits { return []pgtype.Bits{{Bytes: []byte{b, 0}, Len: n, Valid: true}} }
	for _, s := range []shape{
		{name: "ValuerTwoDimensions", sql: "select array_ndims($1::int[]) as dims, $1::int[] as a", args: each(arrayText("{{1,2},{3,4}}"), arrayText("{{5}}"))},
		{name: "ValuerLowerBound", sql: "select ($1::int[])[1] as first", args: each(arrayText("[0:1]={5,6}"), arrayText("[0:1]={7,8}"))},
		{name: "ValuerSpaces", sql: "select $1::text[] as a", args: each(arrayText("{a , b}"), arrayText(`{a\,b,c}`))},
		{name: "TextValuerInts", sql: "select $1::int[] as a", args: each([]level{0, 1}, []level{2})},
		{name: "TextValuerWithin", sql: "select $1::int[] as a", args: each(pgtype.Array[level]{Elements: []level{1}, Dims: []pgtype.ArrayDimension{{Length: 1, LowerBound: 1}}, Valid: true})},
		{name: "TextValuerNumerics", sql: "select $1::numeric[] as a", args: each([]cents{150}, []cents{299, 10})},
		{name: "TextValuerJSON", sql: "select $1::jsonb[] as a", args: each([]document{{1}}, []document{{2}, {3}})},
		{name: "TextValuerInComposite", sql: "select ($1::levelled).n as n", args: each(levelled{1, "x"}, levelled{2, "y"})},
		{name: "ValuerInComposite", sql: "select array_ndims(($1::holder).a) as n", args: each(holder{"{{1,2},{3,4}}"}, holder{"{{5}}"})},
		{name: "StringerArray", sql: "select $1::float8[] as a", args: each(printedList{1.25}, printedList{2.125})},
		{name: "StringerComposite", sql: "select ($1::pair).x as x", args: each(printedPair{1.25, 2}, printedPair{2.125, 3})},
		{name: "StringerInts", sql: "select $1::int[] as a", args: each([]weekday{1}, []weekday{2, 3})},
		{name: "StringerTexts", sql: "select $1::text[] as a", args: each([]weekday{1}, []weekday{2, 3})},
		{name: "UUIDs", sql: "select $1::uuid[] as a", args: each([]oddUUID{{1}, {2}}, []oddUUID{{3}})},
		{name: "PgtypeText", sql: "select array_ndims($1::int[]) as n", args: each(pgtype.Text{String: "{{1,2},{3,4}}", Valid: true}, pgtype.Text{String: "{{5}}", Valid: true})},
		{name: "MalformedBits", sql: "select $1::varbit[] as a", args: each(bits(0xd3, 5), bits(0x77, 6))}, // Serial: an error
	} {
		t.Run(s.name, func(t *testing.T) {
			for len(s.args) < 8 {
				s.args = append(s.args, s.args...)
			}
			equalsSerial(t, pool, s, fanout.Coalesced, fanout.Coalesced, fanout.Coalesced, fanout.Auto)
		})
	}
}

// A composite whose attributes have changed since pgx has learned them is refused, not read as another one, also where it is
// within a domain, a range or an array.
func TestCompositesThatHaveChanged(t *testing.T) {
	between := func(i int) pgtype.Range[spanned] {
		return pgtype.Range[spanned]{
			Lower: spanned{int32(i), int64(100 + i)}, LowerType: pgtype.Inclusive,
			Upper: spanned{int32(i + 500), int64(1000 + i)}, UpperType: pgtype.Exclusive, Valid: true,
		}
	}
	for name, c := range map[string]struct {
		sql string
		arg func(i int) any
	}{
		"composite":       {"select ($1::span).high::int8", func(i int) any { return spanned{int32(i), int64(100 + i)} }},
		"domain":          {"select ($1::spand).high::int8", func(i int) any { return spanned{int32(i), int64(100 + i)} }},
		"range":           {"select (lower($1::spans)).high::int8", func(i int) any { return between(i) }},
		"multirange":      {"select (lower($1::manyspans)).high::int8", func(i int) any { return pgtype.Multirange[pgtype.Range[spanned]]{between(i)} }},
		"array of ranges": {"select (lower(($1::spans[])[1])).high::int8", func(i int) any { return []pgtype.Range[spanned]{between(i)} }},
	} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			admin := pgtest.Connect(t, dsn)
			pgtest.Exec(t, admin, "create type span as (low int, high bigint)")
			pgtest.Exec(t, admin, "create type spans as range (subtype = span, multirange_type_name = manyspans)")
			pgtest.Exec(t, admin, "create domain spand as span")
			pool := pgtest.PoolOn(t, dsn, 1, func(config *pgxpool.Config) {
				config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
					types, err := conn.LoadTypes(ctx, []string{"span", "spand", "spans", "manyspans", "_spans"})
					conn.TypeMap().RegisterTypes(types)
					return err
				}
			})
			src := fanouttest.Raw(pool)
			src.Partial = true
			call := func(s fanout.Strategy) string {
				src.Strategy = s
				var queries []fanout.Query[fanout.DBTX, int64]
				for i := range 4 {
					queries = append(queries, fanouttest.Statement[int64](c.sql, c.arg(i)))
				}
				lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
				return fmt.Sprint(lists, err)
			}
			for i := range 6 {
				if i == 3 {
					pgtest.Exec(t, admin, "alter type span drop attribute low cascade, add attribute low int")
				}
				want := call(fanout.Serial)
				if got := call(fanout.Coalesced); got != want {
					t.Errorf("call %d: %s, want %s", i, got, want)
				}
			}
		})
	}
}

type spanned struct {
	Low  int32
	High int64
}

// A domain over an array of a type with a length refuses what is too long. A cast to the domain would cut it off instead, and
// find the rows of another key.
func TestDomainsOverArraysWithALength(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	if _, err := pool.Exec(t.Context(), `
		create domain codes as varchar(3)[];
		create domain own_codes as codes;
		create domain padded as char(3)[];
		create table coded (id int primary key, codes codes, own own_codes, padded padded);
		insert into coded values (1, '{abc}', '{abc}', '{abc}'), (2, '{d}', '{d}', '{d}');
	`); err != nil {
		t.Fatal(err)
	}
	for _, s := range []shape{
		{name: "Codes", sql: "select id from coded where codes = $1::codes", args: each("{abc}", "{abcdef}", "{d}")},
		{name: "OwnCodes", sql: "select id from coded where own = $1::own_codes", args: each("{abc}", "{abcdef}", "{d}")},
		{name: "Padded", sql: "select id from coded where padded = $1::padded", args: each("{abc}", "{abcdef}", "{d}")},
	} {
		t.Run(s.name, func(t *testing.T) { equalsSerial(t, pool, s, fanout.Coalesced, fanout.Coalesced, fanout.Auto) })
	}
}

package fanout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestShapeOfWhatCannotBeCoalesced(t *testing.T) {
	for _, sql := range []string{
		"",
		";",
		"-- select $1",
		"select 1",
		"select '$1'",
		"select $2",
		"select $1, $3",
		"select $1; select $1",
		"select $1;;",
		"; select $1",
		"insert into t values ($1)",
		"update t set id = $1",
		"delete from t where id = $1",
		"with x as (insert into t values ($1) returning *) select * from x",
		"with x as (UPDATE t set id = $1 returning *) select * from x",
		"with x as (Delete from t returning *) select * from x where id = $1",
		"with x as (select $1 as a) merge into t using x on false when matched then do nothing",
		"select $1 as a into t",
		"select * from t where id = $1 for update",
		"select * from t where id = $1 FOR /* */ No Key update",
		"select * from t where id = $1 for\nshare",
		"select * from t where id = $1 for key share",
		"select * from (select * from t for share) x where id = $1",
		"select * from t tablesample system (10) where id = $1",
		"explain select $1",
		"call p($1)",
		"execute x($1)",
		"declare c cursor for select $1",
		"show $1",
		`select * from U&"d\0061t" where id = $1`,
		"select $1 as " + strings.Repeat("x", 64),
		"select count(*) from t group by rollup ($1)",
		"select count(*) from t group by cube ($1)",
		"select count(*) from t group by grouping sets ($1, ())",
		"select $1) q, (select 1",
		"select ($1",
		"select $1)",

		// Columns that have their names from parameters.
		"select row_to_json(s) from (select $1) s",
		"select row_to_json(s) from (select $1::int) s",
		"select row_to_json(s) from (select (($1)::int)) s",
		"select row_to_json(s) from (select data, $1::int from t) s",
		"select row_to_json(s) from (select distinct $1::int) s",
		"select row_to_json(s) from (select distinct on (id) $1::int from t) s",
		"select row_to_json(s) from (select all $1::int) s",
		"select row_to_json(s) from (select cast($1 as int)) s",
		"select row_to_json(s) from (select cast(($1) as int)) s",
		"select row_to_json(s) from (select case when true then 1 else $1 end) s",
		"select row_to_json(s) from (select case when true then 1 else case when true then 2 else $1::int end end) s",
		"select row_to_json(s) from (select $1::text collate \"C\") s",
		"select row_to_json(s) from (select ($1::int[])[1]) s",
		"select row_to_json(s) from ((select 1) union (select 1, $1)) s",
		"select row_to_json(s) from (with x as (select 1) select $1 from x) s",
		"select row_to_json(s) from (select $1::int where 1 = 1) s",
		"select row_to_json(s) from (select $1::int union select 2 as x) s",
		"select row_to_json(s) from (select $1::int order by 1 + 1) s",
		"select row_to_json(s) from (select $1::int limit 1 + 1) s",
		"select row_to_json(s) from (select $1::int having 1 = 1) s",
		"with s as (select $1::int) select row_to_json(s) from s",
		"with s(a) as (select 1, $1::int) select row_to_json(s) from s",
		"with s(a, b) as (select t.*, $1::int from t) select row_to_json(s) from s",
		"with s(a) as (select $1::int order by int4) select row_to_json(s) from s",
		"select row_to_json(s) from (select 1, $1::int) s(a)",
		"select int4 from (select $1::int) where (true)",
		"select 1, (select $1::int) from (values (1)) x(int4) order by int4",
		"select row_to_json(s) from (select * from (select $1::int) x) s(a)",
		"select (select int4 from (select $1::int) s) from (values (7)) t(int4)",
		"select * from (select $1::int) a natural join (select 1::int) b",
		"select * from cast($1 as int) natural join (select 1::int) b",
		"select * from t, cast($1 as int) natural join (select 1::int) b",
		"select * from t, lateral cast($1 as int) natural join (select 1::int) b",
		"select * from t, (cast($1 as int) natural join (select 1::int) b)",
		"select * from (cast($1 as int) natural join (select 1::int) b)",
		"select * from t cross join ((cast(($1) as int) natural join t) cross join t)",
		"select * from cast($1 as int) natural join (select 1::int) as b",
		"select * from cast($1 as int) natural join t join u on a = b",
		"select * from t join u on t.a is not distinct from u.a, cast($1 as int) as x natural join (select 1::int) b",
		"select * from s.where, cast($1 as int) as x natural join (select 1::int) b",
		"select 1 as where from t, cast($1 as pair) as x natural join (select 1::int) b",
		"select distinct from t, cast($1 as int) as x natural join (select 1::int) b",
		"select row_to_json(r) from rows from (cast($1 as int), generate_series(1, 2)) r",
		"select row_to_json(r) from rows from (generate_series(1, 2), cast($1 as int)) r",
		"select row_to_json(r) from t, lateral rows from (f(1, 2), cast(cast($1 as text) as int) as (a int)) as r",
		"select * from rows from (cast($1 as int), generate_series(1, 2)) natural join (select 1::int) b",
		"select $1::int from (values (2), (1)) t(int4) order by int4",
		"select $1::int, count(*) from (values (2), (1)) t(a) group by int4",
	} {
		if s := shapeOf(sql); s != nil {
			t.Errorf("%s: has a shape", sql)
		}
	}
}

// Where the server has found other parameters than the lexer, one of them must be wrong.
func TestShapeThatTheServerReadsDifferently(t *testing.T) {
	const sql = "select $1::int + $2"
	for _, params := range [][]uint32{{23}, {23, 23, 23}} {
		p := &pipeline{state: &connState{descriptions: map[string]*pgconn.StatementDescription{sql: {ParamOIDs: params}}}}
		text := newText(sql)
		p.prove(text)
		if j := text.provenJoint(""); j == nil || j.pure || j.text != nil {
			t.Errorf("%d parameters: %+v", len(params), j)
		}
	}
}

func TestShape(t *testing.T) {
	s := shapeOf(`SELECT "T"."a ""b", Größe FROM T WHERE id=$2 AND id!=$1 AND id = $2; -- $3`)
	if s == nil {
		t.Fatal("no shape")
	}
	want := []string{"select", "T", `a "b`, "größe", "from", "t", "where", "id", "and"}
	if !slices.Equal(s.names, want) {
		t.Errorf("names %q, want %q", s.names, want)
	}
	if want := []string{"=", "<>"}; !slices.Equal(s.operators, want) {
		t.Errorf("operators %q, want %q", s.operators, want)
	}
	// The server lowers only ASCII in UTF-8, and more in some other encodings.
	if s := shapeOf("select Ä($1)"); !slices.Equal(s.names, []string{"select", "Ä", "ä"}) {
		t.Errorf("names %q", s.names)
	}
}

func TestShapeOfCalls(t *testing.T) {
	for sql, want := range map[string][2][]string{
		"select a, b.c from b where d = $1":                          {nil, {"c"}},
		`select F (1), "G"/* */(2), s . h -- (` + "\n(3), $1":        {{"f", "G", "h"}, nil},
		"select a, (b).c, d[1].e, $1.f, g.h.i from j":                {{"c", "e", "f"}, {"h", "i"}},
		"select x.a, y.b, z.c, $1 from f(1) x, g() as y, z":          {{"a", "b", "f", "g"}, {"c"}},
		"select f.a, $1 from f(1)":                                   {{"a", "f"}, nil},
		"select x.a, y.b, $1 from current_date x, current_user AS y": {{"a", "b"}, nil},
		"with x(i) as (select 1), y(j) as not materialized (values (1)) select x.a, y.b, z.c, v.d, $1 from x, y, (select 1) z(k) join (x join y on true) as v": {{"x", "as", "y", "materialized", "values", "z", "join"}, {"a", "b", "c", "d"}},
		"select x.a, y.b, $1 from rows from (f(1)) x, f(2) y(i)": {{"a", "b", "from", "f", "y"}, nil},
		`select "user".a, $1 from user`:                          {{"a"}, nil},
		"select X.a, $1 from f(1) as x":                          {{"a", "f"}, nil},
		"select int4.a, text.b, c.d, $1 from cast(c as int)":     {{"a", "d", "cast"}, {"b"}},
		"select btrim.a, date_part.b, pg_collation_for.c, $1 from trim(a), extract(a from b), collation for (b)": {{"a", "b", "c", "trim", "extract", "for"}, nil},
	} {
		s := shapeOf(sql)
		if s == nil {
			t.Errorf("%s: no shape", sql)
		} else if !slices.Equal(s.called, want[0]) || !slices.Equal(s.attributes, want[1]) {
			t.Errorf("%s: called %q, attributes %q, want %q", sql, s.called, s.attributes, want)
		}
	}
	if shapeOf("select treat($1 as int)") != nil {
		t.Error("treat calls the function that is called like the type")
	}
}

func TestShapeOfCasts(t *testing.T) {
	for sql, want := range map[string][]typeCast{
		"select a from t where b = $1": nil,
		"select $1::int + 0":           {{parameterOperand, 1, []string{"int", "int4"}}},
		`select -5 :: /**/ s."T"[]`:    {{literalOperand, 0, []string{"s", "T"}}},
		"select 'a'::b, ('c'::d), array['e'::f], null::g": {{literalOperand, 0, []string{"b"}},
			{literalOperand, 0, []string{"d"}}, {literalOperand, 0, []string{"f"}}, {literalOperand, 0, []string{"g"}}},
		"select mood 'a'::b":                {{anyOperand, 0, []string{"b"}}},
		"select numeric(3) '1'::b":          {{anyOperand, 0, []string{"b"}}},
		"select mood 'a'\n'b'::c":           {{anyOperand, 0, []string{"c"}}},
		"select a::b":                       {{anyOperand, 0, []string{"b"}}},
		"select t.null::b":                  {{anyOperand, 0, []string{"b"}}},
		"select (1)::b":                     {{anyOperand, 0, []string{"b"}}},
		"select a[1]::b":                    {{anyOperand, 0, []string{"b"}}},
		"select $1::mood::double precision": {{parameterOperand, 1, []string{"mood"}}, {anyOperand, 0, []string{"double", "float8"}}},
		"select cast($1 as b), cast(c as d), cast(cast('x' as e) || f(1) as g)": {{parameterOperand, 1, []string{"b"}},
			{anyOperand, 0, []string{"d"}}, {anyOperand, 0, []string{"g"}}, {literalOperand, 0, []string{"e"}}},
		"select cast((select a as b) as c)":                    {{anyOperand, 0, []string{"c"}}},
		"select json_value(a, 'b' returning c.d)":              {{anyOperand, 0, []string{"c", "d"}}},
		"select json_value(a, 'b' default f(1) on empty)":      {{anyOperand, 0, []string{"text", "json", "jsonb"}}},
		"select timestamp(3) with time zone 'a', b::timestamp": {{anyOperand, 0, []string{"timestamp", "timestamptz"}}},
	} {
		sql += ", $1"
		s := shapeOf(sql)
		if s == nil {
			t.Errorf("%s: no shape", sql)
		} else if !slices.EqualFunc(s.casts, want, func(a, b typeCast) bool {
			return a.operand == b.operand && a.number == b.number && slices.Equal(a.target, b.target)
		}) {
			t.Errorf("%s: casts %v, want %v", sql, s.casts, want)
		}
	}
	if s := shapeOf("select a.b from json_table($1, '$' columns (b int path '$.c')) a"); len(s.casts) != 1 || !slices.Contains(s.casts[0].target, "int4") {
		t.Errorf("casts %v", s.casts)
	}
}

func TestRewrite(t *testing.T) {
	for _, test := range []struct {
		sql        string
		parameters []parameter
		want       string
	}{
		{
			"-- name: Get :one\nselect * from a where id = $1; -- that is all", []parameter{{array: 1007}},
			"select p_args.p_ord, p_rows.* from rows from (pg_catalog.unnest((select $1))) with ordinality p_args(p_1, p_ord), lateral (\n" +
				"-- name: Get :one\nselect * from a where id = (p_args.p_1) -- that is all\n) p_rows",
		},
		{
			"select $2::text[], $1, $2[1]", []parameter{{array: 1007}, {array: 1009, cast: `"pg_catalog"."_text"`}},
			"select p_args.p_ord, p_rows.* from (select p_ord, p_1, p_2::\"pg_catalog\".\"_text\" as p_2 from rows from (" +
				"pg_catalog.unnest((select $1)), pg_catalog.unnest((select $2))) with ordinality p_args(p_1, p_2, p_ord) offset 0) p_args, lateral (select * from (\n" +
				"select (p_args.p_2)::text[], (p_args.p_1), (p_args.p_2)[1]\n) p_rows offset 0) p_rows",
		},
		{
			`select p_1, "xP0_", "p0_" from t where p_1 = $1`, []parameter{{array: 1007}},
			"select p1_args.p1_ord, p1_rows.* from rows from (pg_catalog.unnest((select $1))) with ordinality p1_args(p1_1, p1_ord), lateral (\n" +
				`select p_1, "xP0_", "p0_" from t where p_1 = (p1_args.p1_1)` + "\n) p1_rows",
		},
	} {
		s := shapeOf(test.sql)
		if s == nil {
			t.Errorf("%s: no shape", test.sql)
		} else if got := s.rewrite(test.parameters, nil); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.sql, got, test.want)
		}
	}
}

// rewriteTables are what the statements below read.
const rewriteTables = `
	create type mood as enum ('sad', 'ok');
	create type pair as (a int, b text);
	create domain positive as int check (value > 0);
	create domain short as int[] check (cardinality(value) < 3);
	create domain plain as text collate "C";
	create domain plains as text[] collate "C";
	create type couple as (a text, b text collate "C");
	create table t (id int primary key, data text, tags text[], doc jsonb, mood mood, pair pair, n numeric);
	insert into t select i, 'a_' || i % 5, array['x', 'y' || i % 3], jsonb_build_object('a', i), (array['sad', 'ok'])[1 + i % 2]::mood,
		row(i, 'p')::pair, i / 3.0 from generate_series(1, 20) i;
	create table p (id int, p int);
	insert into p values (1, 1), (2, 2), (3, 1);
	create table none ();
	insert into none default values;
	insert into none default values;
	create view some_t as select id, data from t where id < 10;
`

// rewritten are statements with two executions' arguments each, all of which can be coalesced.
var rewritten = []struct {
	sql  string
	args [2][]string
}{
	{"select * from t where id = $1", [2][]string{{"1"}, {"2"}}},
	{"select * from t where id = $1;", [2][]string{{"1"}, {"1"}}},
	{"select * from t where id = $1 -- comment", [2][]string{{"1"}, {"99"}}},
	{"select * from t where id = $1 /* $2 */;", [2][]string{{"1"}, {"7"}}},
	{"select * from t where id = $1 and data = $2 or data = $2", [2][]string{{"1", "a_1"}, {"2", "x"}}},
	{"select p.p from p p where p.id = $1", [2][]string{{"1"}, {"3"}}},
	{"select p.* from p, t where p.id = $1 and p.p = t.id", [2][]string{{"1"}, {"3"}}},
	{"select p from p where p = $1", [2][]string{{"1"}, {"2"}}},
	{"select p_1.p_ord from p p_1(p_1, p_ord) where p_1 = $1", [2][]string{{"1"}, {"2"}}},
	{"select q.id, ord from t q, generate_series(1, 2) ord where id = $1", [2][]string{{"1"}, {"2"}}},
	{"select from none where $1::int = 1", [2][]string{{"1"}, {"2"}}},
	{"select $1::int", [2][]string{{"1"}, {"2"}}},
	{"select $1 || 'x', $2::text, '$1'", [2][]string{{"1", "ä'\"\\,{}"}, {"", ""}}},
	{"values ($1::int, $2), (1, 'x')", [2][]string{{"1", "a"}, {"2", "b"}}},
	{"table t order by id limit $1", [2][]string{{"1"}, {"3"}}},
	{"(select id from t where id < $1) union all (select id from p)", [2][]string{{"4"}, {"2"}}},
	{"select id from t where id < $1 union select p from p except select 2 order by id desc", [2][]string{{"4"}, {"2"}}},
	{"select id from t where id > $1 order by data, id desc", [2][]string{{"4"}, {"2"}}},
	{"select id, data from t where id > $1 order by data", [2][]string{{"4"}, {"2"}}},
	{"select data as id, id as data from t where id > $1 order by id desc, 2 nulls first -- by the output column", [2][]string{{"4"}, {"2"}}},
	{"select x.id, x.data as d, y.id from t x join t y on y.id = x.id + $1 order by y.id asc, x.data desc nulls last;", [2][]string{{"4"}, {"2"}}},
	{"select t.id, $1::text as x from t order by x, data, t.id desc", [2][]string{{"4"}, {"2"}}},
	{"select *, 1 as one from t where id > $1 order by 1 desc, tags", [2][]string{{"4"}, {"2"}}},
	{"select p.*, t.id from p, t where t.id = $1 + p.id order by t.id, p.id desc", [2][]string{{"4"}, {"2"}}},
	{"select id as user, data from t where id > $1 order by user, data desc, id", [2][]string{{"4"}, {"2"}}},
	{"select n as \"N\", id from t where id > $1 order by \"N\" desc nulls last", [2][]string{{"4"}, {"2"}}},
	{"select data collate \"C\" as data, id from t where id > $1 order by data, id", [2][]string{{"4"}, {"2"}}},
	{"select generate_series(1, 3) as i, data from t where id > $1 order by data, i", [2][]string{{"4"}, {"2"}}},
	{"select id from t where id > $1 and exists (select from p order by p) order by id desc", [2][]string{{"4"}, {"2"}}},
	{"select id from t order by id limit $1 offset $2", [2][]string{{"4", "1"}, {"2", "15"}}},
	{"select id from t order by id offset $1 rows fetch first $2 rows only", [2][]string{{"4", "2"}, {"2", "1"}}},
	{"select data from t order by data fetch first $1 rows with ties", [2][]string{{"1"}, {"6"}}},
	{"select data, count(*) from t where id > $1 group by $2::text, data having $3", [2][]string{{"0", "3", "t"}, {"9", "1", "f"}}},
	{"select $1::int as x, count(*) as n, sum(count(*)) over () from t group by 1", [2][]string{{"0"}, {"9"}}},
	{"select distinct on ($1::int, id) id from t order by $1::int, id", [2][]string{{"0"}, {"9"}}},
	{"select id from t order by case when $1 then id else -id end limit 3", [2][]string{{"t"}, {"f"}}},
	{"select data, count(*) from t where id > $1 group by data having count(*) > $2", [2][]string{{"0", "3"}, {"9", "1"}}},
	{"select count(*), sum(id), $1::text as x from t where id < $2", [2][]string{{"a", "3"}, {"b", "0"}}},
	{"select sum(id * $1) from t", [2][]string{{"1"}, {"3"}}},
	{"select count(*) filter (where id > $1) from t", [2][]string{{"1"}, {"13"}}},
	{"select distinct on (data) data, id from t where id > $1 order by data, id desc", [2][]string{{"1"}, {"13"}}},
	{"select id, row_number() over (order by id desc), lag(id, $2) over (order by id) from t where id > $1", [2][]string{{"1", "1"}, {"13", "2"}}},
	{"select id, sum(id) over (order by id rows between $1 preceding and current row) from t", [2][]string{{"1"}, {"3"}}},
	{"select generate_series(1, $1::int), id from t where id < 3", [2][]string{{"1"}, {"4"}}},
	{"select * from generate_series(1, $1::int) g(g), unnest($2::int[]) with ordinality", [2][]string{{"1", "{1,2}"}, {"2", "{}"}}},
	{"select id from t where id = any ($1::int[])", [2][]string{{"{1,2,3}"}, {"{4}"}}},
	{"select id from t where id <> all ($1::int[])", [2][]string{{"{1,2,3}"}, {"{{4,5},{6,7}}"}}},
	{"select ($1::int[])[2], ($1)[1:2]", [2][]string{{"{1,2,3}"}, {"{4}"}}},
	{"select id from t where tags && $1 order by id", [2][]string{{"{y1}"}, {`{"a\"b",y2,NULL}`}}},
	{"select ($1::pair).a, ($1).b, pair = $1 as same from t", [2][]string{{`(1,"x,y")`}, {`(2,)`}}},
	{"select id from t where pair = any ($1::pair[])", [2][]string{{`{"(1,p)"}`}, {`{"(2,p)","(3,p)"}`}}},
	{"select id from t where mood = $1", [2][]string{{"sad"}, {"ok"}}},
	{"select id from t where doc @> $1 or doc ? $2", [2][]string{{`{"a": 1}`, "b"}, {`{"a": 2}`, "c"}}},
	{"select $1::positive + 1, $2::short", [2][]string{{"1", "{1}"}, {"2", "{1,2}"}}},
	{"select x from unnest(array['a', 'B']) x where x < $1::plain order by x collate \"C\"", [2][]string{{"Z"}, {"z"}}},
	{"select box($1::point, $2::point), $3::box", [2][]string{{"1,2", "3,4", "(1,2),(0,0)"}, {"1,1", "0,0", "(3,3),(1,1)"}}},
	{"select $1::int4range, $2::\"char\", $3::name", [2][]string{{"[1,3)", "a", "n"}, {"empty", "b", ""}}},
	{"select exists (select from t where id = $1), array (select id from t where id < $1)", [2][]string{{"2"}, {"99"}}},
	{"select (select max(id) from t where id < $1), t.id from t where id in (1, $1)", [2][]string{{"2"}, {"5"}}},
	{"select (select count(t.id + $1) from p limit 1) from t", [2][]string{{"2"}, {"5"}}},
	{"with x as (select id from t where id < $1) select count(*) from x, x y", [2][]string{{"2"}, {"5"}}},
	{"with x as materialized (select 1 as one) select one from x where one < $1", [2][]string{{"2"}, {"1"}}},
	{"with x as (select $1::int as unused) select 1 as one order by 1", [2][]string{{"2"}, {"1"}}},
	{"with recursive r(n) as (select $1 + 0 union all select n + 1 from r where n < $2) select * from r", [2][]string{{"1", "4"}, {"7", "7"}}},
	{"with recursive r(n) as (select $1::int union all select n + 1 from r where n < $2) select row_to_json(r) from r", [2][]string{{"1", "4"}, {"7", "7"}}},
	{"with x(a, b) as materialized (select 1, $1::int, 3) select row_to_json(x), row_to_json(y), row_to_json(z) from x cross join (select $2::text, 1) y(c) join lateral (select $2::text) as z(d) on true", [2][]string{{"1", "4"}, {"7", "7"}}},
	{"select id from some_t s left join lateral (select 1 one where s.id = $1) x on true where one is null", [2][]string{{"2"}, {"5"}}},
	{"select id from t where case when id = $1 then true else id = $2 end", [2][]string{{"2", "4"}, {"1", "1"}}},
	{"select id from t where (id, data) = ($1, $2)", [2][]string{{"2", "a_2"}, {"1", "1"}}},
	{"select id from t where id between $1 and $2 and data like $3 escape $4", [2][]string{{"2", "9", "a%", "!"}, {"1", "1", "%", "x"}}},
	{"select extract(year from $1::date), position($2 in 'abc'), substring('abc' from $3 for 1), trim(both $2 from 'cab')",
		[2][]string{{"2020-01-01", "c", "1"}, {"1999-01-01", "a", "2"}}},
	{"select json_build_object('a', $1::int), row($1, 2), row_to_json(row($1))", [2][]string{{"1"}, {"2"}}},
	{"select row_to_json(s) from (select $1::int as a, -$1 as b, coalesce((select 1), $1) from t where id = 1) s", [2][]string{{"1"}, {"2"}}},
	{"select percentile_disc($1) within group (order by id) from t", [2][]string{{"0.1"}, {"0.9"}}},
	{"select string_agg(data, $1 order by id) from t", [2][]string{{","}, {"; "}}},
	{"select $1::numeric(5,2), $2::varchar(2), n + $1 from t where id < 3", [2][]string{{"1.005", "abc"}, {"2", "x"}}},
	{"select id from t where $1::text is null or data = $1", [2][]string{{"null"}, {"a_1"}}},
	{"select id from t where $1::int[] is null or id = any ($1)", [2][]string{{"null"}, {"{3}"}}},
	{"select xmlelement(name a, $1::text)", [2][]string{{"1"}, {"<"}}},
	{"select id from t where id operator(pg_catalog.=) $1", [2][]string{{"1"}, {"2"}}},
	{"select id+-$1::int, @$2::int, id*/**/$1 from t where id <$1", [2][]string{{"1", "-1"}, {"3", "2"}}},
	{"select 'a' where $1 ~ E'^\\\\d+\\'?$$1$'", [2][]string{{"1"}, {"3"}}},
	{"select collation for ($1::plain), collation for ($2::name), collation for ($3::text), collation for ($4::text[])",
		[2][]string{{"a", "b", "c", "{d}"}, {"", "", "", "{}"}}},
	{"select collation for ($1::plains), collation for (($2::couple).b), collation for (($2).a)", [2][]string{{"{a}", "(b,c)"}, {"{}", "(,)"}}},
	{"select $1 = 1, $2 = id, $3 || data, coalesce($4, n), greatest($5, 1.5), pg_typeof($1), pg_typeof($2), pg_typeof($3) from t", [2][]string{
		{"1", "2", "c", "3.0", "1"}, {"2", "3", "", "null", "null"}}},
	{"select case when id = 1 then $1 else 1.5 end, pg_typeof($1), array[$2, 1], concat($3::text, $4::int) from t", [2][]string{{"1", "2", "c", "3"}, {"2.50", "3", "", "null"}}},
	{"select $1 as x union select 'a' order by 1", [2][]string{{"b"}, {"a"}}},
	{"select $1 = $2, $1 < $2, $1 in ($2, 'x')", [2][]string{{"b", "B"}, {"a", "a"}}},
	{"select n = $1, n::float8 = $2, n::text = $3 from t", [2][]string{{"1.00", "1", "a"}, {"1", "1.00", "1.0000000000000000"}}},
	{"select distinct $1::numeric from t", [2][]string{{"1.00"}, {"1"}}},
	{"select i::text from (values (interval '1 day'), ('24:00')) v(i) where i = $1", [2][]string{{"1 day"}, {"24:00"}}},
	{"select id, $1::interval + '0' from t where id in (1, 2)", [2][]string{{"1 day"}, {"24:00"}}},
	{"select x.id, y.data from t x join lateral (select data || $1 as data from t where id = x.id) y on true where x.id < 4", [2][]string{{"1"}, {"01"}}},
	{"select $1::jsonb, $2::timestamptz, $3::bytea, $4::bit(3), $5::char(4), $6::bool", [2][]string{
		{`{"b": [1, 2], "a": "x"}`, "2020-01-01 00:00:00+02", `\xdeadbeef`, "101", "a", "t"}, {"null", "infinity", "", "000", "b   ", "f"}}},
	{"select $$ $1 $$, $1::text, $_$ it's $1 $_$", [2][]string{{"1"}, {"3"}}},
	{"select id, cast($1 as int), (cast($1 as int)) + 1, abs(cast($1 as int)), coalesce(null, cast($1 as int)) from t", [2][]string{{"1"}, {"3"}}},
	{"select id from t where id in (1, cast($1 as int)) and id is distinct from cast($2 as int)", [2][]string{{"1", "1"}, {"3", "4"}}},
	{"select row_to_json(r) from rows from (abs(cast($1 as int)), generate_series(1, cast($1 as int))) r", [2][]string{{"1"}, {"3"}}},
}

// argument is one of these, where null is none.
func argument(text string) []byte {
	if text == "null" {
		return nil
	}
	return []byte(text)
}

// alone runs one execution, of which it returns the rows in text.
func alone(conn *pgconn.PgConn, sql string, args []string) ([]string, error) {
	values := make([][]byte, len(args))
	for i, arg := range args {
		values[i] = argument(arg)
	}
	return jsonRows(conn.ExecParams(context.Background(), sql, values, nil, nil, nil).Read())
}

// together runs several executions as the one statement that is rewritten from theirs. It returns the rows of each.
func together(conn *pgconn.PgConn, sql string, parameters []parameter, executions [][]string) ([][]string, error) {
	arrays := make([][]byte, len(parameters))
	types := make([]uint32, len(parameters))
	for i, p := range parameters {
		var elements []string
		for _, args := range executions {
			if argument(args[i]) == nil {
				elements = append(elements, "null")
			} else {
				quoted := textArray(args[i : i+1])
				elements = append(elements, string(quoted[1:len(quoted)-1]))
			}
		}
		types[i] = p.array
		arrays[i] = []byte("{" + strings.Join(elements, string(p.delimiter)) + "}")
	}
	rows, err := jsonRows(conn.ExecParams(context.Background(), sql, arrays, types, nil, nil).Read())
	lists := make([][]string, len(executions))
	for _, row := range rows {
		var values []*string
		if err := json.Unmarshal([]byte(row), &values); err != nil {
			return nil, err
		}
		var ord int
		if _, err := fmt.Sscan(*values[0], &ord); err != nil {
			return nil, err
		}
		rest, _ := json.Marshal(values[1:])
		lists[ord-1] = append(lists[ord-1], string(rest))
	}
	return lists, err
}

// jsonRows are the rows of a result as JSON arrays of strings.
func jsonRows(result *pgconn.Result) ([]string, error) {
	var rows []string
	for _, row := range result.Rows {
		values := make([]*string, len(row))
		for i, value := range row {
			if value != nil {
				text := string(value)
				values[i] = &text
			}
		}
		text, err := json.Marshal(values)
		if err != nil {
			return nil, err
		}
		rows = append(rows, string(text))
	}
	return rows, result.Err
}

var errAlone = errors.New("fails alone only")

// sameRows compares what a statement's executions return alone and together. Where one fails, nothing is to be compared:
// together they must fail then, and do it again alone.
func sameRows(conn *pgconn.PgConn, sql string, s *shape, parameters []parameter, executions [][]string) error {
	original, err := conn.Prepare(context.Background(), "", sql, nil)
	if err != nil {
		return err
	}
	one := s.rewrite(parameters, original.Fields)
	// Where the rows of all are ordered outside, those that are equal for it are in any order.
	var keys []int
	if order := s.ordering.outside(original.Fields); order != "" && strings.HasSuffix(one, order) {
		keys = s.ordering.positions(original.Fields)
	}
	lists, err := together(conn, one, parameters, executions)
	for i, args := range executions {
		want, aloneErr := alone(conn, sql, args)
		switch {
		case aloneErr != nil && err == nil:
			return fmt.Errorf("%v %w: %w", args, errAlone, aloneErr)
		case aloneErr != nil:
			return nil
		case err != nil:
			continue
		}
		got := lists[i]
		if keys != nil && !slices.EqualFunc(got, want, func(a, b string) bool { return sameColumns(a, b, keys) }) {
			return fmt.Errorf("%v: in the order of %s, want %s", args, got, want)
		}
		if keys != nil || !strings.Contains(strings.ToLower(sql), "order by") {
			slices.Sort(got)
			slices.Sort(want)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("%v: got %s, want %s", args, got, want)
		}
	}
	return err
}

// sameColumns reports whether two rows, which are as jsonRows has them, have the same values in the columns at positions.
func sameColumns(a, b string, positions []int) bool {
	var x, y []*string
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	return !slices.ContainsFunc(positions, func(p int) bool {
		return (x[p-1] == nil) != (y[p-1] == nil) || x[p-1] != nil && *x[p-1] != *y[p-1]
	})
}

func TestRewriteReturnsTheSameRows(t *testing.T) {
	conn := coalescing(t, rewriteTables)
	for _, test := range rewritten {
		p := prove(t, conn, test.sql)
		if !p.pure || p.parameters == nil {
			t.Errorf("%s: %q, %v", test.sql, p.why, p.parameters)
			continue
		}
		s := shapeOf(test.sql)
		if err := sameRows(conn, test.sql, s, p.parameters, [][]string{test.args[0], test.args[1], test.args[0]}); err != nil {
			t.Errorf("%s\n%s\n%v", test.sql, s.rewrite(p.parameters, returned(t, conn, test.sql)), err)
		}
	}
}

// What the server does not take when it is rewritten is not a mistake, because lanes remember it. But it must be refused.
func TestRewriteOfAggregatesOverParametersIsRefused(t *testing.T) {
	conn := coalescing(t, rewriteTables)
	for _, sql := range []string{
		"select sum($1::int) from t",
		"select (select sum($1::int) from p) as x from t",
		"select count(*) filter (where $1::bool) from t",
		"select string_agg('x', $1) from t",
		"select data from t group by data having max($1::int) > 0",
	} {
		p := prove(t, conn, sql)
		_, err := conn.Prepare(context.Background(), "", shapeOf(sql).rewrite(p.parameters, returned(t, conn, sql)), []uint32{p.parameters[0].array})
		const groupingError = "42803"
		if pgErr := (*pgconn.PgError)(nil); !errors.As(err, &pgErr) || pgErr.Code != groupingError {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// An argument that its type refuses is an error, although no row needs it.
func TestRewriteChecksArgumentsThatNobodyNeeds(t *testing.T) {
	conn := coalescing(t, rewriteTables)
	for sql, bad := range map[string]string{
		"select id from t where id < 0 and id = any ($1::short)": "{1,2,3}",
		"select id from t where id < 0 and id = $1::positive":    "-1",
		"select id from t where id < 0 and pair = $1::pair":      "(x,)",
		"select id from t where id < 0 and mood = any ($1)":      "{happy}",
	} {
		p := prove(t, conn, sql)
		one := shapeOf(sql).rewrite(p.parameters, returned(t, conn, sql))
		if _, err := together(conn, one, p.parameters, [][]string{{bad}}); err == nil {
			t.Errorf("%s: no error", sql)
		}
	}
}

// The plan is the same for two executions and for many, custom or generic: also when the server itself has come to a
// generic one. A large table is looked up, not read.
func TestRewritePlans(t *testing.T) {
	conn := coalescing(t, `
		create table small (id int primary key, data text);
		insert into small select i, i from generate_series(1, 200) i;
		create unlogged table big as select i as id, i::text as data from generate_series(1, 1000000) i;
		alter table big add primary key (id);
		analyze;
	`)
	for _, test := range []struct {
		sql         string
		args        []string
		want, never string // in the plan
	}{
		{"select * from small where id = $1", []string{"1"}, "Hash Join", "Index"},
		{"select * from small where id = $1 and data <> $2", []string{"1", "x"}, "Hash Join", "Index"},
		{"select id, data from small where data = $1 order by id", []string{"1"}, "Hash Join", "Nested Loop"},
		{"select s.id, s.data from small s join small r on r.id = s.id + 1 where r.data = $1 order by s.data desc, 1", []string{"1"}, "Hash Join", "Subquery"},
		{"select * from big where id = $1", []string{"1"}, "Nested Loop", "Seq Scan on big"},
		{"select id, data from big where id = $1 order by data", []string{"1"}, "Nested Loop", "Seq Scan on big"},
		{"select id, data from big where id between $1 and $1 + 20 order by data, id desc", []string{"1"}, "big_pkey", "Seq Scan on big"},
		{"select * from big where id = $1 and data = $2", []string{"1", "1"}, "Nested Loop", "Seq Scan on big"},
		{"select * from big where id = $1 and 1 <> all ($2::int[])", []string{"1", "{1,2}"}, "Nested Loop", "Seq Scan on big"},
		{"select * from big where id = any ($1::int[])", []string{"{1,500000,1000000}"}, "big_pkey", "Seq Scan on big"},
		{"select * from big where id between $1 and $2", []string{"1000", "1020"}, "big_pkey", "Seq Scan on big"},
		{"select * from big where id > $1 order by id limit 10", []string{"1000"}, "big_pkey", "Seq Scan on big"},
		{"select * from big where id > $1 order by id limit $2", []string{"1000", "10"}, "big_pkey", "Seq Scan on big"},
		{"select b.* from small s join big b on b.id = s.id where s.id = $1", []string{"100"}, "big_pkey", "Seq Scan on big"},
		{"select c.* from big b join big c on c.id = b.id + 1 where b.id = $1", []string{"1000"}, "big_pkey", "Seq Scan on big"},
		{"select count(*), max(data) from big where id between $1 and $1 + 20", []string{"1000"}, "big_pkey", "Seq Scan on big"},
	} {
		p := prove(t, conn, test.sql)
		one := shapeOf(test.sql).rewrite(p.parameters, returned(t, conn, test.sql))
		var types []string
		for _, parameter := range p.parameters {
			types = append(types, texted(t, conn, fmt.Sprintf("select %d::regtype", parameter.array)))
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan", "auto"} {
			script(t, conn, "set plan_cache_mode = "+mode)
			for _, n := range []int{2, 30, 10000} {
				name := fmt.Sprintf("s%d", rand.Uint32())
				script(t, conn, "prepare "+name+"("+strings.Join(types, ", ")+") as "+one)
				var arrays []string
				for _, arg := range test.args {
					arrays = append(arrays, "'"+string(textArray(slices.Repeat([]string{arg}, n)))+"'")
				}
				execute := "execute " + name + "(" + strings.Join(arrays, ", ") + ")"
				if mode == "auto" {
					// Five times the server has made a plan for the arguments. Version 13 does not tell.
					script(t, conn, strings.Repeat(execute+";", 6))
					const generic = "select coalesce(to_jsonb(s) ->> 'generic_plans', 'untold') from pg_prepared_statements s where name = '%s'"
					if texted(t, conn, fmt.Sprintf(generic, name)) == "0" {
						t.Errorf("%s, %d executions: no generic plan", test.sql, n)
					}
				}
				var plan strings.Builder
				results, err := conn.Exec(context.Background(), "explain "+execute).ReadAll()
				if err != nil {
					t.Fatal(err)
				}
				for _, row := range results[0].Rows {
					fmt.Fprintf(&plan, "%s\n", row[0])
				}
				if !strings.Contains(plan.String(), test.want) || strings.Contains(plan.String(), test.never) {
					t.Errorf("%s, %s, %d executions:\n%s", test.sql, mode, n, plan.String())
				}
				script(t, conn, "deallocate "+name)
			}
		}
	}
}

// texted is the first value of a statement's result.
func texted(t testing.TB, conn *pgconn.PgConn, sql string) string {
	t.Helper()
	results, err := conn.Exec(context.Background(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return string(results[0].Rows[0][0])
}

// FuzzRewrite lets the server judge: whatever it takes, and shapeOf and the proof allow, returns the same rows when two
// executions are one.
func FuzzRewrite(f *testing.F) {
	for _, test := range rewritten {
		f.Add(test.sql, strings.Join(test.args[0], "\x1f"), strings.Join(test.args[1], "\x1f"))
	}
	conn := coalescing(f, rewriteTables, "set default_transaction_read_only = on")
	f.Fuzz(func(t *testing.T, sql, first, second string) {
		s := shapeOf(sql)
		if s == nil {
			return
		}
		description, err := conn.Prepare(context.Background(), "", sql, nil)
		if err != nil {
			return
		}
		readAlike(t, sql, s, description)
		executions := [][]string{strings.Split(first, "\x1f"), strings.Split(second, "\x1f")}
		if len(executions[0]) == s.highest && len(executions[1]) == s.highest {
			judge(t, conn, sql, s, description.ParamOIDs, executions)
		}
	})
}

// FuzzRewriteOfTokens is FuzzRewrite with statements that are put together from parts of those above, which the server
// takes more often than random changes.
func FuzzRewriteOfTokens(f *testing.F) {
	var parts, values []string
	for _, test := range rewritten {
		list, _ := tokens(test.sql)
		for i, token := range list {
			parts = append(parts, test.sql[token.start:token.end])
			if i > 0 {
				parts = append(parts, test.sql[list[i-1].start:token.end])
			}
		}
		for _, args := range test.args {
			values = append(values, args...)
		}
	}
	for seed := range uint64(50) {
		f.Add(seed)
	}
	conn := coalescing(f, rewriteTables, "set default_transaction_read_only = on")
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		base := rewritten[random.IntN(len(rewritten))]
		for range 20 {
			list, _ := tokens(base.sql)
			from := random.IntN(len(list))
			to := min(from+random.IntN(4), len(list)-1)
			start, end := list[from].start, list[to].end
			replacement := parts[random.IntN(len(parts))]
			if other := rewritten[random.IntN(len(rewritten))].sql; random.IntN(3) == 0 {
				replacement = "(" + strings.TrimSuffix(strings.TrimSpace(other), ";") + "\n)"
			}
			sql := base.sql[:start] + " " + replacement + " " + base.sql[end:]
			s := shapeOf(sql)
			if s == nil {
				continue
			}
			description, err := conn.Prepare(context.Background(), "", sql, nil)
			if err != nil {
				continue
			}
			readAlike(t, sql, s, description)
			executions := make([][]string, 2)
			for i := range executions {
				for j := range s.highest {
					if given := base.args[i]; j < len(given) && random.IntN(4) > 0 {
						executions[i] = append(executions[i], given[j])
					} else {
						executions[i] = append(executions[i], values[random.IntN(len(values))])
					}
				}
			}
			judge(t, conn, sql, s, description.ParamOIDs, executions)
			if random.IntN(2) == 0 {
				base.sql = sql // and on from there
			}
		}
	})
}

// readAlike checks that the server has found the same parameters.
func readAlike(t *testing.T, sql string, s *shape, description *pgconn.StatementDescription) {
	t.Helper()
	if len(description.ParamOIDs) != s.highest {
		t.Fatalf("%s\n has %d parameters, the server finds %d", sql, s.highest, len(description.ParamOIDs))
	}
}

// judge runs a statement that may be anything.
func judge(t *testing.T, conn *pgconn.PgConn, sql string, s *shape, params []uint32, executions [][]string) {
	t.Helper()
	p := askProof(t, conn, s, params)
	if lower := strings.ToLower(sql); !p.pure || p.parameters == nil || len(p.parameters) != s.highest ||
		strings.Contains(lower, "limit") || strings.Contains(lower, "fetch") || strings.Contains(lower, "offset") ||
		strings.Contains(lower, " over") {
		return // which rows these return depends on an order that the statement may leave open
	}
	script(t, conn, "set statement_timeout = '100ms'")
	err := sameRows(conn, sql, s, p.parameters, executions)
	for range 2 { // the first may be hit by a timeout that came late
		result := conn.ExecParams(context.Background(), "reset statement_timeout", nil, nil, nil, nil).Read()
		if result.Err == nil {
			break
		}
	}
	if pgErr := (*pgconn.PgError)(nil); err == nil || errors.As(err, &pgErr) {
		// What the server refuses when it is rewritten runs alone. And what fails alone need not fail together: the planner
		// may compute what no row needs, if it knows the arguments.
		return
	}
	t.Errorf("%s\n%s\n%v", sql, s.rewrite(p.parameters, returned(t, conn, sql)), err)
}

package fanout

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// coalescing is a connection on which statements are looked at and rewritten, in a database of its own.
func coalescing(t testing.TB, setup ...string) *pgconn.PgConn {
	t.Helper()
	pool := pgtest.Pool(t, 1)
	conn, err := pool.Acquire(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Release)
	for _, sql := range setup {
		script(t, conn.Conn().PgConn(), sql)
	}
	return conn.Conn().PgConn()
}

func script(t testing.TB, conn *pgconn.PgConn, sql string) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// askProof runs proofSQL for parameters of these types.
func askProof(t testing.TB, conn *pgconn.PgConn, s *shape, params []uint32) proof {
	t.Helper()
	result := conn.ExecParams(context.Background(), proofSQL, s.proofArgs(params), nil, nil, nil).Read()
	if result.Err != nil {
		t.Fatal(result.Err)
	}
	if len(result.Rows) != 1 {
		t.Fatalf("%d rows", len(result.Rows))
	}
	var row []string
	for _, value := range result.Rows[0] {
		if value == nil {
			t.Fatal("a null in the answer")
		}
		row = append(row, string(value))
	}
	p, err := readProof(row)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// prove asks whether a statement is pure. It must be one that the server accepts.
func prove(t testing.TB, conn *pgconn.PgConn, sql string) proof {
	t.Helper()
	description, err := conn.Prepare(context.Background(), "", sql, nil)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	s := shapeOf(sql)
	if s == nil {
		t.Fatalf("%s: no shape", sql)
	}
	return askProof(t, conn, s, description.ParamOIDs)
}

// returned are the columns that a statement returns, which must be one that the server accepts.
func returned(t testing.TB, conn *pgconn.PgConn, sql string) []pgconn.FieldDescription {
	t.Helper()
	description, err := conn.Prepare(context.Background(), "", sql, nil)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return description.Fields
}

const (
	proofTables = `
		create table t (id int primary key, data text, at timestamptz, tags text[], doc jsonb);
		create sequence numbers;
		create function chance(int) returns int volatile language plpgsql as 'begin return 1; end';
		create function sure(int) returns int stable language plpgsql as 'begin return 1; end';
		create function touch() returns trigger volatile language plpgsql as 'begin return new; end';
		create function defaulted(a int, b float default random()) returns int stable language plpgsql as 'begin return a; end';
		create function plain(a int, b float default 1) returns int stable language plpgsql as 'begin return a; end';
		create procedure data() language plpgsql as 'begin end';
		create function chancy_add(int, int) returns int volatile strict language plpgsql as 'begin return 1; end';
		create aggregate chancy_sum(int) (sfunc = chancy_add, stype = int);
		create aggregate sure_sum(int) (sfunc = int4pl, stype = int);
		create aggregate moving_sum(int) (sfunc = int4pl, stype = int, msfunc = chancy_add, minvfunc = int4mi, mstype = int);
		create operator === (leftarg = int, rightarg = int, function = int4eq);
		create function chancy_eq(int, int) returns bool volatile language plpgsql as 'begin return true; end';
		create operator ==== (leftarg = int, rightarg = int, function = chancy_eq);
		create operator <<>> (leftarg = int, rightarg = int, function = chancy_eq, negator = >><<);
		create operator >><< (leftarg = int, rightarg = int, function = int4eq, negator = <<>>);
		create operator <<<> (leftarg = int, rightarg = int, function = chancy_eq, commutator = <>>>);
		create operator <>>> (leftarg = int, rightarg = int, function = int4eq, commutator = <<<>);
		create view negated_view as select * from t where not (id >><< 1);
		create view id_view as select pg_current_xact_id() id;
		create function default_id(a int, b bigint default txid_current()) returns int stable language plpgsql as 'begin return a; end';
		create schema other;
		create function other.elsewhere(int) returns int volatile language plpgsql as 'begin return 1; end';
		create function attribute(t) returns int volatile language plpgsql as 'begin return 1; end';
		create view random_view as select id, random() r from t;
		create view plain_view as select id, count(*) over (order by data) n, now() from t where id === 1 or id in (1, 2);
		create view nested_view as select * from plain_view join random_view using (id);
		create view operator_view as select * from t where id ==== 1;
		create view array_operator_view as select * from t where id operator(====) any (array[1, 2]);
		create view sample_view as select * from t tablesample system (10);
		create view lock_view as select * from t for update;
		create view sequence_view as select nextval('numbers') n;
		create view aggregate_view as select chancy_sum(id) from t;
		create view window_view as select chancy_sum(id) over () from t;
		create view sublink_view as select 1 one where exists (select from random_view);
		create view table_function_view as select * from generate_series(1, chance(2)) g;
		create view default_view as select defaulted(1);
		create view xml_view as select table_to_xml('t', true, true, '') x;
		create view cte_view as with x as (select chance(1) c) select * from x;
		create view union_view as select 1 one union all select id from random_view;
		create materialized view kept as select random() r;
		create table secured (id int);
		alter table secured enable row level security;
		create policy few on secured using (id = chance(1));
		create table relaxed (id int);
		create policy few on relaxed using (id = chance(1)); -- row security is not enabled
		create table secured_by_view (id int);
		alter table secured_by_view enable row level security;
		create policy few on secured_by_view using (id in (select id from random_view));
		create table fine_policy (id int);
		alter table fine_policy enable row level security;
		create policy few on fine_policy using (id = sure(1));
		create view secured_view as select * from secured;
		create foreign data wrapper nothing;
		create server nowhere foreign data wrapper nothing;
		create foreign table far (id int) server nowhere;
		create view far_view as select * from far;
		create table parted (id int) partition by range (id);
		create table parted_1 partition of parted for values from (1) to (10);
		create table deep (id int) partition by range (id);
		create table deep_1 partition of deep for values from (1) to (100) partition by range (id);
		create foreign table deep_1_1 partition of deep_1 for values from (1) to (10) server nowhere;
		create table parent (id int);
		create foreign table child () inherits (parent) server nowhere;
		create type mood as enum ('sad', 'ok');
		create domain positive as int check (value > 0);
		create table "Sürprise" (id int);
		create view "Größe" as select random() r;
		create view "odd"" name" as select 1 one, 2 ":funcid 1598 :";
	`

	volatile = " is volatile"
	several  = " tells one statement from several"
)

func TestProofOfTheStatement(t *testing.T) {
	conn := coalescing(t, proofTables)
	for sql, why := range map[string]string{
		// Nothing is wrong with these.
		"select * from t where id = $1": "",
		"select count(*), count(distinct id), sum(id), avg(id), string_agg(data, $1) from t":                                                                         "",
		"select date_trunc($1, now()), current_timestamp, current_date, localtime":                                                                                   "",
		"select doc -> $1::text, doc ->> 'a', doc #>> '{a,b}', doc ? 'a', doc ?| '{a}', doc @> '{}' from t":                                                          "",
		"select id from t where tags && $1 or tags @> '{a}' or 'a' = any (tags) or id <> all ($2::int[])":                                                            "",
		"select row_number() over (order by id), lag(id) over w from t where id > $1 window w as (order by at)":                                                      "",
		"select * from generate_series(1, $1::int) g":                                                                                                                "",
		"select * from unnest($1::int[]) with ordinality":                                                                                                            "",
		"select data || $1, upper(data), data like 'a%', data ilike 'a', data ~ 'a', data similar to 'a' from t":                                                     "",
		"select extract(year from at), at at time zone $1, substring(data from 1 for 2), trim(data), overlay(data placing 'a' from 1), position('a' in data) from t": "",
		"select coalesce(data, $1), nullif(data, ''), greatest(id, 1), case id when 1 then 2 else 3 end from t":                                                      "",
		"select percentile_cont($1) within group (order by id), mode() within group (order by id) from t":                                                            "",
		"with recursive r as (select $1::int as n union all select n + 1 from r where n < 5) select * from r":                                                        "",
		"select jsonb_build_object('a', $1::text), to_jsonb(t), row_to_json(t), json_agg(t) from t group by t.*":                                                     "",
		"select to_tsvector('english', data) @@ plainto_tsquery('english', $1) from t":                                                                               "",
		"select * from plain_view where id = $1":                                                                                                                     "",
		"select * from kept where r = $1":                                                                                                                            "",
		"select * from fine_policy where id = $1":                                                                                                                    "",
		"select * from relaxed where id = $1":                                                                                                                        "",
		"select * from parted where id = $1":                                                                                                                         "",
		"select sure($1), plain(1)":                                                                                                                                  "",
		"select sure_sum(id) from t where id === $1":                                                                                                                 "",
		"select data, 1 touch from t where id = $1":                                                                                                                  "", // a procedure, and a trigger function
		`select * from "odd"" name" where one = $1`:                                                                                                                  "",
		"select $1::mood, $2::positive":                                                                                                                              "",
		"select * from information_schema.tables where table_name = $1":                                                                                              "",
		"select * from pg_catalog.pg_class where relname = $1":                                                                                                       "",

		"select random(), $1::int":                                                      "random()" + volatile,
		"select 1 from t where id = $1 and random() < 0.5":                              "random()" + volatile,
		"select 1 from t where id = $1 order by random()":                               "random()" + volatile,
		"select 1 from t where id = $1 limit random()":                                  "random()" + volatile,
		"select 1 from t group by id, chance(id) having id > $1":                        "chance(integer)" + volatile,
		"select 1 from t having count(*) > chance($1)":                                  "chance(integer)" + volatile,
		"select * from chance($1)":                                                      "chance(integer)" + volatile,
		"select 1 from t join t u on chance(t.id) = $1":                                 "chance(integer)" + volatile,
		"with x as (select chance(1)) select * from x, t where id = $1":                 "chance(integer)" + volatile,
		"values ($1::int, chance(1))":                                                   "chance(integer)" + volatile,
		"select sum(id) filter (where chance(1) = 1) from t where id = $1":              "chance(integer)" + volatile,
		"select sum(id) over (partition by chance(1) order by id) from t where id = $1": "chance(integer)" + volatile,
		"select nextval('numbers'), $1::int":                                            "nextval(regclass)" + volatile,
		"select currval('numbers'), $1::int":                                            "currval(regclass)" + volatile,
		"select clock_timestamp(), $1::int":                                             "clock_timestamp()" + volatile,
		"select gen_random_uuid(), $1::int":                                             "gen_random_uuid()" + volatile,
		"select pg_sleep($1)":                                                           "pg_sleep(double precision)" + volatile,
		"select pg_advisory_lock($1)":                                                   "pg_advisory_lock(bigint)" + volatile,
		"select set_config('a.b', $1, false)":                                           "set_config(text,text,boolean)" + volatile,
		`select "random"(), $1::int`:                                                    "random()" + volatile,
		"select PG_CATALOG . /**/ RANDOM (), $1::int":                                   "random()" + volatile,
		"select other.elsewhere($1)":                                                    "other.elsewhere(integer)" + volatile,
		"select t.attribute, $1::int from t":                                            "attribute(t)" + volatile,
		"select chancy_sum(id) from t where id = $1":                                    "chancy_add(integer,integer)" + volatile,
		"select moving_sum(id) over () from t where id = $1":                            "chancy_add(integer,integer)" + volatile,
		"select defaulted($1)":                                                          "random()" + volatile,
		"select 1 from t where id ==== $1":                                              "chancy_eq(integer,integer)" + volatile,
		"select 1 from t where not (id >><< $1)":                                        "chancy_eq(integer,integer)" + volatile,
		"select 1 from t where $1 <>>> id":                                              "chancy_eq(integer,integer)" + volatile,
		"select 1 from t where id operator(public.====) $1":                             "chancy_eq(integer,integer)" + volatile,
		"select table_to_xml($1, true, true, '')":                                       "may run any query",
		"select schema_to_xml($1, true, true, '')":                                      "may run any query",
		"select database_to_xml($1, true, '')":                                          "may run any query",
		"select query_to_xml($1, true, true, '')":                                       "query_to_xml(",

		// Stable, and yet not the same for several executions.
		"select pg_current_xact_id(), $1::int":                                      "pg_current_xact_id()" + several,
		"select 1 from t where id = $1 and txid_current() > 0":                      "txid_current()" + several,
		"select id from id_view where $1 = 1":                                       "pg_current_xact_id()" + several,
		"select default_id($1)":                                                     "txid_current()" + several,
		"select count(*) from pg_stat_activity where query = $1":                    "pg_stat_get_activity(integer)" + several,
		"select pg_stat_get_backend_activity($1)":                                   "pg_stat_get_backend_activity(integer)" + several,
		"select name from pg_prepared_statements where statement = $1":              "pg_prepared_statement()" + several,
		"select statement from pg_cursors where $1::int is not null":                "pg_cursor()" + several,
		"select pg_column_size($1::text)":                                           `pg_column_size("any")` + several,
		"select now(), statement_timestamp(), pg_current_snapshot(), $1::int":       "",
		"select pg_current_xact_id_if_assigned(), txid_current_snapshot(), $1::int": "",
		"select seq_scan from pg_stat_user_tables where relname = $1":               "",

		"select r from random_view where id = $1":              "random()" + volatile,
		"select n from nested_view where id = $1":              "random()" + volatile,
		"select 1 from operator_view where id = $1":            "chancy_eq(integer,integer)" + volatile,
		"select 1 from negated_view where id = $1":             "chancy_eq(integer,integer)" + volatile,
		"select 1 from array_operator_view where id = $1":      "chancy_eq(integer,integer)" + volatile,
		"select 1 from sample_view where id = $1":              "a view samples a table",
		"select 1 from lock_view where id = $1":                "a view locks rows",
		"select 1 from sequence_view where n = $1":             "nextval(regclass)" + volatile,
		"select 1 from aggregate_view where $1 = 1":            "chancy_add(integer,integer)" + volatile,
		"select 1 from window_view where $1 = 1":               "chancy_add(integer,integer)" + volatile,
		"select 1 from sublink_view where $1 = 1":              "random()" + volatile,
		"select 1 from table_function_view where g = $1":       "chance(integer)" + volatile,
		"select 1 from default_view where $1 = 1":              "random()" + volatile,
		"select 1 from xml_view where $1 = 1":                  "may run any query",
		"select 1 from cte_view where $1 = 1":                  "chance(integer)" + volatile,
		"select 1 from union_view where $1 = 1":                "random()" + volatile,
		`select 1 from "Größe" where $1 = 1`:                   "random()" + volatile,
		"table random_view limit $1":                           "random()" + volatile,
		"select 1 from secured where id = $1":                  "chance(integer)" + volatile,
		"select 1 from secured_view where id = $1":             "chance(integer)" + volatile,
		"select 1 from secured_by_view where id = $1":          "random()" + volatile,
		"select 1 from far where id = $1":                      "relation far is a foreign table",
		"select 1 from far_view where id = $1":                 "relation far is a foreign table",
		"select 1 from deep where id = $1":                     "relation deep_1_1 is a foreign table",
		"select 1 from parent where id = $1":                   "relation child is a foreign table",
		"select last_value from numbers where last_value = $1": "relation numbers is a sequence",
	} {
		p := prove(t, conn, sql)
		if p.pure != (why == "") || p.pure != (p.why == "") || !strings.Contains(p.why, why) {
			t.Errorf("%s\n got %q, want %q", sql, p.why, why)
		}
	}
}

// What nobody names in a statement, nor what has to do with it, can be anywhere in the database.
func TestProofOfTheDatabase(t *testing.T) {
	const sql = "select id from t where id = $1"
	conn := coalescing(t, proofTables+
		"create type proof_pair as (a int); create function mood_is(mood, int) returns bool volatile language plpgsql as 'begin return true; end'")
	for name, test := range map[string]struct{ setup, why string }{
		"domain": {"create domain lucky as int check (value > random() * 10)", ""},
		"implicit cast": {"create function to_text(int) returns text volatile language sql as $$ select '' $$;" +
			"create cast (int as text) with function to_text(int) as implicit", "to_text(integer)" + volatile},
		"cast that conditions do": {"create function is_so(text) returns bool volatile language sql as 'select true';" +
			"create cast (text as bool) with function is_so(text) as assignment", "is_so(text)" + volatile},
		"cast that nobody writes": {"create function is_so(text) returns bool volatile language sql as 'select true';" +
			"create cast (text as bool) with function is_so(text)", ""},
		"implicit cast to what is nowhere else": {"create function to_mood(int) returns mood volatile language sql as $$ select 'ok'::mood $$;" +
			"create cast (int as mood) with function to_mood(int) as implicit", "to_mood(integer)" + volatile},
		"cast between what is nowhere": {"create function to_pair(mood) returns proof_pair volatile language sql as $$ select null::proof_pair $$;" +
			"create cast (mood as proof_pair) with function to_pair(mood) as implicit", ""},
		"type": {"create type own; create function own_in(cstring) returns own volatile strict language internal as 'textin';" +
			"create function own_out(own) returns cstring immutable strict language internal as 'textout';" +
			"create type own (input = own_in, output = own_out)", ""},
		"operator":                   {"create operator = (leftarg = mood, rightarg = int, function = mood_is);", "mood_is(mood,integer)" + volatile},
		"operator that nobody names": {"create operator =-= (leftarg = mood, rightarg = int, function = mood_is)", ""},
		"order": {"create function chancy_compare(int, int) returns int volatile language internal as 'btint4cmp';" +
			"create operator class chancy for type int using btree as operator 1 <, operator 3 =, function 1 chancy_compare(int, int)",
			"chancy_compare(integer,integer)" + volatile},
		"equality of an operator class": {"create function mood_same(mood, mood) returns bool volatile language internal as 'enum_eq';" +
			"create operator =-= (leftarg = mood, rightarg = mood, function = mood_same);" +
			"create operator class moods for type mood using hash as operator 1 =-=, function 1 hashenum(anyenum)",
			""},
		"extension in pg_catalog": {"set allow_system_table_mods = on; create function pg_catalog.overlaps(mood, mood, mood, mood)" +
			" returns bool volatile language sql as 'select true'; reset allow_system_table_mods", `"overlaps"(mood,mood,mood,mood)` + volatile},
		"others": {"create table busy (id int default nextval('numbers'), at timestamptz default clock_timestamp());" +
			"create index on busy (id); create trigger busy before insert on busy execute function touch();" +
			"create rule busy as on update to busy do instead select random()", ""},
	} {
		t.Run(name, func(t *testing.T) {
			script(t, conn, "begin")
			defer script(t, conn, "rollback")
			script(t, conn, test.setup)
			p := prove(t, conn, sql)
			if p.pure != (test.why == "") || !strings.Contains(p.why, test.why) {
				t.Errorf("got %q, want %q", p.why, test.why)
			}
		})
	}
}

// Types take part in statements in many ways.
func TestProofOfTypes(t *testing.T) {
	conn := coalescing(t, proofTables, `
		create domain lucky as int check (chance(value) = 1);
		create domain by_default as int check (defaulted(value) = 1);
		create domain late as timestamptz check (value > now());
		create domain luckier as lucky;
		create type pair as (a int, b lucky);
		create type deeper as (c pair[]);
		create type span as range (subtype = lucky, subtype_opclass = int4_ops);
		create table lucks (id int, luck lucky);
		create table dropped (id int, luck lucky);
		alter table dropped drop luck;
		create table pairs (id int, pair deeper);
		create table arrays (id int, list lucky[]);
		create table spans (id int, span span);
		create view luck_view as select 1 as id from t where id::lucky = 1;
		create view plain_lucks as select id from lucks;
		create table luck_policy (id int);
		alter table luck_policy enable row level security;
		create policy few on luck_policy using (null::lucky is null);
		create function of_luck(lucky) returns int stable language plpgsql as 'begin return 1; end';
		create function to_luck(int) returns lucky stable language plpgsql as 'begin return 1; end';
		create function all_luck(int, out a int, out b lucky) stable language plpgsql as 'begin end';
		create function lucky_default(a int, b int default null::lucky) returns int stable language plpgsql as 'begin return 1; end';
		create function table_luck(int) returns table (l lucky) stable language plpgsql as 'begin end';
		create function lucky_add(lucky, int) returns lucky immutable language plpgsql as 'begin return 1; end';
		create aggregate lucky_sum(int) (sfunc = lucky_add, stype = lucky, initcond = '1');
		create function luck_of(int, text) returns lucky stable language plpgsql as 'begin return 1; end';
		create operator #=# (leftarg = int, rightarg = text, function = luck_of);
		create type own;
		create function own_in(cstring) returns own volatile strict language internal as 'textin';
		create function own_out(own) returns cstring immutable strict language internal as 'textout';
		create type own (input = own_in, output = own_out);
		create table owns (id int, own own);
		create function mood_same(mood, mood) returns bool volatile language internal as 'enum_eq';
		create operator =-= (leftarg = mood, rightarg = mood, function = mood_same);
		create operator class moods for type mood using hash as operator 1 =-=, function 1 hashenum(anyenum);
		create table moods (id int, mood mood);
		create function same(own, own) returns bool immutable language internal as 'texteq';
		create operator = (leftarg = own, rightarg = own, function = same);
		create operator =~= (leftarg = own, rightarg = own, function = same);
	`)
	const (
		chance = "chance(integer)" + volatile
		own    = "own_in(cstring)" + volatile
	)
	for sql, why := range map[string]string{
		"select id from t where id = $1":                            "",
		"select id from dropped where id = $1":                      "",
		"select id from plain_lucks where id = $1":                  "",
		"select $1::late":                                           "",
		"select 'ok'::mood where $1":                                "mood_same(mood,mood)" + volatile,
		"select id from lucks where id = $1":                        chance,
		"select id from pairs where id = $1":                        chance,
		"select id from arrays where id = $1":                       chance,
		"select id from spans where id = $1":                        chance,
		"select id from owns where id = $1":                         own,
		"select id from moods where id = $1":                        "mood_same(mood,mood)" + volatile,
		"select id from luck_view where id = $1":                    chance,
		"select id from luck_policy where id = $1":                  chance,
		"select $1::lucky":                                          chance,
		"select $1::luckier":                                        chance,
		"select $1::lucky[]":                                        chance,
		"select $1::_lucky":                                         chance,
		"select $1::public.pair":                                    chance,
		`select $1::"deeper"`:                                       chance,
		"select $1::by_default":                                     "random()" + volatile,
		"select cast('1' as lucky), $1::int":                        chance,
		"select lucky '1', $1::int":                                 chance,
		"select span '[1,2]', $1::int":                              chance,
		"select '{}'::_span, $1::int":                               chance,
		"select lucky($1::text)":                                    chance,
		"select of_luck($1)":                                        chance,
		"select to_luck($1)":                                        chance,
		"select all_luck($1)":                                       chance,
		"select table_luck($1)":                                     chance,
		"select lucky_sum(id) from t where id = $1":                 chance,
		"select lucky_default($1)":                                  chance,
		"select id #=# 'x' from t where id = $1":                    chance,
		"select 'a' =~= 'b' from t where id = $1":                   own,
		"select 'a' operator(public.=) 'b' from t where id = $1":    own,
		"select json_populate_record(null::lucks, $1)":              chance,
		"select json_populate_record(null::t, $1)":                  "",
		"select * from json_to_recordset($1) as x(a int, b lucky)":  chance,
		"select * from json_to_recordset($1) as x(a int, b text)":   "",
		"select * from json_populate_recordset(null::arrays, $1) x": chance,
	} {
		if p := prove(t, conn, sql); p.pure != (why == "") || !strings.Contains(p.why, why) {
			t.Errorf("%s\n got %q, want %q", sql, p.why, why)
		}
	}

	// A parameter's type need not be named.
	if p := askProof(t, conn, shapeOf("select $1"), []uint32{oid(t, conn, "lucky")}); p.why != "function "+chance {
		t.Errorf("got %q", p.why)
	}
	if p := askProof(t, conn, shapeOf("select $1"), []uint32{oid(t, conn, "deeper")}); p.why != "function "+chance {
		t.Errorf("got %q", p.why)
	}
	if conn.ParameterStatus("server_version") >= "14" {
		if p := prove(t, conn, "select '{}'::span_multirange, $1::int"); p.why != "function "+chance {
			t.Errorf("got %q", p.why)
		}
	}
}

// Casts that are to be written are done if they are; others always.
func TestProofOfCasts(t *testing.T) {
	conn := coalescing(t, proofTables, `
		create type rank as enum ('low');
		create type hue as enum ('red');
		create domain counted as int;
		create type pair as (a int, b text);
		create table moods (id int, mood mood, rank rank, hue hue);
		create function mood_int(mood) returns int volatile language plpgsql as 'begin return 1; end';
		create cast (mood as int) with function mood_int(mood);
		create function rank_json(rank) returns json volatile language plpgsql as 'begin return 1; end';
		create cast (rank as json) with function rank_json(rank);
		create view mood_view as select id, mood::int m from moods;
		create view plain_mood_view as select id from moods;
		create type shade as enum ('dark');
		create table shades (id int, shade shade);
		create function shade_text(shade) returns text volatile language plpgsql as 'begin return 1; end';
		create cast (shade as text) with function shade_text(shade);
		create view shade_view as select id, '' || shade as s from shades;
		create table hues (id int, hue hue);
		create function hue_bool(hue) returns bool volatile language plpgsql as 'begin return true; end';
		create table plain_moods (id int, mood mood);
	`)
	const mood = "mood_int(mood)" + volatile
	for sql, why := range map[string]string{
		"select * from plain_moods where id = $1":                         "",
		"select * from plain_moods where id = $1::int":                    "",
		"select * from plain_moods where mood = $1 and id = $2::int":      "",
		"select * from plain_moods where mood = $1::mood and id = 1::int": "",
		"select id::text from plain_moods where mood = $1":                "",
		"select * from plain_moods where id = cast($1 as int)":            "",
		"select * from t where id = $1 and data::int = 1":                 "",
		"select mood::int from plain_moods where id = $1":                 mood,
		"select mood::integer from plain_moods where id = $1":             mood,
		"select mood::int4 from plain_moods where id = $1":                mood,
		"select mood::pg_catalog.int4 from plain_moods where id = $1":     mood,
		"select cast(mood as int) from plain_moods where id = $1":         mood,
		"select cast((mood) as int) from plain_moods where id = $1":       mood,
		"select mood::counted from plain_moods where id = $1":             mood,
		"select array[mood]::int[] from plain_moods where id = $1":        mood,
		"select array[mood]::_int4 from plain_moods where id = $1":        mood,
		"select row(mood, '')::pair from plain_moods where id = $1":       mood,
		"select array_agg(mood)::int[] from plain_moods where id = $1":    mood,
		"select $1::mood::int":                                            mood,
		"select from plain_moods where mood = $1 and $1::int = 1":         mood,
		"select from plain_moods where mood = $1 and cast($1 as int) = 1": mood,
		"select mood 'ok'::int, $1::int":                                  mood,
		"select m from mood_view where id = $1":                           mood,
		"select id from plain_mood_view where id = $1":                    "",
		"select to_json(x) from (select rank from moods where id = $1) x": "rank_json(rank)" + volatile,
		"select to_json(data) from t where id = $1":                       "",
		"select '' || shade from shades where id = $1":                    "shade_text(shade)" + volatile,
		"select quote_nullable(shade) from shades where id = $1":          "shade_text(shade)" + volatile,
		"select s from shade_view where id = $1":                          "shade_text(shade)" + volatile,
	} {
		if p := prove(t, conn, sql); p.pure != (why == "") || !strings.Contains(p.why, why) {
			t.Errorf("%s\n got %q, want %q", sql, p.why, why)
		}
	}
	script(t, conn, "create cast (hue as bool) with function hue_bool(hue) as assignment")
	if p := prove(t, conn, "select id from hues where hue and id = $1"); !strings.Contains(p.why, "hue_bool(hue)") {
		t.Errorf("got %q", p.why)
	}
	if p := prove(t, conn, "select id from plain_moods where id = $1"); !p.pure {
		t.Errorf("got %q", p.why)
	}
}

// A name without parentheses is that of a function only as an attribute.
func TestProofOfAttributes(t *testing.T) {
	conn := coalescing(t, proofTables, `
		create type pair as (a int, b text);
		create domain good_pair as pair;
		create table base (id int, note text);
		create table derived (more int) inherits (base);
		create function note(text) returns text volatile language plpgsql as 'begin return $1; end';
		create function loud(text) returns text volatile language plpgsql as 'begin return $1; end';
		create function data(int, int) returns int volatile language plpgsql as 'begin return 1; end';
		create function noted(base) returns int volatile language plpgsql as 'begin return 1; end';
		create function good(good_pair) returns int volatile language plpgsql as 'begin return 1; end';
		create function general(anyelement) returns int volatile language plpgsql as 'begin return 1; end';
		create function further(base, int default 1) returns int volatile language plpgsql as 'begin return 1; end';
		create function listed(variadic base[]) returns int volatile language plpgsql as 'begin return 1; end';
		create function pair_add(int, pair) returns int volatile language plpgsql as 'begin return 1; end';
		create aggregate added(pair) (sfunc = pair_add, stype = int);
		create function nought() returns int volatile language plpgsql as 'begin return 1; end';
	`)
	for sql, why := range map[string]string{
		"select base.note, t.data from base, t where base.id = $1":                              "",
		"select note, data from base, t where base.id = $1":                                     "",
		"select noted, further as good from (values (1, 2)) x(noted, further) where noted = $1": "",
		"select noted as general, $1::int from (select 1 noted) x":                              "",
		"select b.nought, $1::int from (select 1 nought) b":                                     "",
		"select (data).note, $1::int from t":                                                    "note(text)" + volatile,
		"select x.note from unnest(array['a', $1]) x":                                           "note(text)" + volatile,
		"select unnest.note from unnest(array['a', $1])":                                        "note(text)" + volatile,
		"select text.note, $1::int from cast('a' as text)":                                      "note(text)" + volatile,
		"select doc.note, $1::int from t, cast(t.doc as text)":                                  "note(text)" + volatile,
		"select btrim.note, $1::int from trim('a')":                                             "note(text)" + volatile,
		"select x.general, $1::int from current_date x":                                         "general(anyelement)" + volatile,
		"select note(data) from t where id = $1":                                                "note(text)" + volatile,
		"select b.noted from base b where id = $1":                                              "noted(base)" + volatile,
		"select derived.noted from derived where id = $1":                                       "noted(base)" + volatile,
		`select public.base."noted" from public.base where id = $1`:                             "noted(base)" + volatile,
		"select b.general from base b where id = $1":                                            "general(anyelement)" + volatile,
		"select b.further from base b where id = $1":                                            "further(base,integer)" + volatile,
		"select b.listed from base b where id = $1":                                             "listed(base[])" + volatile,
		"select ($1::good_pair).good":                                                           "good(good_pair)" + volatile,
		"select ($1::pair).added":                                                               "pair_add(integer,pair)" + volatile,
	} {
		if p := prove(t, conn, sql); p.pure != (why == "") || !strings.Contains(p.why, why) {
			t.Errorf("%s\n got %q, want %q", sql, p.why, why)
		}
	}

	// What a row becomes by itself has attributes too.
	const loud = "select b.loud from base b where id = $1"
	if p := askProof(t, conn, shapeOf(loud), []uint32{23}); !p.pure {
		t.Errorf("got %q", p.why)
	}
	script(t, conn, "create cast (base as text) with inout as implicit")
	if p := prove(t, conn, loud); p.why != "function loud(text)"+volatile {
		t.Errorf("got %q", p.why)
	}
}

func TestProofOfParameters(t *testing.T) {
	conn := coalescing(t, `
		create schema "Odd";
		create type mood as enum ('sad', 'ok');
		create type pair as (a int, b text);
		create domain positive as int check (value > 0);
		create domain list as int[];
		create domain "Odd"."no "" list" as list;
		create domain couple as pair;
		create domain square as box;
		create type span as range (subtype = int);
		create domain near as text collate "C";
	`)
	element := func(array string, delimiter byte) []parameter {
		return []parameter{{array: oid(t, conn, array), delimiter: delimiter}}
	}
	cast := func(name string) []parameter { return []parameter{{array: 1009, cast: name, delimiter: ','}} }
	for name, want := range map[string][]parameter{
		"int":                element("int[]", ','),
		"text":               element("text[]", ','),
		"varchar":            element("varchar[]", ','),
		`"char"`:             element(`"char"[]`, ','),
		"name":               element("name[]", ','),
		"jsonb":              element("jsonb[]", ','),
		"uuid":               element("uuid[]", ','),
		"box":                element("box[]", ';'),
		"point":              element("point[]", ','),
		"mood":               element("mood[]", ','),
		"positive":           element("positive[]", ','),
		"square":             element("square[]", ';'),
		"near":               element("near[]", ','),
		"span":               element("span[]", ','),
		"int4range":          element("int4range[]", ','),
		"regclass":           element("regclass[]", ','),
		"int[]":              cast("pg_catalog._int4"),
		"mood[]":             cast("public._mood"),
		"int2vector":         cast("pg_catalog.int2vector"),
		"pair":               cast("public.pair"),
		"pair[]":             cast("public._pair"),
		"list":               cast("public.list"),
		"list[]":             cast("public._list"),
		`"Odd"."no "" list"`: cast(`"Odd"."no "" list"`),
		"couple":             cast("public.couple"),
		"name[]":             nil, // has a collation of its own
		"near[]":             nil,
		"record":             nil,
		"anyarray":           nil,
		"void":               nil,
		"unknown":            nil,
	} {
		s := shapeOf("select $1")
		if p := askProof(t, conn, s, []uint32{oid(t, conn, name)}); !slices.Equal(p.parameters, want) {
			t.Errorf("%s: got %v, want %v", name, p.parameters, want)
		}
	}

	s := shapeOf("select $1, $2")
	got := askProof(t, conn, s, []uint32{oid(t, conn, "box"), oid(t, conn, "int[]")}).parameters
	if want := append(element("box[]", ';'), cast("pg_catalog._int4")...); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if p := askProof(t, conn, s, []uint32{23, 4000000000}); p.parameters != nil || !p.pure {
		t.Errorf("a type that does not exist: %v", p)
	}

	script(t, conn, "create function own(text) returns int[] immutable language sql as 'select null::int[]';"+
		"create cast (text as int[]) with function own(text)")
	if p := askProof(t, conn, s, []uint32{23, oid(t, conn, "pair")}); p.parameters != nil {
		t.Errorf("with a cast from text: %v", p)
	}
	if p := askProof(t, conn, s, []uint32{23, 25}); p.parameters == nil {
		t.Error("with a cast from text, what does not need it does not travel")
	}
}

// oid is that of the type with this name.
func oid(t testing.TB, conn *pgconn.PgConn, name string) uint32 {
	t.Helper()
	result := conn.ExecParams(context.Background(), "select $1::regtype::oid::int8 - 0", [][]byte{[]byte(name)}, nil, nil, nil).Read()
	if result.Err != nil {
		t.Fatal(result.Err)
	}
	var n uint32
	for _, c := range result.Rows[0][0] {
		n = n*10 + uint32(c-'0')
	}
	return n
}

// Whoever may query can prove, wherever and with whatever settings.
func TestProofForAnybody(t *testing.T) {
	conn := coalescing(t, proofTables, `
		create schema trap;
		create function trap.always(name, name) returns bool immutable language sql as 'select false';
		create operator trap.= (leftarg = name, rightarg = name, function = trap.always);
		create function trap.always(oid, oid) returns bool immutable language sql as 'select false';
		create operator trap.= (leftarg = oid, rightarg = oid, function = trap.always);
		create function trap.unnest(anyarray) returns setof anyelement immutable language sql as 'select $1[1] where false';
		create domain trap.text as int;
		grant usage on schema trap to pg_monitor;
	`)
	defer script(t, conn, "rollback; reset role")
	s := shapeOf("select r from random_view where id = $1")
	script(t, conn, "set search_path = trap, pg_catalog; set standard_conforming_strings = off; set role pg_monitor; begin read only")
	if p := askProof(t, conn, s, []uint32{23}); p.pure || !strings.Contains(p.why, "random()") || p.parameters == nil {
		t.Errorf("got %v", p)
	}
	if p := askProof(t, conn, shapeOf("select $1"), []uint32{23}); !p.pure {
		t.Errorf("got %v", p)
	}
}

func TestReadProofRefusesNonsense(t *testing.T) {
	for _, row := range [][]string{nil, {"t", ""}, {"t", "", "x"}, {"t", "", "[[1]]"}, {"t", "", `[["a","",","]]`}, {"t", "", `[[1,"",""]]`}} {
		if p, err := readProof(row); err == nil {
			t.Errorf("%q: %v", row, p)
		}
	}
}

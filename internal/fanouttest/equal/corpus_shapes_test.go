package equal

import (
	"database/sql/driver"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// corpusSchema has what the shapes use. What a policy or a view calls is the point of the smaller tables.
const corpusSchema = `
create type mood as enum ('sad', 'ok', 'happy');
create type rank as enum ('low', 'mid', 'high');
create type pair as (n int, t text);
create type floatspan as range (subtype = float8);
create domain positive as int check (value > 0);
create domain tag as text check (value = lower(value));
create domain tags as text[] check (cardinality(value) < 9);
create domain good_pair as pair check ((value).n is null or (value).n >= 0);
create domain window_of as int4range check (not isempty(value));
create type nested as (p pair, m mood, list int[]);

create table team (id int primary key, name text not null, parent int references team, budget numeric(10, 2));
insert into team select n, 'team ' || n, nullif(n / 3, 0), n * 100.5 from generate_series(1, 30) n;

create table person (
	id int primary key, team_id int references team, name text not null, nick varchar(10), code char(4), feeling mood,
	level rank, age positive, score numeric(8, 2), ratio float8, small int2, big int8, active bool, born date,
	seen timestamptz, met timestamp, wakes time, pause interval, uid uuid, photo bytea, doc jsonb, form json, lucky int[],
	labels text[], feelings mood[], tags tags, mate pair, mates pair[], mark good_pair, valid int4range, stay tstzrange,
	band floatspan, addr inet, net cidr, bits bit(8), spot point, words tsvector, strict text collate "C"
);
insert into person select n, 1 + n % 29, 'person ' || n, nullif('n' || n % 5, 'n0'), 'c' || n % 7,
	(array['sad', 'ok', 'happy', null])[1 + n % 4]::mood, (array['low', 'mid', 'high'])[1 + n % 3]::rank, 18 + n % 60,
	n * 1.25, n / 7.0, n % 100, n * 10000000000, n % 3 = 0, date '2000-01-01' + n, timestamptz '2024-01-01 00:00Z' + n * interval '1 hour',
	timestamp '2024-01-01' + n * interval '90 minutes', time '06:00' + n * interval '1 minute', n * interval '1 day 1 second',
	('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, decode(lpad(to_hex(n), 4, '0'), 'hex'),
	jsonb_build_object('n', n, 'k' || n % 4, jsonb_build_array(n, n % 2 = 0, null), 'tags', jsonb_build_array('t' || n % 3)),
	json_build_object('n', n), array[n, n % 10, null], array['l' || n % 6, 'x'], array['ok', 'sad']::mood[], array['a', 'b' || n % 3],
	row(n % 9, 'mate')::pair, array[row(n, 'a'), row(n + 1, 'b')]::pair[], row(n % 5, 'good')::good_pair, int4range(n, n + 10),
	tstzrange('2024-01-01Z', '2024-01-01Z'::timestamptz + n * interval '1 day'), floatspan(n, n + 0.5),
	('10.0.' || n / 256 || '.' || n % 256)::inet, '10.0.0.0/8', (n % 256)::bit(8), point(n, -n), to_tsvector('simple', 'word' || n % 10 || ' all'),
	chr(64 + n % 50)
from generate_series(1, 300) n;

create table visit (id bigint primary key, person_id int not null references person, at timestamptz not null, amount numeric(6, 2), note text);
insert into visit select n, 1 + n * 7 % 300, timestamptz '2024-02-01Z' + n * interval '10 minutes', nullif(n % 50, 0) * 1.5, nullif('note ' || n % 20, 'note 0')
from generate_series(1, 600) n;
create index on visit (person_id);

create table p (id int primary key, p int, q int, ord int, p1 int, "$1" text, "select" text);
insert into p select n, n % 4, n % 5, n % 6, n % 7, 'dollar ' || n, 'word ' || n % 3 from generate_series(1, 100) n;
create table ord (id int primary key, p1 text);
insert into ord select n, 'ord ' || n from generate_series(1, 20) n;
create table "Odd ""Name $1" (id$1 int primary key, "a $2 b" text);
insert into "Odd ""Name $1" select n, 'odd ' || n from generate_series(1, 20) n;
create table nothing (id int primary key, data text);
create table locked (id int primary key, data text);
insert into locked select n, 'row ' || n from generate_series(1, 50) n;
create table log (what text);
create sequence counter;

create table event (id int, kind text, primary key (kind, id)) partition by list (kind);
create table event_a partition of event for values in ('a');
create table event_rest partition of event default;
insert into event select n, chr(97 + n % 3) from generate_series(1, 60) n;
create table animal (id int, name text);
create table dog (barks bool) inherits (animal);
insert into animal select n, 'animal ' || n from generate_series(1, 10) n;
insert into dog select n, 'dog ' || n, n % 2 = 0 from generate_series(5, 15) n;

create function twice(n int) returns int immutable language sql return n * 2;
create function tag(tag) returns tag immutable language sql as $$ select reverse($1) $$;
create function slow_twice(n int) returns int immutable language plpgsql as $$ begin return n * 2; end $$;
create function team_name(id int) returns text stable language sql as $$ select name from team where team.id = $1 $$;
create function name_of(id int) returns text stable language plpgsql as $$ begin return (select name from person where person.id = $1); end $$;
create function people_of(team int) returns setof person stable language sql as $$ select * from person where team_id = $1 order by id $$;
create function pairs_of(n int, out a int, out b text) returns setof record immutable language sql as $$ select i, 'b' || i from generate_series(1, n) i $$;
create function greet(who text, word text default 'hello', variadic rest int[] default '{}') returns text immutable language sql
	as $$ select word || ' ' || who || cardinality(rest) $$;
create function salute(who text, word text, mark text default '!') returns text immutable language sql as $$ select word || ' ' || who || mark $$;
create function initial(person) returns text immutable language sql as $$ select left($1.name, 1) $$;
create function note(what text) returns text volatile security definer language plpgsql as $$ begin insert into log values (what); return what; end $$;
create function note_number() returns int volatile language sql as $$ select length(note('n')) $$;
create function note_true() returns bool volatile language sql as $$ select note('t') is not null $$;
create function own_random() returns text volatile language sql as $$ select md5(random()::text) $$;
create function untrue_stable() returns text stable language plpgsql as $$ begin return md5(random()::text); end $$;
create function defaulted(n int, drawn bigint default nextval('counter')) returns bigint immutable language sql as $$ select drawn $$;
create function shout(person) returns text volatile language sql as $$ select note(upper($1.name)) $$;
create function noted_equal(int, int) returns bool volatile language plpgsql as $$ begin perform note('='); return $1 = $2; end $$;
create operator === (function = noted_equal, leftarg = int, rightarg = int);
create function plain_equal(int, int) returns bool immutable language sql as $$ select $1 = $2 $$;
create operator ==== (function = plain_equal, leftarg = int, rightarg = int);
create function noted_other(int, int) returns bool volatile language plpgsql as $$ begin perform note('<>'); return $1 <> $2; end $$;
create function plain_same(int, int) returns bool immutable language plpgsql as $$ begin return $1 = $2; end $$;
create operator |<>| (function = noted_other, leftarg = int, rightarg = int);
create operator |=| (function = plain_same, leftarg = int, rightarg = int, negator = |<>|);
create function noted_mood(mood) returns int volatile language plpgsql as $$ begin perform note('cast'); return length($1::text); end $$;
create cast (mood as int) with function noted_mood(mood);
create type grade as enum ('a', 'b');
create function noted_grade(grade) returns text volatile language plpgsql as $$ begin perform note('cast'); return 'grade'; end $$;
create cast (grade as text) with function noted_grade(grade);
create function rank_number(rank) returns int immutable language sql as $$ select length($1::text) $$;
create cast (rank as int) with function rank_number(rank);
create function noted_add(int, int) returns int volatile language plpgsql as $$ begin perform note('+'); return $1 + coalesce($2, 0); end $$;
create aggregate noted_sum(int) (sfunc = noted_add, stype = int, initcond = '0');
create function plain_add(int, int) returns int immutable language sql as $$ select $1 + coalesce($2, 0) $$;
create aggregate plain_sum(int) (sfunc = plain_add, stype = int, initcond = '0');
create function noted_check(int) returns bool volatile language plpgsql as $$ begin perform note('check'); return true; end $$;
create domain noticed as int check (noted_check(value));
create function nap(seconds float8) returns text stable language plpgsql as $$ begin perform pg_sleep(seconds); return 'slept'; end $$;
create function mine(grp int) returns bool stable language plpgsql as $$ begin return grp % 2 = 0; end $$;

create view active_person as select id, name, team_id, score from person where active;
create view active_team as select t.id, t.name, count(*) as members from active_person a join team t on t.id = a.team_id group by t.id;
create view drawing_person as select id, name, own_random() as drawn from person;
create view drawing_once as select r.drawn from (select own_random() as drawn) r;
create view over_drawing as select id, name from drawing_person where drawn is not null;
create view noted_person as select id, name from person where note(name) is not null;
create view counted as select id, (select nextval('counter')) as n from team;
create materialized view summary as select team_id, count(*) as members, sum(score) as total from person group by team_id;

create table secret (id int primary key, grp int, data text);
insert into secret select n, n % 5, 'secret ' || n from generate_series(1, 60) n;
create table tenant_secret as table secret;
create table plain_secret as table secret;
create table drawn_secret as table secret;
create table noted_secret as table secret;
create view secret_view as select * from secret;
alter table secret enable row level security;
alter table secret force row level security;
create policy p on secret using (mine(grp));
alter table tenant_secret enable row level security;
alter table tenant_secret force row level security;
create policy p on tenant_secret using (grp = current_setting('corpus.tenant')::int);
alter table plain_secret enable row level security;
alter table plain_secret force row level security;
create policy p on plain_secret using (grp in (select t.id from team t where t.id < 3));
alter table drawn_secret enable row level security;
alter table drawn_secret force row level security;
create policy p on drawn_secret using (grp < 3 and random() < 2);
alter table noted_secret enable row level security;
alter table noted_secret force row level security;
create policy p on noted_secret using (grp < 3 and note(data) is not null);

grant select, insert, update, delete on all tables in schema public to public;
grant usage, select on all sequences in schema public to public;
`

const (
	logged  = "select count(*) from log"
	counter = "select last_value - (not is_called)::int from counter"
)

// each is an execution for each of the values, the only argument.
func each[T any](values ...T) (args [][]any) {
	for _, v := range values {
		args = append(args, []any{v})
	}
	return args
}

// orNull adds an execution whose arguments are all null, as generated code passes it for a nil pointer.
func orNull(args [][]any) [][]any { return append(args, make([]any, len(args[0]))) }

// ids are arguments that match one row, the same again, and none.
func ids() [][]any { return each[int32](1, 7, 7, 29, 1000, -1) }

func ptr[T any](v T) *T { return &v }

func uid(n int) (u pgtype.UUID) {
	if err := u.Scan(fmt.Sprintf("00000000-0000-0000-0000-%012d", n)); err != nil {
		panic(err)
	}
	return u
}

func day(n int) time.Time { return time.Date(2024, 1, 1+n, 0, 0, 0, 0, time.UTC) }

func someDate(n int) pgtype.Date { return pgtype.Date{Time: day(n), Valid: true} }

func someTime(n int) pgtype.Timestamptz { return pgtype.Timestamptz{Time: day(n), Valid: true} }

func intRange(lower, upper int32) pgtype.Range[pgtype.Int4] {
	return pgtype.Range[pgtype.Int4]{
		Lower: pgtype.Int4{Int32: lower, Valid: true}, Upper: pgtype.Int4{Int32: upper, Valid: true},
		LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true,
	}
}

// A feeling is an enum as sqlc generates it, and a nullFeeling one that may be null.
type feeling string

type nullFeeling struct {
	feeling feeling
	valid   bool
}

func (n nullFeeling) Value() (driver.Value, error) {
	if !n.valid {
		return nil, nil
	}
	return string(n.feeling), nil
}

// A couple is the composite type pair.
type couple struct {
	N *int32
	T *string
}

// corpus is all shapes.
func corpus() []shape {
	var all []shape
	for _, group := range [][]shape{
		lookUpShapes(), joinShapes(), aggregateShapes(), setShapes(), subqueryShapes(), typeShapes(), arrayShapes(),
		jsonShapes(), textShapes(), nameShapes(), functionShapes(), securityShapes(), writingShapes(), failingShapes(),
		clauseShapes(),
	} {
		all = append(all, group...)
	}
	return all
}

func lookUpShapes() []shape {
	return []shape{
		{name: "PersonByID", sql: "select * from person where id = $1", args: orNull(ids()), expect: yes},
		{name: "PersonName", sql: "select name from person where id = $1", args: ids(), expect: yes},
		{name: "PersonByName", sql: "select id, name, nick from person where name = $1", args: orNull(each("person 1", "person 2", "person 2", "", "no'body", `back\slash`)), expect: yes},
		{name: "PersonByNick", sql: "select id, nick from person where nick = $1 order by id", args: each(someText("n1"), someText("n1"), someText("n4"), pgtype.Text{}, someText("x")), ordered: true, expect: yes},
		{name: "PersonByCode", sql: "select id, code from person where code = $1 order by id limit 4", args: orNull(each("c1", "c2  ", "c2", "c", "")), ordered: true, expect: yes},
		{name: "PersonByStrict", sql: `select id, strict from person where strict > $1 order by strict, id limit 3`, args: each("a", "Z", "B", "B", "~"), ordered: true, expect: yes},
		{name: "PeopleInRange", sql: "select id from person where id between $1 and $2 order by id", args: [][]any{{1, 3}, {5, 4}, {298, 400}, {1, 3}, {nil, 3}, {nil, nil}}, ordered: true, expect: yes},
		{name: "PeopleAfter", sql: "select id, name from person where id > $1 order by id limit 5", args: ids(), ordered: true, expect: yes},
		{name: "PeopleBefore", sql: "select id from person where id < $1 order by id desc limit 3 offset 1", args: ids(), ordered: true, expect: yes},
		{name: "PageOfPeople", sql: "select id from person order by id limit $1 offset $2", args: [][]any{{3, 0}, {3, 3}, {3, 3}, {0, 0}, {nil, 298}}, ordered: true, expect: yes},
		{name: "FirstPeople", sql: "select id, name from person where team_id = $2 order by id limit $1", args: [][]any{{int32(2), int32(1)}, {int32(1), int32(2)}, {int32(2), int32(3)}, {int32(2), int32(1)}}, ordered: true, expect: yes},
		{name: "FetchFirst", sql: "select id from person where id > $1 order by team_id, id fetch first 3 rows only", args: ids(), ordered: true, expect: yes},
		{name: "FetchWithTies", sql: "select team_id from person where id > $1 order by team_id fetch first 2 rows with ties", args: ids(), ordered: true, expect: yes},
		{name: "KeysetPage", sql: "select id, seen from person where (seen, id) > ($1, $2) order by seen, id limit 4", args: [][]any{{someTime(0), 1}, {someTime(1), 24}, {someTime(1), 24}, {someTime(50), 1}, {pgtype.Timestamptz{}, 1}}, ordered: true, expect: yes},
		{name: "Nargs", sql: "select id, nick from person where ($1::text is null or nick = $1) and ($2::int is null or team_id = $2) and id < 40 order by id", args: [][]any{{nil, nil}, {ptr("n1"), nil}, {nil, ptr(int32(3))}, {ptr("n1"), ptr(int32(3))}, {ptr("n1"), nil}, {(*string)(nil), (*int32)(nil)}}, ordered: true, expect: yes},
		{name: "NargCoalesce", sql: "select id from person where team_id = coalesce($1, team_id) and name like coalesce($2, '%') and id < 30", args: [][]any{{nil, nil}, {2, nil}, {nil, "person 1%"}, {2, "person 1%"}}, expect: yes},
		{name: "Distinct", sql: "select distinct code from person where id < $1", args: ids(), expect: yes},
		{name: "DistinctOn", sql: "select distinct on (team_id) team_id, id, name from person where id < $1 order by team_id, id desc", args: each[int32](10, 40, 40, 0, 100), ordered: true, expect: yes},
		{name: "DistinctOnParam", sql: "select distinct on (id % $1) id from person order by id % $1, id", args: each[int32](1, 2, 3, 3, 5), ordered: true, expect: yes},
		{name: "OrderByParam", sql: "select id from person where id < 9 order by case when $1::bool then id end desc, id", args: orNull(each(true, false, true)), ordered: true, expect: yes},
		{name: "OrderByPosition", sql: "select name, id from person where team_id = $1 order by 2 desc", args: ids(), ordered: true, expect: yes},
		{name: "OrderByCollation", sql: `select name from person where team_id = $1 order by name collate "C" desc nulls last`, args: ids(), ordered: true, expect: yes},
		{name: "OrderByNothing", sql: "select id from person where team_id = $1 order by $1::int, id", args: ids(), ordered: true, expect: yes},
		{name: "NoRowsEver", sql: "select * from nothing where id = $1", args: ids(), expect: yes},
		{name: "NoColumns", sql: "select from person where id < $1", args: each[int32](1, 2, 9, 9, 0), expect: yes},
		{name: "NoTable", sql: "select $1::int + 1 as n", args: orNull(ids()), expect: yes},
		{name: "NoTableNoName", sql: "select $1::int", args: orNull(ids()), expect: yes},
		{name: "BareParam", sql: "select $1", args: orNull(each("a", "b", "b", "")), expect: yes},
		{name: "ManyParams", sql: "select $1::int a, $2::int b, $3::int c, $4::int d, $5::int e, $6::int f, $7::int g, $8::int h, $9::int i, $10::int j, $11::int k, $12::int l, $1::text || $11 || $2 m",
			args: [][]any{manyInts(0, 12), manyInts(20, 12), manyInts(40, 12), manyInts(0, 12)}, expect: yes},
		{name: "ManyParamsWhere", sql: "select id from person where id in ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) order by id", args: [][]any{manyInts(1, 13), manyInts(5, 13), manyInts(295, 13), manyInts(1, 13)}, ordered: true, expect: yes},
		{name: "ParamsOutOfOrder", sql: "select id, $2::text as word from person where team_id = $3 and id > $1 order by id limit 2", args: [][]any{{1, "a", 2}, {5, "b", 3}, {1, nil, 2}, {nil, "c", 3}}, ordered: true, expect: yes},
		{name: "ParamTwice", sql: "select id from person where id = $1 or team_id = $1 order by id", args: ids(), ordered: true, expect: yes},
		{name: "NoParams", sql: "select count(*) from person", args: [][]any{{}, {}, {}, {}}, expect: no},
		{name: "NoParamsRows", sql: "select id, name from team order by id", args: [][]any{{}, {}, {}}, ordered: true, expect: no},
		{name: "OnlyTable", sql: "select id, name from only animal where id > $1", args: ids(), expect: yes},
		{name: "Inherited", sql: "select id, name, tableoid::regclass::text from animal where id = $1", args: each[int32](5, 6, 6, 15, 16), expect: yes},
		{name: "Partitioned", sql: "select id, kind from event where kind = $1 order by id", args: orNull(each("a", "b", "b", "zz")), ordered: true, expect: yes},
		{name: "Catalogue", sql: "select relname, relkind, relpersistence from pg_class where relname = $1", args: each("person", "team", "team", "missing"), expect: yes},
		{name: "SystemColumns", sql: "select ctid, tableoid, id from person where id = $1", args: ids(), expect: yes},
		{name: "MixedGoTypes", sql: "select id, name from person where id = $1", args: [][]any{{1}, {int64(2)}, {"3"}, {int16(4)}, {pgtype.Int4{Int32: 5, Valid: true}}, {nil}, {ptr(int32(6))}}, expect: yes},
		{name: "TableSample", sql: "select id from person tablesample system (100) where id = $1", args: ids()},
		{name: "Semicolon", sql: "select id from person where id = $1;", args: ids(), expect: yes},
	}
}

func manyInts(from, n int) (args []any) {
	for i := range n {
		args = append(args, int32(from+i))
	}
	return args
}

func joinShapes() []shape {
	return []shape{
		{name: "Join", sql: "select person.id, team.name from person join team on team.id = person.team_id where person.id = $1", args: ids(), expect: yes},
		{name: "Embed", sql: "select person.id, person.name, team.id, team.name, team.parent from person join team on team.id = person.team_id where team.id = $1 order by person.id", args: ids(), ordered: true, expect: yes},
		{name: "EmbedStars", sql: "select team.*, parent.* from team left join team parent on parent.id = team.parent where team.id = $1", args: ids(), expect: yes},
		{name: "LeftJoin", sql: "select person.id, visit.id, visit.note from person left join visit on visit.person_id = person.id and visit.amount > $2 where person.id = $1 order by 2 nulls first", args: [][]any{{1, 10}, {2, 50}, {2, 1000}, {999, 1}, {nil, nil}}, ordered: true, expect: yes},
		{name: "RightJoin", sql: "select person.id, team.id from person right join team on team.id = person.team_id and person.id < $1 where team.id < 5", args: ids(), expect: yes},
		{name: "FullJoin", sql: "select a.id, b.id from (select id from team where id < $1) a full join (select id from team where id > $2) b on a.id = b.id order by 1, 2", args: [][]any{{3, 1}, {5, 28}, {3, 1}, {0, 40}}, ordered: true, expect: yes},
		{name: "CrossJoin", sql: "select a.id, b.id from team a cross join team b where a.id < $1 and b.id < $2", args: [][]any{{3, 3}, {2, 4}, {1, 1}, {3, 3}}, expect: yes},
		{name: "SelfJoin", sql: "select child.name, parent.name from team child join team parent on child.parent = parent.id where parent.id = $1 order by child.id", args: ids(), ordered: true, expect: yes},
		{name: "JoinUsing", sql: "select id, a.name, o.p1 from animal a join ord o using (id) where id = $1", args: ids(), expect: yes},
		{name: "NaturalJoin", sql: "select * from animal natural join ord where id <= $1", args: ids(), expect: yes},
		{name: "ThreeTables", sql: "select v.id, pe.name, t.name from visit v join person pe on pe.id = v.person_id join team t on t.id = pe.team_id where v.at >= $1 and v.at < $2 order by v.id limit 6", args: [][]any{{someTime(31), someTime(32)}, {someTime(33), someTime(34)}, {someTime(31), someTime(32)}, {someTime(0), someTime(1)}}, ordered: true, expect: yes},
		{name: "Lateral", sql: "select t.id, l.id, l.name from team t, lateral (select id, name from person where team_id = t.id order by id desc limit 2) l where t.id < $1 order by 1, 2", args: each[int32](2, 4, 4, 0), ordered: true, expect: yes},
		{name: "LateralParam", sql: "select t.id, l.id from team t left join lateral (select id from person where team_id = t.id and id > $1 order by id limit 1) l on true where t.id < 6 order by t.id", args: orNull(ids()), ordered: true, expect: yes},
		{name: "SemiJoin", sql: "select id from team where exists (select from person where team_id = team.id and id < $1) order by id", args: ids(), ordered: true, expect: yes},
		{name: "AntiJoin", sql: "select id from team where not exists (select 1 from person where team_id = team.id and id > $1) order by id", args: ids(), ordered: true, expect: yes},
		{name: "JoinWholeRows", sql: "select team, person.mate from person join team on team.id = person.team_id where person.id = $1", args: ids(), expect: yes},
		{name: "JoinValues", sql: "select v.word, person.id from person join (values (1, 'one'), (2, 'two')) v(n, word) on v.n = person.id where person.id <= $1", args: ids(), expect: yes},
	}
}

func aggregateShapes() []shape {
	return []shape{
		{name: "Count", sql: "select count(*) from person where team_id = $1", args: orNull(ids()), expect: yes},
		{name: "CountNone", sql: "select count(*), sum(id), max(data) from nothing where id = $1", args: ids(), expect: yes},
		{name: "Sums", sql: "select sum(amount), avg(amount), min(at), max(note), count(distinct note) from visit where person_id = $1", args: ids(), expect: yes},
		{name: "GroupBy", sql: "select team_id, count(*) from person where id < $1 group by team_id order by team_id", args: ids(), ordered: true, expect: yes},
		{name: "GroupByUnordered", sql: "select feeling, count(*), sum(score) from person where id < $1 group by feeling", args: ids(), expect: yes},
		{name: "GroupByParam", sql: "select id % $1 as rest, count(*) from person group by id % $1 order by 1", args: each[int32](1, 2, 3, 3, 5), ordered: true, expect: yes},
		{name: "Having", sql: "select team_id from person group by team_id having count(*) > $1 and max(id) < $2 order by 1", args: [][]any{{1, 290}, {10, 280}, {1, 290}, {100, 1}}, ordered: true, expect: yes},
		{name: "GroupingSets", sql: "select team_id, feeling, count(*), grouping(team_id, feeling) from person where id < $1 group by grouping sets ((team_id), (feeling), ())", args: each[int32](5, 9, 9, 0), expect: no},
		{name: "Rollup", sql: "select level, feeling, sum(id) from person where id < $1 group by rollup (level, feeling)", args: each[int32](5, 9, 9, 0), expect: no},
		{name: "Filter", sql: "select count(*) filter (where id < $1), sum(id) filter (where feeling = $2) from person", args: [][]any{{10, feeling("sad")}, {20, feeling("ok")}, {10, feeling("sad")}, {nil, nil}}, expect: yes},
		{name: "StringAgg", sql: "select string_agg(name, $2 order by id desc) from person where team_id = $1", args: [][]any{{1, ", "}, {2, ""}, {2, nil}, {99, ","}}, expect: yes},
		{name: "ArrayAgg", sql: "select array_agg(id order by id), array_agg(distinct feeling) from person where team_id = $1", args: ids(), expect: yes},
		{name: "JSONAgg", sql: "select jsonb_agg(t order by t.id), jsonb_object_agg(t.id, t.name) from (select id, name from person where team_id = $1) t", args: ids(), expect: yes},
		{name: "Percentile", sql: "select percentile_cont(0.5) within group (order by score) from person where team_id = $1", args: ids(), expect: yes},
		{name: "PercentileParam", sql: "select percentile_disc($1) within group (order by id) from person", args: each(0.1, 0.5, 0.5, 1.0), expect: yes},
		{name: "AggregateOfParam", sql: "select sum($1::int) from person where id < 10", args: ids()},
		{name: "CountOfParam", sql: "select count($1::text) from person where id < 10", args: orNull(each("a", "a", "b"))},
		{name: "FilterOfParam", sql: "select count(*) filter (where $1::bool) from person", args: orNull(each(true, false, true))},
		{name: "InnerAggregateOfParam", sql: "select id, (select max($1::int) from person) from team where id < 4 order by id", args: ids(), ordered: true},
		{name: "BoolAnd", sql: "select bool_and(active), every(id > $1), bit_or(small) from person where id < 40", args: ids(), expect: yes},
		{name: "OwnAggregate", sql: "select plain_sum(id) from person where id < $1", args: ids(), expect: yes},
		{name: "RowNumber", sql: "select id, row_number() over (order by id desc), rank() over w, sum(id) over w from person where team_id = $1 window w as (partition by feeling order by id) order by id", args: ids(), ordered: true, expect: yes},
		{name: "WindowParam", sql: "select id, lag(name, $2) over (order by id), ntile($3) over (order by id) from person where team_id = $1 order by id", args: [][]any{{1, 1, 2}, {2, 2, 3}, {2, 2, 3}, {3, 1, 1}}, ordered: true, expect: yes},
		{name: "WindowFrame", sql: "select id, sum(id) over (order by id rows between 1 preceding and current row) from person where team_id = $1 order by id", args: ids(), ordered: true, expect: yes},
		{name: "WindowFrameParam", sql: "select id, sum(id) over (order by id rows between $1 preceding and current row) from person where id < 9 order by id", args: each[int64](1, 2, 2, 5), ordered: true, expect: yes},
		{name: "TopOfGroups", sql: "select * from (select team_id, id, row_number() over (partition by team_id order by score desc) n from person) r where n <= 2 and team_id = $1 order by n", args: ids(), ordered: true, expect: yes},
	}
}

func setShapes() []shape {
	return []shape{
		{name: "Union", sql: "select id from person where id = $1 union select id from team where id = $1 + 1", args: ids(), expect: yes},
		{name: "UnionAll", sql: "select id, name from person where id = $1 union all select id, name from team where id = $1 order by name", args: ids(), ordered: true, expect: yes},
		{name: "Except", sql: "select id from team where id < $1 except select team_id from person where id > $2", args: [][]any{{10, 295}, {40, 290}, {40, 290}, {0, 0}}, expect: yes},
		{name: "Intersect", sql: "select id from team where id > $1 intersect all select team_id from person where id < $2 order by 1 limit 3", args: [][]any{{1, 10}, {5, 30}, {5, 30}, {40, 1}}, ordered: true, expect: yes},
		{name: "UnionOfParams", sql: "select $1::int as n union all select $2 union select 3", args: [][]any{{1, 2}, {3, 3}, {nil, 1}, {1, 2}}, expect: yes},
		{name: "ParenthesisedUnion", sql: "(select id from person where id > $1 order by id limit 1) union all (select id from person where id < $1 order by id desc limit 1)", args: ids(), expect: yes},
		{name: "Values", sql: "values ($1::int, 'a'), ($2, 'b')", args: [][]any{{1, 2}, {3, nil}, {1, 2}}, expect: yes},
		{name: "ValuesOrdered", sql: "values ($1::int), ($2), (5) order by 1 desc", args: [][]any{{1, 20}, {30, 2}, {1, 20}}, ordered: true},
		{name: "FromValues", sql: "select v.n, v.t from (values ($1::int, $2::text), (0, 'zero')) v(n, t) where v.n >= $3", args: [][]any{{1, "a", 0}, {2, "b", 1}, {2, "b", 1}, {nil, nil, 0}}, expect: yes},
		{name: "Series", sql: "select n from generate_series(1, $1::int) n", args: orNull(each[int32](3, 0, 5, 5)), expect: yes},
		{name: "SeriesStep", sql: "select d::date from generate_series($1::timestamp, $2::timestamp, interval '1 day') d order by 1 desc", args: [][]any{{day(0), day(2)}, {day(3), day(3)}, {day(3), day(1)}, {day(0), day(2)}}, ordered: true, expect: yes},
		{name: "SetReturningInSelect", sql: "select id, generate_series(1, $2) from person where id = $1", args: [][]any{{1, 3}, {2, 0}, {2, 2}, {2, 2}, {999, 2}}, expect: yes},
		{name: "TwoSetsInSelect", sql: "select generate_series(1, $1), unnest(array['a', 'b'])", args: each[int32](1, 2, 3, 3), expect: yes},
		{name: "UnnestOrdinality", sql: "select o.n, o.x from unnest($1::text[]) with ordinality o(x, n) order by o.n", args: orNull(each([]string{"a", "b"}, []string{}, []string{"c"}, []string{"c"})), ordered: true, expect: yes},
		{name: "UnnestTwo", sql: "select * from unnest($1::int[], $2::text[]) u(a, b)", args: [][]any{{[]int32{1, 2}, []string{"a"}}, {[]int32{3}, []string{"b", "c"}}, {nil, nil}, {[]int32{1, 2}, []string{"a"}}}, expect: yes},
		{name: "RowsFrom", sql: "select * from rows from (generate_series(1, $1), generate_series(5, $2)) with ordinality r(a, b, n) order by n", args: [][]any{{1, 6}, {3, 5}, {3, 5}, {0, 0}}, ordered: true, expect: yes},
		{name: "RegexpMatches", sql: "select regexp_matches($1, '[a-z]', 'g')", args: each("abc", "", "a1b", "a1b"), expect: yes},
		{name: "SplitToTable", sql: "select word from regexp_split_to_table($1, ',') word where word <> ''", args: each("a,b", ",", "x", "x"), expect: yes},
	}
}

func subqueryShapes() []shape {
	return []shape{
		{name: "CTE", sql: "with chosen as (select id, name from person where team_id = $1) select chosen.id, name from chosen order by id", args: ids(), ordered: true, expect: yes},
		{name: "CTEWithoutParam", sql: "with teams as (select id, name from team) select person.id, teams.name from person join teams on teams.id = team_id where person.id = $1", args: ids(), expect: yes},
		{name: "CTEMaterialized", sql: "with c as materialized (select id from person where id < $1), d as not materialized (select id * 2 as id from c) select c.id, d.id from c join d on d.id = c.id order by 1", args: each[int32](5, 9, 9, 0), ordered: true, expect: yes},
		{name: "CTETwice", sql: "with c as (select id from team where id < $1) select a.id, b.id from c a join c b on a.id = b.id + 1 order by 1", args: each[int32](5, 9, 9, 0), ordered: true, expect: yes},
		{name: "NestedCTE", sql: "with o as (with i as (select $1::int as n) select n + 1 as n from i) select n from o", args: orNull(ids()), expect: yes},
		{name: "CTEInSubquery", sql: "select (with c as (select name from team where id = $1) select name from c) as name", args: ids(), expect: yes},
		{name: "Recursive", sql: "with recursive up as (select id, parent, 0 as depth from team where id = $1 union all select t.id, t.parent, depth + 1 from team t join up on up.parent = t.id) select id, depth from up order by depth", args: orNull(each[int32](1, 30, 13, 13, 99)), ordered: true, expect: yes},
		{name: "RecursiveDown", sql: "with recursive down(id) as (select $1::int union select team.id from team, down where team.parent = down.id) select team.id, team.name from down join team using (id)", args: each[int32](1, 2, 2, 5, 99), expect: yes},
		{name: "RecursiveCount", sql: "with recursive n(i) as (values (1) union all select i + 1 from n where i < $1) select sum(i) from n", args: each[int32](1, 10, 10, 100), expect: yes},
		{name: "ScalarSubquery", sql: "select id, (select name from team where team.id = team_id) as team, (select count(*) from visit where person_id = person.id and amount > $2) as visits from person where id = $1", args: [][]any{{1, 5}, {2, 10}, {2, 10}, {999, 0}}, expect: yes},
		{name: "UncorrelatedSubquery", sql: "select id, (select max(id) from team) as most from person where id = $1", args: ids(), expect: yes},
		{name: "InSubquery", sql: "select id from person where team_id in (select id from team where parent = $1) order by id limit 5", args: ids(), ordered: true, expect: yes},
		{name: "NotInSubquery", sql: "select id from team where id not in (select team_id from person where id < $1) order by id", args: orNull(each[int32](10, 20, 20, 0)), ordered: true, expect: yes},
		{name: "AnySubquery", sql: "select id from team where budget > all (select score from person where team_id = $1 and score is not null) and id < 8 order by id", args: ids(), ordered: true, expect: yes},
		{name: "ArraySubquery", sql: "select t.name, array(select id from person where team_id = t.id and id > $2 order by id) from team t where t.id = $1", args: [][]any{{1, 0}, {2, 100}, {2, 100}, {99, 0}}, expect: yes},
		{name: "FromSubquery", sql: "select s.id, s.total from (select person_id as id, sum(amount) as total from visit group by person_id) s where s.id = $1", args: ids(), expect: yes},
		{name: "DeepSubquery", sql: "select id from person where team_id = (select id from team where id = (select parent from team where id = (select parent from team where id = $1))) order by id", args: each[int32](9, 10, 30, 30, 1), ordered: true, expect: yes},
		{name: "RowComparison", sql: "select id from person where (team_id, feeling) = (select team_id, feeling from person where id = $1) order by id", args: ids(), ordered: true, expect: yes},
		{name: "Case", sql: "select id, case when id = $1 then 'this' when id < $1 then 'before' else $2 end as place from person where id < 5 order by id", args: [][]any{{2, "after"}, {3, nil}, {3, nil}, {nil, "x"}}, ordered: true, expect: yes},
		{name: "LimitedSubquery", sql: "select count(*) from (select 1 from visit where person_id < $1 limit 7) s", args: ids(), expect: yes},
		{name: "LimitParamInSubquery", sql: "select count(*) from (select 1 from visit limit $1) s", args: each[int64](1, 5, 5, 0), expect: yes},
		{name: "OrderedSubquery", sql: "select s.* from (select id, name from person where team_id = $1 order by name desc limit 3) s", args: ids(), expect: yes},
	}
}

func typeShapes() []shape {
	return []shape{
		{name: "Enum", sql: "select id, feeling from person where feeling = $1 and id < 20 order by id", args: orNull(each(feeling("sad"), feeling("happy"), feeling("sad"), feeling("ok"))), ordered: true, expect: yes},
		{name: "NullEnum", sql: "select id, feeling from person where feeling is not distinct from $1 and id < 20 order by id", args: each(nullFeeling{"sad", true}, nullFeeling{}, nullFeeling{"ok", true}, nullFeeling{}), ordered: true, expect: yes},
		{name: "EnumUnknownToClient", sql: "select id, level from person where level > $1 and id < 20 order by id", args: orNull(each("low", "mid", "mid", "high")), ordered: true, expect: yes},
		{name: "EnumCast", sql: "select $1::mood < 'happy' as less, $2::text::mood as feeling", args: [][]any{{feeling("sad"), "ok"}, {feeling("happy"), "sad"}, {nil, nil}, {feeling("sad"), "ok"}}, expect: yes},
		{name: "Domain", sql: "select id, age from person where age = $1::positive order by id limit 3", args: orNull(each[int32](20, 21, 21, 500)), ordered: true, expect: yes},
		{name: "DomainViolated", sql: "select $1::positive + 1 as n", args: orNull(each[int32](1, 2, 0, 3))},
		{name: "TextDomain", sql: "select $1::tag || '!' as tag", args: orNull(each("a", "b", "B", "a"))},
		{name: "DomainOverArray", sql: "select $1::tags as list, cardinality($1::tags) as n", args: orNull(each([]string{"a", "b"}, []string{}, []string{"a", "b"}, []string{"x, y", `"`, `\`, "{}"})), expect: yes},
		{name: "DomainOverArrayColumn", sql: "select id, tags from person where tags = $1::tags order by id limit 3", args: each([]string{"a", "b1"}, []string{"a", "b2"}, []string{"a", "b2"}, []string{}), ordered: true},
		{name: "DomainOverComposite", sql: "select id, mark from person where mark = $1::good_pair order by id limit 3", args: orNull(each("(1,good)", "(2,good)", "(2,good)", "(3,)")), ordered: true, expect: yes},
		{name: "DomainOverRange", sql: "select $1::window_of as w, 3 <@ $1::window_of as inside", args: orNull(each("[1,5)", "[4,9)", "[4,9)", "[7,)")), expect: yes},
		{name: "Composite", sql: "select id, mate from person where mate = $1::pair order by id limit 3", args: orNull(each("(1,mate)", "(2,mate)", "(2,mate)", `(3,"a,b")`)), ordered: true, expect: yes},
		{name: "CompositeValue", sql: "select $1::pair as whole, ($1::pair).n as n, ($1::pair).t is null as empty", args: each(couple{ptr(int32(1)), ptr("x")}, couple{nil, ptr(`(",)`)}, couple{}, couple{ptr(int32(1)), ptr("")}), expect: no},
		{name: "CompositeUnknownToClient", sql: "select $1::nested as whole, (($1::nested).p).t as t", args: orNull(each(`("(1,a)",ok,"{1,2}")`, `("(2,""b,"")",,)`, `(,sad,{})`, `("(1,a)",ok,"{1,2}")`))},
		{name: "CompositeField", sql: "select $1::pair, $1.n", args: orNull(each("(1,a)", "(2,b)", "(2,b)")), expect: yes},
		{name: "Range", sql: "select id, valid from person where valid && $1 order by id", args: each(intRange(5, 7), intRange(5, 7), intRange(290, 400), pgtype.Range[pgtype.Int4]{}), ordered: true, expect: yes},
		{name: "RangeContains", sql: "select id from person where valid @> $1::int order by id limit 4", args: ids(), ordered: true, expect: yes},
		{name: "TimeRange", sql: "select id from person where stay @> $1::timestamptz and id < 10 order by id", args: orNull(each(someTime(3), someTime(8), someTime(8), someTime(-1))), ordered: true, expect: yes},
		{name: "OwnRange", sql: "select id, band from person where band @> $1::float8", args: orNull(each(1.25, 2.0, 2.0, 2.75)), expect: yes},
		{name: "OwnRangeArgument", sql: "select id from person where band && $1::floatspan order by id", args: orNull(each("[1,3)", "[7,7]", "[7,7]", "empty")), ordered: true, expect: yes},
		{name: "UUID", sql: "select id, uid from person where uid = $1", args: each(uid(1), uid(2), uid(2), pgtype.UUID{}, uid(5000)), expect: yes},
		{name: "UUIDText", sql: "select id from person where uid = $1", args: orNull(each(uid(1).String(), uid(2).String(), uid(2).String())), expect: yes},
		{name: "Numeric", sql: "select id, score from person where score >= $1 order by score, id limit 3", args: each(decimal("1.25"), decimal("100.1"), decimal("100.1"), pgtype.Numeric{}, decimal("1000")), ordered: true, expect: yes},
		{name: "NumericTypmod", sql: "select $1::numeric(5, 2) as n, $2::numeric as m", args: [][]any{{decimal("1.005"), decimal("1.50")}, {decimal("-3"), decimal("12345678901234567890.123")}, {nil, nil}, {decimal("1.005"), decimal("NaN")}}, expect: yes},
		{name: "Floats", sql: "select id from person where ratio < $1 and ratio > $2 order by id", args: [][]any{{1.0, 0.5}, {2.0, 1.9}, {2.0, 1.9}, {nil, 1.0}}, ordered: true, expect: yes},
		{name: "FloatValues", sql: "select $1::float8 as f, $2::float4 as g", args: [][]any{{0.1, float32(0.1)}, {1e308, float32(-1e-30)}, {nil, nil}, {0.1, float32(0.1)}}, expect: yes},
		{name: "Bytea", sql: "select id, photo from person where photo = $1", args: each([]byte{0, 1}, []byte{0, 2}, []byte{0, 2}, nil, []byte{}, []byte{0xff, 0}), expect: yes},
		{name: "ByteaValue", sql: "select $1::bytea || '\\x00'::bytea as b, length($1::bytea) as n", args: each([]byte{0, 1, '\\', '"'}, []byte{}, nil, []byte{0xff}), expect: yes},
		{name: "Timestamptz", sql: "select id, seen from person where seen = $1", args: orNull(each(day(1), day(2), day(2), day(2000))), expect: yes},
		{name: "TimestamptzRange", sql: "select count(*) from visit where at >= $1 and at < $2", args: [][]any{{someTime(31), someTime(32)}, {someTime(31), someTime(33)}, {pgtype.Timestamptz{}, someTime(33)}, {pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, someTime(33)}}, expect: yes},
		{name: "Timestamp", sql: "select id, met from person where met > $1 order by met limit 2", args: each(pgtype.Timestamp{Time: day(1), Valid: true}, pgtype.Timestamp{Time: day(3), Valid: true}, pgtype.Timestamp{Time: day(3), Valid: true}, pgtype.Timestamp{}), ordered: true, expect: yes},
		{name: "Date", sql: "select $1::date + 1 as next, extract(dow from $1::date) as dow", args: each(someDate(0), someDate(60), pgtype.Date{}, someDate(0)), expect: yes},
		{name: "TimeOfDay", sql: "select id, wakes from person where wakes < $1 order by id limit 3", args: orNull(each("06:02", "06:05", "06:05", "05:00")), ordered: true, expect: yes},
		{name: "Interval", sql: "select id, pause from person where pause < $1 order by id", args: each(pgtype.Interval{Days: 3, Valid: true}, pgtype.Interval{Days: 5, Valid: true}, pgtype.Interval{Days: 5, Valid: true}, pgtype.Interval{}), ordered: true, expect: yes},
		{name: "AtTimeZone", sql: "select $1::timestamptz at time zone $2 as there", args: [][]any{{day(1), "UTC"}, {day(1), "Europe/Berlin"}, {day(1), "UTC"}, {nil, nil}}, expect: yes},
		{name: "Bool", sql: "select id from person where active = $1 and id < 8 order by id", args: orNull(each(true, false, true)), ordered: true, expect: yes},
		{name: "SmallAndBig", sql: "select id from person where small = $1 and big > $2 order by id", args: [][]any{{int16(1), int64(1)}, {int16(2), int64(2000000000000)}, {int16(2), int64(2000000000000)}, {nil, nil}}, ordered: true, expect: yes},
		{name: "Inet", sql: "select id, addr, net from person where addr = $1", args: orNull(each(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("::1"))), expect: yes},
		{name: "Cidr", sql: "select count(*) from person where addr << $1", args: orNull(each(netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.1.0/24"))), expect: yes},
		{name: "Bits", sql: "select id, bits from person where bits = $1::bit(8) order by id", args: orNull(each("00000001", "00000010", "00000010")), ordered: true, expect: yes},
		{name: "Point", sql: "select id, spot from person where spot ~= $1", args: each(pgtype.Point{P: pgtype.Vec2{X: 1, Y: -1}, Valid: true}, pgtype.Point{P: pgtype.Vec2{X: 2, Y: -2}, Valid: true}, pgtype.Point{P: pgtype.Vec2{X: 2, Y: -2}, Valid: true}, pgtype.Point{}), expect: yes},
		{name: "TextSearch", sql: "select id from person where words @@ to_tsquery('simple', $1) and id < 30 order by id", args: orNull(each("word1", "word2 & all", "word2 & all", "none")), ordered: true, expect: yes},
		{name: "Typmods", sql: "select $1::varchar(2) as v, $1::char(3) as c, $2::timestamp(0) as t", args: [][]any{{"abcdef", day(0).Add(1500 * time.Millisecond)}, {"a", day(1)}, {nil, nil}, {"abcdef", day(1)}}, expect: yes},
		{name: "CastChain", sql: "select $1::text::int::numeric(6, 1)::text as t", args: orNull(each("1", "22", "22", "-3")), expect: yes},
		{name: "CastCall", sql: "select cast($1 as bigint) as b, int4($1::bigint) as i", args: orNull(each[int64](1, 2, 2, -5)), expect: yes},
		{name: "Regclass", sql: "select $1::regclass::text as t, to_regclass($1::text) is null as missing", args: orNull(each("person", "team", "team")), expect: either},
		{name: "NameAndChar", sql: `select $1::name as n, $2::"char" as c`, args: [][]any{{"person", "a"}, {"x", ""}, {nil, nil}, {"person", "a"}}, expect: either},
		{name: "OidAndTid", sql: "select $1::oid as o, id from person where ctid = $2::tid", args: [][]any{{uint32(1), "(0,1)"}, {uint32(2), "(0,2)"}, {uint32(2), "(0,2)"}, {nil, nil}}, expect: either},
		{name: "TypeOf", sql: "select pg_typeof($1::varchar)::text as a, pg_typeof($2::mood)::text as b, pg_typeof($3::int[])::text as c", args: [][]any{{"x", "sad", []int32{1}}, {nil, nil, nil}, {"y", "ok", []int32{}}}, expect: yes},
		{name: "Record", sql: "select row($1::int, 'x'::text) as r, row(id, name) as s from team where id = $1", args: ids(), expect: yes},
		{name: "Literals", sql: "select 'x' as a, null as b, 1.5 as c, id from team where id = $1", args: ids(), expect: yes},
	}
}

func arrayShapes() []shape {
	return []shape{
		{name: "AnyArray", sql: "select id, name from person where id = any($1::int[]) order by id", args: orNull(each([]int32{1, 2, 3}, []int32{}, []int32{3, 3, 900}, []int32{1, 2, 3})), ordered: true, expect: yes},
		{name: "AllArray", sql: "select id from team where id <> all($1::int[]) and id < 6 order by id", args: orNull(each([]int32{1, 2}, []int32{}, []int32{1, 2}, []int32{5})), ordered: true, expect: yes},
		{name: "AnyTextArray", sql: "select id from person where name = any($1::text[]) order by id", args: orNull(each([]string{"person 1", "person 9"}, []string{}, []string{`"`, `,`, `{}`, `\`, "null", ""}, []string{"person 1", "person 9"})), ordered: true, expect: yes},
		{name: "AnyUUIDs", sql: "select id from person where uid = any($1::uuid[]) order by id", args: each([]pgtype.UUID{uid(1), uid(2)}, []pgtype.UUID{{}, uid(3)}, []pgtype.UUID{}, []pgtype.UUID{uid(1), uid(2)}), ordered: true, expect: yes},
		{name: "AnyEnums", sql: "select id from person where feeling = any($1::mood[]) and id < 12 order by id", args: each([]feeling{"sad", "ok"}, []feeling{}, []feeling{"happy"}, []feeling{"happy"}), ordered: true, expect: yes},
		{name: "AnyEnumsUnknownToClient", sql: "select id from person where level = any($1::rank[]) and id < 12 order by id", args: orNull(each("{low,mid}", "{}", "{high}", "{high}")), ordered: true, expect: yes},
		{name: "AnyBytea", sql: "select id from person where photo = any($1::bytea[]) order by id", args: each([][]byte{{0, 1}, {0, 2}}, [][]byte{}, [][]byte{{}, nil, {0, 3}}, [][]byte{{0, 1}, {0, 2}}), ordered: true, expect: yes},
		{name: "AnyTimes", sql: "select id from person where seen = any($1::timestamptz[]) order by id", args: each([]time.Time{day(1), day(2)}, []time.Time{}, []time.Time{day(1), day(2)}), ordered: true, expect: yes},
		{name: "AnyNumeric", sql: "select id from person where score = any($1::numeric[]) order by id", args: each([]pgtype.Numeric{decimal("1.25"), {}}, []pgtype.Numeric{decimal("2.5")}, []pgtype.Numeric{}, []pgtype.Numeric{decimal("2.5")}), ordered: true, expect: yes},
		{name: "ParamInColumn", sql: "select id from person where $1 = any(labels) and id < 20 order by id", args: orNull(each("l1", "x", "x", "none")), ordered: true, expect: yes},
		{name: "ArrayContains", sql: "select id from person where lucky @> $1 and id < 50 order by id", args: orNull(each([]int32{5}, []int32{7, 17}, []int32{}, []int32{7, 17})), ordered: true, expect: yes},
		{name: "ArrayOverlaps", sql: "select id from person where labels && $1::text[] and id < 15 order by id", args: orNull(each([]string{"l1"}, []string{}, []string{"x"}, []string{"l1"})), ordered: true, expect: yes},
		{name: "ArrayValue", sql: "select $1::int[] as list, cardinality($1::int[]) as n, ($1::int[])[2] as second", args: orNull(each([]int32{1, 2}, []int32{}, []int32{7, 8, 9}, []int32{1, 2})), expect: yes},
		{name: "ArraySubscript", sql: "select $1::int[], $1[2]", args: orNull(each([]int32{1, 2}, []int32{}, []int32{7, 8, 9})), expect: yes},
		{name: "ArrayWithNulls", sql: "select $1::text[] as list, array_position($1::text[], null) as at", args: each([]*string{ptr("a"), nil}, []*string{nil, nil}, []*string{}, []*string{ptr("NULL")}), expect: either},
		{name: "ArrayOfTexts", sql: "select $1::text[] as list, array_position($1::text[], 'a') as at", args: each([]*string{ptr("a")}, []*string{ptr(`"`), ptr("a")}, []*string{}, []*string{ptr("{,}")}), expect: yes},
		{name: "MatrixArgument", sql: "select $1::int[] as list, array_ndims($1::int[]) as dims", args: orNull(each([][]int32{{1, 2}, {3, 4}}, [][]int32{{5}}, [][]int32{{1, 2}, {3, 4}})), expect: yes},
		{name: "DifferentDimensions", sql: "select cardinality($1::int[]) as n", args: each[any]([]int32{1}, [][]int32{{1, 2}, {3, 4}}, []int32{}, [][]int32{{1}}), expect: yes},
		{name: "ArrayBounds", sql: "select $1::int[] as list, array_lower($1::int[], 1) as lower", args: each("[3:4]={1,2}", "{1,2}", "[0:0]={5}", "{}"), expect: yes},
		{name: "ArrayOfPairs", sql: "select id from person where mates @> $1::pair[] order by id", args: orNull(each(`{"(1,a)"}`, `{"(2,a)","(3,b)"}`, `{"(2,a)","(3,c)"}`, `{"(1,a)"}`)), ordered: true, expect: yes},
		{name: "UnnestPairs", sql: "select n, t from unnest($1::pair[])", args: orNull(each([]couple{{ptr(int32(1)), ptr("a")}, {nil, nil}}, []couple{}, []couple{{ptr(int32(2)), ptr("b,c")}})), expect: no},
		{name: "ArrayOfParams", sql: "select array[$1::int, $2, 5] as list", args: [][]any{{1, 2}, {nil, 3}, {1, 2}}, expect: yes},
		{name: "OrderByArrayPosition", sql: "select id from person where id = any($1::int[]) order by array_position($1::int[], id)", args: each([]int32{3, 1, 2}, []int32{9, 8}, []int32{}, []int32{3, 1, 2}), ordered: true, expect: yes},
		{name: "UnnestJoin", sql: "select u.k, person.name from unnest($1::int[]) u(k) left join person on person.id = u.k order by u.k", args: each([]int32{3, 1, 999}, []int32{9}, []int32{}, []int32{3, 1, 999}), ordered: true, expect: yes},
		{name: "InList", sql: "select id from person where id in ($1, $2, 7) order by id", args: [][]any{{1, 2}, {2, 2}, {nil, 3}, {1, 2}}, ordered: true, expect: yes},
		{name: "ArrayAndScalar", sql: "select id from person where id = any($1::int[]) and team_id > $2 order by id", args: [][]any{{[]int32{1, 2, 3}, 2}, {[]int32{4}, 0}, {[]int32{}, 0}, {nil, nil}, {[]int32{1, 2, 3}, 2}}, ordered: true, expect: yes},
		{name: "SliceOfRanges", sql: "select id from person where valid = any($1::int4range[]) order by id", args: orNull(each(`{"[1,11)","[2,12)"}`, `{}`, `{"[5,15)"}`)), ordered: true, expect: yes},
	}
}

func jsonShapes() []shape {
	return []shape{
		{name: "JSONHasKey", sql: "select id from person where doc ? $1 and id < 14 order by id", args: orNull(each("k1", "k2", "k2", "n", "none")), ordered: true, expect: yes},
		{name: "JSONHasAny", sql: "select id from person where doc ?| $1 and id < 14 order by id", args: orNull(each([]string{"k1", "k3"}, []string{}, []string{"k0"}, []string{"k0"})), ordered: true, expect: yes},
		{name: "JSONHasAll", sql: "select id from person where doc ?& array['n', $1] and id < 14 order by id", args: orNull(each("k1", "k2", "k2")), ordered: true, expect: yes},
		{name: "JSONContains", sql: "select id, doc from person where doc @> $1 order by id limit 3", args: orNull(each([]byte(`{"n": 5}`), []byte(`{"tags": ["t1"]}`), []byte(`{"n": 5}`), []byte(`[]`))), ordered: true, expect: yes},
		{name: "JSONField", sql: "select id, doc -> $2 as v, doc ->> 'n' as n from person where id = $1", args: [][]any{{1, "k1"}, {2, "k2"}, {2, "tags"}, {3, nil}, {999, "n"}}, expect: yes},
		{name: "JSONPathField", sql: "select doc #>> $2::text[] as v, form ->> 'n' as n from person where id = $1", args: [][]any{{1, []string{"k1", "0"}}, {2, []string{"tags", "0"}}, {2, []string{}}, {1, []string{"k1", "0"}}}, expect: yes},
		{name: "JSONValue", sql: "select $1::jsonb as b, $2::json as j, jsonb_typeof($1::jsonb) as t", args: [][]any{{[]byte(`{"b": 1, "a": [1, null, "\""]}`), []byte(`{"b":  1}`)}, {[]byte(`null`), []byte(`null`)}, {nil, nil}, {map[string]int{"a": 1}, []int{1, 2}}}, expect: yes},
		{name: "JSONPath", sql: "select id from person where jsonb_path_exists(doc, '$.n ? (@ == $wanted)', jsonb_build_object('wanted', $1::int))", args: ids(), expect: yes},
		{name: "JSONPathMatch", sql: "select id from person where doc @? '$.tags[*] ? (@ == \"t1\")' and id < $1 order by id", args: ids(), ordered: true, expect: yes},
		{name: "JSONElements", sql: "select e.value from person, jsonb_array_elements(doc -> 'tags') e where id = $1", args: ids(), expect: yes},
		{name: "JSONEach", sql: "select e.key, e.value from jsonb_each($1::jsonb) e order by e.key", args: orNull(each([]byte(`{"a": 1, "b": null}`), []byte(`{}`), []byte(`{"a": 1, "b": null}`))), ordered: true, expect: yes},
		{name: "JSONRecordset", sql: "select r.a, r.b from jsonb_to_recordset($1::jsonb) as r(a int, b text) order by r.a", args: orNull(each([]byte(`[{"a": 1, "b": "x"}, {"a": 2}]`), []byte(`[]`), []byte(`[{"b": "y"}]`))), ordered: true, expect: yes},
		{name: "JSONPopulate", sql: "select * from jsonb_populate_record(null::pair, $1::jsonb)", args: each([]byte(`{"n": 1, "t": "x"}`), []byte(`{}`), []byte(`{"n": 2}`)), expect: yes},
		{name: "JSONBuild", sql: "select json_build_object('id', id, $2::text, name) as o, to_jsonb(person.mate) as m from person where id = $1", args: [][]any{{1, "name"}, {2, "x"}, {2, "x"}, {999, "y"}}, expect: yes},
		{name: "JSONRow", sql: "select row_to_json(t) from (select id, name from team where id = $1) t", args: ids(), expect: yes},
		{name: "JSONOfUnnamedParam", sql: "select to_jsonb(x) as j from (select $1::int, $2::text) x", args: [][]any{{1, "a"}, {2, nil}, {1, "a"}}},
		{name: "JSONOfBareParam", sql: "select row_to_json(x)::text as j from (select $1, id from team where id = 1) x", args: each("a", "b", "b")},
		{name: "JSONDelete", sql: "select doc - $2::text - 'tags' as d from person where id = $1", args: [][]any{{1, "k1"}, {2, "n"}, {2, "n"}, {999, ""}}, expect: yes},
		{name: "JSONSet", sql: "select jsonb_set(doc, array['n'], to_jsonb($2::int)) as d from person where id = $1", args: [][]any{{1, 5}, {2, nil}, {2, 7}, {1, 5}}, expect: yes},
	}
}

func textShapes() []shape {
	return []shape{
		{name: "DollarInString", sql: "select '$1' as a, 'it''s $2' as b, id from team where id = $1", args: ids(), expect: yes},
		{name: "DollarInEscapeString", sql: `select E'\'$1\\' as a, e'$2' as b, id from team where id = $1`, args: ids(), expect: yes},
		{name: "DollarInDollarQuotes", sql: "select $$ $1 $$ as a, $x$ $1 $$ $2 $x$ as b, id from team where id = $1", args: ids(), expect: yes},
		{name: "DollarInComments", sql: "select id -- $1 and ' and $$\n, name /* $2 /* $3 ' */ \" */ from team where id = $1 -- the end, $4", args: ids(), expect: either},
		{name: "DollarInIdentifiers", sql: `select id$1, "a $2 b", "$1".id$1 as "x$1""$2" from "Odd ""Name $1" as "$1" where id$1 = $1`, args: ids(), expect: either},
		{name: "DollarInUnicodeStrings", sql: `select U&'\0041$1' as a, id as U&"d\0061t$1" from team where id = $1`, args: ids(), expect: either},
		{name: "DollarInBitString", sql: `select B'101' as b, X'1F' as x, N'$1' as n from team where id = $1`, args: ids(), expect: either},
		{name: "StringContinued", sql: "select 'one '\n'$1 two' as a, id from team where id = $1", args: ids(), expect: either},
		{name: "CommentAtEnd", sql: "select id from team where id = $1 -- done", args: ids(), expect: yes},
		{name: "CommentInside", sql: "select id, /* the key */ name\n-- of a team\nfrom team\nwhere id = $1", args: ids(), expect: yes},
		{name: "WhiteSpace", sql: "\n\tSELECT\r\n\tid\f, name FROM\tteam\nWHERE id=$1\n", args: ids(), expect: yes},
		{name: "UpperCase", sql: "SELECT ID, NAME FROM TEAM WHERE ID=$1 ORDER BY ID LIMIT 1", args: ids(), ordered: true, expect: yes},
		{name: "NoSpaces", sql: "select id,-$1::int as minus,+$1 as plus,$1*2 as twice from team where id=$1 and id>0", args: ids(), expect: either},
		{name: "ParamsTouching", sql: "select($1)::int+$2 as n,array[$1,$2]as a", args: [][]any{{1, 2}, {3, 4}, {1, 2}}, expect: either},
		{name: "SelectAll", sql: "select all id from team where (id) = ($1)", args: ids(), expect: yes},
		{name: "Parenthesised", sql: "(select id from team where id = $1)", args: ids(), expect: yes},
		{name: "QuestionMarks", sql: "select '?' as a, '{\"a\": 1}'::jsonb ? 'a' as b, id from team where id = $1", args: ids(), expect: yes},
		{name: "Operators", sql: "select id from person where name ~* $1 and name !~ $2 and id < 40 order by id", args: [][]any{{"N 1", "5$"}, {"2$", "^x"}, {"2$", "^x"}, {nil, "x"}}, ordered: true, expect: yes},
		{name: "Like", sql: "select id from person where name like $1 || '%' escape '!' and id < 130 order by id", args: orNull(each("person 12", "%", "person!_", "person 12")), ordered: true, expect: yes},
		{name: "ILikeAny", sql: "select id from person where name ilike any($1::text[]) order by id limit 4", args: each([]string{"PERSON 1_", "person 9"}, []string{}, []string{"%77"}), ordered: true, expect: yes},
		{name: "SimilarTo", sql: "select id from person where name similar to $1 order by id", args: each("person [12]", "person (3|4)", "person (3|4)", "x"), ordered: true, expect: yes},
		{name: "SpecialSyntax", sql: "select position($2 in name) as a, substring(name from 1 for $3) as b, trim(both 'p' from name) as c, overlay(name placing 'X' from 2) as d, extract(year from seen) as e, name is distinct from $2 as f from person where id = $1", args: [][]any{{1, "on", 3}, {2, "x", 0}, {2, "x", 0}, {3, nil, nil}}, expect: yes},
		{name: "Overlaps", sql: "select id from person where (seen, seen + interval '1 hour') overlaps ($1, $2) order by id", args: [][]any{{someTime(1), someTime(2)}, {someTime(3), someTime(3)}, {someTime(1), someTime(2)}}, ordered: true, expect: yes},
		{name: "BetweenSymmetric", sql: "select id from person where id between symmetric $1 and $2 order by id", args: [][]any{{3, 1}, {1, 3}, {5, 5}, {nil, 1}}, ordered: true, expect: yes},
		{name: "UnicodeText", sql: "select $1 || ' – ' || upper('é') as t, length($1) as n", args: orNull(each("naïve", "日本", "日本", "🙂")), expect: yes},
		{name: "LongText", sql: "select md5($1::text) as sum, length($1::text) as n", args: each(longText(10), longText(100_000), longText(100_000), ""), expect: yes},
		{name: "Collate", sql: `select id from person where strict < $1 collate "C" and id < 60 order by id`, args: orNull(each("B", "a", "a")), ordered: true, expect: yes},
	}
}

func longText(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return string(b)
}

// nameShapes use the names that a rewriting may want for itself, and names that come from the text that it changes.
func nameShapes() []shape {
	return []shape{
		{name: "AliasP", sql: "select p.id, p.name from person p where p.id = $1", args: ids(), expect: yes},
		{name: "AliasPWithP1", sql: "select p.p1, p.ord from p where p.p1 = $1 order by p.id limit 5", args: each[int32](1, 2, 2, 6, 9), ordered: true, expect: yes},
		{name: "TablesPAndQ", sql: "select p.id, q.id, q.ord from p join p q on q.id = p.id + 1 where p.p1 = $1 and q.q = $2 order by p.id", args: [][]any{{1, 2}, {3, 4}, {3, 4}, {9, 9}}, ordered: true, expect: yes},
		{name: "PInSubquery", sql: "select id from team where id in (select p.p1 from p where p.ord = $1) order by id", args: each[int32](1, 2, 2, 7), ordered: true, expect: yes},
		{name: "PAsColumn", sql: "select p, q, ord, p1, \"$1\", \"select\" from p where p = $1 and q = $2 order by id", args: [][]any{{1, 2}, {3, 4}, {3, 4}, {9, 9}}, ordered: true, expect: yes},
		{name: "PWholeRow", sql: "select x from p x where x.id = $1", args: ids(), expect: yes},
		{name: "CTENamedP", sql: "with p as (select id as p1, name as ord from team), q as (select p1 from p) select p.p1, p.ord from p join q using (p1) where p.p1 = $1", args: ids(), expect: yes},
		{name: "CTENamedPAliased", sql: "with p(p1, p2, ord) as (values (1, 2, 3), (4, 5, 6)) select p.* from p where p.p1 = $1 or p.p2 = $2", args: [][]any{{1, 5}, {4, 9}, {9, 2}, {1, 5}}, expect: yes},
		{name: "OrdTable", sql: "select ord.id, ord.p1, ord from ord where ord.id = $1", args: ids(), expect: yes},
		{name: "LateralP", sql: "select t.id, p.p1 from team t, lateral (select $1 + t.id as p1) p where t.id < 3 order by 1", args: ids(), ordered: true, expect: yes},
		{name: "JoinNameFromParam", sql: "select * from (select $1::int) a natural join (select $2::int) b", args: [][]any{{1, 1}, {1, 2}, {1, 1}, {nil, nil}}},
		{name: "ColumnNameFromParam", sql: "select x.int4 from (select $1::int) x", args: ids()},
		{name: "ColumnNameFromCTEParam", sql: "with c as (select $1::text, 1) select text from c where text <> 'x'", args: each("a", "x", "b")},
		{name: "NamesOfParams", sql: "select $1::int, $2::text, $1::int + 1, coalesce($2::text, 'x'), array[$1::int], ($1::int), case when true then 1 else $1::int end, (select $2::text), upper($2)", args: [][]any{{1, "a"}, {2, nil}, {nil, "b"}, {1, "a"}}},
		{name: "NameOfCase", sql: "select case id when 1 then 'x' else $1 end from team where id < 3 order by id", args: each("a", "b", "b"), ordered: true},
		{name: "OrderByNameOfParam", sql: "select id, $1::text from team where id < 4 order by text, id desc", args: each("a", "b", "b"), ordered: true},
		{name: "UnnamedColumns", sql: "select id + 1, id || 'x', 'y', count(*) over () from team where id <= $1 order by id", args: ids(), ordered: true, expect: yes},
		{name: "DuplicateColumns", sql: "select id, id, name as id, $1::int as id from team where id = $1", args: ids(), expect: yes},
		{name: "ColumnNamedByParam", sql: "select id as p1, name as ord, $1::int as p from team where id <= $1 order by ord, p1", args: each[int32](1, 3, 3, 0), ordered: true, expect: yes},
		{name: "QuotedNames", sql: `select id as "P", name as "Ord ""x""", budget as "a.b" from team where id = $1`, args: ids(), expect: yes},
		{name: "GroupByAlias", sql: "select id % 3 as p1, count(*) from person where id < $1 group by p1 order by p1", args: ids(), ordered: true, expect: yes},
		{name: "LongNames", sql: "select id as a_name_as_long_as_a_name_can_be_without_being_cut_short_by_it_all from team where id = $1", args: ids(), expect: no},
		{name: "KeywordNames", sql: `select id as "select", name "from", 1 as with, 2 as lateral from team where id = $1`, args: ids(), expect: either},
		{name: "SchemaQualified", sql: "select public.team.id, pg_catalog.upper(public.team.name) from public.team where public.team.id operator(pg_catalog.=) $1", args: ids(), expect: yes},
	}
}

func functionShapes() []shape {
	return []shape{
		{name: "Immutable", sql: "select twice($1) as n, slow_twice($1) as m", args: orNull(ids()), expect: yes},
		{name: "Stable", sql: "select id, team_name(team_id) as team, name_of($1) as name from person where id = $1", args: orNull(ids()), expect: yes},
		{name: "StableInWhere", sql: "select id from person where name = name_of($1)", args: ids(), expect: yes},
		{name: "StableSet", sql: "select id, name from people_of($1) order by id", args: ids(), ordered: true, expect: yes},
		{name: "StableSetStar", sql: "select * from people_of($1) where id < $2", args: [][]any{{1, 100}, {2, 40}, {2, 40}, {99, 1}}, expect: yes},
		{name: "OutParameters", sql: "select * from pairs_of($1)", args: orNull(each[int32](1, 2, 2, 0)), expect: yes},
		{name: "OutParametersExpanded", sql: "select (pairs_of($1)).*", args: each[int32](1, 2, 2, 0), expect: yes},
		{name: "NamedArguments", sql: "select salute(word => $2, who => $1) as g, salute($1, word => $2, mark := $2) as h, make_interval(days => $3) as i", args: [][]any{{"a", "hi", 1}, {"b", "ho", 2}, {nil, nil, nil}, {"a", "hi", 1}}, expect: yes},
		{name: "DefaultArguments", sql: "select greet($1) as g", args: orNull(each("a", "b", "b")), expect: yes},
		{name: "Variadic", sql: "select greet($1, 'x', 1, 2) as g, greet($1, 'y', variadic array[1, 2, 3]) as h, concat_ws('-', $1, 1, null, 2) as c, format('%s %L', $1, 'q') as f", args: orNull(each("a", "b", "b")), expect: yes},
		{name: "AttributeNotation", sql: "select person.initial, (person).name from person where id = $1", args: ids(), expect: yes},
		{name: "OwnOperator", sql: "select id from team where id ==== $1", args: ids(), expect: yes},
		{name: "OwnCast", sql: "select $1::rank::int as n", args: orNull(each("low", "high", "high")), expect: yes},
		{name: "CalledLikeItsType", sql: "select tag($1)::text as t, tag('ab')::text as u", args: orNull(each("ab", "cd", "cd")), expect: no},
		{name: "CalledLikeAType", sql: "select date($1) as d, text($2) as t", args: [][]any{{"2024-01-01", "a"}, {"2024-02-01", "b"}, {nil, nil}, {"2024-01-01", "a"}}, expect: yes},
		{name: "Formatting", sql: "select to_char(seen, $2) as a, to_char(score, '999.9') as b, round(score, 1) as c, greatest(id, 5) as d, nullif(id, $1) as e from person where id = $1", args: [][]any{{1, "YYYY"}, {2, "HH24"}, {2, "HH24"}, {999, ""}}, expect: yes},
		{name: "Settings", sql: "select current_setting('corpus.tenant') as a, current_user as b, current_schema() as c, $1::int as d", args: ids(), expect: yes},
		{name: "Now", sql: "select id, now() as t, current_timestamp as u, $1::text as x from team where id = 1", args: each("a", "b", "b"), drawn: []int{1, 2}, expect: yes},
		{name: "StatementTimestamp", sql: "select statement_timestamp() as t, $1::int as n", args: ids(), drawn: []int{0}, expect: either},
		{name: "BackendPID", sql: "select pg_backend_pid() as n, $1::int as m", args: ids(), drawn: []int{0}, expect: either},
		{name: "UntrueStable", sql: "select untrue_stable() as t, $1::int as m", args: ids(), drawn: []int{0}, expect: either},
		{name: "View", sql: "select * from active_person where team_id = $1 order by id", args: ids(), ordered: true, expect: yes},
		{name: "ViewOfView", sql: "select id, name, members from active_team where id = $1", args: ids(), expect: yes},
		{name: "MaterializedView", sql: "select * from summary where team_id = $1", args: ids(), expect: yes},
		{name: "SystemView", sql: "select tablename from pg_tables where schemaname = 'public' and tablename = $1", args: orNull(each("person", "team", "team", "x")), expect: either},
		{name: "InformationSchema", sql: "select column_name from information_schema.columns where table_name = $1 and table_schema = 'public' order by ordinal_position", args: each("team", "visit", "visit", "x"), ordered: true, expect: either},

		{name: "TransactionID", sql: "select pg_current_xact_id()::text as x, $1::int as n", args: ids(), drawn: []int{0}, expect: no},
		{name: "TransactionIDOfOld", sql: "select txid_current() as x, id from team where id <= $1", args: each[int32](1, 3, 3, 0), drawn: []int{0}, expect: no},
		{name: "OwnText", sql: "select query from pg_stat_activity where pid = pg_backend_pid() and $1::int is not null", args: ids(), expect: no},
		{name: "ColumnSize", sql: "select pg_column_size($1::text) as n", args: each("a", "abc", "abc", ""), expect: no},
		{name: "Snapshot", sql: "select pg_current_snapshot()::text as s, pg_current_xact_id_if_assigned() is null as x, $1::int as n", args: ids(), drawn: []int{0}, expect: yes},
		{name: "Random", sql: "select random() as r, $1::int as n", args: ids(), drawn: []int{0}, disjoint: true, expect: no},
		{name: "RandomUUID", sql: "select gen_random_uuid() as u, id from team where id = $1", args: ids(), drawn: []int{0}, disjoint: true, expect: no},
		{name: "ClockTimestamp", sql: "select clock_timestamp() as t, $1::int as n", args: ids(), drawn: []int{0}, expect: no},
		{name: "TimeOfDayText", sql: "select timeofday() as t from team where id = $1", args: ids(), drawn: []int{0}, expect: no},
		{name: "Nextval", sql: "select nextval('counter') as n, $1::int as m", args: ids(), drawn: []int{0}, disjoint: true, effects: counter, expect: no},
		{name: "NextvalOfParam", sql: "select nextval($1::text::regclass) as n", args: each("counter", "counter", "counter"), drawn: []int{0}, disjoint: true, effects: counter, expect: no},
		{name: "NextvalUncorrelated", sql: "select id, (select nextval('counter')) as n from team where id <= $1", args: each[int32](1, 3, 3, 0), drawn: []int{1}, disjoint: true, effects: counter, expect: no},
		{name: "OwnVolatile", sql: "select own_random() as r from team where id = $1", args: ids(), drawn: []int{0}, disjoint: true, expect: no},
		{name: "OwnVolatileTable", sql: "select r, $1::int as n from own_random() r", args: ids(), drawn: []int{0}, disjoint: true, expect: no},
		{name: "VolatileDefault", sql: "select r, $1::int as n from defaulted(1) r", args: ids(), drawn: []int{0}, disjoint: true, effects: counter, expect: no},
		{name: "VolatileAttribute", sql: "select person.shout from person where id = $1", args: ids(), effects: logged, expect: no},
		{name: "VolatileOperator", sql: "select t.id from team t where t.id === $1", args: ids(), effects: logged, expect: no},
		{name: "VolatileNegator", sql: "select id, (select count(*) from team where not (id |=| 1)) as n from team where id <= $1", args: each[int32](1, 3, 3, 0), effects: logged, expect: no},
		{name: "VolatileCast", sql: "select feeling::int as n from person where id = $1", args: ids(), effects: logged, expect: no},
		{name: "VolatileCastOfConcatenation", sql: "select id, (select 'of ' || 'a'::grade) as g from team where id <= $1", args: each[int32](1, 3, 3, 0), effects: logged, expect: no},
		{name: "VolatileAggregate", sql: "select noted_sum(id) from team where id < $1", args: each[int32](1, 3, 3, 5), effects: logged, expect: no},
		{name: "VolatileDomain", sql: "select (select 1::int::noticed) as n, id from team where id = $1", args: ids(), effects: logged, expect: no},
		{name: "VolatileDomainOfParam", sql: "select $1::noticed + 0 as n", args: ids(), effects: logged, expect: no},
		{name: "VolatileView", sql: "select id, drawn from drawing_person where id = $1", args: ids(), drawn: []int{1}, disjoint: true, expect: no},
		{name: "VolatileViewOnce", sql: "select drawn, $1::int as n from drawing_once", args: ids(), drawn: []int{0}, disjoint: true, expect: no},
		{name: "ViewOverVolatile", sql: "select id, name from over_drawing where id = $1", args: ids(), expect: no},
		{name: "WritingView", sql: "select id, name from noted_person where id = $1", args: ids(), effects: logged, expect: no},
		{name: "CountingView", sql: "select id, n from counted where id <= $1", args: each[int32](1, 3, 3, 0), drawn: []int{1}, effects: counter, expect: no},
		{name: "WritingViewInSubquery", sql: "select id from team where exists (select from noted_person n where n.id = team.id and n.id = $1)", args: ids(), effects: logged, expect: no},
		{name: "SetConfig", sql: "select set_config('corpus.word', $1, true) as w", args: each("a", "b", "b"), expect: no},
		{name: "AdvisoryLock", sql: "select pg_try_advisory_xact_lock($1) as got", args: each[int64](101, 102, 103, 104), expect: no},
		{name: "Sleep", sql: "select pg_sleep($1) is null as slept", args: each(0.0, 0.0, 0.001), expect: no},
	}
}

func securityShapes() []shape {
	return []shape{
		{name: "Policy", sql: "select id, data from secret where id = $1", args: orNull(each[int32](1, 2, 2, 5, 6, 7)), expect: yes},
		{name: "PolicyOnGroup", sql: "select count(*) from secret where grp = $1", args: each[int32](0, 1, 2, 2, 3), expect: yes},
		{name: "PolicyOfSetting", sql: "select id from tenant_secret where id < $1 order by id", args: each[int32](9, 20, 20, 0), ordered: true, expect: yes},
		{name: "PolicyWithSubquery", sql: "select id from plain_secret where id < $1 order by id", args: each[int32](9, 20, 20, 0), ordered: true, expect: yes},
		{name: "PolicyInJoin", sql: "select secret.id, team.name from secret join team on team.id = secret.id where secret.grp = $1 order by 1", args: each[int32](0, 1, 2, 2), ordered: true, expect: yes},
		{name: "PolicyBehindView", sql: "select id from secret_view where id < $1 order by id", args: each[int32](5, 9, 9, 0), ordered: true, expect: either},
		{name: "DrawingPolicy", sql: "select id, data from drawn_secret where id < $1 order by id", args: each[int32](5, 9, 9, 0), ordered: true, expect: no},
		{name: "WritingPolicy", sql: "select id, data from noted_secret where id = $1", args: each[int32](5, 6, 6, 4, 99), effects: logged, expect: no},
		{name: "WritingPolicyInSubquery", sql: "select t.id from team t where t.id = $1 and t.id in (select s.id from noted_secret s where s.id = $1)", args: each[int32](5, 6, 6, 4, 99), effects: logged, expect: no},
		{name: "WritingPolicyInCTE", sql: "with c as materialized (select count(*) as n from noted_secret where id = 5) select n, $1::int as m from c", args: each[int32](5, 6, 6), effects: logged, expect: no},
	}
}

// writingShapes lock and write; the rows that they return do not depend on what others write.
func writingShapes() []shape {
	return []shape{
		{name: "ForUpdate", sql: "select id, data from locked where id = $1 for update", args: ids(), expect: no},
		{name: "ForShare", sql: "select id from locked where id < $1 order by id for share", args: ids(), ordered: true, expect: no},
		{name: "ForNoKeyUpdateOf", sql: "select locked.id, team.name from locked join team on team.id = locked.id where locked.id = $1 for no key update of locked", args: ids(), expect: no},
		{name: "ForUpdateInSubquery", sql: "select s.id from (select id from locked where id = $1 for update) s", args: ids(), expect: no},
		{name: "ForUpdateInCTE", sql: "with c as (select id from locked where id = $1 for key share) select id from c", args: ids(), expect: no},
		{name: "Insert", sql: "insert into log (what) values ($1) returning what", args: orNull(each("a", "b", "b")), effects: logged, expect: no},
		{name: "InsertSelect", sql: "insert into log (what) select name from team where id <= $1 returning what", args: each[int32](1, 3, 3, 0), effects: logged, expect: no},
		{name: "Update", sql: "update locked set data = data where id = $1 returning id, data", args: ids(), expect: no},
		{name: "Delete", sql: "delete from locked where id = $1 and id > 1000 returning id", args: ids(), expect: no},
		{name: "InsertInCTE", sql: "with i as (insert into log (what) values ($1::text) returning what) select what || '!' as w from i", args: orNull(each("a", "b", "b")), effects: logged, expect: no},
		{name: "InsertInUnusedCTE", sql: "with i as (insert into log (what) values ('cte')) select id from team where id = $1", args: ids(), effects: logged, expect: no},
		{name: "UpdateInCTE", sql: "with u as (update locked set data = data where id = $1 returning id) select count(*) from u", args: ids(), expect: no},
		{name: "CTEBeforeInsert", sql: "with c as (select $1::text as what) insert into log (what) select what from c returning what", args: each("a", "b", "b"), effects: logged, expect: no},
	}
}

// failingShapes fail for some of their arguments, or for all.
func failingShapes() []shape {
	return []shape{
		{name: "DivisionByZero", sql: "select 100 / $1::int as n", args: orNull(each[int32](1, 2, 0, 2, 5)), expect: either},
		{name: "DivisionInRows", sql: "select 10 / (id - $1) as n from team order by id", args: each[int32](50, 7, 60, 60), ordered: true, expect: either},
		{name: "InvalidCast", sql: "select $1::text::int as n", args: each("1", "x", "3", "1"), expect: either},
		{name: "InvalidEnum", sql: "select $1::mood as m", args: each(feeling("sad"), feeling("angry"), feeling("ok"))},
		{name: "InvalidEnumUnknownToClient", sql: "select $1::rank as r", args: each("low", "none", "mid")},
		{name: "InvalidComposite", sql: "select ($1::nested).m as m", args: each(`("(1,a)",ok,)`, `(1,2)`, `("(1,a)",sad,)`)},
		{name: "InvalidRange", sql: "select $1::floatspan as s", args: each("[1,2)", "[2,1)", "[1,2)")},
		{name: "InvalidNul", sql: "select $1::text as t", args: each("a", "a\x00b", "b")},
		{name: "TooManyRows", sql: "select id, (select id from team where id < $1) as other from team where id = 1", args: each[int32](1, 2, 3, 2), expect: either},
		{name: "NotEncodable", sql: "select id from team where id = $1", args: [][]any{{1}, {"no number"}, {struct{}{}}, {int64(1) << 40}, {2}}, expect: either},
		{name: "WrongCount", sql: "select id from team where id = $1 and id > 0", args: [][]any{{1}, {1, 2}, {}, {2}, {2}}, expect: either},
		{name: "NoSuchTable", sql: "select * from missing where id = $1", args: ids(), expect: no},
		{name: "NoSuchColumn", sql: "select ord from team where id = $1", args: ids(), expect: no},
		{name: "NoSuchColumnP1", sql: "select p1, id from team where id = $1", args: ids(), expect: no},
		{name: "NoSuchAliasP", sql: "select p.id from team where id = $1", args: ids(), expect: no},
		{name: "NoSuchAliasQ", sql: "select q.ord, q from team where id = $1", args: ids(), expect: no},
		{name: "SyntaxError", sql: "select id frm team where id = $1 and", args: ids(), expect: no},
		{name: "ClosesParenthesis", sql: "select id from team where id = $1) q, (select 1", args: ids(), expect: no},
		{name: "TwoStatements", sql: "select id from team where id = $1; select 2", args: ids(), expect: no},
		{name: "UnusedParameter", sql: "select id from team where id = $2", args: [][]any{{1, 1}, {2, 2}}, expect: no},
		{name: "Unterminated", sql: "select id, 'x from team where id = $1", args: ids(), expect: no},
		{name: "UngroupedColumn", sql: "select name, count(*) from team where id = $1", args: ids(), expect: no},
	}
}

// clauseShapes have a function that writes, and one that draws by chance, in every clause that can hold one.
func clauseShapes() (shapes []shape) {
	for _, c := range []struct {
		name, sql string // in which T, N and B stand for a text, a number and what is true
		drawn     []int  // the columns that are T
		repeated  bool   // these columns hold other values too
	}{
		{name: "Select", sql: "select id, T as x from person where id = $1", drawn: []int{1}},
		{name: "Where", sql: "select id from person where id = $1 and B"},
		{name: "JoinOn", sql: "select person.id from person join team on team.id = person.team_id and B where person.id <= $1"},
		{name: "GroupBy", sql: "select count(*) from person where id <= $1 group by T"},
		{name: "Having", sql: "select team_id, count(*) from person where id <= $1 group by team_id having B"},
		{name: "OrderBy", sql: "select id from person where id <= $1 order by T"},
		{name: "Limit", sql: "select id from person where id <= $1 order by id limit 2 + N * 0"},
		{name: "Offset", sql: "select id from person where id <= $1 order by id offset 1 + N * 0"},
		{name: "FetchFirst", sql: "select id from person where id <= $1 order by id fetch first (2 + N * 0) rows only"},
		{name: "DistinctOn", sql: "select distinct on (T) id from person where id = $1"},
		{name: "Partition", sql: "select id, count(*) over (partition by T) from person where id <= $1"},
		{name: "NamedWindow", sql: "select id, count(*) over w from person where id <= $1 window w as (partition by T)"},
		{name: "Filter", sql: "select count(*) filter (where B) from person where id <= $1"},
		{name: "Aggregate", sql: "select count(T) from person where id <= $1"},
		{name: "AggregateOrder", sql: "select count(id order by T) from person where id <= $1"},
		{name: "Case", sql: "select case when id = $1 then T end as x from person where id <= $1", drawn: []int{0}},
		{name: "FromValues", sql: "select v.x, v.y from (values ($1::int, T)) v(x, y)", drawn: []int{1}},
		{name: "Values", sql: "values ($1::int, T)", drawn: []int{1}},
		{name: "CTE", sql: "with c as (select T as x) select $1::int as n, x from c", drawn: []int{1}},
		{name: "CTEMaterialized", sql: "with c as materialized (select T as x) select id, x from team, c where id <= $1", drawn: []int{1}},
		{name: "Recursive", sql: "with recursive r as (select 1 as n, T as x union all select n + 1, T from r where n < $1) select n, x from r", drawn: []int{1}},
		{name: "Uncorrelated", sql: "select id, (select T) as x from person where id = $1", drawn: []int{1}},
		{name: "Derived", sql: "select id, x from person, (select T as x) s where id = $1", drawn: []int{1}},
		{name: "Exists", sql: "select id from person where id = $1 and exists (select 1 where B)"},
		{name: "In", sql: "select id from person where id = $1 and 1 in (select 1 where B)"},
		{name: "Lateral", sql: "select id, x from person, lateral (select T as x where person.id > 0) s where id = $1", drawn: []int{1}},
		{name: "Union", sql: "select $1::int::text as x union all select T", drawn: []int{0}, repeated: true},
		{name: "Array", sql: "select array[T, 'x'] as x, $1::int as n", drawn: []int{0}},
		{name: "Row", sql: "select row(T, 1) as x, $1::int as n", drawn: []int{0}},
		{name: "Argument", sql: "select length(T) > 0 as x, $1::int as n"},
		{name: "Series", sql: "select x from generate_series(1, 3 + N * 0) x where x <= $1"},
		{name: "RowsFrom", sql: "select x, y from rows from (generate_series(1, 2 + N * 0), generate_series(1, $1)) r(x, y)"},
		{name: "LateralArgument", sql: "select id, x from person, lateral generate_series(id, id + N * 0) x where id = $1"},
		{name: "BesideSeries", sql: "select generate_series(1, $1), T as x", drawn: []int{1}},
		{name: "Cast", sql: "select id, N::text as x from team where id = $1 and N::text <> ''", drawn: []int{1}, repeated: true},
		{name: "Coalesce", sql: "select coalesce(nullif(id, $1), N) is null as x from team where id <= $1"},
		{name: "WindowFrame", sql: "select sum(id) over (order by id rows between N * 0 preceding and current row) from team where id <= $1"},
		{name: "Quantified", sql: "select id from team where id = $1 and B = any (select true union all select B)"},
	} {
		args := each[int32](1, 2, 2, 3, 30, 0)
		if c.name == "BesideSeries" || c.name == "Recursive" { // as many rows as the argument says, from nothing
			args = each[int32](1, 2, 2, 3, 0)
		}
		shapes = append(shapes, shape{
			name: "Writing" + c.name, sql: withCalls(c.sql, "note('x')", "note_number()", "note_true()"), args: args, effects: logged, expect: no,
		}, shape{
			name: "Drawing" + c.name, sql: withCalls(c.sql, "md5(random()::text)", "(random() * 1000000)::int", "(random() < 2)"), args: args,
			drawn: c.drawn, disjoint: len(c.drawn) > 0 && !c.repeated, expect: no,
		})
	}
	return shapes
}

// withCalls puts the calls in for T, N and B.
func withCalls(sql, text, number, truth string) string {
	return regexp.MustCompile(`\b[TNB]\b`).ReplaceAllStringFunc(sql, func(letter string) string {
		return map[string]string{"T": text, "N": number, "B": truth}[letter]
	})
}

-- name: Scan :many
-- Scan reads all of the small table and returns the rows whose data equals the argument.
select id, data from small where data = $1;

-- name: ScanAny :many
-- ScanAny is Scan for many arguments in one statement, as one writes it by hand.
select id, data from small where data = any(sqlc.arg(datas)::text[]);

-- name: ScanEach :many
-- ScanEach is ScanAny that says which argument a row is for.
select argument.number::integer as number, small.id, small.data
from unnest(sqlc.arg(datas)::text[]) with ordinality as argument (data, number) join small on small.data = argument.data;

-- name: LookUp :many
-- LookUp returns the row with this id, by index.
select id, data from big where id = $1;

-- name: LookUpAny :many
-- LookUpAny is LookUp for many ids in one statement, as one writes it by hand.
select id, data from big where id = any(sqlc.arg(ids)::integer[]);

-- name: LookUpEach :many
-- LookUpEach is LookUpAny that says which argument a row is for.
select argument.number::integer as number, big.id, big.data
from unnest(sqlc.arg(ids)::integer[]) with ordinality as argument (id, number) join big on big.id = argument.id;

-- name: Wait :many
-- Wait is LookUp by a server that waits for 5 ms, as for a disk or a lock, and uses no CPU meanwhile.
select big.id, big.data from big cross join pg_sleep(0.005) where big.id = $1;

-- name: WaitLong :many
-- WaitLong is Wait for 20 ms.
select big.id, big.data from big cross join pg_sleep(0.02) where big.id = $1;

-- name: Burn :many
-- Burn is LookUp by a server that counts so far from the id. No function is in it that is not immutable, and nothing that
-- two executions for different ids have in common, so that many in one statement cost as much as each by itself.
select big.id, big.data
from big cross join lateral (select count(*) from (select generate_series(big.id, big.id + sqlc.arg(count)::integer)) counted) burned
where big.id = sqlc.arg(id);

-- name: Range :many
-- Range returns 10,000 rows, those from this id on.
select id, data from big where id between sqlc.arg(first)::integer and sqlc.arg(first)::integer + 9999;

-- name: Near01 :many
-- Near01 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 1;

-- name: Near02 :many
-- Near02 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 2;

-- name: Near03 :many
-- Near03 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 3;

-- name: Near04 :many
-- Near04 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 4;

-- name: Near05 :many
-- Near05 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 5;

-- name: Near06 :many
-- Near06 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 6;

-- name: Near07 :many
-- Near07 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 7;

-- name: Near08 :many
-- Near08 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 8;

-- name: Near09 :many
-- Near09 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 9;

-- name: Near10 :many
-- Near10 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 10;

-- name: Near11 :many
-- Near11 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 11;

-- name: Near12 :many
-- Near12 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 12;

-- name: Near13 :many
-- Near13 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 13;

-- name: Near14 :many
-- Near14 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 14;

-- name: Near15 :many
-- Near15 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 15;

-- name: Near16 :many
-- Near16 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 16;

-- name: Near17 :many
-- Near17 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 17;

-- name: Near18 :many
-- Near18 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 18;

-- name: Near19 :many
-- Near19 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 19;

-- name: Near20 :many
-- Near20 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 20;

-- name: Near21 :many
-- Near21 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 21;

-- name: Near22 :many
-- Near22 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 22;

-- name: Near23 :many
-- Near23 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 23;

-- name: Near24 :many
-- Near24 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 24;

-- name: Near25 :many
-- Near25 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 25;

-- name: Near26 :many
-- Near26 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 26;

-- name: Near27 :many
-- Near27 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 27;

-- name: Near28 :many
-- Near28 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 28;

-- name: Near29 :many
-- Near29 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 29;

-- name: Near30 :many
-- Near30 is one of thirty statements that a call of different statements runs.
select id, data from big where id = sqlc.arg(id)::integer + 30;

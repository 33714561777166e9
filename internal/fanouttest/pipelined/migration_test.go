package pipelined

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// migratable is a pool of one connection on the database, in a schema of its own, and a session there for the migration.
func migratable(t *testing.T, dsn string, configure ...func(*pgxpool.Config)) (pool *pgxpool.Pool, admin *pgx.Conn) {
	t.Helper()
	schema := fmt.Sprintf("of_%d", rand.Uint64())
	admin = pgtest.Connect(t, dsn)
	pgtest.Exec(t, admin, "create schema "+schema+"; set search_path = "+schema)
	return pgtest.PoolOn(t, dsn, 1, append(configure, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = schema })...), admin
}

// What the server says of an argument may come of the type that the parameter had: that may have lost a part of it, or have words
// of its own for what it does not take. As in pgx, the statement is described again after that.
func TestErrorsOfATypeThatTheColumnHadBefore(t *testing.T) {
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	noon := day.Add(12 * time.Hour)
	const insert = "insert into v values ($1) returning s::text"
	dsn := pgtest.DSN(t)
	for name, c := range map[string]struct {
		create, change, sql string
		before, after       any
	}{
		"enum to text": {
			"create type status as enum ('new', 'old'); create table v (s status)",
			"alter table v alter s type text", insert, "new", "paid",
		},
		"enum to text, read": {
			"create type status as enum ('new', 'old'); create table v (s status)",
			"alter table v alter s type text",
			"select coalesce((select max(s::text) from v where s = $1), 'none')", "new", "paid",
		},
		"domain to integer": {
			"create domain above as int check (value > 0); create table v (s above)",
			"alter table v alter s type int", insert, 1, -1,
		},
		"integer to bigint": {"create table v (s int)", "alter table v alter s type bigint", insert, "1", "5000000000"},
		"unique":            {"create table v (s date unique)", "alter table v alter s type timestamp", insert, day, noon},
		"foreign key": {
			"create table k (s timestamp primary key); insert into k values ('2026-01-02'), ('2026-01-03 12:00'); create table v (s date)",
			"alter table v alter s type timestamp, add foreign key (s) references k", insert, day, day.Add(36 * time.Hour),
		},
		"trigger": {"create table v (s date)", `
			alter table v alter s type timestamp;
			create function refuse() returns trigger language plpgsql as $$
				begin if extract(hour from new.s) = 0 then raise exception 'no time'; end if; return new; end $$;
			create trigger refuse before insert on v for each row execute function refuse()`, insert, day, noon},
		"regclass": {"create table v (s regclass)", "alter table v alter s type text", insert, "pg_class", "nothing"},
		"tsquery":  {"create table v (s tsquery)", "alter table v alter s type text", insert, "a", "a b & |"},
	} {
		for _, s := range []fanout.Strategy{fanout.Serial, fanout.Pipelined, fanout.Coalesced} {
			for _, snapshot := range []bool{false, true} {
				if snapshot && c.sql == insert {
					continue
				}
				t.Run(fmt.Sprintf("%s, %v, snapshot %v", name, s, snapshot), func(t *testing.T) {
					pool, admin := migratable(t, dsn)
					pgtest.Exec(t, admin, c.create)
					src := fanouttest.Raw(pool)
					src.Strategy, src.Snapshot = s, snapshot
					call := func(arg any) error {
						_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Statement[string](c.sql, arg))
						return err
					}
					if err := call(c.before); err != nil {
						t.Fatal(err)
					}
					pgtest.Exec(t, admin, c.change)
					err := call(c.after)
					if err != nil { // what is out of date is reported, once
						err = call(c.after)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// A new connection that has the description of another one asks for a column in the format of the type that it had, and so do
// those that are sent behind. If it does not know the one that it has now, that is an error, once, and not bytes that nobody
// can read.
func TestFormatsOfTypesThatColumnsHadBefore(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		for _, sql := range []string{"select s from v where id = $1", "update v set id = id where id = $1 returning s"} {
			for _, s := range []fanout.Strategy{fanout.Serial, fanout.Pipelined, fanout.Coalesced} {
				t.Run(fmt.Sprintf("%v, %v, %s", mode, s, sql), func(t *testing.T) {
					pool, admin := migratable(t, dsn, fanouttest.InMode(mode))
					pgtest.Exec(t, admin, "create type pair as (a int, b int); create table v (id int, s bigint); insert into v values (1, 7)")
					src := fanouttest.Raw(pool)
					src.Strategy, src.Partial = s, true
					get := func(ctx context.Context, tx fanout.DBTX) ([]any, error) {
						rows, err := tx.Query(ctx, sql, 1)
						if err != nil {
							return nil, err
						}
						return pgx.CollectRows(rows, func(row pgx.CollectableRow) (any, error) {
							values, err := row.Values()
							if err != nil {
								return nil, err
							}
							return values[0], nil
						})
					}
					call := func() ([][]any, error) {
						return fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(12, fanout.Query[fanout.DBTX, any](get))...)
					}
					for range 3 {
						if lists, err := call(); err != nil || lists[0][0] != any(int64(7)) {
							t.Fatal(lists, err)
						}
					}
					pgtest.Exec(t, admin, "alter table v alter s type pair using row(1, s)::pair")
					pool.Reset() // as after its MaxConnLifetime
					for i := range 2 {
						lists, err := call()
						if err != nil {
							fanouttest.Mention(t, err, "has another type")
						}
						if i > 0 && err != nil {
							t.Errorf("call %d: %v", i, err)
						}
						for j, list := range lists {
							if len(list) > 0 && list[0] != any("(1,7)") {
								t.Errorf("call %d, query %d: %#v", i, j, list[0])
							}
						}
					}
				})
			}
		}
	}
}

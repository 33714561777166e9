package servers

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// tenantKey is the key of the tenant in a ctx.
type tenantKey struct{}

// perDatabase is a pool whose connections lead to the database that the ctx names: a database per tenant, by the hooks that
// pgx has for it.
func perDatabase(t *testing.T, databases map[string]string) *pgxpool.Pool {
	t.Helper()
	return pgtest.PoolOn(t, databases["one"], 4, func(config *pgxpool.Config) {
		config.BeforeConnect = func(ctx context.Context, c *pgx.ConnConfig) error {
			of, err := pgx.ParseConfig(databases[ctx.Value(tenantKey{}).(string)])
			if err != nil {
				return err
			}
			c.Database = of.Database
			return nil
		}
		config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			of, err := pgx.ParseConfig(databases[ctx.Value(tenantKey{}).(string)])
			return err == nil && conn.Config().Database == of.Database, err
		}
	})
}

func tenant(t *testing.T, name string) context.Context {
	return context.WithValue(t.Context(), tenantKey{}, name)
}

// What one database has said of a statement's parameters is not what another one has: here, an argument would lose its time
// of day.
func TestDatabasePerTenantKeepsArguments(t *testing.T) {
	for _, s := range fanouttest.Pipelining {
		t.Run(s.String(), func(t *testing.T) {
			dsns := map[string]string{"one": pgtest.DSN(t), "two": pgtest.DSN(t)}
			for name, typ := range map[string]string{"one": "date", "two": "timestamptz"} {
				pgtest.Exec(t, pgtest.Connect(t, dsns[name]), "create table event (n int, at "+typ+")")
			}
			pool := perDatabase(t, dsns)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			at := time.Date(2026, 1, 2, 12, 34, 56, 0, time.UTC)
			insert := func(n int) fanout.Query[fanout.DBTX, int] {
				return func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
					_, err := tx.Exec(ctx, "-- name: AddEvent :exec\ninsert into event values ($1, $2)", n, at)
					return nil, err
				}
			}
			for _, name := range []string{"one", "two"} {
				if _, err := fanout.Collect(tenant(t, name), src, insert(1), insert(2), insert(3)); err != nil {
					t.Fatal(err)
				}
			}
			var lost int
			if err := pool.QueryRow(tenant(t, "two"), "select count(*) from event where at <> $1", at).Scan(&lost); err != nil {
				t.Fatal(err)
			}
			if lost > 0 {
				t.Errorf("%d of 3 events of tenant two have lost their time of day", lost)
			}
		})
	}
}

// What one database's catalog proves is not what another one's does: here, a function of the same name is volatile.
func TestDatabasePerTenantKeepsExecutions(t *testing.T) {
	for _, s := range fanouttest.Pipelining {
		t.Run(s.String(), func(t *testing.T) {
			dsns := map[string]string{"one": pgtest.DSN(t), "two": pgtest.DSN(t)}
			for _, dsn := range dsns {
				pgtest.Exec(t, pgtest.Connect(t, dsn), "create sequence ticket; create table account (id int primary key); insert into account select generate_series(1, 40)")
			}
			pgtest.Exec(t, pgtest.Connect(t, dsns["one"]), "create function number() returns bigint language sql stable as 'select 7::bigint'")
			pgtest.Exec(t, pgtest.Connect(t, dsns["two"]), "create function number() returns bigint language sql volatile as $$select nextval('ticket')$$")
			pool := perDatabase(t, dsns)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Limit = s, 1
			var queries []fanout.Query[fanout.DBTX, string]
			for i := range 20 {
				queries = append(queries, fanouttest.Statement[string]("-- name: Number :one\nselect (select number())::text from account where id = $1", i+1))
			}
			for range 3 {
				if _, err := fanout.Collect(tenant(t, "one"), src, queries...); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				lists, err := fanout.Collect(tenant(t, "two"), src, queries...)
				if err != nil {
					t.Fatal(err)
				}
				seen := map[string]int{}
				for _, list := range lists {
					seen[fmt.Sprint(list)]++
				}
				if len(seen) != 20 {
					t.Fatalf("20 executions have drawn %d numbers: %v", len(seen), seen)
				}
			}
		})
	}
}

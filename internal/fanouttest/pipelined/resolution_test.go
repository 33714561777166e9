package pipelined

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// What the package asks the server for itself means what it means in pg_catalog, whatever a user has in front of that, or in
// his session: types and operators of the same names.
func TestOwnStatementsBesideOthersNames(t *testing.T) {
	inSession := func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "create temp table text (id int); create temp table int4 (id int)")
			return err
		}
	}
	inFront := func(config *pgxpool.Config) { config.ConnConfig.RuntimeParams["search_path"] = "app, pg_catalog" }
	for name, configure := range map[string]func(*pgxpool.Config){"session": inSession, "path": inFront} {
		for i := range 2 * len(fanouttest.Strategies) {
			pool := pgtest.Pool(t, 2, configure)
			if _, err := pool.Exec(t.Context(), `create schema app; create table app.text (id int); create table app.int4 (id pg_catalog.int4);
				create function app.alike(name, name) returns bool immutable language sql as 'select true';
				create operator app.= (leftarg = name, rightarg = name, function = app.alike)`); err != nil {
				t.Fatal(err)
			}
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot = fanouttest.Strategies[i/2], i%2 == 1
			queries := fanouttest.Repeated(4, fanouttest.Statement[int64]("select $1::pg_catalog.int8", 7))
			if lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil || lists[3][0] != 7 {
				t.Errorf("%s, %v, snapshot %v: %v, %v", name, src.Strategy, src.Snapshot, lists, err)
			}
		}
	}
}

// So a connection on which names are of other things is found out also where 1 / 0 is no error.
func TestSearchPathsWithADivision(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		var n atomic.Int32
		pool := pgtest.Pool(t, 2, func(config *pgxpool.Config) {
			config.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
				conn.RuntimeParams["search_path"] = fmt.Sprintf("s%d, lib, pg_catalog", 1+(n.Add(1)+1)%2)
				return nil
			}
		})
		admin := pgtest.Connect(t, pool.Config().ConnString())
		pgtest.Exec(t, admin, `create schema lib;
			create function lib.divide(int, int) returns int immutable language sql
				as 'select case when $2 operator(pg_catalog.=) 0 then null else $1 operator(pg_catalog./) $2 end';
			create operator lib./ (leftarg = int, rightarg = int, function = lib.divide);
			create schema s1; create table s1.t (at date);
			create schema s2; create table s2.t (at timestamp)`)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Limit = s, 1
		at := time.Date(2024, 1, 2, 12, 34, 56, 0, time.UTC)
		put := fanouttest.Statement[string]("insert into t values ($1) returning at::pg_catalog.text", at)
		var written []string
		for range 2 { // by one connection, and then by the other
			lists, err := fanout.Collect(fanouttest.InTime(t), src, put, put)
			if err != nil {
				t.Fatal(err)
			}
			written = append(written, lists[0][0], lists[1][0])
			conn, err := pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
		}
		slices.Sort(written)
		const date, timestamp = "2024-01-02", "2024-01-02 12:34:56"
		if want := []string{date, date, timestamp, timestamp}; !slices.Equal(written, want) {
			t.Errorf("%v: %q was written", s, written)
		}
	}
}

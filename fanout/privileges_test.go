package fanout_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// What the package's own statements need that the queries do not: without it a call fails in the server's words, without
// anything else it goes on.
func TestPrivileges(t *testing.T) {
	dsn := pgtest.DSN(t)
	admin := pgtest.Connect(t, dsn)
	role := "role_of_" + admin.Config().Database
	pgtest.Exec(t, admin, "create role "+role)
	defer pgtest.Exec(t, admin, "drop role "+role)
	pool := pgtest.PoolOn(t, dsn, 3, func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+role)
			return err
		}
	})
	pipelined := func(s fanout.Strategy, _ bool) bool { return s >= fanout.Pipelined }
	shared := func(s fanout.Strategy, snapshot bool) bool { return snapshot && s != fanout.Serial }
	for object, needs := range map[string]func(s fanout.Strategy, snapshot bool) bool{
		"execute on function current_schemas(boolean)":   pipelined,
		"select on pg_extension":                         func(_ fanout.Strategy, snapshot bool) bool { return snapshot },
		"execute on function pg_export_snapshot()":       shared,
		"execute on function pg_backend_pid()":           shared,
		"execute on function pg_is_in_recovery()":        shared,
		"execute on function pg_postmaster_start_time()": shared,
		"select on pg_proc":                              nil,
		"select on pg_class":                             nil,
		"execute on function unnest(anyarray)":           nil,
		"execute on function pg_cancel_backend(int)":     nil,
		"execute on function pg_stat_get_activity(int)":  nil,
	} {
		pgtest.Exec(t, admin, "revoke "+object+" from public")
		pool.Reset() // a connection asks once
		for _, s := range fanouttest.Strategies {
			for _, snapshot := range []bool{false, true} {
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot = s, snapshot
				name := fmt.Sprintf("%s, %v, snapshot=%v", object, s, snapshot)
				var queries []fanout.Query[fanout.DBTX, int32]
				for i := range 20 {
					queries = append(queries, fanouttest.Statement[int32]("select $1::int4 -- "+name, i))
				}
				for range 3 { // until they are coalesced
					lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
					if needs != nil && needs(s, snapshot) {
						if fanouttest.SQLState(err) != "42501" {
							t.Errorf("%s: %v", name, err)
						}
					} else if err != nil || lists[19][0] != 19 {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
		}
		pgtest.Exec(t, admin, "grant "+object+" to public")
	}
}

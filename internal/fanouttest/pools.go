package fanouttest

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Warm opens all connections of the pool, and prepares the statement on each.
func Warm(tb testing.TB, pool *pgxpool.Pool) {
	conns := AcquireAll(tb, pool)
	for _, conn := range conns {
		if _, err := db.New(conn).ListAByData(context.Background(), ""); err != nil {
			tb.Fatal(err)
		}
	}
	for _, conn := range conns {
		conn.Release()
	}
}

// AcquireAll acquires all connections that the pool may have, opening those that are not open yet.
func AcquireAll(tb testing.TB, pool *pgxpool.Pool) (conns []*pgxpool.Conn) {
	tb.Helper()
	for range pool.Stat().MaxConns() {
		conn, err := pool.Acquire(context.Background())
		if err != nil {
			tb.Fatal(err)
		}
		conns = append(conns, conn)
	}
	return conns
}

// Outsider opens a connection beside the pool.
func Outsider(t *testing.T, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// SearchPaths has connections resolve names in these schemas, one list after the other in turn.
func SearchPaths(paths ...string) func(*pgxpool.Config) {
	return func(config *pgxpool.Config) {
		var opened atomic.Int32
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set search_path to "+paths[int(opened.Add(1)-1)%len(paths)])
			return err
		}
	}
}

// InMode has connections send statements in this mode of pgx.
func InMode(mode pgx.QueryExecMode) func(*pgxpool.Config) {
	return func(config *pgxpool.Config) { config.ConnConfig.DefaultQueryExecMode = mode }
}

// Over has a pool's connections run over what wrap makes of them.
func Over(wrap func(net.Conn) net.Conn) func(*pgxpool.Config) {
	return func(config *pgxpool.Config) {
		dial := config.ConnConfig.DialFunc
		config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}
	}
}

// Fill adds rows a_0 … a_(n-1) to table a. On a fresh database their ids are 1 to n.
func Fill(t testing.TB, pool *pgxpool.Pool, n int) {
	t.Helper()
	data := make([]*string, n)
	for i := range data {
		text := fmt.Sprintf("a_%d", i)
		data[i] = &text
	}
	if _, err := db.New(pool).InsertAs(context.Background(), data); err != nil {
		t.Fatal(err)
	}
}

// Failable makes a function fail(state), which raises an error of that SQLSTATE.
func Failable(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `
		create function fail(state text) returns int language plpgsql as $$
		begin raise exception 'once more' using errcode = state; end $$`)
	if err != nil {
		t.Fatal(err)
	}
}

// Serves checks that the pool is as good as new: nothing acquired, and every connection answers. It waits for connections
// that pgx closes in the background, because their ctx ended.
func Serves(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); pool.Stat().AcquiredConns() != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections still acquired", pool.Stat().AcquiredConns())
		}
	}
	for range pool.Stat().MaxConns() {
		if _, err := db.New(pool).CountA(context.Background()); err != nil {
			t.Errorf("the pool does not serve: %v", err)
		}
	}
}

// SameBackends runs f and checks that it costs the pool no connection, and leaves none acquired or in a transaction.
func SameBackends(t *testing.T, conns int, f func(src fanout.Source[fanout.DBTX])) {
	t.Helper()
	pool := pgtest.Pool(t, conns)
	for _, conn := range AcquireAll(t, pool) {
		conn.Release()
	}
	before := pgtest.Backends(t, pool)
	start := time.Now()
	f(Raw(pool))
	if d := time.Since(start); d > 30*time.Second { // half of what one takes: f has more to do, and the machine may be slow
		t.Errorf("waited %v for a sleeping statement", d)
	}
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections still acquired", n)
	}
	if after := pgtest.Backends(t, pool); !slices.Equal(before, after) {
		t.Errorf("backends before %v, after %v", before, after)
	}
	// Only clients' backends: autovacuum may be at work in any database, if only on the catalogs that all share.
	const busySQL = "select coalesce(string_agg(concat_ws(' ', pid, state, query), '; '), '') from pg_stat_activity" +
		" where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid() and state <> 'idle'"
	var busy string
	if err := pool.QueryRow(t.Context(), busySQL).Scan(&busy); err != nil || busy != "" {
		t.Errorf("backends that are not idle: %s, %v", busy, err)
	}
}

// Awaiting is how many statements wait for an advisory lock in the monitor's database.
func Awaiting(t testing.TB, monitor *pgx.Conn) int {
	t.Helper()
	return pgtest.QueryRow[int](t, monitor, "select count(*)::int from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())")
}

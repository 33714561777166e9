package sandbox

import (
	"context"
	"io"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// What takes a whole program, to interrupt or to have two of at once, is tested with the demo.

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func mustExec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func queryRow[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// The server does not end the connection that owns the schema for being idle, and if it ends it for another reason, the schema
// is dropped all the same.
func TestOwnersConnection(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := connect(t, dsn)
	mustExec(t, conn, `do $$ begin
		if current_setting('server_version_num')::int >= 140000 then
			execute format('alter database %I set idle_session_timeout = 60000', current_database());
		end if;
	end $$`)
	schema := Schema{Name: "fanout_sandbox", Program: "test", Tables: []string{"one", "two", "never"}, Lock: 1}
	s, err := Open(t.Context(), connect(t, dsn), schema, io.Discard, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "create table fanout_sandbox.one (); create table fanout_sandbox.two ()")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if timeout := queryRow[string](t, s.Conn, "select coalesce(current_setting('idle_session_timeout', true), '0')"); timeout != "0" {
		t.Errorf("it may be idle for %s", timeout)
	}
	mustExec(t, conn, "select pg_terminate_backend($1)", s.Conn.PgConn().PID())
	if err := s.End(false); err != nil {
		t.Error(err)
	}
	if queryRow[bool](t, conn, "select exists (select from pg_namespace where nspname = $1)", schema.Name) {
		t.Error("the schema is there")
	}
	if !queryRow[bool](t, conn, "select pg_try_advisory_lock($1)", schema.Lock) {
		t.Error("the lock is taken")
	}
}

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

// The server does not end the connection that owns the schema for being idle, and if it ends it for another reason, the schema
// is dropped all the same.
func TestOwnersConnection(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := pgtest.Connect(t, dsn)
	pgtest.Exec(t, conn, `do $$ begin
		if current_setting('server_version_num')::int >= 140000 then
			execute format('alter database %I set idle_session_timeout = 60000', current_database());
		end if;
	end $$`)
	schema := Schema{Name: "fanout_sandbox", Program: "test", Tables: []string{"one", "two", "never"}, Lock: 1}
	s, err := Open(t.Context(), pgtest.Connect(t, dsn), schema, io.Discard, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "create table fanout_sandbox.one (); create table fanout_sandbox.two ()")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if timeout := pgtest.QueryRow[string](t, s.Conn, "select coalesce(current_setting('idle_session_timeout', true), '0')"); timeout != "0" {
		t.Errorf("it may be idle for %s", timeout)
	}
	pgtest.Exec(t, conn, "select pg_terminate_backend($1)", s.Conn.PgConn().PID())
	if err := s.End(false); err != nil {
		t.Error(err)
	}
	if pgtest.QueryRow[bool](t, conn, "select exists (select from pg_namespace where nspname = $1)", schema.Name) {
		t.Error("the schema is there")
	}
	if !pgtest.QueryRow[bool](t, conn, "select pg_try_advisory_lock($1)", schema.Lock) {
		t.Error("the lock is taken")
	}
}

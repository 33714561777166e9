package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// What takes a whole program, to interrupt or to have two of at once, is tested with the demo.

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// inside is a connection that begins in the schema.
func inside(t *testing.T, dsn string, schema Schema) *pgx.Conn {
	conn := pgtest.Connect(t, dsn)
	pgtest.Exec(t, conn, "set search_path to "+schema.Name)
	return conn
}

// A connection that begins elsewhere, as through a pooler that ignores the search_path, is refused before anything happens.
func TestConnectionThatBeginsElsewhere(t *testing.T) {
	dsn := pgtest.DSN(t)
	schema := Schema{Name: "fanout_sandbox", Program: "test", Tables: []string{"one"}, Lock: 1}
	astray := pgtest.Connect(t, dsn)
	_, err := Open(t.Context(), astray, schema, io.Discard, func(context.Context, pgx.Tx) error {
		t.Error("something is done")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "pooler") || !astray.IsClosed() {
		t.Errorf("%v; closed: %v", err, astray.IsClosed())
	}
	if pgtest.QueryRow[bool](t, pgtest.Connect(t, dsn), "select exists (select from pg_namespace where nspname = $1)", schema.Name) {
		t.Error("the schema is there")
	}
}

// Where no schema can be created, the error says what would help.
func TestNoSchemaCanBeCreated(t *testing.T) {
	dsn := pgtest.DSN(t)
	schema := Schema{Name: "fanout_sandbox", Program: "test", Tables: []string{"one"}, Lock: 1}
	for setting, want := range map[string]string{
		"set default_transaction_read_only to on": "that may write",
		"set role to pg_monitor":                  "the CREATE privilege on this database",
	} {
		conn := inside(t, dsn, schema)
		pgtest.Exec(t, conn, setting)
		_, err := Open(t.Context(), conn, schema, io.Discard, func(context.Context, pgx.Tx) error { return nil })
		if err == nil || !strings.Contains(err.Error(), want) || !conn.IsClosed() {
			t.Errorf("%s: %v; closed: %v", setting, err, conn.IsClosed())
		}
	}
}

// When an interrupted sandbox is closed the server has been told to end what it was at: the program may end, too.
func TestInterrupted(t *testing.T) {
	dsn := pgtest.DSN(t)
	schema := Schema{Name: "fanout_sandbox", Program: "test", Tables: []string{"one"}, Lock: 1}
	conn := inside(t, dsn, schema)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Open(ctx, conn, schema, io.Discard, func(ctx context.Context, tx pgx.Tx) error {
		time.AfterFunc(50*time.Millisecond, cancel)
		_, err := tx.Exec(ctx, "select pg_sleep(60)")
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-conn.PgConn().CleanupDone():
	default:
		t.Error("the statement has not been cancelled yet")
	}
}

// What of the user's depends on a table keeps it, and is named: at the end, and by the next one.
func TestWhatDependsIsNamed(t *testing.T) {
	dsn := pgtest.DSN(t)
	schema := Schema{Name: "fanout_sandbox", Program: "test", Tables: []string{"one"}, Lock: 1}
	fill := func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "create table one (); create view public.users as select from one")
		return err
	}
	s, err := Open(t.Context(), inside(t, dsn, schema), schema, io.Discard, fill)
	if err != nil {
		t.Fatal(err)
	}
	var left *LeftBehindError
	if err := s.End(false); !errors.As(err, &left) || !strings.Contains(err.Error(), "view public.users depends on") {
		t.Errorf("at the end: %v", err)
	}
	if _, err := Open(t.Context(), inside(t, dsn, schema), schema, io.Discard, fill); err == nil || !strings.Contains(err.Error(), "view public.users depends on") {
		t.Errorf("the next time: %v", err)
	}
}

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
	pgtest.Exec(t, conn, `do $$ begin execute format('alter database %I set statement_timeout = 60000', current_database()); end $$`)
	schema := Schema{Name: "fanout_sandbox", Program: "test", Tables: []string{"one", "two", "never"}, Lock: 1}
	s, err := Open(t.Context(), inside(t, dsn, schema), schema, io.Discard, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "create table fanout_sandbox.one (); create table fanout_sandbox.two ()")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"idle_session_timeout", "statement_timeout"} {
		if timeout := pgtest.QueryRow[string](t, s.Conn, "select coalesce(current_setting($1, true), '0')", name); timeout != "0" {
			t.Errorf("%s is %s", name, timeout)
		}
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

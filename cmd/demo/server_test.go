package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestChooseDSN(t *testing.T) {
	for _, test := range []struct {
		flag              string
		env               map[string]string
		dsn, source, none string
	}{
		{flag: "f", env: map[string]string{"DATABASE_URL": "u", "PGHOST": "h"}, dsn: "f", source: "-dsn"},
		{env: map[string]string{"DATABASE_URL": "u", "PGHOST": "h"}, dsn: "u", source: "DATABASE_URL"},
		{env: map[string]string{"PGHOST": "h"}, source: "PGHOST"},
		{env: map[string]string{"PGPORT": "1", "PGUSER": "u", "PGPASSWORD": "p", "PGDATABASE": "d", "PGSERVICE": "s"}, source: "PGPORT, PGUSER, PGPASSWORD, PGDATABASE, PGSERVICE"},
		{env: map[string]string{"PGBIN": "b", "PGSSLMODE": "prefer", "PGAPPNAME": "x"}, none: "yes"},
		{none: "yes"},
	} {
		dsn, source, given := chooseDSN(test.flag, func(name string) string { return test.env[name] })
		if dsn != test.dsn || source != test.source || given != (test.none == "") {
			t.Errorf("%+v: %q, %q, %t", test, dsn, source, given)
		}
	}
}

// The user's own server, by each of the ways to name it.
func TestServerIsNamed(t *testing.T) {
	dsn := pgtest.DSN(t)
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	description := fmt.Sprintf("demo: using database %q as user %q on %s (from %%s)\n", config.Database, config.User, address(config.Host, config.Port))
	if r := succeeds(t, "-dsn", dsn); r.stderr != fmt.Sprintf(description, "-dsn") {
		t.Errorf("-dsn: %s", r.stderr)
	}
	if r := demoCtx(t, t.Context(), map[string]string{"DATABASE_URL": dsn}); r.status != success || r.stderr != fmt.Sprintf(description, "DATABASE_URL") {
		t.Errorf("DATABASE_URL: %s", r.stderr)
	}
	env := map[string]string{"PGHOST": config.Host, "PGPORT": strconv.Itoa(int(config.Port)), "PGUSER": config.User, "PGDATABASE": config.Database}
	if config.Password != "" {
		env["PGPASSWORD"] = config.Password
	}
	for name, value := range env {
		t.Setenv(name, value) // pgx looks there
	}
	r := demoCtx(t, t.Context(), env)
	if prefix, _, _ := strings.Cut(description, "%s"); r.status != success || !strings.HasPrefix(r.stderr, prefix+"PGHOST, PGPORT, PGUSER") {
		t.Errorf("PG*: %s", r.stderr)
	}
}

func TestSeveralHosts(t *testing.T) {
	s, err := openServer(t.Context(), "postgres://me:secret@one:1,two:2/x", 1, 1, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	if want := `using database "x" as user "me" on one:1, two:2 (from -dsn)`; s.description != want {
		t.Errorf("%s", s.description)
	}
}

// What the user has put into the DSN for the pool does not come into the way of -conns.
func TestPoolSettingsInDSN(t *testing.T) {
	dsn := pgtest.DSN(t)
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	pairs := fmt.Sprintf("host='%s' port=%d user='%s' password='%s' dbname='%s' pool_max_conns=3 pool_min_conns=2 search_path=public application_name=mine",
		config.Host, config.Port, config.User, config.Password, config.Database)
	if r := succeeds(t, "-dsn", pairs, "-conns", "5"); !strings.Contains(r.stdout, "5 connections, ") {
		t.Errorf("output:\n%s", r.stdout)
	}
}

func TestNoServerThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := listener.Addr().String()
	listener.Close()
	r := demo(t, "-dsn", "postgres://me:secret@"+free+"/x")
	r.failsWith(t, free, "connection refused", "user=me", "database=x")
	if strings.Contains(r.stderr, "secret") {
		t.Errorf("the password is in: %s", r.stderr)
	}
	demo(t, "-dsn", "host="+t.TempDir()+" user=me").failsWith(t, ".s.PGSQL.5432", "no such file")
}

// Something else listens there.
func TestNotPostgreSQL(t *testing.T) {
	for _, answer := range []string{"", "HTTP/1.1 400 Bad Request\r\n\r\n"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				conn.Read(make([]byte, 1024))
				conn.Write([]byte(answer))
				conn.Close()
			}
		}()
		r := demo(t, "-dsn", "postgres://me:secret@"+listener.Addr().String()+"/x")
		r.failsWith(t, "failed to connect", listener.Addr().String())
		if strings.Contains(r.stderr, "secret") {
			t.Errorf("the password is in: %s", r.stderr)
		}
		listener.Close()
		<-done
	}
}

func TestMalformedDSN(t *testing.T) {
	for _, dsn := range []string{
		"postgres://me:secret@h:99999/x",
		"postgres://me:sec/ret@h/x",
		"postgres://me:12/secret@h/x",
		"postgres://me:secret%@h/x",
		"postgres://me:secret%zz@h/x",
		"postgres://me:secret@[h/x",
		"postgres://me:secret@h/x?sslmode=secretly",
		"postgres://me@h/x?password=secret&sslmode=no",
		"postgres://me:secret@h/x?pool_max_conns=0",
		"postgres://me:secret@h/x?connect_timeout=x",
		"postgres://me:secret@h:1,h:2,h:3/x?port=1,2",
		"mysql://me:secret@h/x",
		"me:secret@h",
		"secret",
		"host=h password='secret",
		"host=h password=my secret",
		"host=h password = secret =",
		"host=h password=secret port=x",
		"host=h password=secret service=none servicefile=/dev/null",
	} {
		for source, r := range map[string]result{
			"-dsn":         demo(t, "-dsn", dsn),
			"DATABASE_URL": demoCtx(t, t.Context(), map[string]string{"DATABASE_URL": dsn}),
		} {
			r.failsWith(t, "the connection string from "+source+" cannot be used: ")
			if strings.Contains(strings.ReplaceAll(r.stderr, "sslmode=secretly", ""), "secret") {
				t.Errorf("%s: the password is in: %s", dsn, r.stderr)
			}
			if strings.HasSuffix(r.stderr, ": \n") {
				t.Errorf("%s: no reason: %s", dsn, r.stderr)
			}
		}
	}
}

// A server that asks for passwords, and a user who may not create anything.
func TestPassword(t *testing.T) {
	dir := scratch(t)
	hba := filepath.Join(dir, "hba")
	if err := os.WriteFile(hba, []byte("local all postgres trust\nlocal all all scram-sha-256\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(hba) })
	s, err := localpg.Start(t.Context(), "hba_file="+hba)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	admin := pgtest.Connect(t, s.DSN())
	pgtest.Exec(t, admin, "create role me login password 'right'")
	host := admin.Config().Host

	r := demo(t, "-dsn", fmt.Sprintf("host='%s' user=me password=secret dbname=postgres", host))
	r.failsWith(t, `demo: failed to connect: FATAL: password authentication failed for user "me" (SQLSTATE 28P01)`)
	if strings.Contains(r.stderr, "secret") {
		t.Errorf("the password is in: %s", r.stderr)
	}
	right := fmt.Sprintf("host='%s' user=me password=right dbname=postgres", host)
	r = demo(t, "-dsn", right)
	r.failsWith(t, "creating schema fanout_demo: ", "permission denied for database postgres")
	if strings.Contains(r.stderr, "right") {
		t.Errorf("the password is in: %s", r.stderr)
	}

	pgtest.Exec(t, admin, "grant create on database postgres to me")
	r = succeeds(t, "-dsn", right, "-echo")
	if strings.Contains(r.stderr, "right") {
		t.Errorf("the password is in: %s", r.stderr)
	}
	pgtest.Exec(t, admin, "revoke create on database postgres from me")
	admin.Close(context.Background())
}

func TestTooManyConnections(t *testing.T) {
	scratch(t)
	s, err := localpg.Start(t.Context(), "max_connections=8")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	demo(t, "-dsn", s.DSN()).failsWith(t, "opening 10 connections (-conns): ", "too many clients")
	var conn *pgx.Conn
	for deadline := time.Now().Add(10 * time.Second); conn == nil; time.Sleep(10 * time.Millisecond) {
		conn, err = pgx.Connect(t.Context(), s.DSN())
		if err != nil && time.Now().After(deadline) { // by then those of before have ended
			t.Fatal(err)
		}
	}
	if schemaExists(t, conn) {
		t.Error("the schema is there")
	}
	_ = conn.Close(context.Background())
	succeeds(t, "-dsn", s.DSN(), "-conns", "3")
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// inventory is every object of the database that is not the system's own, and the rows of public.a.
func inventory(t *testing.T, conn *pgx.Conn) (objects []string, rows []db.A) {
	t.Helper()
	found, err := conn.Query(t.Context(), `
		select 'schema ' || nspname || ' ' || coalesce(obj_description(oid, 'pg_namespace'), '') from pg_namespace
		where nspname !~ '^pg_'
		union all
		select c.oid || ' ' || relkind::text || ' ' || nspname || '.' || relname || ' ' || coalesce(obj_description(c.oid, 'pg_class'), '')
		from pg_class c join pg_namespace n on n.oid = relnamespace
		where nspname !~ '^pg_' and nspname <> 'information_schema'
		order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	if objects, err = pgx.CollectRows(found, pgx.RowTo[string]); err != nil {
		t.Fatal(err)
	}
	if rows, err = db.New(conn).ListA(t.Context()); err != nil {
		t.Fatal(err)
	}
	return objects, rows
}

// untouched runs f and checks that the database is then as it was before.
func untouched(t *testing.T, conn *pgx.Conn, f func()) {
	t.Helper()
	objects, rows := inventory(t, conn)
	f()
	objectsAfter, rowsAfter := inventory(t, conn)
	if diff := cmp.Diff(objects, objectsAfter); diff != "" {
		t.Errorf("objects (-before +after)\n%s", diff)
	}
	if diff := cmp.Diff(rows, rowsAfter); diff != "" {
		t.Errorf("public.a (-before +after)\n%s", diff)
	}
}

func TestNothingElseIsTouched(t *testing.T) {
	dsn, conn := filled(t, 7)
	pgtest.Exec(t, conn, "create view v as select * from a; create schema other; create table other.a (x int)")
	untouched(t, conn, func() { succeeds(t, "-dsn", dsn) })
}

func TestForeignSchemaIsRefused(t *testing.T) {
	for _, comment := range []string{"null", "'mine'", "'" + strings.ToUpper(schema.Mark()) + "'"} {
		dsn, conn := filled(t, 3)
		pgtest.Exec(t, conn, "create schema fanout_demo; create table fanout_demo.a (id int, data text); insert into fanout_demo.a values (1, 'mine')")
		pgtest.Exec(t, conn, "comment on schema fanout_demo is "+comment)
		untouched(t, conn, func() {
			demo(t, "-dsn", dsn).failsWith(t, "schema fanout_demo exists and was not made by this demo", "rename it, or use another database")
		})
		if got := pgtest.QueryRow[string](t, conn, "select data from fanout_demo.a"); got != "mine" {
			t.Errorf("its row is %s", got)
		}
	}
}

// A demo that could not clean up has left its schema.
func TestOwnSchemaIsReplaced(t *testing.T) {
	dsn, conn := filled(t, 3)
	for _, table := range []string{"", "create table fanout_demo.a (old int)"} {
		pgtest.Exec(t, conn, "create schema fanout_demo; comment on schema fanout_demo is '"+schema.Mark()+"';"+table)
		succeeds(t, "-dsn", dsn)
		if schemaExists(t, conn) {
			t.Error("the schema is there")
		}
	}
}

// What the user has built on it, or put into it, is not the demo's to drop.
func TestOwnSchemaInUse(t *testing.T) {
	for _, object := range []string{"create view public.v as select * from fanout_demo.a", "create table fanout_demo.mine (x int)"} {
		dsn, conn := filled(t, 3)
		pgtest.Exec(t, conn, "create schema fanout_demo; comment on schema fanout_demo is '"+schema.Mark()+"'; create table fanout_demo.a (old int);"+object)
		untouched(t, conn, func() {
			demo(t, "-dsn", dsn).failsWith(t, "dropping schema fanout_demo, which an earlier demo has left: ", "other objects depend on it")
		})
	}
}

func TestReadOnlyServer(t *testing.T) {
	dsn, conn := filled(t, 0)
	pgtest.Exec(t, conn, "do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$")
	demo(t, "-dsn", dsn).failsWith(t, "creating schema fanout_demo: ", "read-only transaction")
}

// A running program is one in this process that has not ended.
type running struct {
	cancel context.CancelFunc
	stderr *bufio.Reader
	ended  chan result
}

// start runs the program until it ends or the test does.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w, err := os.Pipe() // has room for lines that nobody waits for
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		r.Close()
	})
	p := &running{cancel, bufio.NewReader(r), make(chan result, 1)}
	go func() {
		var stdout bytes.Buffer
		status := run(ctx, args, &stdout, w, func(string) string { return "" })
		w.Close()
		p.ended <- result{status: status, stdout: stdout.String()}
	}()
	return p
}

// line reads the next line from stderr.
func (p *running) line(t *testing.T) string {
	t.Helper()
	line, err := p.stderr.ReadString('\n')
	if err != nil {
		t.Fatalf("no line on stderr: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// wait returns the result, with what has not been read of stderr.
func (p *running) wait(t *testing.T) result {
	t.Helper()
	rest, err := io.ReadAll(p.stderr)
	if err != nil {
		t.Fatal(err)
	}
	r := <-p.ended
	r.stderr = string(rest)
	return r
}

// eventually polls until the condition holds.
func eventually(t *testing.T, within time.Duration, what string, condition func() bool) {
	t.Helper()
	for begin := time.Now(); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Since(begin) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// working waits until look-ups run on the server that conn is connected to.
func working(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	eventually(t, time.Minute, "look-ups run", func() bool {
		return pgtest.QueryRow[bool](t, conn, "select exists (select from pg_stat_activity where datname = current_database() and state = 'active' and query like '%ListAByData%' and pid <> pg_backend_pid())")
	})
}

// long is more work than any test waits for.
var long = []string{"-rows", "20000", "-queries", "200000"}

func TestDemoWaitsForAnother(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := pgtest.Connect(t, dsn)
	pgtest.Exec(t, conn, "select pg_advisory_lock($1)", schema.Lock)
	p := start(t, "-dsn", dsn)
	p.line(t)
	if line := p.line(t); line != "demo: waiting for another demo in this database to end" {
		t.Errorf("stderr: %s", line)
	}
	if schemaExists(t, conn) {
		t.Error("it has not waited")
	}
	pgtest.Exec(t, conn, "select pg_advisory_unlock($1)", schema.Lock)
	if r := p.wait(t); r.status != success || r.stderr != "" {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}

func TestInterruptedWhileWaiting(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := pgtest.Connect(t, dsn)
	pgtest.Exec(t, conn, "select pg_advisory_lock($1)", schema.Lock)
	p := start(t, "-dsn", dsn)
	p.line(t)
	p.line(t)
	p.cancel()
	if r := p.wait(t); r.status != failure || r.stderr != "demo: interrupted\n" {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}

func TestTwoDemosAtOnce(t *testing.T) {
	dsn := pgtest.DSN(t)
	demos := []*running{start(t, "-dsn", dsn), start(t, "-dsn", dsn), start(t, "-dsn", dsn)}
	for _, p := range demos {
		if r := p.wait(t); r.status != success {
			t.Errorf("status %d\n%s", r.status, r.stderr)
		}
	}
	if schemaExists(t, pgtest.Connect(t, dsn)) {
		t.Error("the schema is there")
	}
}

func TestInterrupted(t *testing.T) {
	dsn, conn := filled(t, 2)
	untouched(t, conn, func() {
		for _, flag := range []string{"-json", "-partial", "-no-merge"} {
			p := start(t, append(long, "-dsn", dsn, flag)...)
			p.line(t)
			working(t, conn)
			p.cancel()
			if r := p.wait(t); r.status != failure || r.stderr != "demo: interrupted\n" || r.stdout != "" {
				t.Errorf("%s: status %d\n%s\n%s", flag, r.status, r.stderr, r.stdout)
			}
		}
	})
}

func TestSchemaIsLeftBehind(t *testing.T) {
	dsn, conn := filled(t, 2)
	p := start(t, append(long, "-dsn", dsn)...)
	p.line(t)
	working(t, conn)
	pgtest.Exec(t, conn, "create view v as select * from fanout_demo.a")
	untouched(t, conn, func() {
		p.cancel()
		r := p.wait(t)
		if r.status != failure || !strings.HasPrefix(r.stderr, "demo: interrupted; schema fanout_demo is left behind: ERROR: ") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("status %d\n%s", r.status, r.stderr)
		}
	})
}

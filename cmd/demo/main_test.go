package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	sqlcfanout "github.com/sqlc-fanout/sqlc-fanout"
	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// childEnv makes this test binary the demo itself.
const childEnv = "FANOUT_DEMO_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
	}
	os.Exit(pgtest.Run(m, sqlcfanout.Schema))
}

// A result is what a run of the program has left.
type result struct {
	status         int
	stdout, stderr string
}

// demo runs the program in this process, without variables. It must leave no goroutine.
func demo(t *testing.T, args ...string) result {
	t.Helper()
	return demoCtx(t, t.Context(), nil, args...)
}

func demoCtx(t *testing.T, ctx context.Context, env map[string]string, args ...string) result {
	t.Helper()
	before := goleak.IgnoreCurrent()
	var stdout, stderr bytes.Buffer
	status := run(ctx, args, &stdout, &stderr, func(name string) string { return env[name] })
	goleak.VerifyNone(t, before)
	return result{status, stdout.String(), stderr.String()}
}

// succeeds runs the program and fails the test unless it reports success.
func succeeds(t *testing.T, args ...string) result {
	t.Helper()
	r := demo(t, args...)
	if r.status != success {
		t.Fatalf("demo %q: status %d\n%s", args, r.status, r.stderr)
	}
	return r
}

// lastLine is the line on which the program says what went wrong.
func (r result) lastLine() string {
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	return lines[len(lines)-1]
}

// failsWith checks that the program failed for one reason, told on one line after the one on the server, if any.
func (r result) failsWith(t *testing.T, texts ...string) {
	t.Helper()
	if r.status != failure {
		t.Errorf("status %d", r.status)
	}
	if r.stdout != "" {
		t.Errorf("on stdout: %s", r.stdout)
	}
	lines := strings.SplitAfter(r.stderr, "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { return line == "" || strings.HasPrefix(line, "demo: using ") })
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "demo: ") || !strings.HasSuffix(lines[0], "\n") {
		t.Errorf("not one line: %q", lines)
	}
	for _, text := range texts {
		if !strings.Contains(r.lastLine(), text) {
			t.Errorf("%q is not in: %s", text, r.lastLine())
		}
	}
}

// filled returns a database in whose table public.a are the rows that the demo inserts into its own.
func filled(t *testing.T, n int) (dsn string, conn *pgx.Conn) {
	t.Helper()
	dsn = pgtest.DSN(t)
	conn = pgtest.Connect(t, dsn)
	pgtest.Exec(t, conn, "insert into a (data) select 'a_' || i from generate_series(0, $1::int - 1) i order by i", n)
	return dsn, conn
}

// rowsOf is what plain SQL says.
func rowsOf(t *testing.T, conn *pgx.Conn, data string) []db.A {
	t.Helper()
	rows, err := conn.Query(t.Context(), "select id, data from public.a where data = $1", data)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[db.A])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func schemaExists(t *testing.T, conn *pgx.Conn) bool {
	t.Helper()
	return pgtest.QueryRow[bool](t, conn, "select exists (select from pg_namespace where nspname = $1)", schemaName)
}

var (
	queryLine   = regexp.MustCompile(`^query +(\d+)  ListAByData\("(a_\d+)"\)  (.*)$`)
	summaryLine = regexp.MustCompile(`^(\S+) queries, (\S+) rows, (\S+) distinct keys; (\d+) connections, (\d+) backends used; [0-9.]+ m?s \(parallel, seed 1\)$`)
)

func TestOutput(t *testing.T) {
	dsn, conn := filled(t, 100)
	r := succeeds(t, "-dsn", dsn, "-seed", "1")

	queries, merged, ok := strings.Cut(r.stdout, "\n\nmerged\n")
	if !ok {
		t.Fatalf("no merged map:\n%s", r.stdout)
	}
	lines := strings.Split(queries, "\n")
	if len(lines) != 30 {
		t.Fatalf("%d queries", len(lines))
	}
	keys := map[int32]string{}
	for i, line := range lines {
		m := queryLine.FindStringSubmatch(line)
		if m == nil || m[1] != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, line)
		}
		rows := rowsOf(t, conn, m[2])
		if want := fmt.Sprintf("(%d, %s)", rows[0].ID, *rows[0].Data); len(rows) != 1 || m[3] != want {
			t.Errorf("%q, want %s", line, want)
		}
		keys[rows[0].ID] = *rows[0].Data
	}

	merged, summary, _ := strings.Cut(strings.TrimSuffix(merged, "\n"), "\n\n")
	var want []string
	for id := range int32(101) {
		if data, ok := keys[id]; ok {
			want = append(want, fmt.Sprintf("%d  %s", id, data))
		}
	}
	got := strings.Split(merged, "\n")
	for i := range got {
		got[i] = strings.TrimSpace(got[i])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("merged (-want +got)\n%s", diff)
	}
	m := summaryLine.FindStringSubmatch(summary)
	if m == nil || !slices.Equal(m[1:5], []string{"30", "30", fmt.Sprint(len(keys)), "10"}) {
		t.Errorf("summary: %s", summary)
	}

	if again := succeeds(t, "-dsn", dsn, "-seed", "1"); again.stdout[:strings.LastIndex(again.stdout, "\n\n")] != r.stdout[:strings.LastIndex(r.stdout, "\n\n")] {
		t.Errorf("another output for the same seed:\n%s", again.stdout)
	}
	if !strings.HasPrefix(r.stderr, "demo: using database ") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("stderr: %s", r.stderr)
	}
}

func TestNoRowsNoQueries(t *testing.T) {
	dsn := pgtest.DSN(t)
	r := succeeds(t, "-dsn", dsn, "-rows", "0", "-queries", "2", "-seed", "1")
	const want = `query 0  ListAByData("a_0")  no rows
query 1  ListAByData("a_0")  no rows

merged

2 queries, 0 rows, 0 distinct keys; 10 connections, `
	if !strings.HasPrefix(r.stdout, want) {
		t.Errorf("no rows:\n%s", r.stdout)
	}
	r = succeeds(t, "-dsn", dsn, "-queries", "0", "-conns", "1", "-timeline")
	if !strings.HasPrefix(r.stdout, "\nmerged\n\n0 queries, 0 rows, 0 distinct keys; 1 connection, 0 backends used; ") {
		t.Errorf("no queries:\n%s", r.stdout)
	}
}

func TestNoMerge(t *testing.T) {
	r := succeeds(t, "-dsn", pgtest.DSN(t), "-no-merge", "-queries", "3", "-seed", "1", "-rows", "10")
	lines := strings.Split(r.stdout, "\n")
	for i := range 3 {
		if !strings.HasSuffix(lines[i], "  1 row discarded") {
			t.Errorf("line %d is %q", i, lines[i])
		}
	}
	if strings.Contains(r.stdout, "\nmerged") || !strings.Contains(r.stdout, "3 queries, 3 rows, not merged; ") {
		t.Errorf("output:\n%s", r.stdout)
	}
}

// Rows for several chunks of the copy, and more queries than a timeline has rows for.
func TestMany(t *testing.T) {
	dsn := pgtest.DSN(t)
	r := succeeds(t, "-dsn", dsn, "-rows", "25001", "-queries", "500", "-seed", "1", "-conns", "4")
	if got := strings.Count(r.stdout, "ListAByData"); got != 500 {
		t.Errorf("%d queries", got)
	}
	if strings.Contains(r.stdout, "no rows") {
		t.Error("rows are missing")
	}
	if !strings.Contains(r.stdout, "500 queries, 500 rows, ") {
		t.Error(r.lastLine())
	}
}

// What is sent and what is said.
func TestSnapshot(t *testing.T) {
	for _, args := range [][]string{nil, {"-snapshot"}} {
		snapshot := len(args) > 0
		var begun atomic.Bool
		dsn := cutter(t, pgtest.DSN(t), func(_ int, data string) bool {
			if strings.Contains(strings.ToLower(data), "repeatable read") {
				begun.Store(true)
			}
			return false
		})
		args = append(args, "-dsn", dsn, "-seed", "1", "-conns", "3")
		r := succeeds(t, args...)
		if strings.Contains(r.stdout, " (parallel, one snapshot, seed 1)\n") != snapshot || begun.Load() != snapshot {
			t.Errorf("%q: transactions: %t\n%s", args, begun.Load(), r.stdout)
		}
		if p := read(t, succeeds(t, append(args, "-json")...)); p.Snapshot != snapshot || len(p.Queries) != 30 {
			t.Errorf("%q: %+v", args, p)
		}
	}
}

func TestStrategies(t *testing.T) {
	dsn := pgtest.DSN(t)
	serial := succeeds(t, "-dsn", dsn, "-seed", "1", "-strategy", "serial")
	if !strings.Contains(serial.stdout, "10 connections, 1 backend used; ") || !strings.HasSuffix(serial.stdout, "(serial, seed 1)\n") {
		t.Errorf("serial:\n%s", serial.stdout)
	}
	if limited := succeeds(t, "-dsn", dsn, "-limit", "1"); !strings.Contains(limited.stdout, "10 connections, 1 backend used; ") {
		t.Errorf("limited:\n%s", limited.stdout)
	}
	for _, name := range []string{"pipelined", "coalesced", "auto"} {
		r := succeeds(t, "-dsn", dsn, "-seed", "1", "-strategy", name)
		if !strings.HasSuffix(r.stdout, "("+name+", seed 1)\n") {
			t.Errorf("%s:\n%s", name, r.stdout)
		}
		got, want := read(t, succeeds(t, "-dsn", dsn, "-seed", "1", "-strategy", name, "-json")), read(t, succeeds(t, "-dsn", dsn, "-seed", "1", "-json"))
		if !reflect.DeepEqual(got.Merged, want.Merged) {
			t.Errorf("%s has merged %v, parallel %v", name, got.Merged, want.Merged)
		}
	}
	if schemaExists(t, pgtest.Connect(t, dsn)) {
		t.Error("the schema is there")
	}
}

// failingWriter stands for a full disk.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestOutputCannotBeWritten(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, flag := range []string{"-json", "-no-merge"} {
		var stderr bytes.Buffer
		status := run(t.Context(), []string{"-dsn", dsn, flag}, failingWriter{}, &stderr, func(string) string { return "" })
		if status != failure || !strings.HasSuffix(stderr.String(), "\ndemo: disk full\n") {
			t.Errorf("status %d\n%s", status, stderr.String())
		}
	}
}

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// bound is how an argument of three bytes is sent.
func bound(arg string) string { return "\x00\x00\x00\x03" + arg }

func TestPartial(t *testing.T) {
	dsn, conn := filled(t, 10)
	// The first connection is the one that makes the schema.
	failing := func(conn int, data string) bool { return conn > 0 && strings.Contains(data, bound("a_7")) }
	r := demo(t, "-dsn", cutter(t, dsn, failing), "-rows", "10", "-seed", "1", "-conns", "3", "-partial", "-json")
	if r.status != failure {
		t.Errorf("status %d", r.status)
	}
	p := read(t, r)
	failed := 0
	keys := map[int32]bool{}
	for i, q := range p.Queries {
		if q.Arg == "a_7" {
			failed++
			if q.Error == "" || len(q.Rows) != 0 || q.PID == 0 || q.Name != "ListAByData" {
				t.Errorf("query %d has not failed: %+v", i, q)
			}
			continue
		}
		var want []printedRow
		for _, row := range rowsOf(t, conn, q.Arg) {
			want = append(want, printedRow(row))
			keys[row.ID] = true
		}
		if diff := cmp.Diff(want, q.Rows); diff != "" || q.Error != "" {
			t.Errorf("query %d: %s (-want +got)\n%s", i, q.Error, diff)
		}
	}
	if failed < 2 {
		t.Fatalf("%d queries have failed: not what is to be tested", failed)
	}
	if len(p.Merged) != len(keys) {
		t.Errorf("%d merged, want %d", len(p.Merged), len(keys))
	}
	if line := r.lastLine(); !strings.HasPrefix(line, "demo: fanout: query ") || !strings.Contains(line, "ListAByData") || !strings.Contains(line, " more)") {
		t.Errorf("last line: %s", line)
	}

	r = demo(t, "-dsn", cutter(t, dsn, failing), "-rows", "10", "-seed", "1", "-conns", "3", "-partial", "-timeline")
	if strings.Count(r.stdout, `ListAByData("a_7")  failed: `) != failed || strings.Count(r.stdout, " failed: ") != failed || !strings.Contains(r.stdout, "×") {
		t.Errorf("output:\n%s", r.stdout)
	}
	if schemaExists(t, conn) {
		t.Error("the schema is there")
	}
}

func TestFailure(t *testing.T) {
	dsn, conn := filled(t, 10)
	for _, flag := range []string{"-json", "-no-merge", "-timeline"} {
		cut := cutter(t, dsn, func(conn int, data string) bool { return conn > 0 && strings.Contains(data, bound("a_7")) })
		r := demo(t, "-dsn", cut, "-rows", "10", "-seed", "1", "-conns", "3", flag)
		r.failsWith(t, "fanout: query ", "ListAByData")
	}
	if schemaExists(t, conn) {
		t.Error("the schema is there")
	}
}

func TestPartialWithoutSuccess(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, flag := range []string{"-echo=false", "-no-merge"} {
		cut := cutter(t, dsn, func(conn int, data string) bool { return conn > 0 && strings.Contains(data, "ListAByData") })
		r := demo(t, "-dsn", cut, "-queries", "5", "-conns", "2", "-partial", "-json", flag)
		p := read(t, r)
		if r.status != failure || len(p.Merged) != 0 || len(p.Queries) != 5 {
			t.Errorf("status %d\n%s", r.status, r.stdout)
		}
		for i, q := range p.Queries {
			if q.Error == "" {
				t.Errorf("query %d has not failed", i)
			}
		}
	}
}

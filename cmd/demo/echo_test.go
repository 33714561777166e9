package main

import (
	"context"
	"io"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestEcho(t *testing.T) {
	dsn := pgtest.DSN(t)
	quiet := succeeds(t, "-dsn", dsn, "-seed", "1")
	r := succeeds(t, "-dsn", dsn, "-seed", "1", "-echo")
	queries, _, _ := strings.Cut(quiet.stdout, "\n\n")
	if !strings.HasPrefix(r.stdout, queries+"\n\n") {
		t.Errorf("another output with -echo:\n%s", r.stdout)
	}
	for _, want := range []string{
		`sql=begin`, `sql="create schema fanout_demo"`, `sql="comment on schema fanout_demo is 'Made by`, `create table a (`,
		`msg=CopyFrom sql="copy \"a\" (data) from stdin" rowCount=100 `, `sql=commit`, `drop schema if exists fanout_demo"`,
		`args="[fanout_demo]"`,
	} {
		if !strings.Contains(r.stderr, want) && !strings.Contains(r.stderr, strings.ReplaceAll(want, `"[fanout_demo]"`, `[fanout_demo]`)) {
			t.Errorf("%s is not in the log:\n%s", want, r.stderr)
		}
	}
	// The arguments of the look-ups, as often as each is asked for, whatever the order.
	line := regexp.MustCompile(`level=INFO msg=Query sql="-- name: ListAByData :many\\nselect .* order by id\\n" args=\[(a_\d+)\] commandTag="SELECT 1" pid=\d+ took=`)
	logged := map[string]int{}
	for _, m := range line.FindAllStringSubmatch(r.stderr, -1) {
		logged[m[1]]++
	}
	total := 0
	for _, line := range strings.Split(queries, "\n") {
		logged[queryLine.FindStringSubmatch(line)[2]]--
		total++
	}
	for arg, n := range logged {
		if n != 0 {
			t.Errorf("%s: %+d in the log of %d", arg, n, total)
		}
	}
	if strings.Contains(r.stderr, "Prepare") || strings.Contains(r.stderr, "Connect") || strings.Contains(r.stderr, "Acquire") {
		t.Errorf("more than statements is in the log:\n%s", r.stderr)
	}
}

func TestEchoOfFailure(t *testing.T) {
	cut := cutter(t, pgtest.DSN(t), func(conn int, data string) bool { return conn > 0 && strings.Contains(data, bound("a_7")) })
	r := demo(t, "-dsn", cut, "-rows", "10", "-seed", "1", "-echo")
	if !regexp.MustCompile(`level=ERROR msg=Query sql="-- name: ListAByData.* args=\[a_7\] err=`).MatchString(r.stderr) {
		t.Errorf("the failed statement is not in the log:\n%s", r.stderr)
	}
	if r.status != failure || !strings.HasPrefix(r.lastLine(), "demo: fanout: query ") {
		t.Errorf("status %d\n%s", r.status, r.lastLine())
	}
}

// A halting reader takes some lines, and no more until it is resumed.
type halting struct {
	lines          atomic.Int32
	halted, resume chan struct{}
}

func (h *halting) Write(p []byte) (int, error) {
	if h.lines.Add(1) < 20 {
		return len(p), nil
	}
	select {
	case h.halted <- struct{}{}:
	default:
	}
	<-h.resume
	return len(p), nil
}

// Statements are logged while they are under way. Who does not read the log does not keep an interrupted demo from ending, and
// from putting everything back.
func TestEchoUnread(t *testing.T) {
	dsn := pgtest.DSN(t)
	ctx, cancel := context.WithCancel(t.Context())
	reader := &halting{halted: make(chan struct{}, 1), resume: make(chan struct{})}
	defer close(reader.resume)
	go func() {
		<-reader.halted
		cancel()
	}()
	status := make(chan int)
	go func() {
		status <- run(ctx, []string{"-dsn", dsn, "-echo"}, io.Discard, reader, func(string) string { return "" })
	}()
	select {
	case s := <-status:
		if s != failure {
			t.Errorf("status %d", s)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the demo has not ended")
	}
	if pgtest.QueryRow[bool](t, pgtest.Connect(t, dsn), "select exists (select from pg_namespace where nspname = 'fanout_demo')") {
		t.Error("the schema is still there")
	}
}

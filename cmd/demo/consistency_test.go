package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestConsistencyBadFlags(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"-conns 0", `invalid value "0" for flag -conns: must be 1 or more`},
		{"-accounts 1", `invalid value "1" for flag -accounts: must be 2 or more`},
		{"-accounts 1001", `for flag -accounts: must be 1000 or less`},
		{"-writers 0", `for flag -writers: must be 1 or more`},
		{"-writers 101", `for flag -writers: must be 100 or less`},
		{"-for 5", `invalid value "5" for flag -for: must be a duration such as `},
		{"-for 0s", `for flag -for: must be more than 0`},
		{"-for -1s", `for flag -for: must be more than 0`},
		{"-json=maybe", `invalid boolean value "maybe" for -json`},
		{"-rows 3", `flag provided but not defined: -rows`},
		{"rest", `unexpected argument "rest"`},
		{"-dsn host=h password=secret", `given as -dsn=STRING`},
	} {
		r := demo(t, append([]string{consistency}, strings.Fields(test.args)...)...)
		if r.status != misuse || r.stdout != "" {
			t.Errorf("%s: status %d, output %q", test.args, r.status, r.stdout)
		}
		if !strings.HasPrefix(r.stderr, "demo: ") || !strings.Contains(r.stderr, test.want) ||
			!strings.HasSuffix(r.stderr, "; consistency -help explains the flags\n") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: %s", test.args, r.stderr)
		}
		if strings.Contains(r.stderr, "secret") {
			t.Errorf("%s: the password is in: %s", test.args, r.stderr)
		}
	}
}

func TestConsistencyHelp(t *testing.T) {
	r := demo(t, consistency, "-help")
	if r.status != success || r.stderr != "" {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
	for _, want := range []string{"Usage: demo consistency ", "-dsn", "-conns", "-accounts", "-writers", "-for", "-json", "DATABASE_URL", schemaName,
		"exit status", "(default 8)", "(default 4)", "(default 2)", "(default 5s)"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%s is not mentioned", want)
		}
	}
	for line := range strings.Lines(r.stdout) {
		if len([]rune(line)) > 81 {
			t.Errorf("long line: %s", line)
		}
	}
}

func TestConsistencyFlags(t *testing.T) {
	opts, err := parseConsistencyFlags(strings.Fields("-dsn x -conns 1 -accounts 2 -writers 3 -for 4m -json"), io.Discard)
	if want := (consistencyOptions{"x", 1, 2, 3, 4 * time.Minute, true}); err != nil || opts != want {
		t.Errorf("%+v, %v", opts, err)
	}
	opts, err = parseConsistencyFlags(nil, io.Discard)
	if want := (consistencyOptions{"", 4, 8, 2, 5 * time.Second, false}); err != nil || opts != want {
		t.Errorf("%+v, %v", opts, err)
	}
}

var (
	standingLine = regexp.MustCompile(`^ *\d+ s  without snapshot: (\S+) of (\S+) torn \(\S+( %)?\); with snapshot: (\S+) of (\S+) torn \(\S+( %)?\)\n$`)
	finalPlain   = regexp.MustCompile(`(?m)^without snapshot +(\S+) +(\S+) +\S+ %  +([0-9,-]+)( to [0-9,]+)?  +\S+ m?s$`)
	finalShared  = regexp.MustCompile(`(?m)^with snapshot +(\S+) +(\S+) +\S+ %  +([0-9,-]+)( to [0-9,]+)?  +\S+ m?s$`)
)

// awaitLine reads the lines of the experiment up to the first that satisfies the condition.
func awaitLine(t *testing.T, stdout *bufio.Reader, condition func(plainTorn, snapshotTorn string) bool) {
	t.Helper()
	for {
		line, err := stdout.ReadString('\n')
		if err != nil {
			t.Fatalf("no such line: %v", err)
		}
		if m := standingLine.FindStringSubmatch(line); m != nil && condition(m[1], m[4]) {
			return
		}
	}
}

func plainIsTorn(plain, _ string) bool { return plain != "0" }

// concluded checks a summary: some of the plain totals were torn, and of the others so many.
func concluded(t *testing.T, summary, snapshotTorn string) {
	t.Helper()
	plain, snapshot := finalPlain.FindStringSubmatch(summary), finalShared.FindStringSubmatch(summary)
	folded := strings.Join(strings.Fields(summary), " ") // lines may end anywhere
	if plain == nil || snapshot == nil || plain[2] == "0" || plain[4] == "" || snapshot[1] == "0" || snapshotTorn != "" && snapshot[2] != snapshotTorn {
		t.Errorf("summary: %q, %q of\n%s", plain, snapshot, summary)
	}
	if snapshotTorn == "0" && (snapshot[3] != "8,000" || snapshot[4] != "" || !strings.Contains(folded, "right in this run.")) {
		t.Errorf("summary:\n%s", summary)
	}
	if !strings.Contains(folded, "at worst, ") || !strings.Contains(folded, " transfers in ") {
		t.Errorf("summary:\n%s", summary)
	}
}

// An endless experiment is one that goes on until it is cancelled, with what it says.
type endless struct {
	running
	stdout *bufio.Reader
}

func startEndless(t *testing.T, args ...string) *endless {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &endless{running{cancel, bufio.NewReader(errs), make(chan result, 1)}, bufio.NewReader(out)}
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		cancel()
		out.Close()
		errs.Close()
		goleak.VerifyNone(t, before)
	})
	go func() {
		status := run(ctx, append([]string{consistency, "-for", "1h"}, args...), stdout, stderr, func(string) string { return "" })
		stdout.Close()
		stderr.Close()
		p.ended <- result{status: status}
	}()
	return p
}

func (p *endless) wait(t *testing.T) result {
	t.Helper()
	rest, err := io.ReadAll(p.stdout)
	if err != nil {
		t.Fatal(err)
	}
	r := p.running.wait(t)
	r.stdout = string(rest)
	return r
}

// gathering waits until money is moved and balances are read.
func gathering(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	eventually(t, time.Minute, "there is an account with another balance", func() bool {
		var moved bool
		err := conn.QueryRow(t.Context(), "select exists (select from fanout_demo.account where balance <> $1)", startBalance).Scan(&moved)
		return err == nil && moved
	})
	eventually(t, time.Minute, "balances are read", func() bool {
		return pgtest.QueryRow[bool](t, conn, "select exists (select from pg_stat_activity where datname = current_database() and query like '%Balance%' and pid <> pg_backend_pid())")
	})
}

func TestConsistency(t *testing.T) {
	dsn, conn := filled(t, 3)
	untouched(t, conn, func() {
		p := startEndless(t, "-dsn", dsn)
		p.line(t)
		awaitLine(t, p.stdout, plainIsTorn)
		p.cancel()
		r := p.wait(t)
		if r.status != success || r.stderr != "" {
			t.Errorf("status %d\n%s", r.status, r.stderr)
		}
		concluded(t, r.stdout, "0")
	})
}

func TestConsistencyOnThrowawayServer(t *testing.T) {
	scratch(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := command(consistency, "-for", "1h", "-conns", "2", "-writers", "3")
	cmd.Stdout = w
	p := launch(t, cmd)
	w.Close()
	stdout := bufio.NewReader(r)
	awaitLine(t, stdout, plainIsTorn)
	if err := p.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	summary, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	if rest := p.ends(t, success); rest != "" {
		t.Errorf("on stderr: %s", rest)
	}
	concluded(t, string(summary), "0")
}

func TestConsistencyJSON(t *testing.T) {
	dsn := pgtest.DSN(t)
	r := succeeds(t, consistency, "-dsn", dsn, "-json", "-for", "100ms", "-accounts", "20", "-conns", "3", "-writers", "4")
	type tally struct {
		Gathers int     `json:"gathers"`
		Torn    int     `json:"torn"`
		Lowest  int     `json:"lowest_total"`
		Highest int     `json:"highest_total"`
		MeanMS  float64 `json:"mean_ms"`
	}
	var doc struct {
		Accounts  int     `json:"accounts"`
		Writers   int     `json:"writers"`
		Conns     int     `json:"conns"`
		Total     int     `json:"total"`
		Transfers int     `json:"transfers"`
		ElapsedMS float64 `json:"elapsed_ms"`
		Plain     tally   `json:"plain"`
		Snapshot  tally   `json:"snapshot"`
	}
	decoder := json.NewDecoder(strings.NewReader(r.stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&doc); err != nil || decoder.More() {
		t.Fatalf("%v\n%s", err, r.stdout)
	}
	if doc.Accounts != 20 || doc.Writers != 4 || doc.Conns != 3 || doc.Total != 20_000 || doc.ElapsedMS < 100 {
		t.Errorf("%s", r.stdout)
	}
	if doc.Plain.Gathers == 0 || doc.Plain.Gathers != doc.Snapshot.Gathers || doc.Plain.MeanMS <= 0 || doc.Plain.Lowest > doc.Plain.Highest {
		t.Errorf("%s", r.stdout)
	}
	if s := doc.Snapshot; s.Torn != 0 || s.Lowest != 20_000 || s.Highest != 20_000 {
		t.Errorf("%s", r.stdout)
	}
	for _, want := range []string{"20 accounts hold 20,000 in all. 4 writers move ", "\nwith snapshot "} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("%q is not in: %s", want, r.stderr)
		}
	}
	if schemaExists(t, pgtest.Connect(t, dsn)) {
		t.Error("the schema is there")
	}
}

// However short it is to be, there are figures of both kinds.
func TestConsistencyShortest(t *testing.T) {
	r := succeeds(t, consistency, "-dsn", pgtest.DSN(t), "-for", "1ns", "-accounts", "2", "-conns", "1", "-writers", "20")
	if m := finalPlain.FindStringSubmatch(r.stdout); m == nil || m[1] != "1" {
		t.Errorf("%s", r.stdout)
	}
	if m := finalShared.FindStringSubmatch(r.stdout); m == nil || m[1] != "1" || m[2] != "0" {
		t.Errorf("%s", r.stdout)
	}
}

// A wrong total in a snapshot is a failure. Here one comes from outside.
func TestConsistencyOfForgedMoney(t *testing.T) {
	dsn, conn := filled(t, 3)
	untouched(t, conn, func() {
		p := startEndless(t, "-dsn", dsn)
		p.line(t)
		gathering(t, conn)
		pgtest.Exec(t, conn, "update fanout_demo.account set balance = balance + 1 where id = 1")
		awaitLine(t, p.stdout, func(_, snapshot string) bool { return snapshot != "0" })
		p.cancel()
		r := p.wait(t)
		if r.status != failure || !regexp.MustCompile(`^demo: torn although read in a snapshot: \S+ totals?; there is 8,001 in all at the end, not 8,000: `).MatchString(r.stderr) ||
			strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("status %d\n%s", r.status, r.stderr)
		}
		concluded(t, r.stdout, "")
		if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), "wrong too, which should never be.") {
			t.Errorf("summary:\n%s", r.stdout)
		}
	})
}

// What ends the experiment is told after the figures so far.
func TestConsistencyFails(t *testing.T) {
	dsn, conn := filled(t, 3)
	for sql, want := range map[string]string{
		`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like 'update account%'`: "demo: moving money: ",
		"delete from fanout_demo.account where id = 2": "demo: fanout: query 1 (Balance): no rows in result set",
	} {
		untouched(t, conn, func() {
			p := startEndless(t, "-dsn", dsn)
			p.line(t)
			gathering(t, conn)
			pgtest.Exec(t, conn, sql)
			r := p.wait(t)
			if r.status != failure || !strings.HasPrefix(r.stderr, want) || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("status %d\n%s", r.status, r.stderr)
			}
			if !strings.Contains(r.stdout, "\nwithout snapshot ") {
				t.Errorf("output:\n%s", r.stdout)
			}
		})
	}
}

func TestConsistencyForeignSchema(t *testing.T) {
	dsn, conn := filled(t, 3)
	pgtest.Exec(t, conn, "create schema fanout_demo; create table fanout_demo.account (id int)")
	untouched(t, conn, func() {
		demo(t, consistency, "-dsn", dsn).failsWith(t, "schema fanout_demo exists and was not made by this demo")
	})
}

// Either program drops what the other may have left.
func TestConsistencySchemaIsReplaced(t *testing.T) {
	dsn, conn := filled(t, 3)
	for _, args := range [][]string{{}, {consistency, "-for", "1ms"}} {
		pgtest.Exec(t, conn, "create schema fanout_demo; comment on schema fanout_demo is '"+schema.Mark()+"'; create table fanout_demo.a (old int); create table fanout_demo.account (old int)")
		succeeds(t, append(args, "-dsn", dsn)...)
		if schemaExists(t, conn) {
			t.Error("the schema is there")
		}
	}
}

// Before there is anything to show, an interruption is a failure, as it is for the demo.
func TestConsistencyInterruptedEarly(t *testing.T) {
	dsn := pgtest.DSN(t)
	pgtest.Exec(t, pgtest.Connect(t, dsn), "select pg_advisory_lock($1)", schema.Lock)
	p := startEndless(t, "-dsn", dsn)
	p.line(t)
	if line := p.line(t); line != "demo: waiting for another demo in this database to end" {
		t.Errorf("stderr: %s", line)
	}
	p.cancel()
	if r := p.wait(t); r.status != failure || r.stderr != "demo: interrupted\n" || r.stdout != "" {
		t.Errorf("status %d\n%s\n%s", r.status, r.stderr, r.stdout)
	}
}

// Writers who wait for a lock do not hold up who interrupts the program: they are cut off. The drop does wait.
func TestConsistencyInterruptedWhileLocked(t *testing.T) {
	dsn, conn := filled(t, 3)
	p := startEndless(t, "-dsn", dsn)
	p.line(t)
	awaitLine(t, p.stdout, func(string, string) bool { return true })
	pgtest.Exec(t, conn, "begin; lock table fanout_demo.account in share mode") // a gather may go on
	waiting := func(mode string) int {
		return pgtest.QueryRow[int](t, conn, `select count(*) from pg_locks
			where not granted and relation = 'fanout_demo.account'::regclass and mode = $1`, mode)
	}
	eventually(t, time.Minute, "the writers wait", func() bool { return waiting("RowExclusiveLock") == 2 })
	p.cancel()
	eventually(t, time.Minute, "the drop waits", func() bool { return waiting("AccessExclusiveLock") == 1 })
	pgtest.Exec(t, conn, "commit")
	if r := p.wait(t); r.status != success || r.stderr != "" || !finalShared.MatchString(r.stdout) {
		t.Errorf("status %d\n%s\n%s", r.status, r.stderr, r.stdout)
	}
	if schemaExists(t, conn) {
		t.Error("the schema is there")
	}
}

// blockedWriter stands for a reader who does not read.
type blockedWriter struct{ release chan struct{} }

func (w blockedWriter) Write([]byte) (int, error) {
	<-w.release
	return 0, errors.New("released")
}

// He keeps neither the schema nor the program.
func TestConsistencySlowReader(t *testing.T) {
	dsn, conn := filled(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	var stderr bytes.Buffer
	ended := make(chan int)
	go func() {
		ended <- run(ctx, []string{consistency, "-dsn", dsn, "-for", "3s"}, blockedWriter{release}, &stderr, func(string) string { return "" })
	}()
	gathering(t, conn)
	eventually(t, time.Minute, "the schema is gone", func() bool { return !schemaExists(t, conn) })
	cancel()
	if status := <-ended; status != failure || !strings.HasSuffix(stderr.String(), "\ndemo: interrupted\n") {
		t.Errorf("status %d\n%s", status, stderr.String())
	}
	close(release)
}

func TestConsistencyOutputCannotBeWritten(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, args := range [][]string{{"-for", "1h"}, {"-for", "1ms", "-json"}} {
		var stderr bytes.Buffer
		status := run(t.Context(), append([]string{consistency, "-dsn", dsn}, args...), failingWriter{}, &stderr, func(string) string { return "" })
		if status != failure || !strings.HasSuffix(stderr.String(), "\ndemo: disk full\n") {
			t.Errorf("status %d\n%s", status, stderr.String())
		}
	}
	// Nobody reads what is shown meanwhile, but somebody the document.
	var stdout bytes.Buffer
	status := run(t.Context(), []string{consistency, "-dsn", dsn, "-for", "1ms", "-json"}, &stdout, failingWriter{}, func(string) string { return "" })
	if status != success || !json.Valid(stdout.Bytes()) {
		t.Errorf("status %d\n%s", status, stdout.String())
	}
}

func TestConsistencyClosedOutput(t *testing.T) {
	dsn, conn := filled(t, 3)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd := command(consistency, "-dsn", dsn, "-for", "1h")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("%v\n%s", err, stderr.String())
	}
	if schemaExists(t, conn) {
		t.Error("the schema is there")
	}
}

func TestTally(t *testing.T) {
	var got tally
	for i, total := range []int64{100, 90, 100, 130, 100, 100, 100, 100, 100, 100} {
		got.add(total, 100, time.Duration(i)*time.Millisecond)
	}
	want := tally{gathers: 10, torn: 2, lowest: 90, highest: 130, took: 45 * time.Millisecond, last: []int64{100, 130, 100, 100, 100, 100, 100, 100}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(tally{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if mean := got.mean(); mean != 4500*time.Microsecond {
		t.Errorf("mean %v", mean)
	}
}

// filledWriter stands for a reader who reads so many writes and then no more.
type filledWriter struct {
	blockedWriter
	reads *atomic.Int32
	full  chan struct{} // closed when the first write is not read
}

func (w filledWriter) Write(p []byte) (int, error) {
	left := w.reads.Add(-1)
	if left >= 0 {
		return len(p), nil
	}
	if left == -1 {
		close(w.full)
	}
	return w.blockedWriter.Write(p)
}

// An interrupted program does not wait for a reader of its standard error either: demo consistency 2>&1 | pager.
func TestConsistencySlowReaderOfErrors(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	release := make(chan struct{})
	defer close(release)
	both := filledWriter{blockedWriter{release}, new(atomic.Int32), make(chan struct{})}
	both.reads.Store(2) // which server it is, and the introduction
	ended := make(chan int, 1)
	dsn := pgtest.DSN(t)
	go func() {
		ended <- run(ctx, []string{consistency, "-dsn", dsn, "-for", "1h"}, both, both, func(string) string { return "" })
	}()
	<-both.full
	cancel()
	select {
	case status := <-ended:
		if status != failure {
			t.Errorf("status %d", status)
		}
	case <-time.After(20 * time.Second):
		t.Error("the program has not ended 20 seconds after it was interrupted")
	}
}

// Writers wait for each other also where transactions are serializable unless they say otherwise.
func TestConsistencyOnASerializableServer(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := pgtest.Connect(t, dsn)
	pgtest.Exec(t, conn, "do $$ begin execute format('alter database %I set default_transaction_isolation = serializable', current_database()); end $$")
	succeeds(t, consistency, "-dsn", dsn, "-for", "1s", "-writers", "4", "-accounts", "2")
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// childEnv makes this test binary the bench itself.
const childEnv = "FANOUT_BENCH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
	}
	os.Exit(pgtest.Run(m))
}

// A result of the program.
type ended struct {
	status         int
	stdout, stderr string
}

func (e ended) lastLine() string {
	lines := strings.Split(strings.TrimSuffix(e.stderr, "\n"), "\n")
	return lines[len(lines)-1]
}

func start(ctx context.Context, args ...string) ended {
	var stdout, stderr bytes.Buffer
	status := run(ctx, args, &stdout, &stderr)
	return ended{status, stdout.String(), stderr.String()}
}

// schemas is how many schemas of the bench's name there are.
func schemas(t *testing.T, conn *pgx.Conn) (n int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "select count(*) from pg_namespace where nspname = $1", schemaName).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The cells are all that one is to be able to compare.
func TestStages(t *testing.T) {
	opts, err := parseFlags(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	type of struct {
		kind, statement               string
		latency                       float64
		queries, connections, clients int
	}
	want := map[of]bool{
		{rateCells, looking, 0, rateQueries, 10, 1}: true,
		{coldCells, thirty, 10, 30, 10, 1}:          true,
		{besideCells, looking, 0, 30, 16, 16}:       true,
	}
	for _, clients := range []int{1, 16, 128} {
		want[of{loadCells, looking, 0, 8, 16, clients}] = true
	}
	for _, statement := range []string{"scan", "lookup", "wait", "cpu", "mixed", "wide"} {
		for _, latency := range []float64{0, 1, 10} {
			for _, queries := range []int{1, 30, 300} {
				want[of{gridCells, statement, latency, queries, 10, 1}] = true
			}
		}
	}
	got := map[of]bool{}
	for _, s := range (&bench{opts: opts}).stages() {
		got[of{s.cell.Kind, s.cell.Statement, s.cell.LatencyMS, s.cell.Queries, s.cell.Connections, s.cell.Clients}] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v\nwant\n%v", got, want)
	}
}

// A quick run on a throwaway server goes from the flags to the files. Not of all contenders: it is they who take the time.
func TestQuickRun(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"-json": filepath.Join(dir, "r.json"), "-html": filepath.Join(dir, "r.html"), "-svg": filepath.Join(dir, "r.svg"),
		"-markdown": filepath.Join(dir, "r.md")}
	args := []string{"-quick", "-time=3s", "-statements=lookup", "-latency=0,1ms", "-queries=1,30", "-cells=" + strings.Join(cellNames, ","),
		"-contenders=errgroup,batch,any,parallel,parallel+snapshot,auto,sqlalchemy,pgbench,pgbench-pipelined"}
	for flag, file := range files {
		args = append(args, flag+"="+file)
	}
	e := start(t.Context(), args...)
	if e.status != success {
		t.Fatalf("status %d\n%s", e.status, e.stderr)
	}
	for _, text := range []string{"fanout parallel, snapshot", "Claims", "look-up by index, 30 queries, +1 ms"} {
		if !strings.Contains(e.stdout, text) {
			t.Errorf("%q is not in\n%s", text, e.stdout)
		}
	}
	content, err := os.ReadFile(files["-json"])
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(content, &r); err != nil {
		t.Fatal(err)
	}
	if want := 2*2 + 1 + 3 + 1 + 1; len(r.Cells) != want {
		t.Errorf("%d cells, want %d", len(r.Cells), want)
	}
	for _, c := range r.Cells {
		for _, name := range []string{byErrgroup, parallel} {
			res, ok := c.of(name)
			if !ok || res.Median <= 0 || res.P10 > res.Median || res.Median > res.P90 {
				t.Errorf("%s: %s: %+v", c.Title(), name, res)
			}
			if c.Unit == milliseconds && res.P10 < c.LatencyMS {
				t.Errorf("%s: %s: shorter than the way: %+v", c.Title(), name, res)
			}
		}
		for _, name := range []string{byPgbench, byPgbenchPL} {
			if res, ok := c.of(name); c.Kind == rateCells && (!ok || res.Median <= 0) {
				t.Errorf("%s: %s: %+v", c.Title(), name, res)
			}
		}
		for _, res := range c.Results {
			if strings.HasPrefix(res.Note, "failed") {
				t.Errorf("%s: %s: %s", c.Title(), res.Contender, res.Note)
			}
		}
	}
	wellFormed(t, files["-html"])
	wellFormed(t, files["-svg"])
	table, err := os.ReadFile(files["-markdown"])
	if err != nil || !strings.Contains(string(table), "| look-up by index | +1 ms | ") || !strings.Contains(string(table), "| `= any($1)` by hand |") {
		t.Errorf("%v\n%s", err, table)
	}

	// The same again from the file.
	again := start(t.Context(), "-from", files["-json"])
	if again.status != success || again.stdout != e.stdout || again.stderr != "" {
		t.Errorf("status %d\n%s%s\nwant\n%s", again.status, again.stdout, again.stderr, e.stdout)
	}
}

// On a user's server the bench keeps to its schema, and takes it away again. The password is not repeated.
func TestDSN(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := pgtest.Connect(t, dsn)
	e := start(t.Context(), "-quick", "-time=1s", "-statements=scan,wait", "-dsn", dsn)
	if e.status != success {
		t.Fatalf("status %d\n%s", e.status, e.stderr)
	}
	for _, text := range []string{"What pays on this server", "over all: ", "scan of a 100-row table, 30 queries: "} {
		if !strings.Contains(e.stdout, text) {
			t.Errorf("%q is not in\n%s", text, e.stdout)
		}
	}
	if n := schemas(t, conn); n != 0 {
		t.Errorf("the schema is still there")
	}
}

// A schema that somebody else has made is left alone.
func TestForeignSchema(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := pgtest.Connect(t, dsn)
	if _, err := conn.Exec(t.Context(), "create schema "+schemaName+"; create table "+schemaName+".small (id int)"); err != nil {
		t.Fatal(err)
	}
	e := start(t.Context(), "-quick", "-dsn", dsn)
	if e.status != failure || e.stdout != "" || !strings.Contains(e.lastLine(), "was not made by this bench") {
		t.Errorf("status %d\n%s%s", e.status, e.stdout, e.stderr)
	}
	if n := schemas(t, conn); n != 1 {
		t.Errorf("the schema is gone")
	}
}

// cancelOn cancels when a text is written to it.
type cancelOn struct {
	bytes.Buffer
	mu     sync.Mutex
	text   string
	cancel func()
}

func (w *cancelOn) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(string(b), w.text) {
		w.cancel()
	}
	return w.Buffer.Write(b)
}

// An interrupt ends the run with one line and nothing left behind, whatever is going on.
func TestInterrupt(t *testing.T) {
	for during, cells := range map[string]string{
		"using database": gridCells, "look-up by index, 30 queries": gridCells, "as many as go through": rateCells,
		"16 clients at once": loadCells, "beside": besideCells, "cold": coldCells,
	} {
		t.Run(during, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			conn := pgtest.Connect(t, dsn)
			ctx, cancel := context.WithCancelCause(t.Context())
			stderr := &cancelOn{text: during, cancel: func() { cancel(errors.New("the test's own")) }}
			var stdout bytes.Buffer
			args := []string{"-quick", "-time=1s", "-statements=lookup", "-dsn", dsn, "-cells=" + cells}
			status := run(ctx, args, &stdout, stderr)
			if last := (ended{stderr: stderr.String()}).lastLine(); status != failure || last != "bench: interrupted" || stdout.Len() > 0 {
				t.Errorf("status %d\n%s%s", status, stdout.String(), stderr.String())
			}
			if n := schemas(t, conn); n != 0 {
				t.Errorf("the schema is still there")
			}
		})
	}
}

// So it does as a process of its own, by a signal, and when nobody reads what it says.
func TestSignal(t *testing.T) {
	dsn := pgtest.DSN(t)
	conn := pgtest.Connect(t, dsn)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE} {
		t.Run(sig.String(), func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			length := "1h"
			if sig == syscall.SIGPIPE {
				length = "1s"
			}
			cmd := exec.Command(os.Args[0], "-quick", "-statements=lookup", "-queries=1,30", "-contenders=errgroup", "-time="+length, "-dsn="+dsn)
			cmd.Env = append(os.Environ(), childEnv+"=1")
			cmd.Stdout, cmd.Stderr = w, w
			err = cmd.Start()
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			out := bufio.NewReader(r)
			for line := ""; !strings.Contains(line, "1 query"); { // the schema is there, and more will be said
				if line, err = out.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
			want := failure
			if sig == syscall.SIGPIPE {
				r.Close()
				want = success
			} else if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // the status says it too
			if status := cmd.ProcessState.ExitCode(); status != want {
				rest, _ := io.ReadAll(out)
				t.Errorf("%v, want status %d; %s", cmd.ProcessState, want, rest)
			}
			if n := schemas(t, conn); n != 0 {
				t.Errorf("the schema is still there")
			}
		})
	}
}

// What cannot be reached, read or written is one line and status 1.
func TestFailure(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other.json")
	if err := os.WriteFile(other, []byte("{}"), 0o666); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no server":   {[]string{"-dsn", "host=127.0.0.1 port=1 user=u password=geheim"}, "connection refused"},
		"no DSN":      {[]string{"-dsn", "postgres://u:geheim@host:12x/d"}, "-dsn cannot be used: invalid port"},
		"stray slash": {[]string{"-dsn", "postgres://u:12/34geheim@127.0.0.1/d"}, "-dsn cannot be used: it is neither a URL"},
		"no certificate": {[]string{"-dsn", "postgres://u:geheim@127.0.0.1/d?sslmode=verify-full&sslrootcert=/nonexistent.crt"},
			"-dsn cannot be used: failed to configure TLS"},
		"several hosts": {[]string{"-dsn", "postgres://u:geheim@127.0.0.1:1,127.0.0.1:2/d"}, "names several hosts"},
		"no report":     {[]string{"-from", filepath.Join(t.TempDir(), "none.json")}, "no such file"},
		"another's":     {[]string{"-from", other}, "it has no cells"},
		"no file":       {[]string{"-time=1h", "-json", filepath.Join(t.TempDir(), "no", "file")}, "bench: -json: open "},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t.Context(), test.args...)
			if e.status != failure || !strings.HasPrefix(e.lastLine(), "bench: ") || !strings.Contains(e.lastLine(), test.want) || strings.Contains(e.stderr, "geheim") {
				t.Errorf("status %d\n%s", e.status, e.stderr)
			}
		})
	}
}

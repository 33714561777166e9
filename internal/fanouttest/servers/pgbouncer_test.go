//go:build unix

package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// The tests in this file run behind a PgBouncer of their own in transaction mode, in front of the tests' server. Where
// PgBouncer is not installed they say so in their log and test nothing, but with CI=true they fail.

// cacheDescribe is the mode that works behind every PgBouncer: statements are described on whatever backend they meet,
// and not expected to be prepared on the next.
func cacheDescribe(config *pgxpool.Config) {
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
}

// bouncer starts a PgBouncer in front of a new database and returns the DSN that leads through it, and the one that does
// not; ok is false if there is no PgBouncer. The settings are lines of its configuration.
func bouncer(t *testing.T, settings ...string) (through, direct string, ok bool) {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer") // where Debian puts it, and not on everybody's PATH
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("PgBouncer is needed where CI=true, and not installed: %v", err)
	} else if err != nil {
		t.Logf("NOT TESTED: PgBouncer is not installed: %v", err)
		return "", "", false
	}
	direct = pgtest.DSN(t)
	server, err := pgconn.ParseConfig(direct)
	if err != nil {
		t.Fatal(err)
	}

	// With a short path, for the socket's sake, which t.TempDir's is not.
	dir, err := os.MkdirTemp("", "bouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	database := fmt.Sprintf("fanout = host=%s port=%d dbname=%s user=%s", quote(server.Host), server.Port, quote(server.Database), quote(server.User))
	if server.Password != "" {
		database += " password=" + quote(server.Password)
	}
	config := strings.Join(append([]string{
		"[databases]", database,
		"[pgbouncer]",
		"pool_mode = transaction",
		"listen_addr =",
		"listen_port = 6432",
		"unix_socket_dir = " + dir,
		"auth_type = any", // whoever reaches the socket, as the user given above
		"server_tls_sslmode = prefer",
		"logfile =",
		"pidfile =",
		"log_connections = 0",
		"log_disconnections = 0",
	}, settings...), "\n")
	path := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()

	// The shell ends PgBouncer, and removes its directory, when its standard input is closed, which is so after the end of
	// this process, too, whatever has ended it.
	cmd := exec.Command("/bin/sh", "-c", `"$0" "$1/pgbouncer.ini" & read -r x; kill $!; wait; rm -rf "$1"`, program, dir)
	cmd.Stdout, cmd.Stderr = log, log
	if os.Geteuid() == 0 { // as which PgBouncer refuses to run
		uid, gid := bouncerAccount(t, server.Host)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		for _, path := range []string{dir, path} {
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(log.Name()); err != nil || t.Failed() {
			t.Logf("PgBouncer's log, %v:\n%s", err, text)
		}
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	through = "postgres://any@/fanout?sslmode=disable&port=6432&host=" + dir
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := pgconn.Connect(t.Context(), through)
		if err == nil {
			_ = conn.Close(t.Context())
			return through, direct, true
		}
		if time.Now().After(deadline) {
			t.Fatalf("PgBouncer does not answer: %v", err)
		}
	}
}

// bouncerAccount is the unprivileged user that reaches the server's socket.
func bouncerAccount(t *testing.T, host string) (uid, gid int) {
	t.Helper()
	if info, err := os.Stat(host); err == nil && strings.HasPrefix(host, "/") {
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 0 {
			return int(stat.Uid), int(stat.Gid)
		}
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err = strconv.Atoi(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

// behind starts a PgBouncer with so many server connections, and runs f on a pool of conns connections to it. It checks
// that all of them are as good as new afterwards, and the same as before.
func behind(t *testing.T, size, conns int, f func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX])) {
	t.Helper()
	through, _, ok := bouncer(t, fmt.Sprintf("default_pool_size = %d", size))
	if !ok {
		return
	}
	pool := pgtest.PoolOn(t, through, conns, cacheDescribe)
	f(t, pool, fanouttest.Raw(pool))
	fanouttest.Serves(t, pool)
	if n := pool.Stat().NewConnsCount(); n > int64(conns) {
		t.Errorf("%d connections were opened", n)
	}
}

// Every kind of call, plain and in a snapshot, with more connections to PgBouncer than it has to the server, and with as
// many.
func TestPgBouncer(t *testing.T) {
	for _, size := range []int{2, 8} {
		behind(t, size, 8, func(t *testing.T, pool *pgxpool.Pool, unnamed fanout.Source[fanout.DBTX]) {
			fanouttest.Fill(t, pool, 100)
			for _, s := range fanouttest.Strategies {
				for _, snapshot := range []bool{false, true} {
					src := fanout.New(pool, db.New)
					src.Strategy, src.Snapshot = s, snapshot
					unnamed.Strategy, unnamed.Snapshot = s, snapshot
					for round := range 5 {
						ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
						everyKind(t, ctx, src)
						partly(t, ctx, unnamed)
						cancel()
						if t.Failed() {
							t.Fatalf("%d server connections, %v, snapshot=%v, round %d", size, s, snapshot, round)
						}
					}
				}
			}
		})
	}
}

// everyKind makes a call of every kind on the 100 rows of table a.
func everyKind(t *testing.T, ctx context.Context, src fanout.Source[*db.Queries]) {
	t.Helper()
	var args []string
	for i := range 30 {
		args = append(args, fmt.Sprintf("a_%d", i))
	}
	queries := fanout.Each((*db.Queries).ListAByData, args...)
	rows, err := fanout.Gather(ctx, src, fanouttest.ID, queries...)
	if err != nil || len(rows) != 30 || *rows[7].Data != "a_6" {
		t.Errorf("Gather: %v, %v", rows, err)
	}
	lists, err := fanout.Collect(ctx, src, queries...)
	if err != nil || len(lists) != 30 || len(lists[7]) != 1 || *lists[7][0].Data != "a_7" {
		t.Errorf("Collect: %v, %v", lists, err)
	}
	n := 0
	for result, err := range fanout.Stream(ctx, src, queries...) {
		if err != nil || len(result.Rows) != 1 || *result.Rows[0].Data != args[result.Index] {
			t.Errorf("Stream: %v, %v", result, err)
		}
		n++
	}
	if n != 30 {
		t.Errorf("Stream: %d results", n)
	}
	var (
		one   db.A
		count int64
		all   []db.A
		some  map[int32]db.A
	)
	err = fanout.Run(ctx, src,
		fanout.Into(&one, (*db.Queries).GetA, 5),
		fanout.IntoFunc(&count, func(ctx context.Context, q *db.Queries) (int64, error) { return q.CountA(ctx) }),
		fanout.Into(&all, (*db.Queries).ListAByIDs, []int32{1, 2, 3}),
		fanout.IntoMap(&some, fanouttest.ID, queries...),
		fanout.Do(func(ctx context.Context, q *db.Queries) error { // a nested call
			lists, err := fanout.Collect(ctx, src, queries[:4]...)
			if err == nil && len(lists) != 4 {
				err = fmt.Errorf("nested: %v", lists)
			}
			return err
		}))
	if err != nil || one.ID != 5 || count != 100 || len(all) != 3 || len(some) != 30 {
		t.Errorf("Run: %v, %d, %v, %v, %v", one, count, all, some, err)
	}
}

// partly makes a Partial call of which every third query fails.
func partly(t *testing.T, ctx context.Context, src fanout.Source[fanout.DBTX]) {
	t.Helper()
	src.Partial = true
	queries := fanouttest.Repeated(30, fanouttest.Statement[string]("-- name: Quick :one\nselect 'quick' where $1 = 1", 1))
	for i := range queries {
		if i%3 == 1 {
			queries[i] = fanouttest.Statement[string](fanouttest.BoomSQL, 0)
		}
	}
	lists, err := fanout.Collect(ctx, src, queries...)
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 10 {
		t.Errorf("Partial: %v", err)
	}
	for _, e := range errs {
		if e.Index%3 != 1 || e.Name != "Boom" || fanouttest.SQLState(e) != "22012" {
			t.Errorf("Partial: %v", e)
		}
	}
	for i, list := range lists {
		if i%3 != 1 && len(list) != 1 {
			t.Errorf("Partial: query %d: %v", i, list)
		}
	}
}

// A failure ends its siblings at once and hits nothing else. PgBouncer passes cancel requests on, each by a connection of
// its own.
func TestPgBouncerNoLateCancel(t *testing.T) {
	rounds := 100
	if *fanouttest.Soak {
		rounds = 10_000
	}
	for _, size := range []int{2, 4} {
		behind(t, size, 4, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
			quick := fanouttest.Statement[string]("-- name: Quick :one\nselect 'quick' where $1 = 1", 1)
			fails := fanouttest.Statement[string](fanouttest.BoomSQL, 0)
			src.Strategy = fanout.Pipelined
			fanouttest.KnownToBeSlow(t, src) // or a pipelined statement may wait behind a sleeping one
			longest := time.Duration(0)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(rounds)*100*time.Millisecond)
			defer cancel()
			for i := range rounds {
				src.Strategy, src.Snapshot = []fanout.Strategy{fanout.Parallel, fanout.Pipelined}[i/4%2], i%2 == 1
				queries := []fanout.Query[fanout.DBTX, string]{fanouttest.Sleep, fails, fanouttest.Sleep, quick}
				if size < 4 {
					queries = []fanout.Query[fanout.DBTX, string]{fanouttest.Sleep, fails} // or the failing one waits for the sleeping ones
				}
				start := time.Now()
				_, err := fanout.Collect(ctx, src, queries...)
				if longest = max(longest, time.Since(start)); longest > 8*time.Second {
					t.Fatalf("round %d, %v, snapshot=%v: waited %v for a sleeping statement", i, src.Strategy, src.Snapshot, longest)
				}
				if e := fanouttest.AsError(t, err); e.Index != 1 || fanouttest.SQLState(err) != "22012" {
					t.Fatalf("round %d, %v: %v", i, src.Strategy, err)
				}
				src.Snapshot = i%4 < 2
				if _, err := fanout.Collect(ctx, src, fanouttest.Repeated(8, quick)...); err != nil {
					t.Fatalf("round %d, %v: the next call: %v", i, src.Strategy, err)
				}
			}
			t.Logf("%d server connections: %d rounds, the longest %v", size, rounds, longest)
		})
	}
}

func TestPgBouncerDeadline(t *testing.T) {
	behind(t, 4, 4, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		for round := range 4 * len(fanouttest.Strategies) {
			src.Strategy, src.Snapshot = fanouttest.Strategies[round/4], round%2 == 1
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			start := time.Now()
			_, err := fanout.Collect(ctx, src, fanouttest.Repeated(8, fanouttest.Sleep)...)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v: %v", src.Strategy, err)
			}
			if d := time.Since(start); d > fanouttest.Grace {
				t.Errorf("%v: returned after %v", src.Strategy, d)
			}
			if _, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(8, fanouttest.InSnapshot)...); err != nil {
				t.Errorf("%v: the next call: %v", src.Strategy, err)
			}
		}
	})
}

// Money moves, and the calls are made through PgBouncer.
func TestPgBouncerSnapshotIsNotTorn(t *testing.T) {
	calls := 200
	if *fanouttest.Soak {
		calls = 5000
	}
	for _, size := range []int{2, 5} {
		t.Run(fmt.Sprint("size=", size), func(t *testing.T) {
			through, direct, ok := bouncer(t, fmt.Sprintf("default_pool_size = %d", size))
			if !ok {
				return
			}
			stop := fanouttest.Accounts(t, pgtest.PoolOn(t, direct, 1))
			defer stop()
			pool := pgtest.PoolOn(t, through, 5, cacheDescribe)
			tornUnlessSnapshot(t, fanouttest.Raw(pool), calls)
			fanouttest.Serves(t, pool)
		})
	}
}

// A snapshot call that has one connection at the server's end waits there for a second one, which it cannot get while its
// exporter holds the first. PgBouncer keeps it waiting; its ctx ends that, and so does PgBouncer's query_wait_timeout. One
// connection (Limit) is enough for the call.
func TestPgBouncerSnapshotStarves(t *testing.T) {
	through, _, ok := bouncer(t, "default_pool_size = 1", "query_wait_timeout = 3")
	if !ok {
		return
	}
	pool := pgtest.PoolOn(t, through, 8, cacheDescribe)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	for round := range 4 {
		src.Strategy = []fanout.Strategy{fanout.Parallel, fanout.Pipelined}[round%2]
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		start := time.Now()
		lists, err := fanout.Collect(ctx, src, fanouttest.Repeated(8, fanouttest.InSnapshot)...)
		took := time.Since(start)
		cancel()
		t.Logf("round %d, %v: %v after %v", round, src.Strategy, err, took)
		if err != nil && (lists != nil || !errors.Is(err, context.DeadlineExceeded)) {
			t.Errorf("%v, %v", lists, err)
		}
		if took > 300*time.Millisecond+fanouttest.Grace {
			t.Errorf("ended after %v", took)
		}
		fanouttest.Serves(t, pool)
	}
	start := time.Now()
	_, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(8, fanouttest.InSnapshot)...)
	t.Logf("without a deadline: %v after %v", err, time.Since(start))
	if d := time.Since(start); d > 3*time.Second+fanouttest.Grace {
		t.Errorf("ended after %v", d)
	}
	fanouttest.Serves(t, pool)
	src.Limit = 1
	for _, s := range fanouttest.Strategies {
		src.Strategy = s
		if _, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(8, fanouttest.InSnapshot)...); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
	fanouttest.Serves(t, pool)
}

// Several snapshot calls at once, of which each has an exporter that holds one of the server's connections.
func TestPgBouncerManySnapshotCalls(t *testing.T) {
	behind(t, 4, 8, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[fanout.DBTX]) {
		src.Snapshot = true
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				src := src
				for round := range 40 {
					src.Strategy = fanouttest.Strategies[(i+round/4)%len(fanouttest.Strategies)]
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					_, err := fanout.Collect(ctx, src, fanouttest.Repeated(8, fanouttest.InSnapshot)...)
					cancel()
					if err != nil {
						t.Errorf("%v: %v", src.Strategy, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

// What PgBouncer says when it ends a connection has the code of an execution that does not fit what is prepared. It is the
// cause, also of a statement that is remembered and travels with the BEGIN of a snapshot call.
func TestPgBouncerEndsAStatementOfASnapshot(t *testing.T) {
	through, _, ok := bouncer(t, "query_timeout = 1")
	if !ok {
		return
	}
	for _, s := range []fanout.Strategy{fanout.Serial, fanout.Parallel} {
		pool := pgtest.PoolOn(t, through, 1, cacheDescribe)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		if _, err := fanout.Collect(t.Context(), src, fanouttest.Statement[string](fanouttest.SleepSQL, 0)); err != nil {
			t.Fatal(err)
		}
		_, err := fanout.Collect(t.Context(), src, fanouttest.Sleep)
		if fanouttest.SQLState(err) != "08P01" {
			t.Errorf("%v: %v", s, err)
		}
		fanouttest.Mention(t, err, "query timeout")
	}
}

// In pgx's default mode, which is not for a PgBouncer that does not know of prepared statements, a connection meets what
// another one has prepared on the backend. That may fail, as with pgx, but never is another statement executed.
func TestPgBouncerMixesNoStatements(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, snapshot := range []bool{false, true} {
			through, _, ok := bouncer(t, "default_pool_size = 2")
			if !ok {
				return
			}
			sources := make([]fanout.Source[fanout.DBTX], 2)
			for i := range sources {
				sources[i] = fanouttest.Raw(pgtest.PoolOn(t, through, 1))
				sources[i].Strategy, sources[i].Snapshot = s, snapshot
			}
			holders := []*pgx.Conn{pgtest.Connect(t, through), pgtest.Connect(t, through)}
			hold := func(i int, sql string) { // has holder i take the only backend that is free, or give it back
				if _, err := holders[i].PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
					t.Fatal(err)
				}
			}
			ask := func(i int) {
				want := fmt.Sprint("source ", i)
				lists, err := fanout.Collect(t.Context(), sources[i], fanouttest.Statement[string]("select '"+want+"' where $1 = 1", 1))
				if err == nil && !slices.Equal(lists[0], []string{want}) {
					t.Errorf("%v, snapshot=%v: %v has the rows of another statement: %v", s, snapshot, want, lists)
				} else if err != nil {
					t.Logf("%v, snapshot=%v: %v", s, snapshot, err)
				}
			}
			hold(0, "begin")
			ask(0)
			hold(1, "begin")
			hold(0, "commit")
			ask(1)
			hold(0, "begin")
			hold(1, "commit")
			ask(1) // where source 0 has prepared its statement
			hold(0, "commit")
		}
	}
}

// PgBouncer has too many clients for a moment, in words and with a code of its own. A call that may try again does.
func TestPgBouncerHasTooMany(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		through, _, ok := bouncer(t, "max_client_conn = 1")
		if !ok {
			return
		}
		var holder *pgx.Conn
		for deadline := time.Now().Add(10 * time.Second); holder == nil; { // bouncer's own connection may not have ended
			var err error
			if holder, err = pgx.Connect(t.Context(), through); err != nil && time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		src := fanouttest.Raw(pgtest.PoolOn(t, through, 1, cacheDescribe))
		src.Strategy, src.Retries = s, 6
		done := make(chan struct{})
		time.AfterFunc(50*time.Millisecond, func() {
			defer close(done)
			_ = holder.Close(context.Background())
		})
		if _, err := fanout.Collect(t.Context(), src, fanouttest.Statement[string]("select 'x'")); err != nil {
			t.Errorf("%v: %v", s, err)
		}
		<-done
	}
}

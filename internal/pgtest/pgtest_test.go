package pgtest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Run(m, "create table t (n int); insert into t values (1), (2)", "insert into t values (3)",
		"create table numbered (id serial, n int check (n > 0))"))
}

func queryRow[T any](t testing.TB, dsn, query string, args ...any) T {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var v T
	if err := conn.QueryRow(context.Background(), query, args...).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func databaseExists(t testing.TB, dsn, name string) bool {
	t.Helper()
	return queryRow[bool](t, dsn, "select exists (select from pg_database where datname = $1)", name)
}

func TestDatabasePerTest(t *testing.T) {
	outer := pgtest.DSN(t)
	var inner string
	var stillConnected *pgx.Conn // when the database is dropped
	t.Run("inner", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		inner = queryRow[string](t, dsn, "select current_database()")
		if !strings.HasPrefix(inner, fmt.Sprintf("fanout_test_%d_", os.Getpid())) {
			t.Errorf("database name is %s", inner)
		}
		if n := queryRow[int](t, dsn, "with d as (delete from t returning n) select count(*) from d"); n != 3 {
			t.Errorf("%d rows from the schema, want 3", n)
		}
		if n := queryRow[int](t, outer, "select count(*) from t"); n != 3 {
			t.Errorf("%d rows in another test's database, want 3", n)
		}
		var err error
		if stillConnected, err = pgx.Connect(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
	})
	defer stillConnected.Close(t.Context())
	if databaseExists(t, outer, inner) {
		t.Errorf("%s exists after its test", inner)
	}
}

// A test has an earlier one's database only if that could not be told from a new one.
func TestRecycledDatabase(t *testing.T) {
	other := pgtest.DSN(t)
	if os.Getenv("TEST_DATABASE_URL") != "" || queryRow[int](t, other, "select current_setting('server_version_num')::int") < 150000 {
		t.Skip("there, databases are not recycled")
	}
	for sql, recycled := range map[string]bool{
		"select n from t":                    true,
		"select 1 / (n - 1) from t":          true,
		"begin; lock t":                      true,
		"set work_mem = '5MB'":               true,
		"update t set n = n where n < 0":     true,
		"insert into numbered values (null)": true, // fails
		"insert into numbered (n) values (1), (2); delete from numbered where n = 1": true, // which can be undone
		"insert into t values (4)":                                      false,
		"begin; insert into t values (4)":                               false, // rolled back with the session
		"update t set n = 5 where n = 3":                                false,
		"delete from t where n = 3":                                     false,
		"truncate t":                                                    false,
		"create table made ()":                                          false,
		"begin; create table made ()":                                   false,
		"create temp table made ()":                                     false,
		"insert into numbered (n) values (-1)":                          false, // fails, and has taken an id
		"insert into numbered (n) values (1); create table made ()":     false,
		"insert into numbered (n) values (1); insert into t values (4)": false,
		"select nextval('numbered_id_seq')":                             false,
		"do $$ begin execute format('alter database %I set work_mem = ''5MB''', current_database()); end $$": false,
	} {
		var used string
		t.Run(sql, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			used = queryRow[string](t, dsn, "select current_database()")
			conn, err := pgx.Connect(t.Context(), dsn)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.PgConn().Exec(t.Context(), sql).ReadAll()
			conn.Close(context.Background())
			// A session that is not over yet, as on a busy machine, would be reason enough to drop the database.
			for queryRow[bool](t, other, "select exists (select from pg_stat_activity where datname = $1 and application_name <> 'pgtest')", used) {
				time.Sleep(time.Millisecond)
			}
		})
		if got := databaseExists(t, other, used); got != recycled {
			t.Errorf("%s: that the database exists afterwards is %t, want %t", sql, got, recycled)
		}
		t.Run("next", func(t *testing.T) {
			dsn := pgtest.DSN(t)
			const stateSQL = `select concat_ws(' ', (select string_agg(n::text, ' ' order by n) from t), current_setting('work_mem'), to_regclass('made'))`
			if got := queryRow[string](t, dsn, stateSQL); got != "1 2 3 4MB" {
				t.Errorf("after %s: %s", sql, got)
			}
			const insertSQL = "with made as (insert into numbered default values returning id) select (select count(*) from numbered) || ' ' || id from made"
			if got := queryRow[string](t, dsn, insertSQL); got != "0 1" {
				t.Errorf("after %s: rows there were, and the first id: %s", sql, got)
			}
			if name := queryRow[string](t, dsn, "select current_database()"); name == used != recycled {
				t.Errorf("%s: that the next test has the database is %t, want %t", sql, name == used, recycled)
			}
		})
	}
}

// Nor has it one that has been changed as a whole, of which a session that is in the database already would not notice.
func TestDatabaseChangedAsAWholeIsNotRecycled(t *testing.T) {
	other := pgtest.DSN(t)
	for _, change := range []string{"allow_connections false", "connection limit 0"} {
		var used string
		for _, sql := range []string{"select 1", "alter database %s " + change} {
			t.Run(sql, func(t *testing.T) {
				used = queryRow[string](t, pgtest.DSN(t), "select current_database()")
				if strings.HasPrefix(sql, "alter") {
					sql = fmt.Sprintf(sql, used)
				}
				pgtest.Exec(t, pgtest.Connect(t, other), sql)
			})
		}
		if databaseExists(t, other, used) {
			t.Errorf("%s: the database is kept", change)
		}
	}
}

func TestConcurrentClones(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { pgtest.DSN(t) })
	}
	wg.Wait()
}

func TestPool(t *testing.T) {
	configured := false
	pool := pgtest.Pool(t, 3, func(c *pgxpool.Config) { configured = true; c.MinConns = 0 })
	if !configured || pool.Config().MaxConns != 3 {
		t.Errorf("configured %t, MaxConns %d", configured, pool.Config().MaxConns)
	}
	if got := pgtest.Backends(t, pool); len(got) != 0 {
		t.Errorf("backends %v of an unused pool", got)
	}
	var conns []*pgxpool.Conn
	var want []uint32
	for range 3 {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		want = append(want, conn.Conn().PgConn().PID())
	}
	for _, conn := range conns {
		conn.Release()
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, pgtest.Backends(t, pool)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, pgtest.Backends(t, pool)); diff != "" {
		t.Errorf("asked again: %s", diff)
	}
}

func TestTwoPools(t *testing.T) {
	a, b := pgtest.Pool(t, 1), pgtest.Pool(t, 0)
	for _, pool := range []*pgxpool.Pool{a, b} {
		if err := pool.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A connection that comes back broken is closed by the pool in the background; that is not a leak.
func TestPoolWithBrokenConnection(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := conn.Exec(ctx, "select 1"); err == nil {
		t.Error("statement succeeded although its ctx had ended")
	}
	if _, err := conn.Exec(t.Context(), "begin"); err != nil {
		t.Error(err)
	}
	conn.Release()
}

// fake is a test whose failures are looked at. Its clean-ups run when the test that has it says so.
type fake struct {
	testing.TB
	mu       sync.Mutex
	cleanups []func()
	errors   []string
}

func (f *fake) Cleanup(g func()) { f.cleanups = append(f.cleanups, g) }

func (f *fake) Errorf(format string, args ...any) { f.Error(fmt.Sprintf(format, args...)) }

func (f *fake) Error(args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errors = append(f.errors, fmt.Sprint(args...))
}

func (f *fake) end() string {
	for _, g := range slices.Backward(f.cleanups) {
		g()
	}
	return strings.Join(f.errors, "; ")
}

func TestAcquiredConnectionIsReported(t *testing.T) {
	pgtest.SettleSoon(t)
	f := &fake{TB: t}
	pool := pgtest.Pool(f, 1)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if got := f.end(); got != "pgtest: the pool has 1 acquired connections at the end of the test" {
		t.Errorf("reported %q", got)
	}
}

func TestLeakedGoroutineIsReported(t *testing.T) {
	pgtest.SettleSoon(t)
	f := &fake{TB: t}
	pool := pgtest.Pool(f, 1)
	if err := pool.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() { <-stop }()
	got := f.end()
	if !strings.HasPrefix(got, "pgtest: goroutines outlive the test: ") || !strings.Contains(got, "TestLeakedGoroutineIsReported") {
		t.Errorf("reported %q", got)
	}
}

// The same tests run on a server that is somebody's, and leave nothing there.
func TestOnOtherServer(t *testing.T) {
	dsn := pgtest.DSN(t)
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run", "^(TestDatabasePerTest|TestConcurrentClones|TestPool|Example.*)$")
	cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+dsn, "PGBIN=/nonexistent")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestPool") {
		t.Errorf("%v\n%s", err, out)
	}
	prefix := fmt.Sprintf("fanout_test_%d_", cmd.Process.Pid)
	if n := queryRow[int](t, dsn, "select count(*) from pg_database where starts_with(datname, $1)", prefix); n != 0 {
		t.Errorf("%d databases left of %s", n, prefix)
	}
}

// Tests that need no database start no server: here, none could be started.
func TestServerIsLazy(t *testing.T) {
	for _, args := range [][]string{{"-test.list=."}, {"-test.run=^TestNothing$"}} {
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), "TEST_DATABASE_URL=", "PGBIN=/nonexistent")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

func TestServerThatDoesNotStart(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^(TestPool|TestTwoPools)$")
	cmd.Env = append(os.Environ(), "TEST_DATABASE_URL=", "PGBIN=/nonexistent")
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Count(string(out), "PGBIN=/nonexistent") != 2 || !strings.Contains(string(out), "TEST_DATABASE_URL") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestNothing(t *testing.T) { runtime.Gosched() }

func BenchmarkPool(b *testing.B) {
	pool := pgtest.Pool(b, 2)
	for b.Loop() {
		if err := pool.Ping(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDSN(b *testing.B) {
	for b.Loop() {
		f := &fake{TB: b}
		pgtest.DSN(f)
		f.end()
	}
}

func FuzzNeedsNoServer(f *testing.F) {
	f.Add(1)
	f.Fuzz(func(t *testing.T, n int) {
		if n+0 != n {
			t.Error(n)
		}
	})
}

func ExampleExampleDSN() {
	conn, err := pgx.Connect(context.Background(), pgtest.ExampleDSN())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close(context.Background())
	var n int
	fmt.Println(conn.QueryRow(context.Background(), "select count(*) from t").Scan(&n), n)
	// Output: <nil> 3
}

// Package pgtest gives each test a database of its own on a real PostgreSQL server.
//
// A package's tests opt in by their TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Run(m, schema)) }
//
// The server is one throwaway server per test binary, started when the first test asks for a database; tests that need
// none start none. A database is cloned from a template that has the schema, or is one that an earlier test has had and
// not changed in any way, but for rows of tables that were empty and are again. With TEST_DATABASE_URL set, the same tests run
// on that server instead, in databases whose names begin with fanout_test_ and which they drop again; the user named there
// needs the right to create databases, and for some tests must be a superuser. Tests of what a server does as a whole, such
// as a restart, start their own all the same. A test binary that is killed leaves its databases behind: what else could drop
// them cannot tell, over a network, that their process is gone.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"
)

const (
	// adminTimeout bounds what is done to databases rather than in them, such as cloning one.
	adminTimeout = 2 * time.Minute

	// closeTimeout is longer than the 15 seconds after which pgx gives up on a connection whose server does not answer.
	closeTimeout = 20 * time.Second
)

// settleTimeout bounds the wait for what pgx does in the background to a connection that is given back broken: the pool
// counts it as acquired until it has been closed. A variable only for the tests of what happens after it.
var settleTimeout = 5 * time.Second

// current is this process's server, from Run on.
var current *server

// Run runs the tests with databases that have the schema, whose parts may each be several statements. It drops and stops
// what it has created, and returns the code to exit with: 1 if the tests succeeded and that did not.
func Run(m *testing.M, schema ...string) int {
	if current != nil {
		panic("pgtest: Run called twice")
	}
	current = &server{schema: schema}
	code := m.Run()
	if err := current.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

// DSN returns the connection string of a database of the test's own, dropped when the test ends together with whatever
// is still connected to it, unless nobody is and it is as it was, or can be emptied: then it may be another test's. One that
// has been has a session of this package's own, whose application_name is pgtest. In a benchmark, the time it takes counts
// unless the timer is reset.
func DSN(t testing.TB) string {
	t.Helper()
	s := running(t)
	name, err := s.clone()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.release(name); err != nil {
			t.Error(err)
		}
	})
	return s.dsn(name)
}

// Connect returns a connection that is closed when the test ends.
func Connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// Exec executes what must not fail.
func Exec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// QueryRow returns the one value that a query must have.
func QueryRow[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// Pool returns a pool of at most maxConns connections, or pgxpool's default number of them for 0, on a database of the
// test's own. The functions may change the pool's configuration.
//
// When the test ends, it fails if a connection is still acquired, if the pool cannot be closed, or if a goroutine runs
// that did not when Pool was called. Such a goroutine could be another test's, so a test that calls Pool must not run in
// parallel with others. Clean-ups that the test registers after Pool run before these checks.
func Pool(t testing.TB, maxConns int, configure ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	return PoolOn(t, DSN(t), maxConns, configure...)
}

// PoolOn is Pool for a database that the test has seen to itself, such as one on a server of its own.
func PoolOn(t testing.TB, dsn string, maxConns int, configure ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	before := goleak.IgnoreCurrent()
	closed := false
	t.Cleanup(func() {
		if !closed {
			return // has been reported, and its goroutines are no news
		}
		if err := findLeak(before); err != nil {
			t.Errorf("pgtest: goroutines outlive the test: %v", err)
		}
	})

	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	if maxConns > 0 {
		config.MaxConns = int32(maxConns)
	}
	for _, f := range configure {
		f(config)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		if err := closePool(pool); err != nil {
			t.Error(err)
			return
		}
		closed = true
	})
	return pool
}

// closePool closes the pool, unless that would take for ever: pgxpool waits for every connection to be released.
func closePool(pool *pgxpool.Pool) error {
	for deadline := time.Now().Add(settleTimeout); pool.Stat().AcquiredConns() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n := pool.Stat().AcquiredConns()
			go pool.Close() // the idle connections, at least
			return fmt.Errorf("pgtest: the pool has %d acquired connections at the end of the test", n)
		}
	}
	done := make(chan struct{})
	go func() {
		pool.Close()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(closeTimeout):
		return fmt.Errorf("pgtest: the pool is not closed after %v", closeTimeout)
	}
}

// findLeak looks for goroutines until there are none but those before, for longer than goleak does on its own. Where a write
// has taken long, pgx goes on reading in the background until there is something to read: so the server is asked for it,
// on the connection that stays open.
func findLeak(before goleak.Option) error {
	deadline := time.Now().Add(settleTimeout)
	for {
		err := goleak.Find(before)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if current != nil {
			current.ping()
		}
	}
}

// Backends returns the process ids of the pool's idle backends, in ascending order. The pool holds the same backends as
// before if the lists are equal and nothing is acquired.
func Backends(t testing.TB, pool *pgxpool.Pool) []uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	pids := []uint32{}
	for _, conn := range pool.AcquireAllIdle(ctx) {
		pids = append(pids, conn.Conn().PgConn().PID())
		conn.Release()
	}
	slices.Sort(pids)
	return pids
}

// ExampleDSN returns the connection string of a new database for an example function, which has no testing.TB. Run drops
// the database after all tests. It panics on failure.
func ExampleDSN() string {
	if current == nil {
		panic(errNoRun)
	}
	if err := current.start(); err != nil {
		panic(err)
	}
	name, err := current.clone()
	if err != nil {
		panic(err)
	}
	return current.dsn(name)
}

// running returns the server, which it starts if it is the first to ask.
func running(t testing.TB) *server {
	t.Helper()
	if current == nil {
		t.Fatal(errNoRun)
	}
	if err := current.start(); err != nil {
		t.Fatal(err)
	}
	return current
}

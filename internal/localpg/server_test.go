//go:build unix && !aix && !solaris

package localpg_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestStartQueryStop(t *testing.T) {
	dir := scratch(t)
	begin := time.Now()
	s := start(t)
	t.Logf("started in %v", time.Since(begin))
	if got := show(t, s.DSN(), "select current_user || ' ' || current_database() || ' ' || current_setting('fsync')"); got != "postgres postgres off" {
		t.Errorf("connected as %q", got)
	}
	if !strings.HasPrefix(dataDir(t, s.DSN()), dir+"/") {
		t.Errorf("DSN %s is not in TMPDIR=%s", s.DSN(), dir)
	}
	if info, err := os.Stat(dataDir(t, s.DSN())); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("socket directory: %v, %v; want mode 0700", info, err)
	}
	if pgid, err := syscall.Getpgid(s.PID()); err != nil || pgid != s.PID() {
		t.Errorf("server %d is in process group %d (%v), want its own", s.PID(), pgid, err)
	}
	begin = time.Now()
	stop(t, s)
	t.Logf("stopped in %v", time.Since(begin))
	if err := syscall.Kill(s.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d after Stop: %v, want none", s.PID(), err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
}

func TestTwoServersAtOnce(t *testing.T) {
	scratch(t)
	// Nobody else's use of the default TCP port matters. If this fails, the port is in use as it is.
	if l, err := net.Listen("tcp", "127.0.0.1:5432"); err == nil {
		defer l.Close()
	}
	var servers [2]*localpg.Server
	var wg sync.WaitGroup
	for i := range servers {
		wg.Go(func() {
			s, err := localpg.Start(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			servers[i] = s
		})
	}
	wg.Wait()
	for _, s := range servers {
		if s != nil {
			defer s.Stop()
		}
	}
	if t.Failed() {
		return
	}
	// A third start sweeps, and must leave both alone.
	stop(t, start(t))
	a, b := show(t, servers[0].DSN(), "select system_identifier::text from pg_control_system()"), show(t, servers[1].DSN(), "select system_identifier::text from pg_control_system()")
	if a == b {
		t.Errorf("both DSNs lead to the server %s", a)
	}
	for _, s := range servers {
		stop(t, s)
	}
}

func TestSettings(t *testing.T) {
	scratch(t)
	s := start(t, "wal_level=logical", "max_connections=7", "fsync=on")
	defer stop(t, s)
	if got := show(t, s.DSN(), "select concat_ws(' ', current_setting('wal_level'), current_setting('max_connections'), current_setting('fsync'))"); got != "logical 7 on" {
		t.Errorf("settings are %q", got)
	}
	if _, err := localpg.Start(t.Context(), "fsync"); err == nil || !strings.Contains(err.Error(), "name=value") {
		t.Errorf("setting without a value: %v", err)
	}
}

func TestEnvironmentIsIgnored(t *testing.T) {
	scratch(t)
	for name, value := range map[string]string{
		"PGHOST": "nowhere.invalid", "PGPORT": "1", "PGUSER": "somebody", "PGDATABASE": "something", "PGPASSWORD": "secret",
		"PGSSLMODE": "verify-full", "PGTARGETSESSIONATTRS": "read-only", "PGDATA": "/nonexistent", "PGOPTIONS": "--bad",
		"PGCLIENTENCODING": "LATIN1",
		"PGCHANNELBINDING": "require", "PGREQUIREAUTH": "scram-sha-256", "PGMINPROTOCOLVERSION": "3.2", "PGMAXPROTOCOLVERSION": "3.2",
		"LC_ALL": "xx_XX", "LANG": "xx_XX", "TZ": "Asia/Tokyo",
	} {
		t.Setenv(name, value)
	}
	s := start(t)
	defer stop(t, s)
	os.Unsetenv("PGOPTIONS") // a client's own affair
	got := show(t, s.DSN(), `select concat_ws(' ', current_user, current_database(), current_setting('server_encoding'),
		datcollate, current_setting('timezone') ilike '%tokyo%') from pg_database where datname = current_database()`)
	if got != "postgres postgres UTF8 C f" {
		t.Errorf("the environment leaked into the server: %q", got)
	}
}

func TestStopWithClients(t *testing.T) {
	scratch(t)
	s := start(t)
	idle, busy := pgtest.Connect(t, s.DSN()), pgtest.Connect(t, s.DSN())
	if _, err := idle.Exec(t.Context(), "begin; create table t (); select 1"); err != nil {
		t.Fatal(err)
	}
	busyErr := make(chan error)
	go func() {
		_, err := busy.Exec(context.Background(), "select pg_sleep(3600)")
		busyErr <- err
	}()
	eventually(t, 5*time.Second, "the other session sleeps", func() bool {
		return show(t, s.DSN(), "select count(*)::text from pg_stat_activity where wait_event = 'PgSleep'") == "1"
	})
	begin := time.Now()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { stop(t, s) })
	}
	wg.Wait()
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("Stop took %v", d)
	}
	var pgErr *pgconn.PgError
	if err := <-busyErr; !errors.As(err, &pgErr) || pgErr.Code != "57P01" {
		t.Errorf("the client's error is %v, want 57P01 (admin_shutdown)", err)
	}
}

func TestStopAfterCrash(t *testing.T) {
	scratch(t)
	s := start(t)
	removeSegment(t, s.DSN())
	pgtest.Connect(t, s.DSN()) // a backend that has to notice
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "server gone", func() bool { return !listens(t, s.DSN()) })
	err := s.Stop()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Stop after a crash: %v, want an error that says so", err)
	}
	if again := s.Stop(); again != err {
		t.Errorf("second Stop: %v, want the same error", again)
	}
}

// Somebody else may have shut the server down in an orderly way.
func TestServerEndsByItself(t *testing.T) {
	scratch(t)
	s := start(t)
	if err := syscall.Kill(s.PID(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "server gone", func() bool { return !listens(t, s.DSN()) })
	stop(t, s)
}

func TestKilledParent(t *testing.T) {
	dir := scratch(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), orphanEnv+"=1")
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill := func() {
		if !killed {
			child.Process.Kill()
			child.Wait()
			killed = true
		}
	}
	defer kill()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dsn := strings.TrimSpace(line)

	// The server has clients: one in a transaction, one in the middle of a statement.
	idle, busy := pgtest.Connect(t, dsn), pgtest.Connect(t, dsn)
	if _, err := idle.Exec(t.Context(), "begin; create table t (); select 1"); err != nil {
		t.Fatal(err)
	}
	busyErr := make(chan error, 1)
	go func() {
		_, err := busy.Exec(context.Background(), "select pg_sleep(3600)")
		busyErr <- err
	}()
	eventually(t, 5*time.Second, "the other session sleeps", func() bool {
		return show(t, dsn, "select count(*)::text from pg_stat_activity where wait_event = 'PgSleep'") == "1"
	})

	// While the parent lives, its directory is not swept.
	stop(t, start(t))
	if !listens(t, dsn) {
		t.Fatal("the server of a living parent was swept")
	}

	kill()
	if localpg.DiesWithParent {
		took := eventually(t, 10*time.Second, "server gone with its parent", func() bool { return !listens(t, dsn) })
		t.Logf("gone after %v", took)
		eventually(t, 10*time.Second, "no process of the server", func() bool { return len(processesIn(t, dir)) == 0 })
	}
	orphaned := filepath.Dir(dataDir(t, dsn))
	if _, err := os.Stat(orphaned); err != nil {
		t.Fatalf("the orphan's directory: %v", err)
	}
	stop(t, start(t))
	if _, err := os.Stat(orphaned); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the orphan's directory after the next start: %v, want it swept", err)
	}
	if listens(t, dsn) {
		t.Error("the orphan still runs")
	}
	if err := <-busyErr; err == nil {
		t.Error("the statement on the orphan ended without an error")
	}
}

func TestContextEndsDuringStart(t *testing.T) {
	scratch(t)
	begin := time.Now()
	stop(t, start(t))
	usual := time.Since(begin)
	const steps = 6
	for i := range steps {
		ctx, cancel := context.WithTimeout(t.Context(), usual*time.Duration(i)/steps)
		s, err := localpg.Start(ctx)
		cancel()
		if err == nil { // it may be faster this time
			stop(t, s)
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended after %d/%d of a start: %v", i, steps, err)
		} else if i == 0 || i == steps-2 {
			t.Log(err)
		}
	}
}

func TestServerThatDoesNotComeUp(t *testing.T) {
	scratch(t)
	_, err := localpg.Start(t.Context(), "shared_buffers=nonsense")
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "shared_buffers"`) {
		t.Errorf("got %v, want an error with the log's end", err)
	}
	t.Log(err)
}

func TestWrongPGBIN(t *testing.T) {
	dir := scratch(t)
	t.Setenv("PGBIN", dir)
	_, err := localpg.Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "PGBIN="+dir) {
		t.Errorf("got %v, want an error that names PGBIN", err)
	}
	t.Log(err)
}

func TestBadTMPDIR(t *testing.T) {
	scratch(t)
	readOnly := localpg.Mkdir(t)
	if err := os.Chmod(readOnly, 0o555); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		readOnly = "/proc" // mode bits do not stop root
	}
	for _, dir := range []string{"/nonexistent/tmp", "/dev/null", readOnly} {
		t.Setenv("TMPDIR", dir)
		_, err := localpg.Start(t.Context())
		if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "set TMPDIR") {
			t.Errorf("TMPDIR=%s: got %v, want an error that names it and says what to do", dir, err)
		}
		t.Log(err)
	}
}

func TestTMPDIRUnfitForASocket(t *testing.T) {
	dir := scratch(t)
	long := filepath.Join(dir, strings.Repeat("x", 100))
	comma := filepath.Join(dir, "a,b")
	for _, tmp := range []string{long, comma} {
		if err := os.Mkdir(tmp, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TMPDIR", tmp)
		s := start(t)
		if !strings.HasPrefix(dataDir(t, s.DSN()), "/tmp/") {
			t.Errorf("TMPDIR=%s: the server is in %s", tmp, dataDir(t, s.DSN()))
		}
		show(t, s.DSN(), "select '1'")
		stop(t, s)
		if _, err := os.Stat(dataDir(t, s.DSN())); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Stop: %v", err)
		}
		if err := os.Remove(tmp); err != nil {
			t.Error(err)
		}
	}
}

func TestTMPDIRWithOddName(t *testing.T) {
	dir := scratch(t)
	tmp := filepath.Join(dir, `it's "a b"&%`)
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	s := start(t)
	if !strings.HasPrefix(dataDir(t, s.DSN()), tmp) {
		t.Errorf("TMPDIR=%s: the server is in %s", tmp, dataDir(t, s.DSN()))
	}
	show(t, s.DSN(), "select '1'")
	stop(t, s)
	if err := os.Remove(tmp); err != nil {
		t.Error(err)
	}
}

func TestRelativeTMPDIR(t *testing.T) {
	t.Chdir(scratch(t))
	t.Setenv("TMPDIR", ".")
	s := start(t)
	if _, err := pgx.ParseConfig(s.DSN()); err != nil || !filepath.IsAbs(dataDir(t, s.DSN())) {
		t.Errorf("DSN %s: %v", s.DSN(), err)
	}
	stop(t, s)
}

// Root's own directories are closed to the account that the server runs as.
func TestTMPDIRUnreachableForServer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root starts the server as another user")
	}
	dir := scratch(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := start(t)
	if !strings.HasPrefix(dataDir(t, s.DSN()), "/tmp/sqlcfanout-pg-") {
		t.Errorf("the server is in %s", dataDir(t, s.DSN()))
	}
	stop(t, s)
}

func TestServerIsNotRoot(t *testing.T) {
	scratch(t)
	s := start(t)
	defer stop(t, s)
	info, err := os.Stat(filepath.Join(dataDir(t, s.DSN()), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid == 0 || os.Geteuid() != 0 && int(uid) != os.Geteuid() {
		t.Errorf("the server runs as user %d", uid)
	}
}

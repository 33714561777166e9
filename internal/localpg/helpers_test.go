//go:build unix && !aix && !solaris

package localpg_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// orphanEnv makes this test binary a program that starts a server and never stops it.
const orphanEnv = "LOCALPG_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		orphan()
	}
	os.Exit(m.Run())
}

func orphan() {
	s, err := localpg.Start(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.DSN())
	select {} // until killed
}

// scratch makes a temporary directory that the server's account reaches too, and sets TMPDIR to it. When the test ends, it
// reports files, processes and goroutines that are left.
func scratch(t *testing.T) string {
	t.Helper()
	dir := localpg.Mkdir(t)
	leakOption := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		goleak.VerifyNone(t, leakOption)
		if pids := processesIn(t, dir); len(pids) > 0 {
			t.Errorf("processes left in %s: %v", dir, pids)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left behind in %s: %s", dir, e.Name())
		}
	})
	t.Setenv("TMPDIR", dir)
	return dir
}

// processesIn returns the processes whose working directory is dir or below it: those of a server. Only Linux tells; that
// a server is gone elsewhere, the tests see by its socket.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		return nil
	}
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd+"/", dir+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

func start(t *testing.T, settings ...string) *localpg.Server {
	t.Helper()
	s, err := localpg.Start(t.Context(), settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop() })
	return s
}

func stop(t *testing.T, s *localpg.Server) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

// show returns what the server says for a query of one value, on a connection of its own.
func show(t *testing.T, dsn, query string) string {
	t.Helper()
	conn := pgtest.Connect(t, dsn)
	defer conn.Close(context.Background())
	return pgtest.QueryRow[string](t, conn, query)
}

// dataDir returns the directory of the server's data and socket.
func dataDir(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("host")
}

// listens reports whether a server listens on the DSN's socket.
func listens(t *testing.T, dsn string) bool {
	conn, err := net.Dial("unix", filepath.Join(dataDir(t, dsn), ".s.PGSQL.5432"))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// removeSegment makes the test remove, where it can, the few bytes of System V shared memory by which a server knows
// that it is the only one. Every shutdown removes them, but nothing does when the server was killed.
func removeSegment(t *testing.T, dsn string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dataDir(t, dsn), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 7 {
		t.Fatalf("postmaster.pid is %q", content)
	}
	if key := strings.Fields(lines[6]); len(key) == 2 {
		t.Cleanup(func() { exec.Command("ipcrm", "-m", key[1]).Run() })
	}
}

// eventually polls until the condition holds, and returns how long that took.
func eventually(t *testing.T, within time.Duration, what string, condition func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !condition() {
		if time.Since(begin) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin)
}

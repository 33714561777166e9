//go:build unix && !aix && !solaris

package localpg

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func touch(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSweepSparesWhatIsNotStale(t *testing.T) {
	base := t.TempDir()
	stale := touch(t, filepath.Join(base, namePrefix+"stale", "lock"))
	touch(t, filepath.Join(base, namePrefix+"stale", "data", "PG_VERSION"))
	empty := filepath.Join(base, namePrefix+"empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	unknown := touch(t, filepath.Join(base, namePrefix+"unknown", "precious"))
	otherName := touch(t, filepath.Join(base, "other", "lock"))
	file := touch(t, filepath.Join(base, namePrefix+"file"))
	link := filepath.Join(base, namePrefix+"link")
	if err := os.Symlink(filepath.Dir(otherName), link); err != nil {
		t.Fatal(err)
	}
	living, err := makeDirectory(base, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer living.remove()
	spared := []string{unknown, otherName, file, link, living.path}
	if os.Geteuid() == 0 {
		foreign := touch(t, filepath.Join(base, namePrefix+"foreign", "lock"))
		if err := os.Chown(filepath.Dir(foreign), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		spared = append(spared, foreign)
	}

	sweep(t.Context(), base, true)
	for _, path := range spared {
		if !exists(t, path) {
			t.Errorf("%s was swept", path)
		}
	}
	for _, path := range []string{filepath.Dir(stale), empty} {
		if exists(t, path) {
			t.Errorf("%s was not swept", path)
		}
	}
}

// apart sets TMPDIR to a directory of the test's own: in the common one, the servers of packages that are tested at the same
// time sweep too.
func apart(t *testing.T) {
	t.Helper()
	t.Setenv("TMPDIR", Mkdir(t))
}

// A server that has outlived its parent, as it can where the kernel does not end it, is ended by the sweep.
func TestSweepEndsServer(t *testing.T) {
	apart(t)
	defer goleak.VerifyNone(t)
	s, err := Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	s.dir.lock.Close() // as if this process were gone
	begin := time.Now()
	sweep(t.Context(), filepath.Dir(s.dir.path), true)
	t.Logf("swept in %v", time.Since(begin))
	if exists(t, s.dir.path) {
		t.Error("the directory was not swept")
	}
	select {
	case <-s.proc.done:
	default:
		t.Error("the server still runs")
	}
	if err := s.Stop(); err != nil {
		t.Errorf("Stop after a sweep: %v", err)
	}
}

// A directory whose server still runs is left alone where the server is expected to end by itself and does not.
func TestSweepSparesServer(t *testing.T) {
	apart(t)
	s, err := Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	s.dir.lock.Close()
	sweep(t.Context(), filepath.Dir(s.dir.path), false)
	if !exists(t, s.dir.path) {
		t.Error("the directory of a running server was removed")
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

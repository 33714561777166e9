//go:build unix && !aix && !solaris

package localpg

import (
	"os"
	"path/filepath"
	"testing"
)

// DiesWithParent is for the tests outside of the package.
const DiesWithParent = diesWithParent

// Mkdir makes a directory with a short path (t.TempDir's has the test's name) that all users reach.
func Mkdir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

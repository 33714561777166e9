//go:build unix && !aix && !solaris

package localpg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// binaries are the paths of one installation's programs.
type binaries struct{ initdb, postgres string }

// installPlaces are where packages put the programs when they do not put them on PATH.
var installPlaces = []string{
	"/usr/lib/postgresql/*/bin", // Debian
	"/usr/pgsql-*/bin",          // the PostgreSQL project's packages for Fedora and its relatives
	"/usr/bin",                  // Fedora, Arch
	"/usr/libexec/postgresql*",  // Alpine
	"/opt/homebrew/opt/postgresql@*/bin",
	"/usr/local/opt/postgresql@*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/usr/local/pgsql/bin", // built from source
}

// findBinaries looks at PGBIN, pg_config, PATH and the places (patterns as of filepath.Glob), in this order. A PGBIN that
// is set is the only place, right or wrong. Among the places the newest version wins; pg_config and PATH come before
// them, as they are what the user has chosen.
func findBinaries(ctx context.Context, places []string) (binaries, error) {
	if dir := os.Getenv("PGBIN"); dir != "" {
		bin, err := binariesIn(dir)
		if err != nil {
			return binaries{}, fmt.Errorf("localpg: PGBIN=%s is not the directory of a PostgreSQL server's programs: %w", dir, err)
		}
		return bin, nil
	}

	var dirs []string
	// pg_config comes with the client's headers as well, so what it says may not be there.
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	} else if ctx.Err() != nil {
		return binaries{}, fmt.Errorf("localpg: %w", context.Cause(ctx))
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
		if path, err := filepath.EvalSymlinks(path); err == nil { // it may be a link, alone
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	dirs = append(dirs, newestFirst(places)...)
	for _, dir := range dirs {
		if bin, err := binariesIn(dir); err == nil {
			return bin, nil
		}
	}
	return binaries{}, ErrNotFound
}

// binariesIn returns the programs in dir, which must have both of them.
func binariesIn(dir string) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, err
	}
	bin := binaries{initdb: filepath.Join(dir, "initdb"), postgres: filepath.Join(dir, "postgres")}
	for _, path := range []string{bin.initdb, bin.postgres} {
		if _, err := exec.LookPath(path); err != nil {
			return binaries{}, err
		}
	}
	return bin, nil
}

// newestFirst expands the patterns and sorts what they match by the version in the name, those without one last.
func newestFirst(patterns []string) []string {
	var dirs []string
	for _, p := range patterns {
		matches, _ := filepath.Glob(p) // the only error is a malformed pattern
		dirs = append(dirs, matches...)
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return slices.Compare(version(b), version(a)) })
	return dirs
}

var versionPattern = regexp.MustCompile(`[0-9]+(\.[0-9]+)*`)

// version returns the last version number in a path: [9 6] of /usr/pgsql-9.6/bin.
func version(path string) []int {
	all := versionPattern.FindAllString(path, -1)
	if len(all) == 0 {
		return nil
	}
	var v []int
	for part := range strings.SplitSeq(all[len(all)-1], ".") {
		n, _ := strconv.Atoi(part)
		v = append(v, n)
	}
	return v
}

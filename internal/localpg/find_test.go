//go:build unix && !aix && !solaris

package localpg

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// program writes an executable file.
func program(t *testing.T, path, script string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// installation writes the programs of a server to dir.
func installation(t *testing.T, dir string) binaries {
	t.Helper()
	bin := binaries{filepath.Join(dir, "initdb"), filepath.Join(dir, "postgres")}
	program(t, bin.initdb, "")
	program(t, bin.postgres, "")
	return bin
}

func TestFindBinaries(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	join := func(elem ...string) string { return filepath.Join(append([]string{root}, elem...)...) }

	places := []string{join("usr/bin"), join("pg/*/bin"), join("brew/postgresql@*/bin")}
	plain := installation(t, join("usr/bin"))
	installation(t, join("pg/9.6/bin"))
	ten := installation(t, join("pg/10/bin"))
	program(t, join("pg/99/bin/initdb"), "") // half an installation
	eighteen := installation(t, join("brew/postgresql@18/bin"))
	onPath := installation(t, join("path"))
	linked := installation(t, join("linked"))
	if err := os.MkdirAll(join("links"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(linked.initdb, join("links/initdb")); err != nil {
		t.Fatal(err)
	}
	configured := installation(t, join("configured"))
	program(t, join("config/pg_config"), "echo "+join("configured"))
	program(t, join("headers-only/pg_config"), "echo "+join("empty"))

	for _, tt := range []struct {
		name   string
		pgbin  string
		path   string
		places []string
		want   binaries
	}{
		{"PGBIN first", join("pg/10/bin"), join("config") + ":" + join("path"), places, ten},
		{"then pg_config", "", join("path") + ":" + join("config"), places, configured},
		{"then PATH", "", join("headers-only") + ":" + join("path"), places, onPath},
		{"a link on PATH", "", join("links"), places, linked},
		{"then the newest", "", "", places, eighteen},
		{"versions are numbers", "", "", places[:2], ten},
		{"no version", "", "", places[:1], plain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PGBIN", tt.pgbin)
			t.Setenv("PATH", tt.path)
			got, err := findBinaries(t.Context(), tt.places)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(binaries{})); diff != "" {
				t.Error(diff)
			}
		})
	}

	t.Run("none", func(t *testing.T) {
		t.Setenv("PGBIN", "")
		t.Setenv("PATH", t.TempDir())
		_, err := findBinaries(t.Context(), []string{join("nowhere/*")})
		if !errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want ErrNotFound", err)
		}
	})
	t.Run("wrong PGBIN", func(t *testing.T) {
		t.Setenv("PGBIN", join("pg/99/bin"))
		_, err := findBinaries(t.Context(), places)
		if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "PGBIN=") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want an error about PGBIN", err)
		}
	})
}

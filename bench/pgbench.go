package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A pgbenchScript is what pgbench runs, and how many look-ups are in it.
type pgbenchScript struct {
	lookUps int
	text    string
}

const pgbenchLookUp = "\\set id random(1, :rows)\nselect id, data from big where id = :id;\n"

// pgbenchDepth is how many look-ups are in one pipeline.
const pgbenchDepth = 30

var pgbenchScripts = map[string]pgbenchScript{
	byPgbench:   {1, pgbenchLookUp},
	byPgbenchPL: {pgbenchDepth, "\\startpipeline\n" + strings.Repeat(pgbenchLookUp, pgbenchDepth) + "\\endpipeline\n"},
}

// findPgbench returns the program, or else why there is none. It may not be in PATH where the server's programs are not.
func findPgbench(ctx context.Context) (program, missing string) {
	dirs := []string{os.Getenv("PGBIN")}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.Reverse(found)
	for _, dir := range append(dirs, found...) {
		if program, err := exec.LookPath(filepath.Join(dir, "pgbench")); dir != "" && err == nil {
			return program, ""
		}
	}
	if program, err := exec.LookPath("pgbench"); err == nil {
		return program, ""
	}
	return "", "the program is not installed"
}

// run returns the look-ups per second.
func (s pgbenchScript) run(ctx context.Context, program string, srv *server, conns, rows, seconds int) (float64, error) {
	cmd := exec.CommandContext(ctx, program, "--no-vacuum", "--protocol=prepared", "--file=-",
		"--client="+strconv.Itoa(conns), "--jobs=2", "--time="+strconv.Itoa(seconds), "--define=rows="+strconv.Itoa(rows))
	cmd.Env = pgbenchEnviron(srv.config.ConnConfig)
	cmd.Stdin = strings.NewReader(s.text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, stderr.String())
	}
	tps, err := transactionsPerSecond(string(out))
	if err == errNoTPS && seconds < longestPgbench {
		return s.run(ctx, program, srv, conns, rows, 2*seconds) // the time was up when all were connected
	}
	return tps * float64(s.lookUps), err
}

// pgbenchEnviron leads pgbench to the server. Of the user's own variables, of which some would win over these, it has those
// that name certificates, which pgx reads too.
func pgbenchEnviron(c *pgx.ConnConfig) []string {
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "PG") && !strings.HasPrefix(variable, "PGSSL")
	})
	return append(env,
		"PGHOST="+c.Host, "PGPORT="+strconv.Itoa(int(c.Port)), "PGUSER="+c.User, "PGPASSWORD="+c.Password,
		"PGDATABASE="+c.Database, "PGSSLMODE="+sslMode(c), "PGOPTIONS=-csearch_path="+schemaName)
}

// sslMode is the DSN's, but that it asks for no check of the server, which the other contenders have made.
func sslMode(c *pgx.ConnConfig) string {
	encrypted, either := c.TLSConfig != nil, len(c.Fallbacks) > 0 // to the same host: there are no several
	switch {
	case encrypted && either:
		return "prefer"
	case encrypted:
		return "require"
	case either:
		return "allow"
	}
	return "disable"
}

var tpsLine = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)

// errNoTPS is why there is no figure: mostly, pgbench has run nothing.
var errNoTPS = errors.New("pgbench has printed no tps")

// longestPgbench is how many seconds pgbench may take to run anything at all.
const longestPgbench = 8

// transactionsPerSecond reads pgbench's output. Of two figures the last is that without the time to connect.
func transactionsPerSecond(out string) (float64, error) {
	lines := tpsLine.FindAllStringSubmatch(out, -1)
	if len(lines) == 0 {
		return 0, errNoTPS
	}
	return strconv.ParseFloat(lines[len(lines)-1][1], 64)
}

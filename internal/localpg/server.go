//go:build unix && !aix && !solaris

package localpg

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// defaultPort is only a part of the socket's name: the server does not listen on TCP, so no other server is in its way.
	defaultPort = "5432"

	// startTimeout bounds a start whose ctx has no deadline. The usual start takes half a second.
	startTimeout = time.Minute

	// shutdownGrace is how long the server has after each signal, before the next, harsher one. It is longer than the five
	// seconds after which an immediate shutdown kills the server's own children.
	shutdownGrace = 10 * time.Second

	// pollInterval is how often Start tries to connect, and how often a lock is asked for.
	pollInterval = 5 * time.Millisecond
)

// A Server is a running PostgreSQL server. Its methods may be called from any goroutine.
type Server struct {
	libpqDSN string
	dir      *directory
	proc     *process
	stop     func() error
}

// Start starts a server and returns once it accepts connections. Each setting is a "name=value" for the server's
// configuration, such as "wal_level=logical"; a later one overrides an earlier one and the defaults. The socket directory
// is not to be changed; the port need not be, unless the server is told to listen on TCP.
//
// ctx bounds the start only; the server runs until Stop. When Start fails it leaves neither a process nor a file, and the
// error carries the end of the server's log where there is one. It returns ErrNotFound where no server is installed.
//
// The server does not outlive the process that started it. On Linux and FreeBSD the kernel ends it at once, whatever
// ended the process. Elsewhere, and for the directory of a process that could not call Stop, the next Start by the same
// user clears away what is left.
//
// PostgreSQL refuses to run as root; started by root, the server runs as an unprivileged user.
func Start(ctx context.Context, settings ...string) (*Server, error) {
	return start(ctx, settings, func(bin binaries, dir *directory, as *account) *exec.Cmd {
		// The C locale is the one that every machine has, and in it text sorts the same way everywhere.
		return dir.command(bin.initdb, as, "--pgdata="+dir.data(), "--username=postgres", "--auth=trust",
			"--encoding=UTF8", "--locale=C", "--no-sync")
	})
}

// StartStandby starts a hot standby of primary, as Start starts a server. It begins as a copy of the primary and follows it
// from then on, with some delay. The primary's settings must allow it, as PostgreSQL's defaults do. The standby may be
// stopped before the primary or after it.
func StartStandby(ctx context.Context, primary *Server, settings ...string) (*Server, error) {
	return start(ctx, settings, func(bin binaries, dir *directory, as *account) *exec.Cmd {
		return dir.command(filepath.Join(filepath.Dir(bin.postgres), "pg_basebackup"), as, "--pgdata="+dir.data(),
			"--dbname="+primary.libpqDSN, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	})
}

// start does what Start promises, with the cluster made by the command that fill returns.
func start(ctx context.Context, settings []string, fill func(binaries, *directory, *account) *exec.Cmd) (_ *Server, err error) {
	port := defaultPort
	for _, s := range settings {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("localpg: setting %q is not of the form name=value", s)
		}
		if name == "port" {
			port = value
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no server after %v", startTimeout))
	defer cancel()

	bin, err := findBinaries(ctx, installPlaces)
	if err != nil {
		return nil, err
	}
	as, err := serverAccount()
	if err != nil {
		return nil, err
	}
	base, err := chooseBase(ctx, bin, as)
	if err != nil {
		return nil, err
	}
	for _, b := range bases() {
		sweep(ctx, b, !diesWithParent)
	}
	dir, err := makeDirectory(base, as)
	if err != nil {
		return nil, err
	}
	defer func() {
		dir.log.Close() // the server's processes have it now
		if err != nil {
			dir.waitGone(shutdownGrace)
			err = errors.Join(err, dir.remove())
		}
	}()

	libpqDSN := dsn(dir.data(), port)
	// Parsed before anything is started, as PG* variables can make any DSN invalid (PGSERVICE, for one).
	config, err := pgconn.ParseConfig(libpqDSN + asksNothing)
	if err != nil {
		return nil, fmt.Errorf("localpg: with the PG* variables of the environment: %w", err)
	}

	filling := fill(bin, dir, as)
	if err := run(ctx, filling); err != nil {
		return nil, dir.withLog(fmt.Errorf("localpg: %s: %w", filepath.Base(filling.Path), err))
	}
	// A copy of a running server has the lock of its socket. This one's socket does not exist yet, nor does its lock.
	if err := os.RemoveAll(filepath.Join(dir.data(), ".s.PGSQL."+port+".lock")); err != nil {
		return nil, fmt.Errorf("localpg: %w", err)
	}
	if err := dir.log.Truncate(0); err != nil { // what it says of a success would only hide what follows
		return nil, fmt.Errorf("localpg: %w", err)
	}
	proc, err := startProcess(dir.command(bin.postgres, as, postgresArgs(dir.data(), settings)...))
	if err != nil {
		return nil, fmt.Errorf("localpg: postgres: %w", err)
	}
	s := &Server{libpqDSN: libpqDSN, dir: dir, proc: proc}
	s.stop = sync.OnceValue(s.shutdown)
	if err := s.waitReady(ctx, config); err != nil {
		proc.end(shutdownGrace, syscall.SIGQUIT, syscall.SIGKILL)
		return nil, dir.withLog(err)
	}
	return s, nil
}

// DSN returns the connection string, a URL, of the database "postgres" for the superuser "postgres". It is complete, for
// pgx: PGHOST, PGPORT, PGUSER, PGDATABASE, PGSSLMODE, PGTARGETSESSIONATTRS, PGCHANNELBINDING, PGREQUIREAUTH and the like in the
// environment do not change its meaning.
func (s *Server) DSN() string { return s.libpqDSN + asksNothing }

// PID returns the process id of the server, the parent of all its backends.
func (s *Server) PID() int { return s.proc.cmd.Process.Pid }

// Stop shuts the server down, disconnecting its clients, and removes its directory. It returns when the process has been
// reaped. A server that does not obey within a bound is killed. Stop returns an error if the server did not end in an
// orderly way, be it during Stop or before (it crashed), or if something is left. Calling Stop again returns the same.
func (s *Server) Stop() error { return s.stop() }

func (s *Server) shutdown() error {
	// An immediate shutdown would do, as nothing is kept; but a fast one lets clients read that the administrator ended
	// their session, rather than that the server had crashed.
	s.proc.end(shutdownGrace, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL)
	var err error
	if s.proc.err != nil {
		err = s.dir.withLog(fmt.Errorf("localpg: the server ended with %w", s.proc.err))
	}
	// Backends whose parent was killed notice it by themselves; they may still be writing files.
	if !s.dir.waitGone(shutdownGrace) {
		err = errors.Join(err, fmt.Errorf("localpg: the server's backends still run in %s", s.dir.path))
	}
	return errors.Join(err, s.dir.remove())
}

// waitReady returns nil when the server accepts connections, and an error as soon as it cannot any more.
func (s *Server) waitReady(ctx context.Context, config *pgconn.Config) error {
	config.RuntimeParams = nil // of no use here, and a bad PGOPTIONS or PGTZ would look like a bad server
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		conn, err := pgconn.ConnectConfig(ctx, config)
		if err == nil {
			conn.Close(ctx)
			return nil
		}
		const cannotConnectNow = "57P03" // starting up
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code != cannotConnectNow {
			return fmt.Errorf("localpg: postgres: %w", err)
		}
		if last == nil || ctx.Err() == nil { // later ones tell no more than that
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("localpg: postgres: %w (the last attempt to connect: %v)", context.Cause(ctx), last)
		case <-s.proc.done:
			return fmt.Errorf("localpg: postgres did not start: %s", s.proc.cmd.ProcessState)
		case <-tick.C:
		}
	}
}

func postgresArgs(data string, settings []string) []string {
	args := []string{"-D", data}
	defaults := []string{
		"listen_addresses=",
		"port=" + defaultPort,
		// A list, in which a name may be quoted as an identifier is.
		`unix_socket_directories="` + strings.ReplaceAll(data, `"`, `""`) + `"`,
		"fsync=off",
		"synchronous_commit=off",
		"full_page_writes=off",
		// In files below the directory, so that removing it removes all, whatever happened to the server.
		"dynamic_shared_memory_type=mmap",
		// The log goes to standard error, which is the directory's log file.
		"log_destination=stderr",
		"logging_collector=off",
	}
	for _, s := range append(defaults, settings...) {
		args = append(args, "-c", s)
	}
	return args
}

// asksNothing goes behind a DSN: what the user's own server is to offer, this one does not. Not every libpq knows all of it.
const asksNothing = "&channel_binding=disable&require_auth=none&min_protocol_version=3.0&max_protocol_version=3.0"

func dsn(socketDir, port string) string {
	query := url.Values{
		"host":                 {socketDir},
		"port":                 {port},
		"sslmode":              {"disable"},
		"target_session_attrs": {"any"},
	}.Encode()
	// A plus sign in a connection URL is a plus sign.
	return "postgres://postgres@/postgres?" + strings.ReplaceAll(query, "+", "%20")
}

// childEnv is this process's environment without what would change the meaning of a command line: PG* variables are
// settings for initdb, postgres and clients alike, and the locale and time zone become the server's defaults.
func childEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "LC_") || name == "LANG" || name == "LANGUAGE" || name == "TZ" {
			continue
		}
		env = append(env, kv)
	}
	return append(env, "LC_ALL=C", "TZ=UTC")
}

// command is a program of the server, run in the data directory with its output appended to the log.
func (d *directory) command(path string, as *account, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = d.data()
	cmd.Env = childEnv()
	cmd.Stdout, cmd.Stderr = d.log, d.log
	cmd.SysProcAttr = as.procAttr()
	return cmd
}

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
)

var (
	errNoRun  = errors.New("pgtest: the package's TestMain does not call pgtest.Run")
	errClosed = errors.New("pgtest: database asked for after the end of the tests")
)

// A server is the one on which databases are made: a throwaway one, or the user's.
type server struct {
	schema []string

	mu        sync.Mutex
	started   bool  // start has been tried
	err       error // what came of it
	local     *localpg.Server
	admin     string // DSN of the database to connect to for making others
	prefix    string // of the databases' names
	serial    int
	databases map[string]bool // that exist and are ours, the template included
}

// start starts the server on its first call, and returns that call's result ever after.
func (s *server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.started = true
		s.err = s.open()
	}
	return s.err
}

func (s *server) open() error {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	s.admin = os.Getenv("TEST_DATABASE_URL")
	if s.admin == "" {
		local, err := localpg.Start(ctx)
		if err != nil {
			return fmt.Errorf("pgtest: %w (tests run on any server by TEST_DATABASE_URL)", err)
		}
		s.local, s.admin = local, local.DSN()
	}
	// The process id helps whoever finds a database left behind; it alone would not tell machines apart.
	s.prefix = fmt.Sprintf("fanout_test_%d_%08x_", os.Getpid(), rand.Uint32())
	s.databases = make(map[string]bool)

	// template0 and the C locale are the same on every server, whatever its administrator has made of template1.
	template := s.template()
	s.databases[template] = true
	if err := exec(ctx, s.admin, "create database "+template+" template template0 encoding 'UTF8' locale 'C'"); err != nil {
		return fmt.Errorf("pgtest: making the template: %w", err)
	}
	if err := exec(ctx, s.dsn(template), s.schema...); err != nil {
		return fmt.Errorf("pgtest: applying the schema: %w", err)
	}
	return nil
}

func (s *server) template() string { return s.prefix + "template" }

// clone makes a database from the template and returns its name.
func (s *server) clone() (string, error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return "", s.err
	}
	s.serial++
	name := fmt.Sprintf("%s%d", s.prefix, s.serial)
	s.databases[name] = true
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	for {
		// Nobody may be connected to the template. Nobody goes there but the server's own workers; and the backend that
		// applied the schema may not have ended yet. The server waits for them, for a few seconds.
		err := exec(ctx, s.admin, "create database "+name+" template "+s.template())
		const objectInUse = "55006"
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == objectInUse {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("pgtest: cloning the template: %w", err)
		}
		return name, nil
	}
}

// drop drops a database, and ends the sessions in it.
func (s *server) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	if err := exec(ctx, s.admin, "drop database if exists "+name+" with (force)"); err != nil {
		return fmt.Errorf("pgtest: dropping %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.databases, name)
	return nil
}

// close drops what is left and stops the server, if it is ours to stop.
func (s *server) close() error {
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.databases))
	local := s.local
	s.started, s.err = true, errClosed
	s.mu.Unlock()
	if local != nil {
		return local.Stop() // and all databases with it
	}
	var err error
	for _, name := range names {
		err = errors.Join(err, s.drop(name))
	}
	return err
}

// dsn returns the connection string of another database on the server.
func (s *server) dsn(database string) string { return withDatabase(s.admin, database) }

// withDatabase returns the connection string with the database replaced; the name needs no quoting. It reads a URL as
// pgx does: package net/url refuses some that are good, such as those with several hosts.
func withDatabase(dsn, database string) string {
	scheme, rest, ok := strings.Cut(dsn, "://")
	if !ok || scheme != "postgres" && scheme != "postgresql" {
		return dsn + " dbname=" + database // keywords and values, of which the last one counts
	}
	user := ""
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		user, rest = rest[:i+1], rest[i+1:]
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, _, _ := strings.Cut(rest, "/")
	// A parameter would override the path.
	params := slices.DeleteFunc(strings.Split(query, "&"), func(param string) bool {
		return param == "" || strings.HasPrefix(param, "dbname=") || strings.HasPrefix(param, "database=")
	})
	dsn = scheme + "://" + user + hosts + "/" + database
	if len(params) > 0 {
		dsn += "?" + strings.Join(params, "&")
	}
	return dsn
}

// exec runs the scripts on a connection of their own.
func exec(ctx context.Context, dsn string, scripts ...string) error {
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	for _, sql := range scripts {
		if _, err = conn.Exec(ctx, sql).ReadAll(); err != nil {
			break
		}
	}
	return errors.Join(err, conn.Close(ctx))
}

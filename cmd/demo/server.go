package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/internal/connstring"
	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/sandbox"
)

// connectTimeout bounds an attempt to connect where the user has not set a bound: longer than that, nobody looks at a
// program that says nothing.
const connectTimeout = 10 * time.Second

// A server is where the demo runs.
type server struct {
	config      *pgxpool.Config
	description string          // which it is and why, for the user
	local       *localpg.Server // nil: the user's
}

// openServer chooses the server, starts it if it is to be a throwaway one, and configures a pool of so many connections. It
// does not connect. Clients is how many connections the demo is going to have, apart from the one that owns the schema.
func openServer(ctx context.Context, flag string, conns, clients int, getenv func(string) string) (*server, error) {
	dsn, source, given := chooseDSN(flag, getenv)
	s := &server{}
	if !given {
		var err error
		// Room for the clients, for the connection that owns the schema, and for somebody who looks in.
		if s.local, err = localpg.Start(ctx, fmt.Sprintf("max_connections=%d", max(100, clients+20))); err != nil {
			return nil, err
		}
		dsn = s.local.DSN()
	}
	config, err := connstring.Parse(dsn, source)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.config = config
	config.MaxConns = int32(conns)
	config.MinConns = 0
	config.MinIdleConns = 0
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	params := config.ConnConfig.RuntimeParams
	// As a start-up parameter the search_path is there from the first statement on, costs no round trip and outlives a
	// RESET. Setting it in AfterConnect was decided against: behind a pooler that shares server connections it would stay
	// on them, for other clients to find their tables gone. Such a pooler refuses the parameter; or it ignores it, which the
	// sandbox refuses.
	params["search_path"] = schemaName
	if params["application_name"] == "" {
		params["application_name"] = "sqlc-fanout demo"
	}
	s.description = s.describe(source)
	return s, nil
}

// serverVariables are the variables that say which server, database or user is meant. The others of PG*, such as
// PGSSLMODE, only say how; somebody may have them set without having a server.
var serverVariables = []string{"PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE"}

// chooseDSN returns the user's server and where it was found; given is false if there is none.
func chooseDSN(flag string, getenv func(string) string) (dsn, source string, given bool) {
	if flag != "" {
		return flag, "-dsn", true
	}
	if dsn := getenv("DATABASE_URL"); dsn != "" {
		return dsn, "DATABASE_URL", true
	}
	var set []string
	for _, name := range serverVariables {
		if getenv(name) != "" {
			set = append(set, name)
		}
	}
	// pgx reads the variables for an empty DSN.
	return "", strings.Join(set, ", "), len(set) > 0
}

// describe says which server it is, in words made from what was understood of the DSN. So the password cannot be shown.
func (s *server) describe(source string) string {
	c := s.config.ConnConfig
	if s.throwaway() {
		return fmt.Sprintf("using a throwaway server in %s; -help says how to use another", c.Host)
	}
	addresses := []string{address(c.Host, c.Port)}
	for _, f := range c.Fallbacks { // other hosts, and the same one with other TLS settings
		if a := address(f.Host, f.Port); !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	return fmt.Sprintf("using database %q as user %q on %s (from %s)", cmp.Or(c.Database, c.User), c.User, strings.Join(addresses, ", "), source)
}

// address is a TCP address, or the path of a socket.
func address(host string, port uint16) string {
	_, a := pgconn.NetworkAddress(host, port)
	return a
}

func (s *server) throwaway() bool { return s.local != nil }

// close removes a throwaway server, and does nothing to another.
func (s *server) close() error {
	if s.local == nil {
		return nil
	}
	if err := s.local.Stop(); err != nil {
		return &sandbox.LeftBehindError{What: "the throwaway server", Err: err}
	}
	return nil
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/internal/connstring"
	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/sandbox"
)

// connectTimeout bounds an attempt to connect where the user has not set a bound.
const connectTimeout = 10 * time.Second

// A server is where the contenders run.
type server struct {
	config      *pgxpool.Config
	description string          // which it is, for the user
	local       *localpg.Server // nil: the user's
}

// openServer takes the server of dsn, or starts a throwaway one. It does not connect. DATABASE_URL and the like are not
// looked at: load is not put on a server by accident.
func openServer(ctx context.Context, dsn string) (*server, error) {
	s := &server{}
	if dsn == "" {
		var err error
		if s.local, err = localpg.Start(ctx, "max_connections=200", "shared_buffers=256MB"); err != nil {
			return nil, err
		}
		dsn = s.local.DSN()
	}
	config, err := connstring.Parse(dsn, "-dsn")
	if err == nil {
		err = checkForOneHost(config.ConnConfig)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.config = config
	config.MinConns, config.MinIdleConns = 0, 0
	// A connection that is replaced for its age would have to learn the statements again, in the middle of a round.
	config.MaxConnLifetime, config.MaxConnIdleTime = 24*time.Hour, 24*time.Hour
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, connectTimeout)
	params := config.ConnConfig.RuntimeParams
	params["search_path"] = schemaName
	params["application_name"] = cmp.Or(params["application_name"], "sqlc-fanout bench")
	s.description = s.describe()
	return s, nil
}

// checkForOneHost refuses a DSN with several hosts: pgbench and SQLAlchemy would run on the first one, and the others on
// whichever answers.
func checkForOneHost(c *pgx.ConnConfig) error {
	for _, f := range c.Fallbacks { // which may also be the same one with other TLS settings
		if f.Host != c.Host || f.Port != c.Port {
			return errors.New("the connection string from -dsn names several hosts: name the one that is to be measured")
		}
	}
	return nil
}

// describe says which server it is, in words made from what was understood of the DSN. So the password cannot be shown.
func (s *server) describe() string {
	if s.throwaway() {
		return "a throwaway server; -dsn takes another"
	}
	c := s.config.ConnConfig
	_, address := pgconn.NetworkAddress(c.Host, c.Port)
	return fmt.Sprintf("database %q as user %q on %s", cmp.Or(c.Database, c.User), c.User, address)
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

// pool opens a pool of so many connections, all of them open and all acquainted with the statements, with latency added
// to every round trip.
func (s *server) pool(ctx context.Context, conns int, latency time.Duration, statements []statement) (*pgxpool.Pool, error) {
	config := s.config.Copy()
	config.MaxConns = int32(conns)
	config.ConnConfig.DialFunc = latent(config.ConnConfig.DialFunc, latency)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := open(ctx, pool, statements); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// open opens all connections of the pool, at once, and runs the statements on each as often as it takes PostgreSQL to
// settle for a plan.
func open(ctx context.Context, pool *pgxpool.Pool, statements []statement) error {
	const untilGeneric = 6
	type opened struct {
		conn *pgxpool.Conn
		err  error
	}
	results := make(chan opened)
	n := int(pool.Stat().MaxConns())
	for range n {
		go func() {
			conn, err := pool.Acquire(ctx)
			if err == nil && len(statements) > 0 {
				err = warm(ctx, conn, statements, untilGeneric)
			}
			results <- opened{conn, err}
		}()
	}
	var conns []*pgxpool.Conn
	var errs []error
	for range n {
		r := <-results
		if r.conn != nil {
			conns = append(conns, r.conn)
		}
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	// All at the end: one that is released early would be acquired in place of a new one.
	for _, conn := range slices.Backward(conns) {
		conn.Release()
	}
	if len(errs) > 0 {
		return fmt.Errorf("opening %d connections: %w", n, connstring.ConnectError(errs[0]))
	}
	return nil
}

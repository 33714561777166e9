// Package sandbox gives a program a schema of its own on a user's server, touches nothing else there, and takes it away
// again at the end.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// dropTimeout bounds the drop at the end, which waits for whoever uses the tables. The user may be waiting too.
	dropTimeout = 10 * time.Second

	// closeTimeout bounds the goodbye to the server.
	closeTimeout = time.Second
)

// A Schema says which schema it is, and whose. Its strings go into SQL as they are.
type Schema struct {
	Name    string
	Program string   // what messages call the one that makes it
	Tables  []string // all that the program may ever create in it

	// Lock is the key of an advisory lock which the program holds from its start to its end, so that another in the same
	// database does not drop the schema meanwhile.
	Lock int64
}

// Mark is the schema's comment, by which the program knows its own again.
func (s Schema) Mark() string {
	return "Made by the " + s.Program + " of sqlc-fanout, which drops it: keep nothing here."
}

// dropStatements drop what the program has created and nothing else. A DROP SCHEMA … CASCADE was decided against: it would
// take with it what the user has put into the schema, or built on it elsewhere. So it is an error.
func (s Schema) dropStatements() string {
	tables := s.Name + "." + strings.Join(s.Tables, ", "+s.Name+".")
	return "drop table if exists " + tables + "; drop schema if exists " + s.Name
}

// A Sandbox is a schema that is there, and the connection that owns it by holding the lock.
type Sandbox struct {
	Conn   *pgx.Conn // for the program to use as well, if it likes
	schema Schema
}

// Open makes the schema anew, with what fill puts into it. It waits for another program with the same lock to end, and says
// so on stderr. Conn, which has the schema alone in its search_path, is the sandbox's from then on. If Open fails, it has closed conn and changed nothing.
func Open(ctx context.Context, conn *pgx.Conn, schema Schema, stderr io.Writer, fill func(context.Context, pgx.Tx) error) (*Sandbox, error) {
	s := &Sandbox{conn, schema}
	if err := s.direct(ctx); err != nil {
		s.close()
		return nil, err
	}
	if err := s.lock(ctx, stderr); err != nil {
		s.close()
		return nil, fmt.Errorf("taking the lock on schema %s: %w", schema.Name, err)
	}
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := create(ctx, tx, schema); err != nil {
			return err
		}
		return fill(ctx, tx)
	}); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// direct refuses a connection on which the schema is not what names lead to. Poolers can be told to ignore the search_path of
// their clients: then the program would work among the user's own tables, and the lock would stay with whoever gets the
// server's connection next.
func (s *Sandbox) direct(ctx context.Context) error {
	var path string
	err := s.Conn.QueryRow(ctx, "select current_setting('search_path')", pgx.QueryExecModeExec).Scan(&path)
	if err == nil && path != s.schema.Name {
		err = fmt.Errorf("the connection does not begin in schema %s, but with the search_path %q: is there a pooler in between? The %s needs the server itself",
			s.schema.Name, path, s.schema.Program)
	}
	return err
}

// lock takes the lock, for as long as the connection lives: the server is not to end it for being idle, nor what is done on
// it for taking long.
func (s *Sandbox) lock(ctx context.Context, stderr io.Writer) error {
	// Not all of them are known to every PostgreSQL.
	if _, err := s.Conn.Exec(ctx, `select set_config(name, '0', false) from pg_settings where name in
		('idle_session_timeout', 'statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')`); err != nil {
		return err
	}
	var taken bool
	if err := s.Conn.QueryRow(ctx, "select pg_try_advisory_lock($1)", s.schema.Lock).Scan(&taken); err != nil || taken {
		return err
	}
	fmt.Fprintf(stderr, "%[1]s: waiting for another %[1]s in this database to end\n", s.schema.Program)
	_, err := s.Conn.Exec(ctx, "select pg_advisory_lock($1)", s.schema.Lock)
	return err
}

// create makes the schema anew, unless somebody else has made the one that is there.
func create(ctx context.Context, tx pgx.Tx, s Schema) error {
	var mark *string
	err := tx.QueryRow(ctx, "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1", s.Name).Scan(&mark)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return fmt.Errorf("looking for schema %s: %w", s.Name, err)
	case mark == nil || *mark != s.Mark():
		return fmt.Errorf("schema %s exists and was not made by this %s, which leaves it alone: rename it, or use another database", s.Name, s.Program)
	default:
		if _, err := tx.Exec(ctx, s.dropStatements()); err != nil {
			return fmt.Errorf("dropping schema %s, which an earlier %s has left: %w", s.Name, s.Program, detailed(err))
		}
	}
	for _, sql := range []string{
		"create schema " + s.Name,
		"comment on schema " + s.Name + " is '" + s.Mark() + "'",
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("creating schema %s: %w", s.Name, advised(err))
		}
	}
	return nil
}

// advised says of an error what there is to be done.
func advised(err error) error {
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "42501":
			return fmt.Errorf("%w; connect as a role that has the CREATE privilege on this database", err)
		case "25006":
			return fmt.Errorf("%w; connect to a server, and as a role, that may write", err)
		}
	}
	return err
}

// End leaves the server as it was. A throwaway one takes the schema with it, and is spared the drop.
func (s *Sandbox) End(throwaway bool) error {
	if throwaway {
		s.close()
		return nil
	}
	return s.drop()
}

// drop drops the schema, also when the program has been interrupted, and gives up the lock.
func (s *Sandbox) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
	defer cancel()
	defer s.close()
	_, err := s.Conn.Exec(ctx, s.schema.dropStatements())
	if err != nil && s.Conn.IsClosed() && ctx.Err() == nil { // closed by the server, or by an interrupt in the middle of a statement
		err = s.dropAnew(ctx)
	}
	if err != nil {
		return &LeftBehindError{"schema " + s.schema.Name, detailed(err)}
	}
	// The server frees the lock of a closed connection in its own time, and the next program would find it taken.
	_, _ = s.Conn.Exec(ctx, "select pg_advisory_unlock($1)", s.schema.Lock)
	return nil
}

// detailed adds what the server says of an error besides: which objects of the user's depend on the tables.
func detailed(err error) error {
	if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Detail != "" {
		return fmt.Errorf("%w: %s", err, pgErr.Detail)
	}
	return err
}

// dropAnew drops the schema on a new connection. The lock has gone with the old one, so that another program may have taken
// it, and made the schema anew: it is waited for.
func (s *Sandbox) dropAnew(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, s.Conn.Config())
	if err != nil {
		return err
	}
	s.Conn = conn
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", s.schema.Lock); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, s.schema.dropStatements())
	return err
}

// close gives up the lock.
func (s *Sandbox) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = s.Conn.Close(ctx) // says goodbye if it can; closed it is in any case
	// A statement that ctx has interrupted is cancelled by a goroutine of pgx's, which the end of the program would forestall.
	select {
	case <-s.Conn.PgConn().CleanupDone():
	case <-ctx.Done():
	}
}

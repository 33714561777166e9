package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	sqlcfanout "github.com/sqlc-fanout/sqlc-fanout"
	"github.com/sqlc-fanout/sqlc-fanout/db"
)

const (
	schemaName = "fanout_demo"

	// schemaMark is the schema's comment, by which the demo knows its own again.
	schemaMark = "Made by the demo of sqlc-fanout, which drops it: keep nothing here."

	// lockKey is that of an advisory lock which a demo holds from its start to its end, so that another in the same
	// database does not drop the schema meanwhile. It is "fanout" in ASCII.
	lockKey = 0x66616e6f7574

	// copyChunk is how many rows one COPY takes. A single one for all would do as well, but shows no progress.
	copyChunk = 10_000

	// dropTimeout bounds the drop at the end, which waits for whoever uses the table. The user may be waiting too.
	dropTimeout = 10 * time.Second
)

// dropStatements drop what the demo has created and nothing else. A DROP SCHEMA … CASCADE was decided against: it would
// take with it what the user has put into the schema, or built on it elsewhere. So it is an error.
const dropStatements = "drop table if exists " + schemaName + ".a, " + schemaName + ".account; drop schema if exists " + schemaName

// A sandbox is the schema in which the demo works, and the connection that owns it by holding the lock. That one is not of
// the pool, which so is the queries' alone.
type sandbox struct {
	conn *pgx.Conn
}

// openSandbox makes the schema anew, with what fill puts into it. It waits for another demo to end, and says so on stderr.
// If it fails, it has changed nothing.
func openSandbox(ctx context.Context, config *pgx.ConnConfig, stderr io.Writer, fill func(context.Context, pgx.Tx) error) (*sandbox, error) {
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return nil, connectError(err)
	}
	s := &sandbox{conn}
	if err := s.lock(ctx, stderr); err != nil {
		s.close()
		return nil, fmt.Errorf("taking the lock on schema %s: %w", schemaName, err)
	}
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := create(ctx, tx); err != nil {
			return err
		}
		return fill(ctx, tx)
	}); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// lock takes the lock, for as long as the connection lives: the server is not to end it for being idle.
func (s *sandbox) lock(ctx context.Context, stderr io.Writer) error {
	// PostgreSQL 14 is the first that would.
	if _, err := s.conn.Exec(ctx, "select set_config(name, '0', false) from pg_settings where name = 'idle_session_timeout'"); err != nil {
		return err
	}
	var taken bool
	if err := s.conn.QueryRow(ctx, "select pg_try_advisory_lock($1)", lockKey).Scan(&taken); err != nil || taken {
		return err
	}
	fmt.Fprintln(stderr, "demo: waiting for another demo in this database to end")
	_, err := s.conn.Exec(ctx, "select pg_advisory_lock($1)", lockKey)
	return err
}

// create makes the schema anew, unless somebody else has made the one that is there.
func create(ctx context.Context, tx pgx.Tx) error {
	var mark *string
	err := tx.QueryRow(ctx, "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1", schemaName).Scan(&mark)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return fmt.Errorf("looking for schema %s: %w", schemaName, err)
	case mark == nil || *mark != schemaMark:
		return fmt.Errorf("schema %s exists and was not made by this demo, which leaves it alone: rename it, or use another database", schemaName)
	default:
		if _, err := tx.Exec(ctx, dropStatements); err != nil {
			return fmt.Errorf("dropping schema %s, which an earlier demo has left: %w", schemaName, err)
		}
	}
	for _, sql := range []string{
		"create schema " + schemaName,
		"comment on schema " + schemaName + " is '" + schemaMark + "'",
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("creating schema %s: %w", schemaName, err)
		}
	}
	return nil
}

// fill creates the table of the look-ups and inserts the rows 0 to n-1.
func fill(ctx context.Context, tx pgx.Tx, n int, progress *progress) error {
	// The names in it are unqualified: they go into the first schema of the search_path.
	if _, err := tx.Exec(ctx, sqlcfanout.Schema); err != nil {
		return fmt.Errorf("creating the table: %w", err)
	}
	queries := db.New(tx)
	count, stop := progress.start("inserting rows", n)
	defer stop()
	var chunk []*string
	for i := 0; i < n; {
		chunk = slices.Grow(chunk[:0], min(copyChunk, n))
		for ; i < n && len(chunk) < copyChunk; i++ {
			data := rowData(i)
			chunk = append(chunk, &data)
		}
		if _, err := queries.InsertAs(ctx, chunk); err != nil {
			return fmt.Errorf("inserting rows: %w", err)
		}
		count(len(chunk))
	}
	return nil
}

// end leaves the server as it was.
func (s *sandbox) end(srv *server) error {
	if srv.throwaway() {
		s.close() // the server takes the schema with it
		return nil
	}
	return s.drop()
}

// drop drops the schema, also when the program has been interrupted, and gives up the lock.
func (s *sandbox) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
	defer cancel()
	defer s.close()
	_, err := s.conn.Exec(ctx, dropStatements)
	if err != nil && s.conn.IsClosed() && ctx.Err() == nil { // closed by the server, or by an interrupt in the middle of a statement
		err = s.dropAnew(ctx)
	}
	if err != nil {
		return &leftBehindError{"schema " + schemaName, err}
	}
	// The server frees the lock of a closed connection in its own time, and the next demo would find it taken.
	_, _ = s.conn.Exec(ctx, "select pg_advisory_unlock($1)", lockKey)
	return nil
}

// dropAnew drops the schema on a new connection. The lock has gone with the old one, so that another program may have taken
// it, and made the schema anew: it is waited for.
func (s *sandbox) dropAnew(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, s.conn.Config())
	if err != nil {
		return err
	}
	s.conn = conn
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", lockKey); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, dropStatements)
	return err
}

// close gives up the lock.
func (s *sandbox) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // says goodbye if it can; closed it is in any case
}

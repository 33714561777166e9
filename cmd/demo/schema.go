package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/jackc/pgx/v5"

	sqlcfanout "github.com/sqlc-fanout/sqlc-fanout"
	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/internal/connstring"
	"github.com/sqlc-fanout/sqlc-fanout/internal/sandbox"
)

const (
	schemaName = "fanout_demo"

	// copyChunk is how many rows one COPY takes. A single one for all would do as well, but shows no progress.
	copyChunk = 10_000
)

// schema is the one in which the demo works, with the tables of its look-ups and of its subcommand.
var schema = sandbox.Schema{
	Name:    schemaName,
	Program: "demo",
	Tables:  []string{"a", "account"},
	Lock:    0x66616e6f7574, // "fanout" in ASCII
}

// openSandbox makes the schema anew, with what fill puts into it. The connection that owns it is not of the pool, which so is
// the queries' alone.
func openSandbox(ctx context.Context, config *pgx.ConnConfig, stderr io.Writer, fill func(context.Context, pgx.Tx) error) (*sandbox.Sandbox, error) {
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return nil, connstring.ConnectError(err)
	}
	return sandbox.Open(ctx, conn, schema, stderr, fill)
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

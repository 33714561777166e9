package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/internal/connstring"
	"github.com/sqlc-fanout/sqlc-fanout/internal/sandbox"
)

//go:embed schema.sql
var schemaSQL string

const schemaName = "fanout_bench"

// schema is the one in which the bench works. For its lock there is another reason here: two at once would measure each
// other.
var schema = sandbox.Schema{
	Name:    schemaName,
	Program: "bench",
	Tables:  []string{"small", "big"},
	Lock:    0x6662656e6368, // "fbench" in ASCII
}

// openSandbox makes the schema anew, with so many rows in table big. If it fails, it has changed nothing.
func openSandbox(ctx context.Context, config *pgx.ConnConfig, rows int, stderr io.Writer) (*sandbox.Sandbox, error) {
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return nil, connstring.ConnectError(err)
	}
	box, err := sandbox.Open(ctx, conn, schema, stderr, func(ctx context.Context, tx pgx.Tx) error { return fill(ctx, tx, rows) })
	if err != nil {
		return nil, err
	}
	// Statistics, and pages that need no look at who sees what.
	if _, err := conn.Exec(ctx, "vacuum analyze "+schemaName+".small, "+schemaName+".big"); err != nil {
		return nil, errors.Join(err, box.End(false))
	}
	return box, nil
}

// fill creates the tables and inserts the rows: ids from 1, and data that follows from the id.
func fill(ctx context.Context, tx pgx.Tx, rows int) error {
	// The names in it are unqualified: they go into the first schema of the search_path.
	if _, err := tx.Exec(ctx, schemaSQL); err != nil {
		return fmt.Errorf("creating the tables: %w", err)
	}
	for table, n := range map[string]int{"small": smallRows, "big": rows} {
		if _, err := tx.Exec(ctx, fmt.Sprintf("insert into %s select i, 'a_' || i from generate_series(1, %d) i", table, n)); err != nil {
			return fmt.Errorf("filling table %s: %w", table, err)
		}
	}
	return nil
}

// Demo is package fanout at work: it inserts rows into a PostgreSQL table, looks some of them up with many queries at
// once, and merges what they return into one map. It needs no set-up; -help says which server it takes. Its subcommand
// consistency shows what a snapshot is good for.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
	"github.com/sqlc-fanout/sqlc-fanout/internal/sandbox"
)

func main() {
	os.Exit(run(program.Context(), os.Args[1:], os.Stdout, os.Stderr, os.Getenv))
}

// The exit statuses.
const (
	success = 0
	failure = 1
	misuse  = 2
)

// run is the program: it returns the exit status. The end of ctx interrupts it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	if len(args) > 0 && args[0] == consistency {
		return runConsistency(ctx, args[1:], stdout, stderr, getenv)
	}
	opts, err := parseFlags(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return success
	} else if err != nil {
		fmt.Fprintf(stderr, "demo: %s; -help explains the flags\n", program.OneLine(err))
		return misuse
	}
	out, err := perform(ctx, opts, stderr, getenv)
	// All is given back before the first line is printed: a reader who takes his time, such as a pager, keeps no server
	// running and no schema alive.
	if out != nil {
		err = errors.Join(present(ctx, opts, out, stdout, stderr), err)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = sandbox.Interrupted(err)
		}
		fmt.Fprintf(&impatient{ctx: ctx, w: stderr}, "demo: %s\n", program.OneLine(err))
		return failure
	}
	return success
}

// perform opens the server, runs the queries and puts everything back. It returns both an outcome and an error if some
// queries failed, or if something could not be put back.
func perform(ctx context.Context, opts options, stderr io.Writer, getenv func(string) string) (out *outcome, err error) {
	srv, err := openServer(ctx, opts.dsn, opts.conns, opts.conns, getenv)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, srv.close()) }()
	fmt.Fprintf(stderr, "demo: %s\n", srv.description)

	if opts.echo {
		srv.config.ConnConfig.Tracer = echo(&impatient{ctx: ctx, w: stderr})
	}
	pool, err := pgxpool.NewWithConfig(ctx, srv.config)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	src := fanout.New(pool, db.New)
	src.Limit = opts.limit
	src.Strategy = opts.strategy
	src.Snapshot = opts.snapshot
	src.Partial = opts.partial

	progress := newProgress(stderr, opts)
	box, err := openSandbox(ctx, srv.config.ConnConfig, stderr, func(ctx context.Context, tx pgx.Tx) error {
		return fill(ctx, tx, opts.rows, progress)
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, box.End(srv.throwaway())) }()
	if err := warm(ctx, pool); err != nil {
		return nil, err
	}
	return lookUp(ctx, src, opts.arguments(), !opts.noMerge, progress)
}

// present prints the outcome. It does not outlast ctx, though a write to a reader who does not read would.
func present(ctx context.Context, opts options, out *outcome, stdout, stderr io.Writer) error {
	done := make(chan error, 1)
	go func() { done <- printAll(opts, out, stdout, stderr) }()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		return err
	}
}

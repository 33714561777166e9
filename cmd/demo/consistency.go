package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
	"github.com/sqlc-fanout/sqlc-fanout/internal/sandbox"
)

// consistency is the name of the subcommand that shows what a snapshot is good for.
const consistency = "consistency"

// consistencyOptions are what its flags say.
type consistencyOptions struct {
	dsn      string
	conns    int
	accounts int
	writers  int
	length   time.Duration
	json     bool
}

const (
	maxAccounts = 1000
	maxWriters  = 100
)

const consistencyUsageHead = `Usage: demo consistency [flags]

Demo consistency moves money between accounts, always from one to another in
one transaction, so that their sum is always the same. Meanwhile it asks for
the balance of every account, each by a query of its own and all of them at
once, and adds them up: again and again, in turn without a snapshot and with
one. A total that differs from that sum is torn. The figures that it shows are
those of this run, on this server.

` + usageServer + `
Flags:
`

const consistencyUsageFoot = `
Ctrl-C ends it early, with the figures so far. The exit status is 0 if no total
was torn that was read in a snapshot, however many others were, 1 on failure or
if one was, and 2 if a flag is wrong.
`

// parseConsistencyFlags is parseFlags for the subcommand.
func parseConsistencyFlags(args []string, usage io.Writer) (consistencyOptions, error) {
	opts := consistencyOptions{conns: 4, accounts: 8, writers: 2, length: 5 * time.Second}
	fs := flag.NewFlagSet("demo "+consistency, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&opts.dsn, "dsn", "", "`DSN` of the server: a URL, or key=value pairs")
	fs.Var(&intFlag{&opts.conns, 1, 10_000}, "conns", "gather on `n` connections")
	fs.Var(&intFlag{&opts.accounts, 2, maxAccounts}, "accounts", "make `n` accounts")
	fs.Var(&intFlag{&opts.writers, 1, maxWriters}, "writers", "have `n` writers move money, each on a connection of its own")
	fs.Var((*lengthFlag)(&opts.length), "for", "gather for this `duration`")
	fs.BoolVar(&opts.json, "json", false, "print one JSON document at the end, and all else on standard error")

	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(usage)
		fmt.Fprint(usage, consistencyUsageHead)
		fs.PrintDefaults()
		fmt.Fprint(usage, consistencyUsageFoot)
		return consistencyOptions{}, err
	} else if err != nil {
		return consistencyOptions{}, err
	}
	if fs.NArg() > 0 {
		return consistencyOptions{}, strayArgument(fs.Arg(0), false)
	}
	return opts, nil
}

// A lengthFlag is a positive duration.
type lengthFlag time.Duration

func (f *lengthFlag) String() string { return time.Duration(*f).String() }

func (f *lengthFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return errors.New("must be a duration such as 500ms, 10s or 2m")
	case d <= 0:
		return errors.New("must be more than 0")
	}
	*f = lengthFlag(d)
	return nil
}

// runConsistency is the subcommand: it returns the exit status.
func runConsistency(ctx context.Context, args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	opts, err := parseConsistencyFlags(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return success
	} else if err != nil {
		fmt.Fprintf(stderr, "demo: %s; %s -help explains the flags\n", program.OneLine(err), consistency)
		return misuse
	}
	exp := newExperiment(opts)
	board := newBoard(exp, stdout, stderr, getenv)
	err = exp.perform(ctx, board, stderr, getenv)
	// As for the demo itself, all is given back by now.
	err = errors.Join(board.conclude(ctx), err)
	s := exp.standing()
	if err != nil && ctx.Err() != nil && !s.complete() {
		err = sandbox.Interrupted(err)
	}
	if n := s.snapshot.torn; n > 0 {
		err = errors.Join(fmt.Errorf("torn although read in a snapshot: %s", counted(n, "total", "totals")), err)
	}
	if err != nil {
		fmt.Fprintf(&impatient{ctx: ctx, w: stderr}, "demo: %s\n", program.OneLine(err))
		return failure
	}
	return success
}

// perform opens the server, runs the experiment and puts everything back. The end of ctx is a failure only before there
// are figures to show.
func (e *experiment) perform(ctx context.Context, board *board, stderr io.Writer, getenv func(string) string) (err error) {
	srv, err := openServer(ctx, e.opts.dsn, e.opts.conns, e.opts.conns+e.opts.writers, getenv)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.close()) }()
	fmt.Fprintf(stderr, "demo: %s\n", srv.description)

	pool, err := pgxpool.NewWithConfig(ctx, srv.config)
	if err != nil {
		return err
	}
	defer pool.Close()
	box, err := openSandbox(ctx, srv.config.ConnConfig, stderr, func(ctx context.Context, tx pgx.Tx) error {
		return openAccounts(ctx, tx, e.opts.accounts)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.End(srv.throwaway())) }()
	if err := warm(ctx, pool); err != nil {
		return err
	}
	writers, err := openWriters(ctx, srv.config.ConnConfig, e.opts)
	if err != nil {
		return err
	}
	defer writers.close()

	if err := e.run(ctx, fanout.New(pool, newAccounts), writers, board); err != nil {
		return err
	}
	return checkTotal(box.Conn, e.total())
}

// run gathers, with and without a snapshot in turn, while the writers write and the board shows it. If ctx ends it early,
// that is no error, if only there are figures of both kinds.
func (e *experiment) run(ctx context.Context, src fanout.Source[*accounts], writers writers, board *board) error {
	working, fail := context.WithCancelCause(ctx)
	wait := writers.start(working, &e.transfers, fail)
	board.start(fail)
	err := e.gatherInTurn(working, src)
	fail(nil)
	wait()
	board.stop()
	if err == nil {
		return nil
	}
	switch cause := context.Cause(working); {
	case errors.As(cause, new(*boardError)):
		return nil // the board will say it
	case ctx.Err() != nil && e.standing().complete():
		return nil
	case ctx.Err() == nil && cause != context.Canceled: // not the cancellation above: what has stopped the gathers is to blame
		return cause
	}
	return err
}

// Bench does the same work in many ways, on one PostgreSQL server and in one run: by hand, by pgx.Batch, by other
// libraries, and by every strategy of package fanout. It shows what pays, where and by how much: on a throwaway server
// with added round-trip time, or, with -dsn, on yours.
//
//	go -C bench run .
//
// README.md says how it measures, and how the report is made.
//
// It is a module of its own, so that what it compares with is no requirement of the library.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
	"github.com/sqlc-fanout/sqlc-fanout/internal/sandbox"
)

func main() {
	os.Exit(run(program.Context(), os.Args[1:], os.Stdout, os.Stderr))
}

// The exit statuses.
const (
	success = 0
	failure = 1
	misuse  = 2
)

// run is the program: it returns the exit status. The end of ctx interrupts it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := parseFlags(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return success
	} else if err != nil {
		fmt.Fprintf(stderr, "bench: %s; -help explains the flags\n", program.OneLine(err))
		return misuse
	}
	if err := opts.checkFiles(); err != nil {
		fmt.Fprintf(stderr, "bench: %s\n", program.OneLine(err))
		return failure
	}
	var rep *report
	if opts.from != "" {
		rep, err = readReport(opts.from)
	} else if rep, err = perform(ctx, opts, stderr); rep != nil {
		rep.Command = strings.Join(append([]string{"go -C bench run ."}, withoutDSN(args)...), " ")
	}
	if rep != nil { // measured, though something may not have been put back
		err = errors.Join(present(rep, opts, stdout), err)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = sandbox.Interrupted(err)
		}
		fmt.Fprintf(stderr, "bench: %s\n", program.OneLine(err))
		return failure
	}
	return success
}

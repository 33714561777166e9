package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// options are what the flags say.
type options struct {
	dsn      string
	rows     int
	queries  int
	conns    int
	limit    int
	strategy fanout.Strategy
	snapshot bool
	partial  bool
	seed     uint64
	echo     bool
	json     bool
	timeline timelineFlag
	noMerge  bool
}

const usageHead = `Usage: demo [flags]
       demo consistency [flags]

Demo inserts rows a_0, a_1, … into a table in one transaction, looks some of
them up at random with many queries at once, each query a function that sqlc
generated, and merges the rows which they return into one map by primary key.
The connections are open by then, but new: the first statement on each, which
is slower than the next ones, is in the time shown.

Demo consistency is another one: it shows what -snapshot is good for.
Demo consistency -help lists its flags.

` + usageServer + `
Flags:
`

// usageServer is what holds for every subcommand.
const usageServer = `The server is that of -dsn, or else of DATABASE_URL, or else of the variables
PG* if PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE or PGSERVICE is set.
Without any of them a throwaway server is started from the PostgreSQL programs
of this machine (those in the directory PGBIN, if that is set), and removed at
the end.

All happens in a schema of its own, ` + schemaName + `, which is created at the start
and dropped at the end. No other object of the database is touched. A schema of
that name which the demo has not made is refused. One demo at a time works in a
database: a second one waits.
`

const usageFoot = `
The exit status is 0 on success, 1 on failure (with -partial: if any query
failed) and 2 if a flag is wrong.
`

// parseFlags reads the arguments. If they ask for help, that is printed to usage and the error is flag.ErrHelp.
func parseFlags(args []string, usage io.Writer) (options, error) {
	opts := options{rows: 100, queries: 30, conns: 10, seed: rand.Uint64N(1_000_000)}
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is one line, and the caller's to print
	fs.StringVar(&opts.dsn, "dsn", "", "`DSN` of the server: a URL, or key=value pairs")
	fs.Var(&intFlag{&opts.rows, 0, math.MaxInt32}, "rows", "insert `n` rows")
	fs.Var(&intFlag{&opts.queries, 0, math.MaxInt32}, "queries", "run `n` look-ups")
	fs.Var(&intFlag{&opts.conns, 1, 10_000}, "conns", "open a pool of `n` connections")
	fs.Var(&intFlag{&opts.limit, 0, math.MaxInt32}, "limit", "use at most `n` connections at once; 0 for all (default 0)")
	fs.Func("strategy", "`how` queries share connections, one of\n"+strings.Join(strategyNames(), ", ")+" (default "+opts.strategy.String()+")", func(name string) (err error) {
		opts.strategy, err = parseStrategy(name)
		return err
	})
	fs.BoolVar(&opts.snapshot, "snapshot", false, "have all queries read one and the same snapshot of the database")
	fs.BoolVar(&opts.partial, "partial", false, "keep what succeeds when some queries fail")
	fs.Func("seed", "`number` from which the look-ups are drawn (default random)", func(s string) error {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return errors.New("must be a number from 0 to 18446744073709551615")
		}
		opts.seed = seed
		return nil
	})
	fs.BoolVar(&opts.echo, "echo", false, "log every SQL statement and its arguments on standard error, except\nthe BEGIN, COMMIT and so on that -snapshot adds")
	fs.BoolVar(&opts.json, "json", false, "print one JSON document, and all else on standard error")
	fs.Var(&opts.timeline, "timeline", "draw when each query waited and ran, and on which connection;\n-timeline=FILE.svg writes a picture")
	fs.BoolVar(&opts.noMerge, "no-merge", false, "run the queries and discard their rows")

	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(usage)
		fmt.Fprint(usage, usageHead)
		fs.PrintDefaults()
		fmt.Fprint(usage, usageFoot)
		return options{}, err
	} else if err != nil {
		return options{}, err
	}
	if fs.NArg() > 0 {
		return options{}, strayArgument(fs.Arg(0), opts.timeline.on)
	}
	return opts, nil
}

// strayArgument says what is wrong with an argument behind the flags, and does not repeat what may have a password in it.
func strayArgument(arg string, timeline bool) error {
	switch {
	case strings.Contains(arg, "://") || strings.Contains(arg, "="):
		return errors.New("unexpected argument; a connection string is given as -dsn=STRING, in quotes")
	case arg == consistency:
		return fmt.Errorf("unexpected argument %q; it is the first one, before any flag", arg)
	case timeline && isSVG(arg):
		return fmt.Errorf("unexpected argument %q; a file is given as -timeline=FILE.svg", arg)
	}
	return fmt.Errorf("unexpected argument %q", arg)
}

// arguments are those of the look-ups: the data of random rows. Without rows they are those of a row that is not there.
func (o *options) arguments() []string {
	random := rand.New(rand.NewPCG(o.seed, 0))
	args := make([]string, o.queries)
	for i := range args {
		args[i] = rowData(random.IntN(max(o.rows, 1)))
	}
	return args
}

// rowData is the data of the row inserted n-th, counted from 0.
func rowData(n int) string { return "a_" + strconv.Itoa(n) }

func strategyNames() []string {
	var names []string
	for s := fanout.Parallel; s <= fanout.Auto; s++ {
		names = append(names, s.String())
	}
	return names
}

func parseStrategy(name string) (fanout.Strategy, error) {
	for s := fanout.Parallel; s <= fanout.Auto; s++ {
		if s.String() == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("must be one of %s", strings.Join(strategyNames(), ", "))
}

// An intFlag is a whole number in a range, in place of flag.Int and a check of its value afterwards: so the flag's name
// is in the error.
type intFlag struct {
	value    *int
	min, max int
}

func (f *intFlag) String() string {
	if f.value == nil { // package flag makes such a one
		return "0"
	}
	return strconv.Itoa(*f.value)
}

func (f *intFlag) Set(s string) error {
	n, err := strconv.Atoi(s)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		return errors.New("must be a whole number")
	case n < f.min:
		return fmt.Errorf("must be %d or more", f.min)
	case err != nil || n > f.max:
		return fmt.Errorf("must be %d or less", f.max)
	}
	*f.value = n
	return nil
}

// A timelineFlag is -timeline, which stands for itself or takes the name of a file.
type timelineFlag struct {
	on   bool
	file string // "": draw in text
}

// IsBoolFlag lets the flag stand without a value, which then is "true".
func (f *timelineFlag) IsBoolFlag() bool { return true }

func (f *timelineFlag) String() string { return f.file }

func (f *timelineFlag) Set(s string) error {
	on, err := strconv.ParseBool(s)
	switch {
	case err == nil:
		*f = timelineFlag{on: on}
	case isSVG(s):
		*f = timelineFlag{on: true, file: s}
	default:
		return errors.New("must be the name of a file that ends in .svg")
	}
	return nil
}

func isSVG(name string) bool { return strings.EqualFold(filepath.Ext(name), ".svg") }

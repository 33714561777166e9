package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are what the flags say.
type options struct {
	dsn        string
	json       string // files; "": none
	html       string
	svg        string
	markdown   string
	from       string
	quick      bool
	time       time.Duration // for the whole run, more or less
	rows       int           // of table big
	cells      []string
	statements []string
	contenders []string
	latencies  []time.Duration
	queries    []int
}

// The kinds of cell.
const (
	gridCells   = "grid"
	coldCells   = "cold"
	loadCells   = "load"
	besideCells = "beside"
	rateCells   = "rate"
)

var cellNames = []string{gridCells, coldCells, loadCells, besideCells, rateCells}

const usageHead = `Usage: go -C bench run . [flags]

Bench does the same work in many ways on one PostgreSQL server and prints which
way pays, and by how much: queries one by one, by an errgroup, by a pgx.Batch
and so on, and by every strategy of package fanout. Round after round the
contenders take turns, in an order drawn by chance and with the same arguments;
what is printed are medians. What the project claims of itself is held against
them at the end.

Without -dsn a throwaway server is started from the PostgreSQL programs of this
machine, and removed at the end. Latency is added by delaying what is written to
the server. With -dsn all happens in a schema of its own there, ` + schemaName + `,
which is created at the start and dropped at the end; no other object of the
database is touched, a schema of that name which the bench has not made is
refused, and no latency is added in the grid unless -latency asks for it: the
network is yours already. It needs the server itself, not a pooler, and 40
connections, and keeps it busy.

The cells of the run, by -cells:
  grid     statements × latency × queries in a call, on 10 connections
  cold     30 different statements on connections that have not seen them, 10 ms added
  load     1, 16 and 128 clients at once on a pool of 16, 8 look-ups in a call
  beside   a client of single look-ups beside 16 clients with 30 in a call
  rate     look-ups per second on 10 connections, beside those of pgbench

Flags:
`

const usageFoot = `
The exit status is 0 on success, 1 on failure, also of a contender, and 2 if a
flag is wrong.
`

// parseFlags reads the arguments. If they ask for help, that is printed to usage and the error is flag.ErrHelp.
func parseFlags(args []string, usage io.Writer) (options, error) {
	var contenderNames []string
	for _, c := range contenders() {
		contenderNames = append(contenderNames, c.name)
	}
	opts := options{
		time: 330 * time.Second, rows: 1_000_000, // the whole takes again three quarters of that: see againUntil
		cells: cellNames, statements: gridStatements, contenders: contenderNames,
		latencies: []time.Duration{0, time.Millisecond, 10 * time.Millisecond}, queries: []int{1, 30, 300},
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // an error is one line, and the caller's to print
	fs.StringVar(&opts.dsn, "dsn", "", "`DSN` of your server: a URL, or key=value pairs")
	fs.StringVar(&opts.json, "json", "", "write all figures to `FILE` as JSON")
	fs.StringVar(&opts.html, "html", "", "write a report with charts to `FILE`, which needs nothing else to be shown")
	fs.StringVar(&opts.svg, "svg", "", "write the report's first chart to `FILE`")
	fs.StringVar(&opts.markdown, "markdown", "", "write a table of calls and the claims' verdicts to `FILE`")
	fs.StringVar(&opts.from, "from", "", "measure nothing: show what -json has written to `FILE`")
	fs.BoolVar(&opts.quick, "quick", false, "a look at it: few cells, 100,000 rows in the large table, 15 seconds")
	fs.Func("time", "`how long` it may take, more or less: more time, more rounds (default "+opts.time.String()+")", func(s string) (err error) {
		if opts.time, err = time.ParseDuration(s); err != nil || opts.time <= 0 {
			return errors.New("must be a duration above 0, such as 90s or 6m")
		}
		return nil
	})
	fs.Var(&namesFlag{&opts.cells, cellNames}, "cells", "only these `kinds` of cell, with commas between them")
	fs.Var(&namesFlag{&opts.statements, gridStatements}, "statements", "only these `statements` in the grid:\n"+strings.Join(gridStatements, ", "))
	fs.Var(&namesFlag{&opts.contenders, contenderNames}, "contenders", "only these `contenders`:\n"+wrapped(contenderNames, 60))
	fs.Func("latency", "only these added `round-trip times` in the grid (default 0,1ms,10ms)", func(s string) error {
		latencies, err := list(s, func(part string) (time.Duration, error) {
			d, err := time.ParseDuration(part)
			if err != nil || d < 0 || d > time.Second {
				return 0, errors.New("must be durations from 0 to 1s, such as 0,1ms,10ms")
			}
			return d, nil
		})
		opts.latencies = latencies
		return err
	})
	fs.Func("queries", "only these numbers of `queries` in a call in the grid (default 1,30,300)", func(s string) error {
		queries, err := list(s, func(part string) (int, error) {
			n, err := strconv.Atoi(part)
			if err != nil || n < 1 || n > 10_000 {
				return 0, errors.New("must be whole numbers from 1 to 10000")
			}
			return n, nil
		})
		opts.queries = queries
		return err
	})

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
		if arg := fs.Arg(0); !strings.Contains(arg, "://") && !strings.Contains(arg, "=") {
			return options{}, fmt.Errorf("unexpected argument %q", arg)
		}
		return options{}, errors.New("unexpected argument; a connection string is given as -dsn=STRING, in quotes")
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if opts.from != "" {
		for _, f := range opts.files() {
			delete(given, strings.TrimPrefix(f.flag, "-"))
		}
		if delete(given, "from"); len(given) > 0 {
			return options{}, fmt.Errorf("-from measures nothing, so -%s has no bearing on it", slices.Min(slices.Collect(maps.Keys(given))))
		}
	}
	if opts.dsn != "" && !given["latency"] {
		opts.latencies = []time.Duration{0}
	}
	if opts.quick {
		opts.shorten(given)
	}
	return opts, nil
}

// shorten is -quick: what other flags do not say is as small as makes sense.
func (o *options) shorten(given map[string]bool) {
	o.rows = 100_000
	if !given["time"] {
		o.time = 15 * time.Second
	}
	if !given["cells"] {
		o.cells = []string{gridCells}
	}
	if !given["statements"] {
		o.statements = []string{scanning, looking, waiting}
	}
	if !given["latency"] {
		o.latencies = o.latencies[:1]
	}
	if !given["queries"] {
		o.queries = []int{30}
	}
}

// has says whether the kind of cell is part of the run.
func (o *options) has(cells string) bool { return slices.Contains(o.cells, cells) }

// A namesFlag is a list of some of the names that there are, kept in their order.
type namesFlag struct {
	value *[]string
	names []string
}

func (f *namesFlag) String() string { return "" }

func (f *namesFlag) Set(s string) error {
	chosen, err := list(s, func(part string) (string, error) {
		if !slices.Contains(f.names, part) {
			return "", fmt.Errorf("%q is not one of %s", part, strings.Join(f.names, ", "))
		}
		return part, nil
	})
	if err != nil {
		return err
	}
	*f.value = slices.DeleteFunc(slices.Clone(f.names), func(name string) bool { return !slices.Contains(chosen, name) })
	return nil
}

// list parses a list with commas. What occurs twice counts once.
func list[T comparable](s string, parse func(string) (T, error)) ([]T, error) {
	var values []T
	for part := range strings.SplitSeq(s, ",") {
		value, err := parse(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	return values, nil
}

// wrapped is the names with commas, on lines of so many columns at most.
func wrapped(names []string, columns int) string {
	var b strings.Builder
	column := 0
	for i, name := range names {
		if i > 0 {
			b.WriteString(",")
			if column += len(name) + 2; column > columns {
				b.WriteString("\n")
				column = 0
			} else {
				b.WriteString(" ")
			}
		}
		b.WriteString(name)
	}
	return b.String()
}

// withoutDSN is the command line as it may be shown.
func withoutDSN(args []string) []string {
	var shown []string
	for i := 0; i < len(args); i++ {
		name, _, hasValue := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		switch {
		case name != "dsn" || !strings.HasPrefix(args[i], "-"):
			shown = append(shown, args[i])
			continue
		case !hasValue:
			i++
		}
		shown = append(shown, "-dsn …")
	}
	return shown
}

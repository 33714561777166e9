package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

func TestBadFlags(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"-rows -1", `invalid value "-1" for flag -rows: must be 0 or more`},
		{"-rows many", `invalid value "many" for flag -rows: must be a whole number`},
		{"-rows 99999999999999999999", `for flag -rows: must be 2147483647 or less`},
		{"-queries -1", `invalid value "-1" for flag -queries: must be 0 or more`},
		{"-conns 0", `invalid value "0" for flag -conns: must be 1 or more`},
		{"-conns 10001", `for flag -conns: must be 10000 or less`},
		{"-limit -1", `invalid value "-1" for flag -limit: must be 0 or more`},
		{"-strategy fast", `invalid value "fast" for flag -strategy: must be one of parallel, serial, pipelined, coalesced, auto`},
		{"-strategy Parallel", `must be one of`},
		{"-seed -1", `for flag -seed: must be a number from 0`},
		{"-partial=maybe", `invalid boolean value "maybe" for -partial`},
		{"-timeline=x.png", `for -timeline: must be the name of a file that ends in .svg`},
		{"-timeline x.svg", `unexpected argument "x.svg"; a file is given as -timeline=FILE.svg`},
		{"-snapshots", `flag provided but not defined: -snapshots`},
		{"-snapshot=maybe", `invalid boolean value "maybe" for -snapshot`},
		{"-conns 3 consistency", `unexpected argument "consistency"; it is the first one, before any flag`},
		{"-rows", `flag needs an argument: -rows`},
		{"-json rest", `unexpected argument "rest"`},
		{"postgres://u:secret@h/x", `given as -dsn=STRING`},
		{"-dsn host=h password=secret", `given as -dsn=STRING`},
	} {
		r := demo(t, strings.Fields(test.args)...)
		if r.status != misuse || r.stdout != "" {
			t.Errorf("%s: status %d, output %q", test.args, r.status, r.stdout)
		}
		if !strings.HasPrefix(r.stderr, "demo: ") || !strings.Contains(r.stderr, test.want) ||
			!strings.HasSuffix(r.stderr, "; -help explains the flags\n") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: %s", test.args, r.stderr)
		}
		if strings.Contains(r.stderr, "secret") {
			t.Errorf("%s: the password is in: %s", test.args, r.stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, flag := range []string{"-help", "-h", "--help"} {
		r := demo(t, flag)
		if r.status != success || r.stderr != "" {
			t.Errorf("%s: status %d\n%s", flag, r.status, r.stderr)
		}
		for _, want := range []string{"-dsn", "-rows", "-queries", "-conns", "-limit", "-strategy", "-snapshot", "-partial", "-seed", "-echo", "-json",
			"-timeline", "-no-merge", "consistency -help", "DATABASE_URL", "PGHOST", schemaName, "exit status", "(default 100)", "(default 30)", "(default 10)", "(default parallel)"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("%s does not mention %s", flag, want)
			}
		}
		for line := range strings.Lines(r.stdout) {
			if len([]rune(line)) > 81 {
				t.Errorf("long line: %s", line)
			}
		}
	}
}

func TestFlags(t *testing.T) {
	opts, err := parseFlags(strings.Fields("-dsn x -rows 1 -queries 2 -conns 3 -limit 4 -strategy serial -snapshot -partial -seed 5 -echo -json -timeline=A.SVG -no-merge"), io.Discard)
	want := options{"x", 1, 2, 3, 4, fanout.Serial, true, true, 5, true, true, timelineFlag{true, "A.SVG"}, true}
	if err != nil || opts != want {
		t.Errorf("%+v, %v", opts, err)
	}
	opts, err = parseFlags(strings.Fields("-timeline=x.svg -timeline=false -seed=0"), io.Discard)
	want = options{rows: 100, queries: 30, conns: 10}
	if err != nil || opts != want {
		t.Errorf("%+v, %v", opts, err)
	}
	if opts, err = parseFlags([]string{"-timeline"}, io.Discard); err != nil || opts.timeline != (timelineFlag{on: true}) {
		t.Errorf("%+v, %v", opts, err)
	}
}

func TestRandomSeed(t *testing.T) {
	seeds := map[uint64]bool{}
	for range 20 {
		opts, err := parseFlags(nil, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		seeds[opts.seed] = true
	}
	if len(seeds) < 10 { // of a million
		t.Errorf("seeds %v", seeds)
	}
}

// A flag that is wrong is found before anything else happens.
func TestBadFlagWithoutServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := demoCtx(t, ctx, map[string]string{"DATABASE_URL": "nonsense"}, "-rows", "x"); r.status != misuse {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}

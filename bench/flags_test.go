package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFlags(t *testing.T) {
	opts, err := parseFlags([]string{"-latency=0,5ms,5ms", "-queries", "2, 40", "-contenders", "parallel,errgroup", "-cells=cold", "-statements=wide"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []time.Duration{0, 5 * time.Millisecond}; !slices.Equal(opts.latencies, want) {
		t.Errorf("latencies %v", opts.latencies)
	}
	if !slices.Equal(opts.queries, []int{2, 40}) || !slices.Equal(opts.contenders, []string{byErrgroup, parallel}) ||
		!slices.Equal(opts.cells, []string{coldCells}) || !slices.Equal(opts.statements, []string{ranging}) {
		t.Errorf("%+v", opts)
	}
}

// On the user's server no latency is added, unless he asks for it.
func TestFlagsDSN(t *testing.T) {
	opts, err := parseFlags([]string{"-dsn=x"}, io.Discard)
	if err != nil || !slices.Equal(opts.latencies, []time.Duration{0}) {
		t.Errorf("%v, %v", opts.latencies, err)
	}
	opts, err = parseFlags([]string{"-dsn=x", "-latency=1ms"}, io.Discard)
	if err != nil || !slices.Equal(opts.latencies, []time.Duration{time.Millisecond}) {
		t.Errorf("%v, %v", opts.latencies, err)
	}
}

// -quick leaves alone what other flags say, in whatever order they come.
func TestFlagsQuick(t *testing.T) {
	opts, err := parseFlags([]string{"-time=1s", "-quick", "-statements=cpu"}, io.Discard)
	if err != nil || opts.time != time.Second || !slices.Equal(opts.statements, []string{burning}) || !slices.Equal(opts.queries, []int{30}) {
		t.Errorf("%+v, %v", opts, err)
	}
}

func TestWrongFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-no"}, {"stray"}, {"postgres://u:geheim@h/d"}, {"-latency=x"}, {"-latency=-1ms"}, {"-latency=2h"}, {"-queries=0"}, {"-queries=1,,2"},
		{"-contenders=nobody"}, {"-statements="}, {"-cells=grid,x"}, {"-time=0s"}, {"-time=5"},
		{"-from=report.json", "-html=x", "-quick"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), args, &stdout, &stderr)
		text := stderr.String()
		if status != misuse || stdout.Len() > 0 || strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "bench: ") || strings.Contains(text, "geheim") {
			t.Errorf("%q: status %d\n%s%s", args, status, stdout.String(), text)
		}
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), []string{"-help"}, &stdout, &stderr); status != success || stderr.Len() > 0 {
		t.Errorf("status %d\n%s", status, stderr.String())
	}
	for _, name := range append(slices.Clone(cellNames), "-dsn", byPgbenchPL, "pipelined+snapshot") {
		if !strings.Contains(stdout.String(), name) {
			t.Errorf("%s is not in the help", name)
		}
	}
	for line := range strings.Lines(stdout.String()) {
		if len([]rune(line)) > 100 {
			t.Errorf("a line of the help is too long: %s", line)
		}
	}
	if _, err := parseFlags([]string{"-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

func TestWithoutDSN(t *testing.T) {
	for _, args := range [][]string{{"-dsn", "secret", "-quick"}, {"-dsn=secret", "-quick"}, {"--dsn=secret", "-quick"}} {
		if got := strings.Join(withoutDSN(args), " "); got != "-dsn … -quick" {
			t.Errorf("%q: %s", args, got)
		}
	}
}

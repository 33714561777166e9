package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample is a report in which the contender number i takes i+1 ms, or has i+1 queries per second, everywhere.
func sample() *report {
	r := &report{
		Command: "go -C bench run . <&>", Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Seconds: 1, Machine: "linux", Server: "PostgreSQL 18",
		RoundTrip: 0.04, Rows: 1_000_000, Notes: []string{"a note with <angles> & such"},
	}
	fill := func(c cell) {
		for i, contender := range contenders() {
			v := float64(i + 1)
			res := newResult(contender.name, []float64{v * 0.9, v, v * 1.1}, "")
			res.P50, res.P99 = v/2, v
			res.figures = nil // which are not kept
			c.Results = append(c.Results, res)
		}
		r.Cells = append(r.Cells, c)
	}
	for _, latency := range []float64{0, 1, 10} {
		for _, name := range gridStatements {
			for _, queries := range []int{1, 30, 300} {
				fill(cell{Kind: gridCells, Statement: name, Queries: queries, Connections: gridConns, Clients: 1, LatencyMS: latency, Unit: milliseconds})
			}
		}
	}
	for _, clients := range []int{1, 16, 128} {
		fill(cell{Kind: loadCells, Statement: looking, Queries: 8, Connections: loadConns, Clients: clients, Unit: perSecond})
	}
	fill(cell{Kind: rateCells, Statement: looking, Queries: rateQueries, Connections: gridConns, Clients: 1, Unit: perSecond})
	fill(cell{Kind: besideCells, Statement: looking, Queries: 30, Connections: loadConns, Clients: 16, Unit: milliseconds})
	fill(cell{Kind: coldCells, Statement: thirty, Queries: 30, Connections: gridConns, Clients: 1, LatencyMS: 10, Unit: milliseconds})
	r.Claims, r.Advice = claims(r), advise(r)
	return r
}

// position is that of the contender in sample, from 1.
func position(name string) float64 {
	return 1 + float64(slices.IndexFunc(contenders(), func(c contender) bool { return c.name == name }))
}

func TestClaims(t *testing.T) {
	r := sample()
	ratios := map[string]float64{
		"Parallel / errgroup by hand, every cell":                                              position(parallel) / position(byErrgroup),
		"Pipelined / the better of errgroup and pgx.Batch, every cell with 30 queries or more": position(pipelined) / position(byErrgroup),
		"look-ups per second, Pipelined / pgbench pipelined, same connections":                 position(pipelined) / position(byPgbenchPL),
		"Coalesced / = any($1) by hand, 300 queries":                                           position(coalesced) / position(byAny),
		"Auto / the best that runs the same functions, geometric mean":                         position(auto) / position(single),
		"queries per second, Auto / the best fixed strategy, 1, 16 and 128 clients":            position(auto) / position(coalesced),
		"p99 of a client of single look-ups beside 16 with 30 in a call, Auto / Parallel":      position(auto) / position(parallel),
	}
	for _, f := range r.Claims {
		if f.Verdict == notMeasured || f.Ratio == nil {
			t.Errorf("%s: not measured", f.Claim)
			continue
		}
		if want, ok := ratios[f.Claim]; ok {
			if d := *f.Ratio / want; d < 0.999 || d > 1.001 {
				t.Errorf("%s: %v, want %v", f.Claim, *f.Ratio, want)
			}
			delete(ratios, f.Claim)
		}
		bound, atLeast := strings.CutPrefix(f.Wanted, "≥ ")
		if !atLeast {
			bound = strings.TrimPrefix(f.Wanted, "≤ ")
		}
		var b float64
		if err := json.Unmarshal([]byte(bound), &b); err != nil {
			t.Fatal(err)
		}
		if holds := *f.Ratio <= b != atLeast; holds != (f.Verdict == met) {
			t.Errorf("%s: wanted %s, measured %v, met: %s", f.Claim, f.Wanted, *f.Ratio, f.Verdict)
		}
	}
	if len(ratios) > 0 {
		t.Errorf("no such claims: %v", ratios)
	}
}

// With some claims, what the way of working costs by itself.
func TestBoundedClaims(t *testing.T) {
	want := map[string]float64{
		"Pipelined / the better of errgroup and pgx.Batch, every cell with 30 queries or more": position(byLeastBatch) / position(byErrgroup),
		"Coalesced / pgx.Batch, 300 scans of 100 rows, no added latency":                       position(byLeastAny) / position(byBatch),
		"Coalesced / = any($1) by hand, 300 queries":                                           position(byLeastAny) / position(byAny),
	}
	for _, f := range sample().Claims {
		if bound, ok := want[f.Claim]; ok && !strings.HasSuffix(f.Where, "coroutines alone: "+significantRatio(bound)) {
			t.Errorf("%s: %q, want %v", f.Claim, f.Where, bound)
		}
		delete(want, f.Claim)
	}
	if len(want) > 0 {
		t.Errorf("no such claims: %v", want)
	}
}

// What has not been run is said to be so, and is no failure.
func TestClaimsOfNothing(t *testing.T) {
	for _, f := range claims(&report{}) {
		if f.Verdict != notMeasured || f.Ratio != nil || f.Measured() != "–" {
			t.Errorf("%+v", f)
		}
	}
}

// Of a claim about every cell, the worst is shown, and where it was.
func TestWorstCell(t *testing.T) {
	r := sample()
	c := r.inGrid(burning, 30, 1)
	for i := range c.Results {
		if c.Results[i].Contender == parallel {
			c.Results[i].Median = 1000
		}
	}
	f := claims(r)[0]
	if *f.Ratio != 1000/position(byErrgroup) || !strings.HasSuffix(f.Where, c.Title()) || f.Verdict != missed {
		t.Errorf("%+v", f)
	}
}

func TestAdvice(t *testing.T) {
	r := sample()
	r.Cells = slices.DeleteFunc(r.Cells, func(c cell) bool { return c.Kind != gridCells || c.LatencyMS > 0 || c.Statement != looking })
	all := advise(r)
	if len(all) != 3 || all[0].Case != "over all" || all[0].Strategy != parallel {
		t.Fatalf("%+v", all)
	}
	if text := all[1].Text; !strings.HasPrefix(text, "parallel, 8.00 ms; 8.00 times as slow as one by one") {
		t.Error(text)
	}
	if all := advise(&report{}); len(all) > 0 {
		t.Errorf("of nothing: %+v", all)
	}
}

// A contender that has failed is not one that was slow: the run has failed, too, and the advice says so.
func TestFailures(t *testing.T) {
	r := sample()
	if err := r.failures(); err != nil {
		t.Error(err)
	}
	r.Cells = slices.DeleteFunc(r.Cells, func(c cell) bool { return c.Kind != gridCells || c.LatencyMS > 0 || c.Statement != looking })
	at := slices.IndexFunc(r.Cells[1].Results, func(r result) bool { return r.Contender == pipelined })
	r.Cells[1].Results[at] = newResult(pipelined, nil, failedNote+"server closed the connection")
	err := r.failures()
	if err == nil || err.Error() != "1 measurement failed, the first fanout pipelined in "+r.Cells[1].Title()+": server closed the connection" {
		t.Error(err)
	}
	if text := advise(r)[0].Text; !strings.HasSuffix(text, "; not compared since it failed: pipelined") {
		t.Error(text)
	}
	r.Cells = []cell{{Kind: gridCells}}
	if err := r.failures(); err == nil || !strings.HasPrefix(err.Error(), "nothing was measured: ") {
		t.Error(err)
	}
}

func TestJSON(t *testing.T) {
	r := sample()
	content, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var again report
	if err := json.Unmarshal(content, &again); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, &again) {
		t.Error("something is lost on the way")
	}
}

// The page and the picture need nothing from outside, and are well formed.
func TestPage(t *testing.T) {
	for name, r := range map[string]*report{"whole": sample(), "empty": {}, "one cell": {Cells: sample().Cells[:1]}, "no grid": {Cells: sample().Cells[54:]}} {
		t.Run(name, func(t *testing.T) {
			content, err := page(r)
			if err != nil {
				t.Fatal(err)
			}
			checkXML(t, content)
			for _, outside := range []string{"<script", "<link", "src=", "@import", "url(", "https:"} {
				if bytes.Contains(content, []byte(outside)) {
					t.Errorf("%s is in it", outside)
				}
			}
			if want := len(charts(r)); bytes.Count(content, []byte("<svg ")) != want {
				t.Errorf("not %d charts", want)
			}
		})
	}
	content, _ := page(sample())
	for _, text := range []string{"a note with &lt;angles&gt;", "missed", "SQLAlchemy gather", "prefers-color-scheme: dark", "1,000,000 rows"} {
		if !bytes.Contains(content, []byte(text)) {
			t.Errorf("%q is not in it", text)
		}
	}
	content, err := picture(sample())
	if err != nil {
		t.Fatal(err)
	}
	checkXML(t, content)
	if _, err := picture(&report{}); err == nil {
		t.Error("a picture of nothing")
	}
}

// Every contender that is drawn has a colour.
func TestColours(t *testing.T) {
	for _, c := range contenders() {
		if _, ok := colours[c.name]; !ok && !c.snapshot {
			t.Errorf("%s has none", c.name)
		}
	}
}

func TestTables(t *testing.T) {
	var b bytes.Buffer
	if err := printTables(sample(), &b); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"128 clients at once, pool of 16", "p99 ms", "Claims", "What pays on this server"} {
		if !strings.Contains(b.String(), text) {
			t.Errorf("%q is not in it", text)
		}
	}
}

// Whether a file can be written is found out without writing it.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	old, missing := filepath.Join(dir, "old"), filepath.Join(dir, "missing")
	if err := os.WriteFile(old, []byte("content"), 0o666); err != nil {
		t.Fatal(err)
	}
	opts := options{json: old, html: missing, svg: os.DevNull}
	if err := opts.checkFiles(); err != nil {
		t.Error(err)
	}
	if content, err := os.ReadFile(old); err != nil || string(content) != "content" {
		t.Errorf("%q, %v", content, err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	opts = options{json: dir, html: filepath.Join(missing, "file"), markdown: old}
	if err := opts.checkFiles(); err == nil || !strings.HasPrefix(err.Error(), "-json: open "+dir) || !strings.Contains(err.Error(), "\n-html: open "+missing) {
		t.Errorf("%v", err)
	}
}

// One file for two of them would hold the last only; but both may go to the same pipe.
func TestCheckFilesTwice(t *testing.T) {
	dir := t.TempDir()
	opts := options{json: filepath.Join(dir, "x"), svg: dir + "/./x"}
	if err := opts.checkFiles(); err == nil || err.Error() != "-svg: the file is that of -json" {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("x", filepath.Join(dir, "y")); err != nil {
		t.Fatal(err)
	}
	opts = options{html: filepath.Join(dir, "x"), markdown: filepath.Join(dir, "y")}
	if err := opts.checkFiles(); err == nil || err.Error() != "-markdown: the file is that of -html" {
		t.Errorf("%v", err)
	}
	opts = options{json: os.DevNull, svg: os.DevNull}
	if err := opts.checkFiles(); err != nil {
		t.Error(err)
	}
}

// A file that cannot be made does not cost the others, or the tables.
func TestPresent(t *testing.T) {
	r := &report{Cells: []cell{{Kind: coldCells, Statement: thirty, Unit: milliseconds}}}
	dir := t.TempDir()
	var stdout bytes.Buffer
	err := present(r, options{json: dir, svg: filepath.Join(dir, "no", "svg"), html: filepath.Join(dir, "html"), markdown: filepath.Join(dir, "md")}, &stdout)
	if err == nil || !strings.HasPrefix(err.Error(), "-json: open "+dir) || !strings.Contains(err.Error(), "\n-svg: open ") {
		t.Errorf("%v", err)
	}
	if !strings.Contains(stdout.String(), "cold connections") {
		t.Errorf("%s", stdout.String())
	}
	for _, name := range []string{"html", "md"} {
		if content, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(content) == 0 {
			t.Errorf("%s: %d bytes, %v", name, len(content), err)
		}
	}
}

func wellFormed(t *testing.T, file string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	checkXML(t, content)
}

func checkXML(t *testing.T, content []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(content))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// What is written beside a bar of the slowest calls is a time in milliseconds, with as many digits as everywhere else, and
// not rounded like a number of queries in a second.
func TestSlowestCallsAreWrittenInMilliseconds(t *testing.T) {
	c := cell{Kind: loadCells, Statement: looking, Queries: 8, Connections: 16, Clients: 1, Unit: perSecond, Results: []result{
		{Contender: byBatch, Values: 16, Median: 33178, P10: 30119, P90: 40012, P50: 0.22, P99: 0.394},
	}}
	for _, chart := range charts(&report{Cells: []cell{c}}) {
		if !strings.HasSuffix(chart.title, ": the slowest calls") {
			continue
		}
		if svg := string(chart.drawing.svg(chart.title, false)); !strings.Contains(svg, ">0.394<") {
			t.Errorf("the bar of 0.394 ms is labelled otherwise:\n%s", svg)
		}
		return
	}
	t.Fatal("no such chart")
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A report is all that a run has to say. It is what -json writes.
type report struct {
	Command   string    `json:"command"`
	Started   time.Time `json:"started"`
	Seconds   float64   `json:"seconds"`
	Machine   string    `json:"machine"` // system, architecture, CPUs, Go
	Server    string    `json:"server"`  // its version, and whose it is
	RoundTrip float64   `json:"round_trip_ms"`
	Rows      int       `json:"rows"`       // of the large table
	BurnCount int32     `json:"burn_count"` // what takes the server 2 ms to count to
	Cells     []cell    `json:"cells"`
	Claims    []finding `json:"claims"`
	Advice    []advice  `json:"advice"`
	Notes     []string  `json:"notes"`
}

// A cell is one piece of work under one set of circumstances, and how its contenders fared.
type cell struct {
	Kind        string   `json:"kind"`
	Statement   string   `json:"statement"`
	Queries     int      `json:"queries"` // in a call
	Connections int      `json:"connections"`
	Clients     int      `json:"clients"`
	LatencyMS   float64  `json:"latency_ms"` // added to each round trip
	Unit        string   `json:"unit"`       // of Median, P10 and P90: ms, or queries/s, of which more is better
	Results     []result `json:"results"`    // in the order of the contenders
}

// The units.
const (
	milliseconds = "ms"
	perSecond    = "queries/s"
)

// A result is that of one contender.
type result struct {
	Contender string  `json:"contender"`
	Values    int     `json:"values"` // of which these are: means of calls, calls, or slices of time under load
	Median    float64 `json:"median"`
	P10       float64 `json:"p10"`
	P90       float64 `json:"p90"`
	P50       float64 `json:"p50_ms,omitempty"` // of a call's time, under load
	P99       float64 `json:"p99_ms,omitempty"`
	Note      string  `json:"note,omitempty"`

	figures []float64 // the values, while the run goes on
}

// failedNote begins the note of a result that a contender's failure has ended.
const failedNote = "failed: "

// failure is what has ended the result, if anything has.
func (r result) failure() (reason string, failed bool) { return strings.CutPrefix(r.Note, failedNote) }

// newResult is the result of these values.
func newResult(contender string, values []float64, note string) result {
	r := result{Contender: contender, Values: len(values), Note: note, figures: values}
	if len(values) > 0 {
		r.Median, r.P10, r.P90 = quantile(values, 0.5), quantile(values, 0.1), quantile(values, 0.9)
	}
	return r
}

// of returns the contender's result, if it ran.
func (c *cell) of(contender string) (result, bool) {
	i := slices.IndexFunc(c.Results, func(r result) bool { return r.Contender == contender && r.Values > 0 })
	if i < 0 {
		return result{}, false
	}
	return c.Results[i], true
}

// failed reports whether the contender has.
func (c *cell) failed(contender string) bool {
	return slices.ContainsFunc(c.Results, func(r result) bool {
		_, failed := r.failure()
		return failed && r.Contender == contender
	})
}

// ratio is that of the medians of two contenders, if both ran.
func (c *cell) ratio(contender, to string) (float64, bool) {
	a, ok := c.of(contender)
	b, ok2 := c.of(to)
	return a.Median / b.Median, ok && ok2
}

// slowness is how many times as slow the contender is as the other, whichever way the cell measures.
func (c *cell) slowness(contender, than string) (float64, bool) {
	if c.Unit == milliseconds {
		return c.ratio(contender, than)
	}
	return c.ratio(than, contender)
}

// best is the contender with the best median among those that chosen accepts.
func (c *cell) best(chosen func(contender string) bool) (best result, ok bool) {
	for _, r := range c.Results {
		if r.Values == 0 || !chosen(r.Contender) {
			continue
		}
		if better := r.Median < best.Median == (c.Unit == milliseconds); !ok || better {
			best, ok = r, true
		}
	}
	return best, ok
}

// failures is the error of a report in which contenders have failed, or none has taken part: figures are missing that were
// asked for.
func (r *report) failures() error {
	n, first := 0, ""
	if !slices.ContainsFunc(r.Cells, func(c cell) bool { return len(c.Results) > 0 }) {
		return errors.New("nothing was measured: none of these contenders takes part in a cell of these kinds")
	}
	for _, c := range r.Cells {
		for _, res := range c.Results {
			if reason, failed := res.failure(); failed {
				if n++; n == 1 {
					first = fmt.Sprintf("%s in %s: %s", label(res.Contender), c.Title(), reason)
				}
			}
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s failed, the first %s", counted(n, "measurement"), first)
}

// ValueName is what a result's values are.
func (c *cell) ValueName() string {
	switch {
	case c.Unit == perSecond:
		return "slice"
	case c.Kind == besideCells:
		return "call"
	}
	return "turn"
}

// Title says in words which cell it is.
func (c *cell) Title() string {
	latency := ""
	if c.LatencyMS > 0 {
		latency = fmt.Sprintf(", +%g ms", c.LatencyMS)
	}
	switch c.Kind {
	case coldCells:
		return fmt.Sprintf("first call on cold connections: %s%s", statementLabels[c.Statement], latency)
	case loadCells:
		return fmt.Sprintf("%s at once, pool of %d: %s, %d in a call%s", counted(c.Clients, "client"), c.Connections, statementLabels[c.Statement], c.Queries, latency)
	case besideCells:
		return fmt.Sprintf("a client of single look-ups beside %d with %d in a call, pool of %d", c.Clients, c.Queries, c.Connections)
	case rateCells:
		return fmt.Sprintf("%s, as many as go through %d connections", statementLabels[c.Statement], c.Connections)
	}
	return fmt.Sprintf("%s, %s%s", statementLabels[c.Statement], counted(c.Queries, "query"), latency)
}

// find returns the cells that chosen accepts.
func (r *report) find(chosen func(*cell) bool) []*cell {
	var found []*cell
	for i := range r.Cells {
		if chosen(&r.Cells[i]) {
			found = append(found, &r.Cells[i])
		}
	}
	return found
}

// inGrid returns one cell of the grid, or nil.
func (r *report) inGrid(statement string, queries int, latencyMS float64) *cell {
	for _, c := range r.find(func(c *cell) bool { return c.Kind == gridCells }) {
		if c.Statement == statement && c.Queries == queries && c.LatencyMS == latencyMS {
			return c
		}
	}
	return nil
}

// readReport reads what -json has written. What the report says of its figures is said anew.
func readReport(file string) (*report, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(content, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(r.Cells) == 0 { // other JSON is read too, and nothing of it taken
		return nil, fmt.Errorf("%s: it has no cells, as what -json writes has", file)
	}
	r.conclude()
	return r, nil
}

// conclude says what follows from the figures.
func (r *report) conclude() {
	r.Claims, r.Advice = claims(r), advise(r)
}

// A file is one that a flag asks for.
type file struct {
	flag, name string // name "": it is not asked for
	content    func(*report) ([]byte, error)
}

func (o *options) files() []file {
	return []file{
		{"-json", o.json, func(r *report) ([]byte, error) { return json.MarshalIndent(r, "", "  ") }},
		{"-html", o.html, page},
		{"-svg", o.svg, picture},
		{"-markdown", o.markdown, func(r *report) ([]byte, error) { return markdown(r), nil }},
	}
}

// checkFiles finds out whether the files can be written, before minutes go into what is to be in them. It changes none.
func (o *options) checkFiles() error {
	var errs []error
	asked := map[string]string{} // for a file, by which flag
	for _, f := range o.files() {
		if f.name == "" {
			continue
		}
		if err := writable(f.name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.flag, err))
		}
		if special(f.name) {
			continue
		}
		file := resolved(f.name)
		if other := asked[file]; other != "" {
			errs = append(errs, fmt.Errorf("%s: the file is that of %s", f.flag, other))
		}
		asked[file] = f.flag
	}
	return errors.Join(errs...)
}

// resolved is the file's path without relative and symbolic parts, so that two names of one file are told.
func resolved(name string) string {
	if path, err := filepath.Abs(name); err == nil {
		name = path
	}
	if path, err := filepath.EvalSymlinks(name); err == nil {
		return path
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(name)); err == nil {
		return filepath.Join(dir, filepath.Base(name)) // not there yet
	}
	return name
}

// special reports whether the file is a pipe, say, or a device.
func special(name string) bool {
	info, err := os.Stat(name)
	return err == nil && !info.IsDir() && !info.Mode().IsRegular()
}

// writable opens the file for writing. One that is not there yet is not there afterwards either.
func writable(name string) error {
	if special(name) {
		return nil // its reader would see it closed
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err == nil {
		return errors.Join(f.Close(), os.Remove(name))
	}
	if errors.Is(err, fs.ErrExist) {
		if f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o666); err == nil {
			err = f.Close()
		}
	}
	return err
}

// present prints the report and writes the files that the flags ask for. What fails does not keep it from the rest: the
// figures have taken minutes.
func present(r *report, opts options, stdout io.Writer) error {
	errs := []error{printTables(r, stdout)}
	for _, f := range opts.files() {
		if f.name == "" {
			continue
		}
		content, err := f.content(r)
		if err == nil {
			err = os.WriteFile(f.name, append(content, '\n'), 0o666)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.flag, err))
		}
	}
	return errors.Join(errs...)
}

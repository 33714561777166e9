package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

const (
	boardEvery = 200 * time.Millisecond // on a terminal
	lineEvery  = time.Second            // elsewhere

	// textWidth is the widest that text is set: wider is hard to read.
	textWidth = 79

	// lastWords is how long an interrupted program tries to print the figures so far to a reader who does not read.
	lastWords = 500 * time.Millisecond
)

// A board shows how an experiment goes, while it goes and at its end. What it shows meanwhile it writes from a goroutine of
// its own: a reader who does not read does not hold up the experiment, nor that all is given back after it.
type board struct {
	exp    *experiment
	w      io.Writer // where the board is
	doc    io.Writer // where the document goes; nil without -json
	redraw bool      // w is a terminal whose lines can be written again
	colour bool

	ended   chan struct{} // closed when the experiment is over
	shown   chan struct{} // closed when nothing more is shown of it; nil before the start
	height  int           // lines that are to be written again
	failure error         // of w
}

func newBoard(exp *experiment, stdout, stderr io.Writer, getenv func(string) string) *board {
	b := &board{exp: exp, w: stdout}
	if exp.opts.json {
		b.w, b.doc = stderr, stdout
	}
	_, terminal := terminalWidth(b.w)
	b.redraw = terminal && getenv("TERM") != "dumb"
	b.colour = b.redraw && getenv("NO_COLOR") == ""
	return b
}

// columns is how wide a line may be: a full one would be wrapped by some terminals.
func (b *board) columns() int {
	columns, _ := terminalWidth(b.w)
	return max(columns-1, 1)
}

// start shows the experiment from now on. Where it cannot be shown any more, fail is called, unless a document is to be
// printed in any case.
func (b *board) start(fail func(error)) {
	b.ended, b.shown = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(b.shown)
		if err := b.show(); err != nil && b.doc == nil {
			b.failure = err
			fail(&boardError{err})
		}
	}()
}

// boardError is why a board cannot be shown. It does not unwrap: a broken pipe to a reader is not one to the server.
type boardError struct{ err error }

func (e *boardError) Error() string { return e.err.Error() }

// stop says that the experiment is over.
func (b *board) stop() { close(b.ended) }

// show is the goroutine of start.
func (b *board) show() error {
	if err := b.write(b.introduction()); err != nil {
		return err
	}
	every := lineEvery
	if b.redraw {
		every = boardEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-b.ended:
			return nil
		case <-tick.C:
		}
		s := b.exp.standing()
		var err error
		if b.redraw {
			err = b.write(b.replace(b.live(s, b.columns())))
		} else {
			err = b.write(line(s))
		}
		if err != nil {
			return err
		}
	}
}

// conclude shows how the experiment has ended, if it had begun. After the end of ctx it does not wait long for a reader.
func (b *board) conclude(ctx context.Context) error {
	if b.shown == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		<-b.shown
		done <- b.printEnd()
	}()
	ended, err := heard(ctx, done)
	if !ended {
		return errors.New("interrupted")
	}
	return err
}

func (b *board) printEnd() error {
	s := b.exp.standing()
	err := b.failure
	if err == nil {
		end := "\n" + b.summary(s, b.columns())
		if b.redraw {
			end = b.replace(b.summary(s, b.columns()))
		}
		err = b.write(end)
	}
	if b.doc != nil {
		err = writeStanding(b.doc, b.exp, s) // of stderr there is nothing to be said, and nowhere
	}
	if errors.Is(err, syscall.EPIPE) {
		return nil // whoever closes the pipe, such as head, has seen enough
	}
	return err
}

func (b *board) write(s string) error {
	_, err := io.WriteString(b.w, s)
	return err
}

// replace is s as it is written over what was written so last. What somebody has typed in the meantime goes too.
func (b *board) replace(s string) string {
	var up string
	if b.height > 0 {
		up = fmt.Sprintf("\x1b[%dA", b.height)
	}
	b.height = strings.Count(s, "\n")
	return "\r" + up + strings.ReplaceAll(s, "\n", "\x1b[K\n") + "\x1b[J"
}

// paint colours s by whether it is good news.
func (b *board) paint(s string, good bool) string {
	switch {
	case !b.colour:
		return s
	case good:
		return "\x1b[32m" + s + "\x1b[m"
	}
	return "\x1b[31m" + s + "\x1b[m"
}

// introduction says what is going to be seen.
func (b *board) introduction() string {
	opts := b.exp.opts
	move := "move"
	if opts.writers == 1 {
		move = "moves"
	}
	return wrap(fmt.Sprintf("%d accounts hold %s in all. %s %s money from one to another, each time in one transaction, so the "+
		"total never changes. Over and over, %d queries at once read a balance each, and what they have read is added up.",
		opts.accounts, program.Thousands(int(b.exp.total())), counted(opts.writers, "writer", "writers"), move, opts.accounts), b.columns()) + "\n"
}

const (
	plainLabel    = "without snapshot"
	snapshotLabel = "with snapshot"
)

// line is the standing on one line.
func line(s standing) string {
	return fmt.Sprintf("%3.0f s  %s: %s; %s: %s\n", s.elapsed.Seconds(), plainLabel, tornOf(s.plain), snapshotLabel, tornOf(s.snapshot))
}

func tornOf(t tally) string {
	return fmt.Sprintf("%s of %s torn (%s)", program.Thousands(t.torn), program.Thousands(t.gathers), percent(t.torn, t.gathers))
}

// percent is a part of a whole. It is nothing or all only if it is so exactly.
func percent(part, whole int) string {
	switch p := 100 * float64(part) / float64(max(whole, 1)); {
	case part == 0:
		return "0 %"
	case part == whole:
		return "100 %"
	case p < 0.1:
		return "<0.1 %"
	case p > 99.9:
		return ">99.9 %"
	default:
		return fmt.Sprintf("%.1f %%", p)
	}
}

// figures are the columns that are there all the time.
func (b *board) figures(label string, t tally) string {
	return fmt.Sprintf("%-16s %9s %9s  ", label, program.Thousands(t.gathers), program.Thousands(t.torn)) +
		b.paint(fmt.Sprintf("%7s", percent(t.torn, t.gathers)), t.torn == 0)
}

const figuresHead = "                   gathers      torn         "

// live is the standing while the experiment goes, in lines of no more than so many columns.
func (b *board) live(s standing, columns int) string {
	want := b.exp.total()
	width := len(program.Thousands(int(want)))
	fit := max(min((columns-len(figuresHead)-1)/(width+2), lastTotals), 0)
	row := func(label string, t tally) string {
		var out strings.Builder
		out.WriteString(b.figures(label, t))
		gap := "   "
		for _, total := range t.last[max(len(t.last)-fit, 0):] {
			out.WriteString(gap + b.paint(fmt.Sprintf("%*s", width, program.Thousands(int(total))), total == want))
			gap = "  "
		}
		return out.String() + "\n"
	}
	head := figuresHead
	if fit >= 2 {
		head += "   last totals"
	}
	foot := fmt.Sprintf("%.0f s of %s, %s; Ctrl-C ends it", s.elapsed.Seconds(), seconds(b.exp.opts.length), counted(s.transfers, "transfer", "transfers"))
	if columns < max(len(figuresHead), len(foot)) {
		var out strings.Builder // too narrow for a table
		for _, row := range []string{"without: " + percent(s.plain.torn, s.plain.gathers), "with: " + percent(s.snapshot.torn, s.snapshot.gathers)} {
			row += " torn"
			out.WriteString(row[:min(columns, len(row))] + "\n")
		}
		return out.String()
	}
	return head + "\n" + row(plainLabel, s.plain) + row(snapshotLabel, s.snapshot) + "\n" + foot + "\n"
}

// seconds is a duration from a flag, without zeros that say nothing.
func seconds(d time.Duration) string { return fmt.Sprintf("%g s", d.Seconds()) }

// summary is how the experiment has ended.
func (b *board) summary(s standing, columns int) string {
	totals := func(t tally) string {
		switch {
		case t.gathers == 0:
			return "none"
		case t.lowest == t.highest:
			return program.Thousands(int(t.lowest))
		}
		return program.Thousands(int(t.lowest)) + " to " + program.Thousands(int(t.highest))
	}
	width := max(len(totals(s.plain)), len(totals(s.snapshot)), len("totals read"))
	var out strings.Builder
	fmt.Fprintf(&out, "%s  %-*s  mean time\n", figuresHead, width, "totals read")
	for _, row := range []struct {
		label string
		tally
	}{{plainLabel, s.plain}, {snapshotLabel, s.snapshot}} {
		fmt.Fprintf(&out, "%s  %-*s  %9s\n", b.figures(row.label, row.tally), width, totals(row.tally), duration(row.mean()))
	}
	opts := b.exp.opts
	fmt.Fprintf(&out, "\n%s\n", wrap(fmt.Sprintf("%s in %s by %s; %s, %s.", counted(s.transfers, "transfer", "transfers"), duration(s.elapsed),
		counted(opts.writers, "writer", "writers"), counted(opts.accounts, "account", "accounts"), counted(opts.conns, "connection", "connections")), columns))
	out.WriteString(wrap(b.moral(s), columns))
	return out.String()
}

// moral is what there is to be learnt, in words that claim no more than what was seen.
func (b *board) moral(s standing) string {
	var out strings.Builder
	total := program.Thousands(int(b.exp.total()))
	switch vanished, appeared := b.exp.total()-s.plain.lowest, s.plain.highest-b.exp.total(); {
	case s.plain.gathers == 0:
		fmt.Fprint(&out, "There is nothing to be seen yet.")
	case s.plain.torn == 0:
		fmt.Fprintf(&out, "Here no total was torn, not even without a snapshot. That does not mean that none can be: "+
			"a longer run (-for), more -writers and more -accounts make it likelier.")
	default:
		fmt.Fprintf(&out, "Every transfer leaves %s in all. But without a snapshot each query reads at a moment of its own, and money that moves "+
			"between two of them is counted twice or not at all: ", total)
		var worst []string
		if vanished > 0 {
			worst = append(worst, program.Thousands(int(vanished))+" seemed to have vanished")
		}
		if appeared > 0 {
			worst = append(worst, program.Thousands(int(appeared))+" to have come from nowhere")
			if vanished <= 0 {
				worst[0] = strings.Replace(worst[0], "to have", "seemed to have", 1)
			}
		}
		fmt.Fprintf(&out, "at worst, %s.", strings.Join(worst, ", or "))
	}
	switch {
	case s.snapshot.gathers == 0:
	case s.snapshot.torn == 0:
		fmt.Fprintf(&out, " With Snapshot all queries of a gather read the same moment, and every total was right in this run.")
	default:
		fmt.Fprintf(&out, " With Snapshot %s wrong too, which should never be.", counted(s.snapshot.torn, "total was", "totals were"))
	}
	return out.String()
}

// wrap sets text in lines of no more than so many columns, where its words allow it.
func wrap(text string, columns int) string {
	columns = min(columns, textWidth)
	var out strings.Builder
	width := 0
	for word := range strings.FieldsSeq(text) {
		switch n := len(word); {
		case width == 0:
			width = n
		case width+1+n <= columns:
			out.WriteString(" ")
			width += 1 + n
		default:
			out.WriteString("\n")
			width = n
		}
		out.WriteString(word)
	}
	return out.String() + "\n"
}

// A standingDocument is what -json prints.
type standingDocument struct {
	Accounts  int           `json:"accounts"`
	Writers   int           `json:"writers"`
	Conns     int           `json:"conns"`
	Total     int64         `json:"total"` // what there was in all
	Transfers int           `json:"transfers"`
	ElapsedMS float64       `json:"elapsed_ms"`
	Plain     tallyDocument `json:"plain"`
	Snapshot  tallyDocument `json:"snapshot"`
}

type tallyDocument struct {
	Gathers int     `json:"gathers"`
	Torn    int     `json:"torn"`
	Lowest  int64   `json:"lowest_total"`
	Highest int64   `json:"highest_total"`
	MeanMS  float64 `json:"mean_ms"` // how long a gather took
}

func writeStanding(w io.Writer, e *experiment, s standing) error {
	ms := func(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e3 }
	tally := func(t tally) tallyDocument {
		return tallyDocument{t.gathers, t.torn, t.lowest, t.highest, ms(t.mean())}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(standingDocument{e.opts.accounts, e.opts.writers, e.opts.conns, e.total(), s.transfers, ms(s.elapsed),
		tally(s.plain), tally(s.snapshot)})
	_, writeErr := w.Write(b.Bytes())
	return cmp.Or(writeErr, err)
}

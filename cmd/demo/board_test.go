package main

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// standingExample has torn totals without a snapshot only.
func standingExample() (*board, standing) {
	exp := newExperiment(consistencyOptions{conns: 4, accounts: 8, writers: 2, length: 5 * time.Second})
	s := standing{elapsed: 3200 * time.Millisecond, transfers: 23411}
	for i := range 1200 {
		s.plain.add(8000+int64(i%3-1)*int64(i%400), 8000, 500*time.Microsecond)
		s.snapshot.add(8000, 8000, time.Millisecond)
	}
	return newBoard(exp, io.Discard, io.Discard, func(string) string { return "" }), s
}

func TestBoardLive(t *testing.T) {
	b, s := standingExample()
	const want = `                   gathers      torn            last totals
without snapshot     1,200       798   66.5 %   8,396  7,603  8,000  8,399
with snapshot        1,200         0      0 %   8,000  8,000  8,000  8,000

3 s of 5 s, 23,411 transfers; Ctrl-C ends it
`
	if diff := cmp.Diff(want, b.live(s, 79)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for columns := 1; columns < 200; columns++ {
		for line := range strings.Lines(b.live(s, columns)) {
			if n := len(line) - 1; n > columns {
				t.Fatalf("%d columns for %d:\n%s", n, columns, line)
			}
		}
		b.summary(s, columns)
		b.live(standing{}, columns)
	}
	if got, want := line(s), "  3 s  without snapshot: 798 of 1,200 torn (66.5 %); with snapshot: 0 of 1,200 torn (0 %)\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestBoardSummary(t *testing.T) {
	b, s := standingExample()
	const want = `                   gathers      torn           totals read     mean time
without snapshot     1,200       798   66.5 %  7,601 to 8,399    0.50 ms
with snapshot        1,200         0      0 %  8,000             1.00 ms

23,411 transfers in 3.20 s by 2 writers; 8 accounts, 4 connections.

Every transfer leaves 8,000 in all. But without a snapshot each query reads at
a moment of its own, and money that moves between two of them is counted twice
or not at all: at worst, 399 seemed to have vanished, or 399 to have come from
nowhere. With Snapshot all queries of a gather read the same moment, and every
total was right in this run.
`
	if diff := cmp.Diff(want, b.summary(s, 100)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestBoardMoral(t *testing.T) {
	b, _ := standingExample()
	of := func(totals ...int64) (t tally) {
		for _, total := range totals {
			t.add(total, 8000, 0)
		}
		return t
	}
	for _, test := range []struct {
		plain, snapshot tally
		want            string
	}{
		{of(8000, 7990), of(8000), "at worst, 10 seemed to have vanished. With"},
		{of(8000, 8010), of(8000), "at worst, 10 seemed to have come from nowhere. With"},
		{of(8010), of(8000), "at worst, 10 seemed to have come from nowhere. With"},
		{of(8000), of(8000), "Here no total was torn, not even without a snapshot. That does not mean that none can be: "},
		{of(8000), of(8001), "With Snapshot 1 total was wrong too, which should never be."},
		{of(7000), of(8001, 8000, 7999), "With Snapshot 2 totals were wrong too, which should never be."},
		{of(), of(), "There is nothing to be seen yet."},
	} {
		if got := b.moral(standing{plain: test.plain, snapshot: test.snapshot}); !strings.Contains(got, test.want) {
			t.Errorf("%q is not in: %s", test.want, got)
		}
	}
}

// Nothing is red but what is wrong.
func TestBoardColours(t *testing.T) {
	b, s := standingExample()
	uncoloured := []string{b.live(s, 79), b.summary(s, 79)}
	b.colour = true
	for i, text := range []string{b.live(s, 79), b.summary(s, 79)} {
		if diff := cmp.Diff(uncoloured[i], strings.NewReplacer("\x1b[31m", "", "\x1b[32m", "", "\x1b[m", "").Replace(text)); diff != "" {
			t.Errorf("(-without colours +with)\n%s", diff)
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, snapshotLabel) && (strings.Contains(line, "\x1b[31m") || !strings.Contains(line, "\x1b[32m")) ||
				strings.HasPrefix(line, plainLabel) && !strings.Contains(line, "\x1b[31m 66.5 %\x1b[m") {
				t.Errorf("%q", line)
			}
		}
	}
}

func TestBoardRewrites(t *testing.T) {
	b, _ := standingExample()
	got := b.replace("a\nb\n") + b.replace("c\n") + b.replace("d\n")
	if want := "\ra\x1b[K\nb\x1b[K\n\x1b[J\r\x1b[2Ac\x1b[K\n\x1b[J\r\x1b[1Ad\x1b[K\n\x1b[J"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPercent(t *testing.T) {
	for _, test := range []struct {
		part, whole int
		want        string
	}{{0, 0, "0 %"}, {0, 5, "0 %"}, {5, 5, "100 %"}, {1, 3, "33.3 %"}, {1, 5000, "<0.1 %"}, {4999, 5000, ">99.9 %"}, {1, 1000, "0.1 %"}} {
		if got := percent(test.part, test.whole); got != test.want {
			t.Errorf("%d of %d is %s", test.part, test.whole, got)
		}
	}
}

func TestWrap(t *testing.T) {
	for columns, want := range map[int]string{1: "a\nbb\nccc\n", 4: "a bb\nccc\n", 5: "a bb\nccc\n", 8: "a bb ccc\n"} {
		if got := wrap("a bb  ccc", columns); got != want {
			t.Errorf("%d columns: %q", columns, got)
		}
	}
	if got := fmt.Sprint(seconds(1500*time.Millisecond), seconds(time.Minute)); got != "1.5 s 60 s" && got != "1.5 s60 s" {
		t.Error(got)
	}
}

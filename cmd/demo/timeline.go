package main

import (
	"bufio"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// A timeline shows when each query waited and when it ran, and on which connection. Its rows are the queries, grouped by
// connection: in a group, one query waits while those above it run. Where there are too many for a row each, a row is a
// connection.
type timeline struct {
	tracks   []track
	queries  int
	backends int
	end      time.Duration // when the last query had finished
}

// A track is one connection with the queries that ran on it, in the order in which they did.
type track struct {
	pid  uint32 // 0 for the queries that never got a connection
	bars []bar
}

// A bar is one query. Its times count from the call; until started, it waits.
type bar struct {
	index             int
	arg               string
	started, finished time.Duration
	failed            bool
}

// newTimeline sorts the queries by connection, and the connections by when they ran their first query.
func newTimeline(out *outcome) timeline {
	t := timeline{queries: len(out.lookups), backends: out.backends()}
	for _, l := range out.lookups {
		t.end = max(t.end, l.span.Finished.Sub(l.span.Queued))
	}
	byPID := make(map[uint32]int)
	for i, l := range out.lookups {
		b := bar{index: i, arg: l.arg, failed: l.err != nil}
		switch {
		case l.span.PID == 0: // waited in vain
			b.started, b.finished = t.end, t.end
		case l.span.Started.IsZero(): // failed before its first statement
			b.finished = l.span.Finished.Sub(l.span.Queued)
			b.started = b.finished
		default:
			b.started, b.finished = l.span.Started.Sub(l.span.Queued), l.span.Finished.Sub(l.span.Queued)
		}
		at, ok := byPID[l.span.PID]
		if !ok {
			at = len(t.tracks)
			byPID[l.span.PID] = at
			t.tracks = append(t.tracks, track{pid: l.span.PID})
		}
		t.tracks[at].bars = append(t.tracks[at].bars, b)
	}
	for _, tr := range t.tracks {
		slices.SortFunc(tr.bars, func(a, b bar) int { return cmp.Or(cmp.Compare(a.started, b.started), cmp.Compare(a.index, b.index)) })
	}
	slices.SortFunc(t.tracks, func(a, b track) int {
		return cmp.Or(cmp.Compare(a.bars[0].started, b.bars[0].started), cmp.Compare(a.bars[0].index, b.bars[0].index))
	})
	return t
}

// position is where d lies on an axis of n units.
func (t *timeline) position(d time.Duration, n float64) float64 {
	if t.end <= 0 {
		return 0
	}
	return n * float64(d) / float64(t.end)
}

// busy returns for each of n equal parts of the time which share of it the track was running queries.
func (t *timeline) busy(tr track, n int) []float64 {
	shares := make([]float64, n)
	for _, b := range tr.bars {
		from, to := t.position(b.started, float64(n)), t.position(b.finished, float64(n))
		for i := int(from); i < n && float64(i) < to; i++ {
			shares[i] += min(to, float64(i+1)) - max(from, float64(i))
		}
	}
	return shares
}

// waiting returns for each of n equal parts of the time how many queries were waiting in the middle of it.
func (t *timeline) waiting(n int) []int {
	counts := make([]int, n)
	for _, tr := range t.tracks {
		for _, b := range tr.bars {
			for i := 0; i < n && float64(i)+0.5 < t.position(b.started, float64(n)); i++ {
				counts[i]++
			}
		}
	}
	return counts
}

// name is the track's label.
func (tr track) name() string {
	if tr.pid == 0 {
		return "no connection"
	}
	return fmt.Sprintf("backend %d", tr.pid)
}

const (
	// maxTextRows is how many queries have a row each in a terminal: those that one can still scroll through.
	maxTextRows = 100

	// minChart is how many columns the chart has at the least, also if its rows are then too long for the terminal.
	minChart = 20
)

// printTimeline draws in text, to fit into so many columns.
func printTimeline(w *bufio.Writer, out *outcome, columns int) {
	t := newTimeline(out)
	if t.queries == 0 {
		return
	}
	var rows []textRow
	if t.queries <= maxTextRows {
		rows = t.queryRows()
	} else {
		rows = t.trackRows()
	}
	left, right := 0, 0
	for _, r := range rows {
		if r.chart != nil { // a heading may be longer
			left = max(left, len([]rune(r.left)))
		}
		right = max(right, len(r.right))
	}
	chart := max(columns-left-right-2*len("  ")-1, minChart)
	for _, r := range rows {
		if r.chart == nil {
			fmt.Fprintln(w, r.left)
			continue
		}
		fmt.Fprintf(w, "%-*s  %s  %*s\n", left, r.left, r.chart(chart), right, r.right)
	}
	fmt.Fprintf(w, "%*s  0%*s\n\n", left, "", chart-1, duration(t.end))
}

// A textRow is a row of a drawing in text: a label, a chart of a width that is yet to be known, and a value.
type textRow struct {
	left  string
	chart func(columns int) string // nil for a heading
	right string
}

// queryRows has a row for each query.
func (t *timeline) queryRows() []textRow {
	indexWidth, argWidth := 1, 0
	for _, tr := range t.tracks {
		for _, b := range tr.bars {
			indexWidth = max(indexWidth, len(fmt.Sprint(b.index)))
			argWidth = max(argWidth, len(b.arg))
		}
	}
	rows := []textRow{{left: "timeline (· waiting, █ running, × failed)"}}
	for _, tr := range t.tracks {
		rows = append(rows, textRow{left: tr.name()})
		for _, b := range tr.bars {
			rows = append(rows, textRow{
				left:  fmt.Sprintf("  query %*d  %-*s", indexWidth, b.index, argWidth, b.arg),
				chart: func(columns int) string { return t.textBar(b, columns) },
				right: duration(b.finished - b.started),
			})
		}
	}
	return rows
}

// textBar draws one query. However short its run is, it has a column.
func (t *timeline) textBar(b bar, columns int) string {
	from := min(int(t.position(b.started, float64(columns))), columns-1)
	to := max(int(math.Ceil(t.position(b.finished, float64(columns)))), from+1)
	mark := "█"
	if b.failed {
		mark = "×"
	}
	return strings.Repeat("·", from) + strings.Repeat(mark, to-from) + strings.Repeat(" ", columns-to)
}

// trackRows has a row for each connection, and one for the queries that wait.
func (t *timeline) trackRows() []textRow {
	rows := []textRow{
		{left: "timeline (█ busy; one row for each connection)"},
		{
			left: "waiting",
			chart: func(columns int) string {
				var b strings.Builder
				for _, n := range t.waiting(columns) {
					b.WriteString(shade(" ▁▂▃▄▅▆▇█", float64(n)/float64(t.queries)))
				}
				return b.String()
			},
			right: counted(t.queries, "query", "queries"),
		},
	}
	for _, tr := range t.tracks {
		rows = append(rows, textRow{
			left: tr.name(),
			chart: func(columns int) string {
				var b strings.Builder
				for _, share := range t.busy(tr, columns) {
					b.WriteString(shade(" ░▒▓█", share))
				}
				return b.String()
			},
			right: counted(len(tr.bars), "query", "queries"),
		})
	}
	return rows
}

// shade is one of the characters, from none of them for nothing to the last for a whole. Only nothing is the first.
func shade(chars string, share float64) string {
	r := []rune(chars)
	i := int(math.Ceil(min(share, 1)*float64(len(r)-1) - 0.01))
	return string(r[max(i, 0)])
}

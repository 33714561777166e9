package main

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// example has two backends, a query that fails and one that never got a connection.
func example() *outcome {
	queued := time.Unix(1_000_000, 0)
	ran := func(arg string, pid uint32, from, to int, err error) lookup {
		return lookup{arg: arg, err: err, span: fanout.Span{PID: pid, Queued: queued,
			Started: queued.Add(time.Duration(from) * time.Millisecond), Finished: queued.Add(time.Duration(to) * time.Millisecond)}}
	}
	return &outcome{elapsed: 40 * time.Millisecond, lookups: []lookup{
		ran("a_1", 71, 0, 20, nil),
		ran("a_22", 70, 2, 10, nil),
		ran("a_3", 70, 10, 30, errors.New("failed")),
		ran("a_4", 71, 20, 40, nil),
		{arg: "a_5", err: errors.New("no connection")},
	}}
}

func drawn(out *outcome, columns int) string {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	printTimeline(w, out, columns)
	w.Flush()
	return b.String()
}

func TestTimelineText(t *testing.T) {
	const want = `timeline (· waiting, █ running, × failed)
backend 71
  query 0  a_1   ████████████████████                      20.0 ms
  query 3  a_4   ····················████████████████████  20.0 ms
backend 70
  query 1  a_22  ··████████                                8.00 ms
  query 2  a_3   ··········××××××××××××××××××××            20.0 ms
no connection
  query 4  a_5   ·······································×  0.00 ms
                 0                                40.0 ms

`
	if diff := cmp.Diff(want, drawn(example(), 67)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTimelineWidth(t *testing.T) {
	many := example()
	for range 30 {
		many.lookups = append(many.lookups, example().lookups...)
	}
	for _, out := range []*outcome{example(), many} {
		for columns := 60; columns < 200; columns++ {
			for line := range strings.Lines(drawn(out, columns)) {
				if n := len([]rune(line)); n > columns { // with its newline: the last column stays free
					t.Fatalf("%d columns for %d:\n%s", n, columns, line)
				}
			}
		}
		drawn(out, 0)
	}
	if got := drawn(&outcome{}, 80); got != "" {
		t.Errorf("drawn of nothing: %q", got)
	}
}

func TestTimelineOfMany(t *testing.T) {
	out := &outcome{}
	queued := time.Unix(1_000_000, 0)
	at := func(ms int) time.Time { return queued.Add(time.Duration(ms) * time.Millisecond) }
	for i := range 100 { // one after the other on one backend, and on another only in the first half, half of the time
		out.lookups = append(out.lookups, lookup{span: fanout.Span{PID: 1, Queued: queued, Started: at(2 * i), Finished: at(2*i + 2)}})
		if i < 50 {
			out.lookups = append(out.lookups, lookup{span: fanout.Span{PID: 2, Queued: queued, Started: at(2 * i), Finished: at(2*i + 1)}})
		}
	}
	const want = `timeline (█ busy; one row for each connection)
waiting    ██▇▇▆▆▅▄▄▃▃▃▂▂▂▂▁▁▁▁  150 queries
backend 1  ████████████████████  100 queries
backend 2  ▒▒▒▒▒▒▒▒▒▒             50 queries
           0             200 ms

`
	if diff := cmp.Diff(want, drawn(out, 45)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// elements parses the whole picture, and counts the rectangles of each class.
func elements(t *testing.T, svg []byte) map[string]int {
	t.Helper()
	classes := map[string]int{}
	decoder := xml.NewDecoder(bytes.NewReader(svg))
	for depth := 0; ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			if depth != 0 {
				t.Errorf("depth %d at the end", depth)
			}
			return classes
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if depth == 0 && (token.Name.Local != "svg" || token.Name.Space != "http://www.w3.org/2000/svg") {
				t.Errorf("the root is %v", token.Name)
			}
			depth++
			for _, attr := range token.Attr {
				if attr.Name.Local == "class" && token.Name.Local == "rect" {
					classes[attr.Value]++
				}
				if attr.Name.Local == "href" || strings.Contains(attr.Value, "NaN") || strings.Contains(attr.Value, "Inf") || strings.HasPrefix(attr.Value, "-") {
					t.Errorf("attribute %v", attr)
				}
			}
		case xml.EndElement:
			depth--
		}
	}
}

func TestTimelineSVG(t *testing.T) {
	var b bytes.Buffer
	out := example()
	out.lookups[0].arg = `<&">`
	drawTimeline(&b, newTimeline(out), "a <caption> & more")
	if diff := cmp.Diff(map[string]int{"background": 1, "wait": 1 + 5, "run": 1 + 3, "fail": 1 + 2}, elements(t, b.Bytes())); diff != "" {
		t.Errorf("rectangles, with those of the legend (-want +got)\n%s", diff)
	}
	for _, want := range []string{"prefers-color-scheme: dark", "&lt;&amp;", "backend 70", "no connection", "40 ms"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not there", want)
		}
	}
	for _, out := range []*outcome{{}, {lookups: make([]lookup, 1)}, {lookups: make([]lookup, 300)}} {
		b.Reset()
		drawTimeline(&b, newTimeline(out), "")
		elements(t, b.Bytes())
	}
}

func TestTimelineFile(t *testing.T) {
	dsn := pgtest.DSN(t)
	file := filepath.Join(t.TempDir(), "timeline.svg")
	r := succeeds(t, "-dsn", dsn, "-timeline="+file)
	svg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := elements(t, svg); got["run"] != 30+1 || got["fail"] != 0 {
		t.Errorf("rectangles: %v", got)
	}
	if strings.Contains(r.stdout, "timeline") {
		t.Errorf("drawn in text too:\n%s", r.stdout)
	}

	succeeds(t, "-dsn", dsn, "-timeline="+file, "-queries", "3000")
	if svg, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	if got := elements(t, svg); got["run"] < 10 {
		t.Errorf("rectangles: %v", got)
	}
	if len(svg) > 1_000_000 {
		t.Errorf("%d bytes", len(svg))
	}

	r = demo(t, "-dsn", dsn, "-timeline="+filepath.Join(t.TempDir(), "no", "such.svg"))
	if r.status != failure || !strings.HasPrefix(r.lastLine(), "demo: -timeline: open ") || strings.Count(r.stdout, "ListAByData") != 30 {
		t.Errorf("status %d\n%s\n%s", r.status, r.stderr, r.stdout)
	}
}

func TestTimelineFlag(t *testing.T) {
	r := succeeds(t, "-dsn", pgtest.DSN(t), "-timeline", "-conns", "2")
	if strings.Count(r.stdout, "\nbackend ") != 2 || strings.Count(r.stdout, "\n  query ") != 30 || !strings.Contains(r.stdout, "·█") {
		t.Errorf("output:\n%s", r.stdout)
	}
}

func TestTicks(t *testing.T) {
	for whole := time.Duration(1); whole < time.Hour; whole = whole*13/10 + 1 {
		step := tickStep(whole)
		if n := whole / step; n > 10 || whole > 10 && n < 4 {
			t.Errorf("%d ticks of %v in %v", n, step, whole)
		}
	}
	for d, want := range map[time.Duration]string{500 * time.Microsecond: "0.5 ms", 20 * time.Millisecond: "20 ms"} {
		if got := tickLabel(d, d); got != want {
			t.Errorf("%v is %s", d, got)
		}
	}
	if got := tickLabel(500*time.Millisecond, 3*time.Second); got != "0.5 s" {
		t.Errorf("half a second is %s", got)
	}
}

func TestNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0.00 ms", 1234 * time.Microsecond: "1.23 ms", 56789 * time.Microsecond: "56.8 ms",
		999 * time.Millisecond: "999 ms", 1500 * time.Millisecond: "1.50 s", 75 * time.Second: "75.0 s"} {
		if got := duration(d); got != want {
			t.Errorf("%v is %s", d, got)
		}
	}
	if got := fmt.Sprint(counted(1, "row", "rows"), counted(0, "row", "rows")); got != "1 row 0 rows" && got != "1 row0 rows" {
		t.Error(got)
	}
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

// Sizes in the picture.
const (
	svgMargin  = 24.0
	svgLeft    = 150.0 // the column of labels
	svgRight   = 84.0  // the column of values
	svgChart   = 640.0
	svgRow     = 15.0
	svgHeading = 21.0
	svgLane    = 24.0 // a row that is a connection
	svgWaiting = 60.0 // the row of the queries that wait
	svgWidth   = svgMargin + svgLeft + svgChart + svgRight + svgMargin

	// svgMaxRows is how many queries have a row each.
	svgMaxRows = 200
)

// The colours are for light and for dark surroundings, as the reader's system says. Custom properties, which would need
// each rule once only, were decided against: not every program that shows SVG knows them.
const svgStyle = `
text { font: 11px system-ui, sans-serif; fill: #57606a }
.title { font-size: 15px; font-weight: 600; fill: #1f2328 }
.heading { font-weight: 600; fill: #1f2328 }
.value { text-anchor: end }
.tick { text-anchor: middle }
.background { fill: #ffffff }
.grid { stroke: #d8dee4; stroke-width: 1 }
.wait { fill: #c9d1d9 }
.run { fill: #2f6fde }
.fail { fill: #cf222e }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 }
  .title, .heading { fill: #f0f6fc }
  .background { fill: #0d1117 }
  .grid { stroke: #2b323b }
  .wait { fill: #3d444d }
  .run { fill: #589bff }
  .fail { fill: #ff7b72 }
}
`

// writeTimeline draws into the file of -timeline.
func writeTimeline(opts options, out *outcome) error {
	var b bytes.Buffer
	drawTimeline(&b, newTimeline(out), summary(opts, out))
	if err := os.WriteFile(opts.timeline.file, b.Bytes(), 0o666); err != nil {
		return fmt.Errorf("-timeline: %w", err)
	}
	return nil
}

// drawTimeline draws an SVG with nothing outside of it: no script, no font, no style sheet.
func drawTimeline(w io.Writer, t timeline, caption string) {
	d := &drawing{t: t, y: svgMargin}
	d.y += 11
	d.text("title", svgMargin, d.y, fmt.Sprintf("%s on %s", counted(t.queries, "query", "queries"), counted(t.backends, "connection", "connections")))
	d.y += 19
	d.text("label", svgMargin, d.y, caption)
	d.y += 26
	d.legend()
	d.y += 22
	top := d.y
	if t.queries <= svgMaxRows {
		d.queryRows()
	} else {
		d.trackRows()
	}
	bottom := d.y
	d.y += 15 + svgMargin

	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img">`+"\n",
		svgWidth, d.y, svgWidth, d.y)
	fmt.Fprintf(w, "<title>%s</title>\n<style>%s</style>\n", program.EscapeXML(caption), svgStyle)
	fmt.Fprintf(w, `<rect class="background" width="%.0f" height="%.0f"/>`+"\n", svgWidth, d.y)
	grid := &drawing{t: t}
	grid.grid(top, bottom)
	_, _ = w.Write(grid.b.Bytes()) // below the bars
	_, _ = w.Write(d.b.Bytes())
	fmt.Fprintln(w, "</svg>")
}

// A drawing is an SVG in progress; y is where it goes on.
type drawing struct {
	b bytes.Buffer
	t timeline
	y float64
}

func (d *drawing) text(class string, x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" x="%.1f" y="%.1f">%s</text>`+"\n", class, x, y, program.EscapeXML(s))
}

// rect draws a rectangle, with a text that is shown to whoever points at it.
func (d *drawing) rect(class string, x, y, width, height float64, title string) {
	if title == "" {
		fmt.Fprintf(&d.b, `<rect class="%s" x="%.2f" y="%.1f" width="%.2f" height="%.1f"/>`+"\n", class, x, y, width, height)
		return
	}
	fmt.Fprintf(&d.b, `<rect class="%s" x="%.2f" y="%.1f" width="%.2f" height="%.1f"><title>%s</title></rect>`+"\n",
		class, x, y, width, height, program.EscapeXML(title))
}

// x is where a point of time lies.
func (d *drawing) x(at time.Duration) float64 {
	return svgMargin + svgLeft + d.t.position(at, svgChart)
}

func (d *drawing) legend() {
	x := svgMargin
	for _, entry := range []struct{ class, name string }{{"wait", "waiting"}, {"run", "running"}, {"fail", "failed"}} {
		if entry.class == "fail" && !d.t.hasFailed() {
			continue
		}
		d.rect(entry.class, x, d.y-9, 10, 10, "")
		d.text("label", x+15, d.y, entry.name)
		x += 78
	}
}

func (t *timeline) hasFailed() bool {
	return slices.ContainsFunc(t.tracks, func(tr track) bool {
		return slices.ContainsFunc(tr.bars, func(b bar) bool { return b.failed })
	})
}

// grid draws the axis of time.
func (d *drawing) grid(top, bottom float64) {
	for at := time.Duration(0); at <= d.t.end; at += tickStep(d.t.end) {
		x := d.x(at)
		fmt.Fprintf(&d.b, `<line class="grid" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`+"\n", x, x, top-4, bottom+4)
		label := "0"
		if at > 0 {
			label = tickLabel(at, d.t.end)
		}
		d.text("tick", x, bottom+18, label)
	}
}

// tickStep is a round number of which four to ten make up the whole.
func tickStep(whole time.Duration) time.Duration {
	power := time.Duration(1)
	for 40*power <= whole {
		power *= 10
	}
	for _, factor := range []time.Duration{5, 2} {
		if 4*factor*power <= whole {
			return factor * power
		}
	}
	return power
}

// tickLabel is a round duration, in the unit for the whole, without the zeros that duration would give it.
func tickLabel(d, whole time.Duration) string {
	if whole >= time.Second {
		return fmt.Sprintf("%g s", d.Seconds())
	}
	return fmt.Sprintf("%g ms", float64(d)/float64(time.Millisecond))
}

// queryRows draws a row for each query.
func (d *drawing) queryRows() {
	for _, tr := range d.t.tracks {
		d.y += svgHeading
		d.text("heading", svgMargin, d.y-6, tr.name())
		for _, b := range tr.bars {
			d.text("label", svgMargin+12, d.y+11, fmt.Sprintf("%d", b.index))
			d.text("label", svgMargin+52, d.y+11, b.arg)
			d.text("value", svgWidth-svgMargin, d.y+11, duration(b.finished-b.started))
			d.rect("wait", d.x(0), d.y+6.5, d.x(b.started)-d.x(0), 3, "")
			d.bar(b, 3, svgRow-6, 0)
			d.y += svgRow
		}
	}
}

// bar draws a query's run, less a gap at its end. However short it is, it can be seen.
func (d *drawing) bar(b bar, top, height, gap float64) {
	class, what := "run", "ran"
	if b.failed {
		class, what = "fail", "failed after"
	}
	d.rect(class, d.x(b.started), d.y+top, max(d.x(b.finished)-d.x(b.started)-gap, 1), height,
		fmt.Sprintf("query %d (%s): waited %s, %s %s", b.index, b.arg, duration(b.started), what, duration(b.finished-b.started)))
}

// trackRows draws a row for each connection, below the number of queries that wait.
func (d *drawing) trackRows() {
	d.text("heading", svgMargin, d.y+svgWaiting/2, "waiting")
	d.text("value", svgWidth-svgMargin, d.y+svgWaiting/2, counted(d.t.queries, "query", "queries"))
	for i, n := range d.t.waiting(svgChart / 2) {
		if n > 0 {
			height := math.Ceil((svgWaiting - 8) * float64(n) / float64(d.t.queries))
			d.rect("wait", svgMargin+svgLeft+float64(2*i), d.y+svgWaiting-4-height, 2, height, "")
		}
	}
	d.y += svgWaiting
	for _, tr := range d.t.tracks {
		d.text("heading", svgMargin, d.y+16, tr.name())
		d.text("value", svgWidth-svgMargin, d.y+16, counted(len(tr.bars), "query", "queries"))
		d.lane(tr)
		d.y += svgLane
	}
}

// lane draws the runs of a connection side by side, with a gap between them where they are long enough to be told apart.
// Shorter ones become one rectangle, so that the picture's size does not follow the number of queries.
func (d *drawing) lane(tr track) {
	const top, height, gap, short = 4, svgLane - 8, 0.75, 3
	for i := 0; i < len(tr.bars); {
		first := tr.bars[i]
		i++
		if d.x(first.finished)-d.x(first.started) >= short {
			d.bar(first, top, height, gap)
			continue
		}
		end := first.finished
		for ; i < len(tr.bars); i++ {
			next := tr.bars[i]
			if next.failed != first.failed || d.x(next.started)-d.x(end) > gap || d.x(next.finished)-d.x(next.started) >= short {
				break
			}
			end = max(end, next.finished)
		}
		class := "run"
		if first.failed {
			class = "fail"
		}
		d.rect(class, d.x(first.started), d.y+top, max(d.x(end)-d.x(first.started)-gap, 0.5), height, "")
	}
}

package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

// Sizes in the charts.
const (
	chartWidth  = 960.0
	chartLabels = 176.0 // the column of labels
	chartGap    = 34.0  // between panels
	lineHeight  = 17.0
)

// colours are the contenders', for light and for dark surroundings.
var colours = map[string][2]string{
	single:                    {"#8c959f", "#7d8590"},
	byErrgroup:                {"#bc4c00", "#f0883e"},
	byConc:                    {"#9a6700", "#bb8009"},
	byBatch:                   {"#0e7f8f", "#39c5cf"},
	byAny:                     {"#24292f", "#f0f6fc"},
	byLeastBatch:              {"#6fb1ba", "#2b7f85"},
	byLeastAny:                {"#818b98", "#9da7b3"},
	fanout.Parallel.String():  {"#2f6fde", "#589bff"},
	fanout.Serial.String():    {"#54aeff", "#a5d6ff"},
	fanout.Pipelined.String(): {"#1a7f37", "#3fb950"},
	fanout.Coalesced.String(): {"#8250df", "#be8fff"},
	fanout.Auto.String():      {"#cf222e", "#ff7b72"},
	byPython:                  {"#7d4e00", "#d4a72c"},
	byPythonExample:           {"#b08b52", "#8a6a2f"},
	byPgbench:                 {"#57606a", "#adbac7"},
	byPgbenchPL:               {"#24292f", "#f0f6fc"},
}

// chartStyle is what all charts need. Custom properties, which would need each rule once only, were decided against: not
// every program that shows SVG knows them.
func chartStyle() string {
	var light, dark strings.Builder
	for _, c := range contenders() {
		if colour, ok := colours[c.name]; ok && !c.snapshot {
			fmt.Fprintf(&light, ".c-%s { fill: %s; stroke: %s }\n", c.name, colour[0], colour[0])
			fmt.Fprintf(&dark, "  .c-%s { fill: %s; stroke: %s }\n", c.name, colour[1], colour[1])
		}
	}
	return `svg text { font: 11px system-ui, sans-serif; fill: #57606a }
svg .title { font-size: 16px; font-weight: 600; fill: #1f2328 }
svg .heading { font-weight: 600; fill: #1f2328 }
svg .background { fill: #ffffff }
svg .band { fill: #f6f8fa }
svg .grid { stroke: #d8dee4; stroke-width: 1 }
svg .whisker { stroke-width: 1.4; opacity: 0.55 }
svg .curve { stroke-width: 1.8; fill: none }
svg .ring { fill: #ffffff; stroke-width: 1.8 }
` + light.String() + `svg .ring, svg .ring[class] { fill: #ffffff }
svg .curve, svg .curve[class] { fill: none }
@media (prefers-color-scheme: dark) {
  svg text { fill: #9198a1 }
  svg .title, svg .heading { fill: #f0f6fc }
  svg .background { fill: #0d1117 }
  svg .band { fill: #151b23 }
  svg .grid { stroke: #2b323b }
` + dark.String() + `  svg .ring, svg .ring[class] { fill: #0d1117 }
  svg .curve, svg .curve[class] { fill: none }
}
`
}

// A drawing is an SVG in progress; y is where it goes on.
type drawing struct {
	b bytes.Buffer
	y float64
}

// The anchors of a text.
const (
	left   = "start"
	middle = "middle"
	right  = "end"
)

func (d *drawing) text(class, anchor string, x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" text-anchor="%s" x="%.1f" y="%.1f">%s</text>`+"\n", class, anchor, x, y, program.EscapeXML(s))
}

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, `<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", class, x1, y1, x2, y2)
}

func (d *drawing) rect(class string, x, y, width, height float64, title string) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s</title></rect>`+"\n", class, x, y, width, height, program.EscapeXML(title))
}

// dot draws the contender's mark: filled for a strategy, a ring for the rest.
func (d *drawing) dot(contender string, x, y float64, title string) {
	class := "c-" + contender
	if !strategy(contender) {
		class += " ring"
	}
	fmt.Fprintf(&d.b, `<circle class="%s" cx="%.1f" cy="%.1f" r="3.6"><title>%s</title></circle>`+"\n", class, x, y, program.EscapeXML(title))
}

// head draws the title, what it shows, and which mark is whose.
func (d *drawing) head(title, subtitle string, series []string) {
	d.y = 26
	d.text("title", left, 12, d.y, title)
	d.y += 19
	d.text("label", left, 12, d.y, subtitle)
	d.y += 23
	x := 12.0
	for _, name := range series {
		width := 26 + 6.6*float64(len(label(name)))
		if x+width > chartWidth {
			x = 12
			d.y += lineHeight
		}
		d.dot(name, x+5, d.y-4, label(name))
		d.text("label", left, x+14, d.y, label(name))
		x += width
	}
	d.y += 14
}

// svg is the drawing as a document; with its style it needs nothing else.
func (d *drawing) svg(title string, styled bool) []byte {
	var b bytes.Buffer
	height := d.y + 10
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img">`+"\n", chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", program.EscapeXML(title))
	if styled {
		fmt.Fprintf(&b, "<style>\n%s</style>\n", chartStyle())
	}
	fmt.Fprintf(&b, `<rect class="background" width="%.0f" height="%.0f"/>`+"\n", chartWidth, height)
	b.Write(d.b.Bytes())
	b.WriteString("</svg>")
	return b.Bytes()
}

// A panel is a part of a chart with an axis of its own.
type panel struct {
	title string
	cells []*cell // one for each row; nil where there is none
}

// summary is what is shown to whoever points at a mark.
func summary(c *cell, r result) string {
	return fmt.Sprintf("%s\n%s: %s %s, p10–p90 %s–%s, %s", c.Title(), label(r.Contender), figure(r.Median, c.Unit), c.Unit,
		figure(r.P10, c.Unit), figure(r.P90, c.Unit), counted(r.Values, c.ValueName()))
}

// presentIn returns those of the contenders that ran in one of the cells.
func presentIn(cells []*cell, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return !slices.ContainsFunc(cells, func(c *cell) bool {
			if c == nil {
				return false
			}
			_, ok := c.of(name)
			return ok
		})
	})
}

// values are all that have to lie on an axis.
func values(cells []*cell, series []string) []float64 {
	var all []float64
	for _, c := range cells {
		for _, name := range series {
			if c == nil {
				continue
			}
			if r, ok := c.of(name); ok {
				all = append(all, r.P10, r.P90)
			}
		}
	}
	return all
}

// dotChart draws panels side by side, in each a row of marks for every statement: the median, on a line from p10 to p90.
func dotChart(title, subtitle, axis string, rows []string, panels []panel, names ...string) *drawing {
	var all []*cell
	for _, p := range panels {
		all = append(all, p.cells...)
	}
	series := presentIn(all, names...)
	d := &drawing{}
	d.head(title, subtitle, series)
	rowHeight := 12 + 9.5*float64(len(series))
	width := (chartWidth-chartLabels-12)/float64(len(panels)) - chartGap
	top := d.y + 22
	bottom := top + rowHeight*float64(len(rows))
	for i, name := range rows {
		y := top + rowHeight*float64(i)
		if i%2 == 0 {
			fmt.Fprintf(&d.b, `<rect class="band" x="8" y="%.1f" width="%.1f" height="%.1f"/>`+"\n", y, chartWidth-16, rowHeight)
		}
		d.text("heading", left, 12, y+rowHeight/2+4, name)
	}
	for i, p := range panels {
		x := chartLabels + float64(i)*(width+chartGap) + 8
		scale := newLogAxis(values(p.cells, series), x, x+width)
		d.text("heading", left, x, top-8, p.title)
		for _, v := range scale.ticks() {
			d.line("grid", scale.at(v), top, scale.at(v), bottom+4)
			d.text("label", middle, scale.at(v), bottom+17, tickLabel(v))
		}
		for j, c := range p.cells {
			if c == nil {
				continue
			}
			for k, name := range series {
				r, ok := c.of(name)
				if !ok {
					continue
				}
				y := top + rowHeight*float64(j) + 11 + 9.5*float64(k)
				d.line("whisker c-"+name, scale.at(r.P10), y, scale.at(r.P90), y)
				d.dot(name, scale.at(r.Median), y, summary(c, r))
			}
		}
	}
	d.y = bottom + 34
	d.text("label", right, chartWidth-12, d.y, axis)
	return d
}

// curveChart draws panels side by side, in each a curve for every contender over the number of queries.
func curveChart(title, subtitle string, panels []panel, names ...string) *drawing {
	const height = 270.0
	var all []*cell
	for _, p := range panels {
		all = append(all, p.cells...)
	}
	series := presentIn(all, names...)
	d := &drawing{}
	d.head(title, subtitle, series)
	const axis = 46.0
	width := (chartWidth-24)/float64(len(panels)) - axis - 14
	top := d.y + 22
	bottom := top + height
	for i, p := range panels {
		x0 := 12 + axis + float64(i)*(width+axis+14)
		var queries []float64
		for _, c := range p.cells {
			queries = append(queries, float64(c.Queries))
		}
		across := newLogAxis(queries, x0+8, x0+width-8)
		across.low, across.high = min(across.low, 0), max(across.high, across.low+0.5)
		up := newLogAxis(values(p.cells, series), bottom, top)
		d.text("heading", left, x0, top-8, p.title)
		for _, v := range up.ticks() {
			d.line("grid", x0, up.at(v), x0+width, up.at(v))
			d.text("label", right, x0-5, up.at(v)+4, tickLabel(v))
		}
		for _, c := range p.cells {
			d.text("label", middle, across.at(float64(c.Queries)), bottom+17, program.Thousands(c.Queries))
		}
		for _, name := range series {
			var points []string
			for _, c := range p.cells {
				if r, ok := c.of(name); ok {
					points = append(points, fmt.Sprintf("%.1f,%.1f", across.at(float64(c.Queries)), up.at(r.Median)))
				}
			}
			fmt.Fprintf(&d.b, `<polyline class="c-%s curve" points="%s"/>`+"\n", name, strings.Join(points, " "))
		}
		for _, name := range series {
			for _, c := range p.cells {
				if r, ok := c.of(name); ok {
					x := across.at(float64(c.Queries))
					d.line("whisker c-"+name, x, up.at(r.P10), x, up.at(r.P90))
					d.dot(name, x, up.at(r.Median), summary(c, r))
				}
			}
		}
	}
	d.y = bottom + 34
	d.text("label", right, chartWidth-12, d.y, "milliseconds over queries in a call, both on a logarithmic scale")
	return d
}

// A bar is one contender's value in a barChart.
type bar struct {
	contender      string
	value          float64
	low, high      float64 // equal: no spread is drawn
	written, title string
}

// barChart draws groups of horizontal bars on one axis from zero.
func barChart(title, subtitle, axis string, labels []string, groups [][]bar) *drawing {
	d := &drawing{}
	d.head(title, subtitle, nil)
	const barLabels, barValues, barHeight = 220.0, 80.0, 17.0
	highest := 0.0
	for _, group := range groups {
		for _, b := range group {
			highest = max(highest, b.value, b.high)
		}
	}
	ticks := linearTicks(highest)
	end := ticks[len(ticks)-1]
	at := func(v float64) float64 { return barLabels + v/end*(chartWidth-barLabels-barValues) }
	top := d.y
	for i, group := range groups {
		if labels[i] != "" {
			d.y += 20
			d.text("heading", left, 12, d.y-5, labels[i])
		}
		for _, b := range group {
			d.text("label", right, barLabels-8, d.y+12, label(b.contender))
			d.rect("c-"+b.contender, barLabels, d.y+2.5, max(at(b.value)-barLabels, 1), barHeight-6, b.title)
			if b.high > b.low {
				d.line("grid", at(b.low), d.y+barHeight/2-0.5, at(b.high), d.y+barHeight/2-0.5)
			}
			d.text("label", left, max(at(b.value), at(b.high))+6, d.y+12, b.written)
			d.y += barHeight
		}
		d.y += 8
	}
	var grid drawing
	for _, v := range ticks {
		grid.line("grid", at(v), top, at(v), d.y)
		grid.text("label", middle, at(v), d.y+14, tickLabel(v))
	}
	grid.b.Write(d.b.Bytes()) // above the grid
	d.b = grid.b
	d.y += 30
	d.text("label", right, chartWidth-12, d.y, axis)
	return d
}

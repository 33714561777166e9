package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// cellsOf are the rows of a Markdown table's lines, by their first two columns, with nothing in bold.
func cellsOf(t *testing.T, file string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		var cells []string
		for part := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.Trim(part, " *"))
		}
		if len(cells) > 2 {
			rows[cells[0]+", "+cells[1]] = cells[2:]
		}
	}
	return rows
}

// The figures in the project's README are those of the report, which has columns besides.
func TestReadmeHasTheReportsFigures(t *testing.T) {
	report, readme := cellsOf(t, "report.md"), cellsOf(t, "../README.md")
	found := 0
	for _, statement := range shortLabels {
		for _, trip := range []string{"as it is", "+1 ms", "+10 ms"} {
			cells, ok := readme[statement+", "+trip]
			if !ok {
				continue
			}
			found++
			if of := report[statement+", "+trip]; len(of) < len(cells) || !slices.Equal(of[:len(cells)], cells) {
				t.Errorf("%s, %s: the README has %v, the report %v", statement, trip, cells, of)
			}
		}
	}
	if found < 3 {
		t.Errorf("the README has %d rows of the report", found)
	}
}

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// printed is what a reader of the document declares, independently of what the program does.
type printed struct {
	Strategy string `json:"strategy"`
	Snapshot bool   `json:"snapshot"`
	Queries  []struct {
		Index int          `json:"index"`
		Name  string       `json:"name"`
		Arg   string       `json:"arg"`
		PID   uint32       `json:"pid"`
		Rows  []printedRow `json:"rows"`
		Error string       `json:"error"`
	} `json:"queries"`
	Merged    []printedRow `json:"merged"`
	ElapsedMS float64      `json:"elapsed_ms"`
	Backends  int          `json:"backends"`
}

type printedRow struct {
	ID   int32   `json:"id"`
	Data *string `json:"data"`
}

// read reads the one document on stdout, which must have no other fields.
func read(t *testing.T, r result) printed {
	t.Helper()
	var p printed
	decoder := json.NewDecoder(strings.NewReader(r.stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		t.Fatalf("%v\n%s", err, r.stdout)
	}
	if decoder.More() {
		t.Errorf("more than one document:\n%s", r.stdout)
	}
	if strings.Contains(r.stdout, "null") {
		t.Errorf("something is null:\n%s", r.stdout)
	}
	return p
}

func TestJSON(t *testing.T) {
	dsn, conn := filled(t, 100)
	r := succeeds(t, "-dsn", dsn, "-json", "-seed", "1")
	p := read(t, r)
	if p.Strategy != "parallel" || p.Snapshot || len(p.Queries) != 30 || p.ElapsedMS <= 0 {
		t.Errorf("%+v", p)
	}
	pids := map[uint32]bool{}
	merged := map[int32]printedRow{}
	for i, q := range p.Queries {
		if q.Index != i || q.Name != "ListAByData" || q.PID == 0 {
			t.Errorf("query %d: %+v", i, q)
		}
		pids[q.PID] = true
		var want []printedRow
		for _, row := range rowsOf(t, conn, q.Arg) {
			want = append(want, printedRow(row))
			merged[row.ID] = printedRow(row)
		}
		if diff := cmp.Diff(want, q.Rows); diff != "" {
			t.Errorf("rows of query %d (-want +got)\n%s", i, diff)
		}
	}
	if p.Backends != len(pids) || p.Backends < 2 {
		t.Errorf("%d backends, %d process ids", p.Backends, len(pids))
	}
	if !slices.IsSortedFunc(p.Merged, func(a, b printedRow) int { return int(a.ID - b.ID) }) || len(p.Merged) != len(merged) {
		t.Errorf("merged: %+v", p.Merged)
	}
	for _, row := range p.Merged {
		if diff := cmp.Diff(merged[row.ID], row); diff != "" {
			t.Errorf("merged (-want +got)\n%s", diff)
		}
	}
	if !strings.Contains(r.stderr, fmt.Sprintf("30 queries, 30 rows, %d distinct keys; ", len(merged))) || !strings.Contains(r.stderr, "seed 1)") {
		t.Errorf("no summary on stderr: %s", r.stderr)
	}

	var text []string
	for _, line := range strings.Split(succeeds(t, "-dsn", dsn, "-seed", "1").stdout, "\n")[:30] {
		text = append(text, queryLine.FindStringSubmatch(line)[2])
	}
	var args []string
	for _, q := range p.Queries {
		args = append(args, q.Arg)
	}
	if diff := cmp.Diff(text, args); diff != "" {
		t.Errorf("other arguments for the same seed (-text +JSON)\n%s", diff)
	}
	if other := read(t, succeeds(t, "-dsn", dsn, "-json", "-seed", "2")); other.Queries[0].Arg == args[0] && other.Queries[1].Arg == args[1] && other.Queries[2].Arg == args[2] {
		t.Error("the same arguments for another seed")
	}
}

// The keys and their order.
func TestJSONShape(t *testing.T) {
	data := "a_0"
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	printJSON(w, options{}, &outcome{
		lookups: []lookup{{arg: "a_0", rows: []db.A{{ID: 1, Data: &data}, {ID: 2}}}},
		merged:  map[int32]db.A{2: {ID: 2}, 1: {ID: 1, Data: &data}},
		elapsed: 1234567,
	})
	w.Flush()
	got := regexp.MustCompile(`\s+`).ReplaceAllString(b.String(), "")
	const want = `{"strategy":"parallel","snapshot":false,"queries":[{"index":0,"name":"","arg":"a_0","pid":0,"rows":[{"id":1,"data":"a_0"},{"id":2,"data":null}]}],` +
		`"merged":[{"id":1,"data":"a_0"},{"id":2,"data":null}],"elapsed_ms":1.235,"backends":0}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestJSONWithNothing(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, args := range [][]string{{"-rows", "0"}, {"-no-merge"}, {"-queries", "0"}} {
		r := succeeds(t, append(args, "-dsn", dsn, "-json")...)
		p := read(t, r)
		if p.Merged == nil || len(p.Merged) != 0 || p.Queries == nil {
			t.Errorf("%s: %s", args, r.stdout)
		}
		for _, q := range p.Queries {
			if q.Rows == nil || len(q.Rows) != 0 || q.PID == 0 || q.Name != "ListAByData" {
				t.Errorf("%s: %+v", args, q)
			}
		}
	}
}

// All else that is asked for goes to stderr.
func TestJSONWithTimeline(t *testing.T) {
	r := succeeds(t, "-dsn", pgtest.DSN(t), "-json", "-timeline", "-echo")
	read(t, r)
	for _, want := range []string{"timeline (", "backend ", "level=INFO", "30 queries"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("%q is not on stderr", want)
		}
	}
}

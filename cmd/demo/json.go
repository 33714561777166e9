package main

import (
	"bufio"
	"encoding/json"
	"math"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

// A document is what -json prints. Its lists are empty where there is nothing, never null.
type document struct {
	Strategy  string          `json:"strategy"`
	Snapshot  bool            `json:"snapshot"`
	Queries   []documentQuery `json:"queries"`
	Merged    []db.A          `json:"merged"` // in the order of the ids
	ElapsedMS float64         `json:"elapsed_ms"`
	Backends  int             `json:"backends"`
}

// A documentQuery is one query of the document. One that never got a connection has no name and the PID 0.
type documentQuery struct {
	Index int    `json:"index"`
	Name  string `json:"name"`
	Arg   string `json:"arg"`
	PID   uint32 `json:"pid"`
	Rows  []db.A `json:"rows"`
	Error string `json:"error,omitempty"` // only there with -partial, for a query that has failed
}

func printJSON(w *bufio.Writer, opts options, out *outcome) {
	doc := document{
		Strategy:  opts.strategy.String(),
		Snapshot:  opts.snapshot,
		Queries:   make([]documentQuery, len(out.lookups)),
		Merged:    append([]db.A{}, sortedByKey(out.merged)...),
		ElapsedMS: math.Round(out.elapsed.Seconds()*1e6) / 1e3,
		Backends:  out.backends(),
	}
	for i, l := range out.lookups {
		doc.Queries[i] = documentQuery{Index: i, Name: l.span.Name, Arg: l.arg, PID: l.span.PID, Rows: append([]db.A{}, l.rows...)}
		if l.err != nil {
			doc.Queries[i].Error = program.OneLine(l.err)
		}
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(doc) // what can fail is w alone
}

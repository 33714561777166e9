package main

import (
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// A contender is a way of doing the work.
type contender struct {
	name  string // on the command line and in the JSON
	label string // in charts

	// unmodified says that it runs the functions as sqlc generated them; the others need a statement or a loop of their own.
	unmodified bool

	// aside says that no claim about many cells rests on it: it gets less time than the others.
	aside bool

	// least says that it is a yardstick for statements that travel together, see least.go. It is measured where the
	// network does not count.
	least bool

	// elsewhere says that it is a program of its own, and not run by work.task.
	elsewhere bool

	strategy *fanout.Strategy // of package fanout; nil: somebody else's
	snapshot bool
	src      *fanout.Source[*benchdb.Queries] // where a strategy runs, from bound
}

// The contenders' names, but those of the strategies, which are the strategies' own.
const (
	single          = "one-by-one"
	byErrgroup      = "errgroup"
	byConc          = "conc"
	byBatch         = "batch"
	byAny           = "any"
	byLeastBatch    = "least-batch"
	byLeastAny      = "least-any"
	byPython        = "sqlalchemy"
	byPythonExample = "sqlalchemy-example"
	byPgbench       = "pgbench"
	byPgbenchPL     = "pgbench-pipelined"
	withSnapshot    = "+snapshot"
)

// contenders are all there are, in the order of every table.
func contenders() []contender {
	all := []contender{
		{name: single, label: "one by one", unmodified: true, aside: true},
		{name: byErrgroup, label: "errgroup by hand", unmodified: true},
		{name: byConc, label: "conc pool", unmodified: true, aside: true},
		{name: byBatch, label: "pgx.Batch"},
		{name: byAny, label: "= any($1) by hand"},
		{name: byLeastBatch, label: "coroutines, pgx.Batch", least: true},
		{name: byLeastAny, label: "coroutines, = any($1)", least: true},
	}
	for s := fanout.Parallel; s <= fanout.Auto; s++ {
		for _, snapshot := range []bool{false, true} {
			c := contender{name: s.String(), label: "fanout " + s.String(), unmodified: true, aside: snapshot || s == fanout.Serial, strategy: &s, snapshot: snapshot}
			if snapshot {
				c.name += withSnapshot
				c.label += ", snapshot"
			}
			all = append(all, c)
		}
	}
	return append(all,
		contender{name: byPython, label: "SQLAlchemy gather", aside: true, elsewhere: true},
		contender{name: byPythonExample, label: "SQLAlchemy gather, as in its example", aside: true, elsewhere: true},
		contender{name: byPgbench, label: "pgbench", elsewhere: true},
		contender{name: byPgbenchPL, label: "pgbench, pipelined", elsewhere: true})
}

func label(name string) string {
	for _, c := range contenders() {
		if c.name == name {
			return c.label
		}
	}
	return name
}

// bound gives each strategy a Source of its own on the pool, new and with nothing learned. It is for all cells on that
// pool: a program, too, makes its Source once, and runs by it whatever there is to run.
func bound(all []contender, pool *pgxpool.Pool, conns int) []contender {
	all = slices.Clone(all)
	for i := range all {
		if c := &all[i]; c.strategy != nil {
			src := fanout.New(pool, benchdb.New)
			src.Limit, src.Strategy, src.Snapshot = conns, *c.strategy, c.snapshot
			c.src = &src
		}
	}
	return all
}

// learns says that the contender's first calls in a cell are not what its later ones are.
func (c contender) learns() bool {
	return c.strategy != nil && *c.strategy >= fanout.Pipelined && !c.snapshot
}

// weight is the contender's share of a cell's time, as against 1.
func (c contender) weight() float64 {
	if c.aside {
		return 0.25
	}
	return 1
}

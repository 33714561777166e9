// Package fanouttest is what the tests of package fanout have in common: queries, pools, faults of the network, and checks.
//
// There are so many tests that they are several packages, which go test runs side by side:
//
//	fanout                         the API, call by call: order, errors, panics, snapshots, spans, what callers may not do;
//	                               Auto; the parts that know no server, and what the catalog proves; examples, benchmarks
//	internal/fanouttest/equal      every strategy returns what Serial returns: random calls, the corpus of statements, a shop,
//	                               all kinds of arguments and columns
//	internal/fanouttest/pipelined  statements of several functions on one connection: Pipelined, Coalesced
//	internal/fanouttest/servers    connections that fail, Retries, servers that restart, standbys, PgBouncer, several databases
//
// Helpers that take a testing.TB fail the test in place of returning an error, as those of pgtest do; Do returns that of its
// function.
package fanouttest

import (
	"flag"
	"slices"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// Soak makes the random and repeated tests run for long.
var Soak = flag.Bool("soak", false, "run the random and repeated tests for long")

// Strategies are all strategies.
var Strategies = worthRacing(fanout.Parallel, fanout.Serial, fanout.Pipelined, fanout.Coalesced, fanout.Auto)

// Pipelining are those that send the statements of several functions together.
var Pipelining = worthRacing(fanout.Pipelined, fanout.Coalesced, fanout.Auto)

// worthRacing leaves out, under the race detector, what goes the ways of others: Serial has one goroutine at a time where
// Parallel has several, and Auto coalesces as Coalesced does. Tests that name a strategy have it under race as well.
func worthRacing(all ...fanout.Strategy) []fanout.Strategy {
	if !raced {
		return all
	}
	return slices.DeleteFunc(all, func(s fanout.Strategy) bool { return s == fanout.Serial || s == fanout.Coalesced })
}

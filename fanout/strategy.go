package fanout

import "fmt"

// A Strategy is how the queries of a call share connections. It changes how long a call takes and what it costs the
// server, never what the call returns.
type Strategy int

const (
	// Parallel runs each query on its own pooled connection, at most Limit at once. A connection that has finished one
	// query takes the next one waiting, so goroutines and connections follow Limit, not the number of queries.
	Parallel Strategy = iota

	// Serial runs the queries on one connection, one after the other, in their order. It is the reference that the other
	// strategies must equal.
	Serial

	// Pipelined runs the queries on at most Limit connections, and on each sends their statements in one pipeline: many
	// queries cost one round trip.
	Pipelined

	// Coalesced is Pipelined, and makes one statement of statements that differ only in their arguments. Not available
	// yet: a call returns an error that matches [errors.ErrUnsupported].
	Coalesced

	// Auto chooses among the others, call by call, from what it has measured. Not available yet: a call returns an error
	// that matches [errors.ErrUnsupported].
	Auto
)

var strategyNames = [...]string{"parallel", "serial", "pipelined", "coalesced", "auto"}

// String returns the strategy's name in lower case.
func (s Strategy) String() string {
	if s < 0 || int(s) >= len(strategyNames) {
		return fmt.Sprintf("Strategy(%d)", int(s))
	}
	return strategyNames[s]
}

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

	// Pipelined runs the queries on at most Limit connections, and on each sends the statements of several at once, in one
	// round trip. Each statement is a transaction of its own, as when it is sent alone, and its error is its own query's;
	// a lost connection fails all that was under way on it. How many statements go ahead on one connection follows from what they and the round trip have been measured to take,
	// by all calls of a Source and its copies: a slow one goes alone. At most 32 query functions per connection run at
	// once, each with a q of its own; one that is busy with something else does not hold up the others for longer than a
	// few milliseconds. A function has a connection to itself while it copies or sends a batch, and
	// from its first statement that is not a query (begin, set, declare, …) until it returns; so with pgx's simple
	// protocol and with QueryExecModeDescribeExec for each statement. A nested call that is Pipelined too joins: the
	// statements of its queries go by the function's lane with those of others, at most 32 of its functions at once. Any
	// other nested call has the function's connection to itself, as one does that wants a Snapshot where its outer
	// call has none. Inside a transaction (Source.On) the statements of
	// several queries go in one round trip too, in the order of the queries as far as they are asked for together.
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

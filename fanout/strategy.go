package fanout

import "fmt"

// A Strategy is how the queries of a call share connections. It changes how long a call takes and what it costs the
// server, never what the call returns, but for what SQL leaves open: see Coalesced.
type Strategy int

const (
	// Parallel runs each query on its own pooled connection, at most Limit at once. A connection that has finished one
	// query takes the next one waiting, so goroutines and connections follow Limit, not the number of queries.
	Parallel Strategy = iota

	// Serial runs the queries on one connection, one after the other, in their order. It is the reference that the other
	// strategies must equal.
	Serial

	// Pipelined runs the queries on at most Limit connections, and on each sends the statements of several at once, in one
	// round trip. Each statement is a transaction of its own, as when it is sent alone, and its error is its own query's; a
	// lost connection fails all that was under way on it. How many statements go ahead on one connection follows from what
	// they and the round trip have been measured to take, by all calls of a Source and its copies: a slow one goes alone, and
	// behind one of which nothing is known at most one, of another text.
	// At most 32 query functions run at once for each connection that the call may have, each with a q of its own; one that
	// is busy with something else does not hold up the others for longer than a few milliseconds. A function has a
	// connection to itself while it copies or sends a batch, and from its first statement that is not a query (begin, set,
	// declare, …), or that names set_config, setseed or the advisory locks of a session, or that a QueryRewriter of the
	// user's own makes, until it returns, also if that is one of a batch, or one of several in one text, or if a nested
	// call of one query has sent it; with pgx's simple protocol, for each statement. What a nested call of several queries
	// sets may be another function's later. Whatever else a statement leaves in the session may be another function's when
	// the next one reads it: not lastval or currval, but returning. With QueryExecModeDescribeExec a statement takes two
	// round trips, both together with others. A nested call that is Pipelined too joins: the statements of its queries go
	// by the function's connection with those of others, at most 256 of its functions at once, and fewer where many run
	// already. Any other nested call has the function's connection to itself, as one does that wants a Snapshot where its
	// outer call has none. Inside a transaction (Source.On) the statements of several queries go in one round trip too, in
	// the order of the queries as far as they are asked for together. Statements of one text that are proved to do nothing
	// but read, as for Coalesced, and are known to be quick, may share a transaction with each other.
	Pipelined

	// Coalesced is Pipelined, and makes one statement of those that wait at the same time and differ only in their
	// arguments:
	//
	//	select p.ord, q.* from unnest($1, $2) with ordinality p(p1, p2, ord), lateral (<the statement, of p.p1, p.p2>) q
	//
	// Each query function gets the rows of its own execution, in the order of the statement's ORDER BY. What SQL leaves
	// open, as between any two plans, may come out otherwise: which rows a LIMIT takes among those that ORDER BY ranks
	// equal, the order of an array_agg without one, the last digits of a sum of floats, whether what no row needs is
	// evaluated, and fails. Only what is provably the same goes this way: a single SELECT with parameters, that locks
	// nothing and cannot reach a function which is not immutable or stable by the catalog's word, be it called by name,
	// by an operator or a cast, in a view or in a row-security policy; nor one of the few whose result depends on being
	// in a statement of its own, as that of pg_current_xact_id does. Executions share a statement's now() and snapshot.
	// Everything else is pipelined, and so is a text the first time that a Source sees it. The catalog is asked once
	// per text and minute, which takes the server a few milliseconds, or a dozen where pgx's mode has nothing prepared or a
	// hook of the pool may deallocate it, and more where many schemas have objects of the same names: a function that is
	// declared volatile meanwhile may go unnoticed for so long. Where it takes longer than a second, or than
	// statement_timeout, no other text is asked about for a minute. If the one statement fails, its executions run again by
	// themselves, so that an error is its own query's alone. A statement_timeout applies to the one statement; what it has
	// ended runs again by itself too. A text whose executions take longer together than by themselves, and one with long
	// results, is pipelined.
	//
	// PostgreSQL plans the one statement for ten executions, however many there are: the plan of few is the plan of many.
	// A look-up in a large table still goes by the index; a small table is read once for all.
	//
	// Under [Source.On] statements are pipelined, not coalesced.
	Coalesced

	// Auto chooses among the others, statement by statement, from what all calls of a Source and its copies have measured:
	// the round trip, the server's time and the rows of each text, and how much of the pool is in use.
	//
	// The law. A connection is sent as much ahead as keeps the server busy for a round trip, and no more (the
	// bandwidth-delay product); a call's only connection up to 100 ms of work more, which no other could do. Work that is
	// expected to take w is given √(w / 250 µs) connections more each time that none is idle or about to come: the time
	// that it takes falls with their number, what they cost rises with it, and the sum is least there. Behind a statement
	// of which nothing is known goes at most one, of another text (in pgx's mode DescribeExec, what has been described with
	// it); the rest, as in slow start, on other connections. Equal statements are coalesced where they can be and as long as
	// it takes less than running them one by one. And a call takes no more than its share of the pool, which is the pool's
	// size divided by the number of the Source's calls in progress. A second connection, and any further one, it takes only
	// if it is free and nobody waits for it; and while others use the pool, it leaves one free: a queue in front of a pool is
	// first come, first served, and whoever takes many connections stands there many times. A share that shrinks is given back
	// as soon as the functions that have sent something by a connection have returned.
	//
	// Where others use the pool, and calls take more than one and a half times as long as the same work on one connection
	// takes a call that is at work alone, more of them at once would only make everybody slower. Then fewer are at work,
	// though never less than two, or than a third as many as the pool has connections. Others are known by the connections that somebody
	// else has acquired, or a hook of the pool has refused, while these calls have acquired a hundred; without them, as many
	// are at work as the pool has connections. The rest wait their turn, in order, before they ask for one, for at most 100
	// ms, and at most half of AcquireTimeout. To see how long a call takes alone, one is run by itself if none has happened
	// to be for ten seconds; a call that fails, or has had statements described or parsed, does not count. A call of a single
	// query has no turn to wait for, and runs as with Parallel, until one has made a nested call.
	//
	// Estimates change slowly, but a lasting change is noticed. Two executions of a text in a row that take far longer than
	// expected, or 32 that take far less, replace its estimate; the slow ones only when a round trip measured beside them
	// shows that it was not the network. Three slow round trips in a row replace the estimate of the round trip.
	//
	// Sources: what is under way is the bandwidth-delay product of Jacobson's pipe ("Congestion avoidance and control",
	// 1988), as is slow start (RFC 5681), which Citus has for its connections too (citus.executor_slow_start_interval). That
	// a queue grows with what is let in, and serves nobody sooner, is Little's law. To tell a queue by how long things take
	// as against the least that they have taken is TCP Vegas's way (Brakmo and Peterson, 1995), and to drain it now and
	// then, to see that again, BBR's (Cardwell and others, 2016). That each lane takes a part of what is left, so that all
	// end together, is guided self-scheduling (Polychronopoulos and Kuck, 1987).
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

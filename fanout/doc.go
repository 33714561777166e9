// Package fanout runs many sqlc-generated query functions at once, each on its own pooled pgx connection, and merges the
// structs they return into one map keyed by primary key.
//
// The functions are those that sqlc generates for pgx/v5, unmodified, from any schema:
//
//	src := fanout.New(pool, db.New)
//	rows, err := fanout.Gather(ctx, src,
//		func(a db.A) int32 { return a.ID },
//		fanout.Each((*db.Queries).ListAByData, "a_1", "a_7", "a_42")...)
//
// # Calls
//
// [Gather] merges the rows of all queries into a map, [Collect] keeps them per query, [Stream] yields them as queries
// finish, and [Run] is for queries of different types. [Identity] is the map for more than one call.
//
// A call is structured: when it returns, no goroutine of it runs, no connection of it is held and no transaction is open.
// What it returns follows the order of the queries, never the order in which they finished. Without [Source.Partial] it
// is all results or an error: the first failure cancels the other queries, and the [Error] names the one that failed, by
// position and by its name in the SQL. What queries had written by then stays written, unless the call ran in a transaction
// ([Source.On]) that is rolled back.
//
// A call needs one connection to make progress. It starts on the first that it gets, asks for more, up to
// [Source.Limit], only while queries are waiting, and never holds one while it needs another. So any number of calls at
// once, on a pool of any size, come to their end. Behind a pooler that lends its server connections by the transaction, a
// Snapshot call holds several of those at the same time, and may wait for one until its ctx ends.
//
// A failure costs no connections. Statements that are to stop, because another query failed or a ctx ended, are
// cancelled by PostgreSQL cancel requests, where pgx would close the socket; the connections go back to the pool as
// they were. One that ends by itself within some milliseconds needs no request. With Parallel, the connection of a query
// that has failed ends the others' statements with a single pg_cancel_backend, at once, where the server confirms that it
// is PostgreSQL itself at the other end. A server that has not ended a statement one second after its ctx ended is given
// up: the connection is taken out of the pool and closed, and the statement fails. The same happens if a function that
// has the connection to itself has not closed the statement's rows by then. And if an argument of a batch's second
// statement, or a later one's, cannot be encoded, pgx closes the connection.
//
// # Inside a query function
//
// A function gets a query set q that is its own until it returns, for one statement at a time from one goroutine, and a
// ctx. A call that it makes with that ctx, or one derived from it, on a Source of the same pool, is nested: it runs on
// the connection that the function already holds, one query after the other, and needs no other connection; if both
// calls are Pipelined, its statements travel with those of other functions. Limit, AcquireTimeout and Retries do not
// apply to it. A nested call made with another ctx is not recognised, and waits for a connection like everybody else;
// so does whatever a function asks the pool for by itself, which can be a deadlock. So can calls on two pools, nested in
// each other in both orders, where a function has its connection to itself. Functions must not wait for one another: the
// others may not have started.
//
// Functions are coroutines, where a call is Pipelined or has one connection. So none may be locked to its thread
// (runtime.LockOSThread) when it returns, nor, if the call is Pipelined, Coalesced or Auto, while it asks for a statement;
// nor the caller, where a call has one connection and a function may end by runtime.Goexit, as t.FailNow does: Go's runtime
// would end the process.
//
// # Snapshots
//
// Each statement is a transaction of its own, and sees the database as of its own start, unless [Source.On] runs the call
// in a transaction, or [Source.Snapshot] has all queries of a call read one snapshot. The first lane to send a statement
// exports the snapshot, in the same round trip; the others import it with theirs, and are verified to be on the same
// server. The exporting connection runs queries like any other, and when it is the only one to be had, it runs them all.
// Where round trips are cheap, a call begins on a few connections and takes the others a moment later, if queries are still
// waiting.
//
// # Privileges
//
// The package's own statements rely on what PostgreSQL lets every role do: pipelined ones on the function current_schemas,
// and snapshots on the table pg_extension and, on more than one connection, on pg_export_snapshot, pg_backend_pid,
// pg_is_in_recovery and pg_postmaster_start_time. Where that has been revoked from PUBLIC, such a call fails (42501).
// Without the right to read the catalog otherwise, or to end other backends' statements, calls do without.
package fanout

package fanout

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Source is where queries run: a pool, the sqlc query set bound to its connections, and settings. [New] makes one; the
// zero value is not usable. Its exported fields are settings whose zero value is the stated default. It is passed by
// value: copy it, change a field, and the copy differs for one call.
//
//	src := fanout.New(pool, db.New)
//	narrow := src
//	narrow.Limit = 2
//
// A Source may be used by any number of goroutines at once, as the pool may.
type Source[Q any] struct {
	// Limit is the most connections that one call holds at once. 0 stands for the pool's MaxConns, which is also the
	// upper bound of every Limit.
	Limit int

	// Strategy is how queries share connections.
	Strategy Strategy

	// Snapshot makes every query of a call read one and the same snapshot of the database, on whatever connection it
	// runs: each connection is in a REPEATABLE READ, READ ONLY transaction, which lasts as long as it has queries to run;
	// locks of it (pg_advisory_xact_lock) are held for as long, so that queries which take one each may deadlock. A write is
	// refused by the server (25006), though not a notification, nor, up to PostgreSQL 15, a large object; and a commit or
	// rollback before it is sent. After a statement that fails, the transaction goes on from a savepoint before it;
	// what functions of the database have set or locked in earlier statements may be undone with it, as that cannot be seen
	// from outside. [ErrSnapshotServer] and [ErrSnapshotUnsupported] say where the promise cannot be kept.
	Snapshot bool

	// Partial keeps what succeeded when some queries fail: the call returns the results of the successful queries and
	// [Errors] for the others, and a failing query does not stop the rest. If every query fails, there are only Errors.
	Partial bool

	// AcquireTimeout is how long a call waits for its first connection. When it runs out the call fails, with an error
	// that says how many connections are in use and matches [context.DeadlineExceeded]. It is for all attempts together, as
	// long as none has got a connection. 0: ctx alone decides.
	AcquireTimeout time.Duration

	// Retries is how often a call may start again after a transient failure, after a pause that is drawn by chance and
	// grows, from 25 to 50 ms up to 1 to 2 s; 0 is never. What may have written is never repeated. A Snapshot call, which
	// is read only by the server's word, starts again as a whole when a query fails by a serialization failure, a recovery
	// conflict or a deadlock, or when the snapshot, the connection or the server is lost; its query functions run again. Not
	// if one has sent what names pg_notify or the functions of large objects, which a read-only transaction may do for good,
	// nor if one has made a call on another pool or in a transaction of the caller's. In any other call only a query that
	// has not, and none of whose statements was sent, runs again, alone, on another connection; and a call that gets no
	// connection because the server cannot be reached, or has too many, tries again. With Partial, retries come first, and
	// what still fails is reported. A Stream does not start again once the loop has had a result. The error of the last
	// attempt tells those before. Connections that have died in the pool, as all do in a failover, do not take an attempt
	// each: after the first one the pool's are asked before they are used.
	Retries int

	// Observe, if set, is called once for each finished query, in each attempt of its call, with the call's ctx: by one
	// goroutine at a time for all calls of a Source and its copies, about in the order in which the queries finish. It runs
	// between two queries of a connection, so it should be quick. It must not wait for a connection of the pool, nor call
	// through the same Source: all connections may be held by queries that wait to be observed, and it would wait for ever.
	Observe func(context.Context, Span)

	pool   *pgxpool.Pool
	bind   func(DBTX) Q
	tx     pgx.Tx // set by On
	shared *shared
}

// shared is what all copies of a Source have in common.
type shared struct {
	maxConns  int         // the pool's
	observing sync.Mutex  // held while Observe runs
	notCitus  atomic.Bool // a snapshot call has found the server without the extension

	severalHosts bool // the pool's connections need not all lead to one server
	hooks        bool // somebody else may use a connection while it is in the pool
	simple       bool // the pool's connections take several statements in one, also with arguments
	beforeClose  func(*pgx.Conn)
	behindPooler atomic.Bool  // the backend at work for a connection has been found to be not the one that it names
	catalogLate  atomic.Int64 // until when, since epoch, the catalog is not asked, as it has not answered in time

	calls      atomic.Int64 // in progress, with connections of their own
	nesting    atomic.Bool  // single queries have made calls of their own: they had better be ready for that
	statements statements
	trip       trip
	rounds     rounds
	turns      turns
}

// New binds a sqlc package's New function to a pool:
//
//	src := fanout.New(pool, db.New)
//
// Make one Source per pool, and keep it: what calls learn of statements and of the way to the server is kept in it, and
// shared by its copies. For a package generated with emit_methods_with_db_argument see [DBTX]. The pool remains the
// caller's, to use otherwise and to close. Where its hooks lead connections to several databases, each text is coalesced in
// the one that has come first, for a minute at a time.
//
// The pool's hooks (PrepareConn, BeforeAcquire) get a ctx that ends when a call turns out not to need the connection: 100 ms
// later, or at once if all of the pool's connections are in use or one is being opened. A hook that makes a round trip should
// not have that interrupted, which costs the connection: context.WithoutCancel, with a timeout of its own, sees to it.
// No hook is called for a nested call, or one in a transaction (On), which acquire nothing: a tenant or a role that a hook has
// set by a value of the outer call's ctx holds there too, whatever the nested call's ctx says. For another tenant, make the
// call outside of the query function.
//
// newQueries may return the Querier interface that sqlc generates with emit_interface. Where several generated packages
// share a pool, each has its Source, or one Source is bound to [DBTX], of which the functions make the packages' query sets: what
// is learned is learned by a Source for itself, and Auto divides the pool among the calls of one.
//
// New panics, as a programming error at start-up, if pool or newQueries is nil, or if D, the package's DBTX, asks for
// anything but the five methods of DBTX as pgx/v5 has them.
func New[Q, D any](pool *pgxpool.Pool, newQueries func(D) Q) Source[Q] {
	mustBeSet(pool != nil, "New", "pool")
	mustBeSet(newQueries != nil, "New", "newQueries")
	mustServe[D]()
	config := pool.Config()
	s := &shared{
		maxConns:     int(pool.Stat().MaxConns()),
		severalHosts: severalHosts(config),
		hooks:        hooks(config),
		beforeClose:  config.BeforeClose,
		simple:       config.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol,
	}
	s.turns.init(s.maxConns, func() int64 { return pool.Stat().AcquireCount() })
	return Source[Q]{
		pool:   pool,
		bind:   func(tx DBTX) Q { return newQueries(tx.(D)) },
		shared: s,
	}
}

// hooks reports whether something runs on a pool's connections between two uses of them.
func hooks(config *pgxpool.Config) bool {
	//lint:ignore SA1019 programs set it that are older than PrepareConn
	before := config.BeforeAcquire != nil
	return before || config.PrepareConn != nil || config.AfterRelease != nil
}

// mustServe panics unless D is an interface type that a handle implements.
func mustServe[D any]() {
	defer func() {
		if r := recover(); r != nil {
			panic(fmt.Sprintf("fanout: New: newQueries must take an interface made of methods of fanout.DBTX, as sqlc generates it for sql_package pgx/v5: %v", r))
		}
	}()
	_ = any((*handle)(nil)).(D)
}

// On returns a Source whose calls run inside tx, on its one connection, and see what it has written. The transaction
// remains the caller's to commit or roll back, also after a failure. If a statement has failed, or was cancelled since another
// query failed, PostgreSQL refuses further ones until it is rolled back: with Partial the queries after a failing statement
// fail too. Parallel means Serial there, and Snapshot, Limit, AcquireTimeout and Retries do not apply. On panics if tx is nil.
//
// One call at a time, as for tx itself. While it runs, the transaction is the call's: its query functions use q, and calls
// inside them src.On(tx) of the same tx. What they send by tx itself, or by a savepoint of it, meets statements of other
// functions on the connection where the strategy is neither Parallel nor Serial. There, too, a cancel request for a statement
// whose own ctx has ended may come to bear on another function's, and statements that somebody has deallocated on the
// connection, other than by a hook of the pool, fail: both abort the transaction.
func (s Source[Q]) On(tx pgx.Tx) Source[Q] {
	mustBeSet(tx != nil, "On", "tx")
	s.tx = tx
	return s
}

// check panics if s was not made by New, and returns an error if a setting is out of its range. Nothing is quietly replaced
// by something else.
func (s *Source[Q]) check(function string) error {
	if s.shared == nil {
		panic("fanout: " + function + ": the Source was not made by fanout.New")
	}
	switch {
	case s.Limit < 0:
		return fmt.Errorf("fanout: Limit is %d; it must be 1 or more, or 0 for the pool's MaxConns", s.Limit)
	case s.AcquireTimeout < 0:
		return fmt.Errorf("fanout: AcquireTimeout is %v; it must be positive, or 0 to wait as long as ctx allows", s.AcquireTimeout)
	case s.Retries < 0:
		return fmt.Errorf("fanout: Retries is %d; it must be 1 or more, or 0 for none", s.Retries)
	case s.Strategy < 0 || int(s.Strategy) >= len(strategyNames):
		return fmt.Errorf("fanout: unknown %v", s.Strategy)
	}
	return nil
}

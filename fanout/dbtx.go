package fanout

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DBTX is what a query function's statements run on: the five methods that sqlc's generated DBTX interfaces for pgx/v5
// are made of, each as pgx has it. A package generated with emit_methods_with_db_argument takes it as an argument; for
// such a package, and for statements written by hand, bind a [Source] to DBTX itself:
//
//	src := fanout.New(pool, func(tx fanout.DBTX) fanout.DBTX { return tx })
//	queries := db.New()
//	rows, err := fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]db.A, error) {
//		return queries.ListAByData(ctx, tx, "a_7")
//	})
//
// The DBTX that a query function is given belongs to that function, until it returns, and serves one goroutine: one
// statement at a time, the next when the rows of the last are read to their end or closed. Anything else is refused with
// an error that says so; nothing is sent then. A begin, or any other session state, sent through a DBTX stays on the
// pooled connection and is the caller's to undo; a transaction left open is an error, and is rolled back, or the connection
// is closed: when the function returns, and that of a nested call whose statements travel with others (see [Pipelined]). A q
// made with WithTx is of no use here; for several statements in one transaction there is [Source.On].
//
// pgx's options may be among the arguments, as in pgx. The ctx that a [pgx.QueryRewriter] gets never ends, and it must not make
// a statement of one that ends the transaction of a snapshot call. Of the ctx that a query tracer returns the values count, and
// not always a deadline. Where statements are pipelined, functions share a connection's type map: what encodes an argument, or
// scans a value, is called under its lock, and must not wait for what another function may hold; and the map itself
// (Rows.TypeMap, Rows.Conn) is a function's to use only in a [pgx.RowScanner].
type DBTX interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/connstring"
)

// An outcome is what came of the queries.
type outcome struct {
	lookups []lookup
	merged  map[int32]db.A
	elapsed time.Duration // of the one call
}

// A lookup is one query of the call.
type lookup struct {
	arg  string
	rows []db.A
	span fanout.Span // without a PID if the query never got a connection
	err  error
}

// warm opens all connections of the pool, so that there are several backends for the queries to run on, and opening them
// is not in their time. A first statement on each, which would read the catalogs and so make the queries much quicker, was
// decided against: -echo is to show the demo's own statements and no others.
func warm(ctx context.Context, pool *pgxpool.Pool) error {
	n := int(pool.Config().MaxConns)
	conns := make([]*pgxpool.Conn, n)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for i := range n {
		wg.Go(func() {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				cancel(err)
				return
			}
			conns[i] = conn
		})
	}
	wg.Wait()
	for _, conn := range conns { // when all are there: otherwise one would be acquired twice
		if conn != nil {
			conn.Release()
		}
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("opening %d connections (-conns): %w", n, connstring.ConnectError(err))
	}
	return nil
}

// lookUp runs one query for each argument, all in one call. With src.Partial it returns an outcome beside fanout.Errors.
func lookUp(ctx context.Context, src fanout.Source[*db.Queries], args []string, merge bool, progress *progress) (*outcome, error) {
	out := &outcome{lookups: make([]lookup, len(args))}
	for i, arg := range args {
		out.lookups[i].arg = arg
	}
	count, stop := progress.start("running queries", len(args))
	defer stop()
	src.Observe = func(_ context.Context, span fanout.Span) {
		out.lookups[span.Index].span = span
		count(1)
	}

	begin := time.Now()
	var err error
	if merge {
		queries := fanout.Each((*db.Queries).ListAByData, args...)
		for i, query := range queries {
			queries[i] = keep(query, &out.lookups[i].rows)
		}
		out.merged, err = fanout.Gather(ctx, src, func(a db.A) int32 { return a.ID }, queries...)
	} else {
		tasks := make([]fanout.Task[*db.Queries], len(args))
		for i, arg := range args {
			tasks[i] = fanout.Do(func(ctx context.Context, q *db.Queries) error {
				_, err := q.ListAByData(ctx, arg)
				return err
			})
		}
		err = fanout.Run(ctx, src, tasks...)
	}
	out.elapsed = time.Since(begin)

	var errs fanout.Errors
	if err != nil && (ctx.Err() != nil || !errors.As(err, &errs)) {
		return nil, err
	}
	for _, e := range errs {
		out.lookups[e.Index].err = e.Err
	}
	return out, err
}

// keep is query, with its rows stored in dst as well: Gather returns them merged, and the demo shows them per query too.
// Collect, followed by Merge, would give both and be the same; but Gather is what is to be shown. No two queries share a
// destination, and it is read when the call is over.
func keep(query fanout.Query[*db.Queries, db.A], dst *[]db.A) fanout.Query[*db.Queries, db.A] {
	return func(ctx context.Context, q *db.Queries) ([]db.A, error) {
		rows, err := query(ctx, q)
		*dst = rows
		return rows, err
	}
}

// rows is how many rows the queries have read, kept or not.
func (o *outcome) rows() int {
	n := 0
	for _, l := range o.lookups {
		n += l.span.Rows
	}
	return n
}

// backends is how many backends have run a query.
func (o *outcome) backends() int {
	pids := make(map[uint32]bool)
	for _, l := range o.lookups {
		if l.span.PID != 0 {
			pids[l.span.PID] = true
		}
	}
	return len(pids)
}

// failed is how many queries have failed.
func (o *outcome) failed() int {
	n := 0
	for _, l := range o.lookups {
		if l.err != nil {
			n++
		}
	}
	return n
}

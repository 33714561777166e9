package main

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sourcegraph/conc/pool"
	"golang.org/x/sync/errgroup"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
)

// What follows is what a careful team writes without the library. Each takes its connections from the pool itself and
// merges the rows by key.

// runOneByOne is the plain loop, on one connection.
func runOneByOne[T row](ctx context.Context, p *pgxpool.Pool, queries []query[T]) (map[int32]T, error) {
	conn, err := p.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	q := benchdb.New(conn)
	merged := map[int32]T{}
	for _, query := range queries {
		rows, err := query(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			merged[key(r)] = r
		}
	}
	return merged, nil
}

// runErrgroup is an errgroup with a limit, a pooled connection for each query, and the rows merged under a lock.
func runErrgroup[T row](ctx context.Context, p *pgxpool.Pool, conns int, queries []query[T]) (map[int32]T, error) {
	var (
		mu     sync.Mutex
		merged = map[int32]T{}
	)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(conns)
	for _, query := range queries {
		g.Go(func() error {
			conn, err := p.Acquire(ctx)
			if err != nil {
				return err
			}
			defer conn.Release()
			rows, err := query(ctx, benchdb.New(conn))
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, r := range rows {
				merged[key(r)] = r
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return merged, nil
}

// runConc is the same by a pool of package conc, which collects the rows by itself.
func runConc[T row](ctx context.Context, p *pgxpool.Pool, conns int, queries []query[T]) (map[int32]T, error) {
	group := pool.NewWithResults[[]T]().WithMaxGoroutines(conns).WithContext(ctx).WithCancelOnError().WithFirstError()
	for _, query := range queries {
		group.Go(func(ctx context.Context) ([]T, error) {
			conn, err := p.Acquire(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Release()
			return query(ctx, benchdb.New(conn))
		})
	}
	lists, err := group.Wait()
	if err != nil {
		return nil, err
	}
	merged := map[int32]T{}
	for _, rows := range lists {
		for _, r := range rows {
			merged[key(r)] = r
		}
	}
	return merged, nil
}

// runBatch sends all statements in one pgx.Batch, on one connection.
func runBatch[T row](ctx context.Context, p *pgxpool.Pool, draws []int32, text func(int, int32) (string, []any)) (map[int32]T, error) {
	merged := map[int32]T{}
	var batch pgx.Batch
	for i, draw := range draws {
		sql, args := text(i, draw)
		batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				r, err := read[T](rows)
				if err != nil {
					return err
				}
				merged[key(r)] = r
			}
			return rows.Err()
		})
	}
	if err := p.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, err
	}
	return merged, nil
}

// runAny is one statement in place of all.
func runAny[T row](
	ctx context.Context, p *pgxpool.Pool, draws []int32,
	all func(context.Context, *benchdb.Queries, []int32) ([]T, error),
) (map[int32]T, error) {
	rows, err := all(ctx, benchdb.New(p), draws)
	if err != nil {
		return nil, err
	}
	merged := map[int32]T{}
	for _, r := range rows {
		merged[key(r)] = r
	}
	return merged, nil
}

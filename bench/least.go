package main

import (
	"context"
	"errors"
	"iter"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
)

// What follows is about the least that it takes to have the statements of functions as they are travel together, for any library:
// to know a function's statement it must have been started, and until there is an answer it stands still, on a stack of its
// own. All in one goroutine and on one connection, for functions that have one statement each, with no ctx that ends and no
// error that is but one function's. What a strategy takes beyond that is its own; it may also
// take less, where its functions go on while the server is at work, or on more connections.

// A parked is a query function in a coroutine, and the connection that it has: there it stands still at its statement.
type parked[T row] struct {
	benchdb.DBTX // functions that sqlc has generated for :many call nothing but Query

	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool

	sql  string
	args []any
	list listRows[T] // what it goes on with

	result []T
	err    error
}

var errStopped = errors.New("another one has failed")

// park starts the query and returns when it has come to its statement.
func (p *parked[T]) park(ctx context.Context, q query[T]) {
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		p.yield = yield
		p.result, p.err = q(ctx, benchdb.New(p))
	})
	p.next()
}

func (p *parked[T]) Query(_ context.Context, sql string, args ...any) (pgx.Rows, error) {
	p.sql, p.args = sql, args
	if !p.yield(struct{}{}) {
		return nil, errStopped
	}
	return &p.list, nil
}

// goOn runs the query to its end, with the rows in its list.
func (p *parked[T]) goOn() error {
	p.next()
	return p.err
}

// A listRows is the result of a statement that has been read already.
type listRows[T row] struct {
	pgx.Rows // of which nothing else is called

	list []T
	next int
}

func (l *listRows[T]) Next() bool {
	l.next++
	return l.next <= len(l.list)
}

func (l *listRows[T]) Scan(columns ...any) error {
	r := benchdb.Big(l.list[l.next-1])
	*columns[0].(*int32), *columns[1].(*string) = r.ID, r.Data
	return nil
}

func (l *listRows[T]) Err() error { return nil }
func (l *listRows[T]) Close()     {}

// parkAll starts the queries; release is to be called in the end, whatever has become of them.
func parkAll[T row](ctx context.Context, queries []query[T]) (all []parked[T], release func()) {
	all = make([]parked[T], len(queries))
	for i, q := range queries {
		all[i].park(ctx, q)
	}
	return all, func() {
		for i := range all {
			all[i].stop()
		}
	}
}

// runLeastBatch sends the statements of functions as they are in one pgx.Batch.
func runLeastBatch[T row](ctx context.Context, p *pgxpool.Pool, queries []query[T]) (map[int32]T, error) {
	all, release := parkAll(ctx, queries)
	defer release()
	var batch pgx.Batch
	for i := range all {
		batch.Queue(all[i].sql, all[i].args...).Query(func(rows pgx.Rows) (err error) {
			if all[i].list.list, err = pgx.CollectRows(rows, read[T]); err != nil {
				return err
			}
			return all[i].goOn()
		})
	}
	if err := p.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, err
	}
	return mergeParked(all), nil
}

// runLeastAny sends one statement in place of theirs, written by hand.
func runLeastAny[T row](
	ctx context.Context, p *pgxpool.Pool, queries []query[T], draws []int32,
	each func(ctx context.Context, q *benchdb.Queries, draws []int32, add func(number int32, r T)) error,
) (map[int32]T, error) {
	all, release := parkAll(ctx, queries)
	defer release()
	err := each(ctx, benchdb.New(p), draws, func(number int32, r T) {
		rows := &all[number-1].list
		rows.list = append(rows.list, r)
	})
	if err != nil {
		return nil, err
	}
	for i := range all {
		if err := all[i].goOn(); err != nil {
			return nil, err
		}
	}
	return mergeParked(all), nil
}

func mergeParked[T row](all []parked[T]) map[int32]T {
	merged := map[int32]T{}
	for i := range all {
		for _, r := range all[i].result {
			merged[key(r)] = r
		}
	}
	return merged
}

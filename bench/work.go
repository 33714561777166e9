package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// A row is what a statement returns. Both tables have the same columns.
type row interface{ benchdb.Small | benchdb.Big }

func key[T row](r T) int32 { return benchdb.Big(r).ID }

func read[T row](from pgx.CollectableRow) (T, error) {
	var r benchdb.Big
	err := from.Scan(&r.ID, &r.Data)
	return T(r), err
}

type query[T row] = fanout.Query[*benchdb.Queries, T]

// A work is what is to be done, in each of the forms in which a contender wants it. A draw is one query's argument; i is
// the query's position in the call.
type work[T row] struct {
	// query is the function that sqlc generated.
	query func(i int, draw int32) query[T]

	// text is the same statement as SQL, for a pgx.Batch.
	text func(i int, draw int32) (sql string, args []any)

	// all is one statement in place of all, as one writes it by hand; nil if there is none.
	all func(ctx context.Context, q *benchdb.Queries, draws []int32) ([]T, error)

	// each is all that also tells which draw a row is for, by its number from 1; nil if all is.
	each func(ctx context.Context, q *benchdb.Queries, draws []int32, add func(number int32, r T)) error
}

func (w work[T]) queries(draws []int32) []query[T] {
	queries := make([]query[T], len(draws))
	for i, draw := range draws {
		queries[i] = w.query(i, draw)
	}
	return queries
}

// A task is a work as one contender does it: it runs the queries drawn and merges their rows into one map by key. It may
// be run by several goroutines at once.
type task func(ctx context.Context, draws []int32) (merged, error)

// merged is the map that a task made.
type merged interface{ digest() digest }

// A table is a merged map.
type table[T row] map[int32]T

// A digest tells whether two contenders have come to the same rows.
type digest struct {
	Rows int    `json:"rows"`
	Sum  uint64 `json:"sum"` // of a checksum per row, in any order
}

func (d digest) String() string { return fmt.Sprintf("%d rows with checksum %x", d.Rows, d.Sum) }

func (t table[T]) digest() digest {
	d := digest{Rows: len(t)}
	for _, r := range t {
		d.Sum += uint64(crc32.ChecksumIEEE(fmt.Appendf(nil, "%d:%s", benchdb.Big(r).ID, benchdb.Big(r).Data)))
	}
	return d
}

// task returns nil if the contender cannot do this work.
func (w work[T]) task(c contender, pool *pgxpool.Pool, conns int) task {
	var do func(ctx context.Context, draws []int32) (map[int32]T, error)
	switch c.name {
	case single:
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			return runOneByOne(ctx, pool, w.queries(draws))
		}
	case byErrgroup:
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			return runErrgroup(ctx, pool, conns, w.queries(draws))
		}
	case byConc:
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			return runConc(ctx, pool, conns, w.queries(draws))
		}
	case byBatch:
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			return runBatch[T](ctx, pool, draws, w.text)
		}
	case byAny:
		if w.all == nil {
			return nil
		}
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			return runAny(ctx, pool, draws, w.all)
		}
	case byLeastBatch:
		if w.each == nil {
			return nil
		}
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			return runLeastBatch(ctx, pool, w.queries(draws))
		}
	case byLeastAny:
		if w.each == nil {
			return nil
		}
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			return runLeastAny(ctx, pool, w.queries(draws), draws, w.each)
		}
	default:
		if c.src == nil {
			return nil
		}
		src := *c.src
		do = func(ctx context.Context, draws []int32) (map[int32]T, error) {
			src := src
			src.Observe, _ = ctx.Value(observer{}).(func(context.Context, fanout.Span))
			return fanout.Gather(ctx, src, key, w.queries(draws)...)
		}
	}
	return func(ctx context.Context, draws []int32) (merged, error) {
		rows, err := do(ctx, draws)
		return table[T](rows), err
	}
}

// An observer is the key in a ctx under which a call's Observe is: nobody is watched while time is taken.
type observer struct{}

// chosen says which strategies a call of the task ran by, and how many queries each.
func chosen(ctx context.Context, t task, draws []int32) (string, error) {
	queries := map[fanout.Strategy]int{}
	_, err := t(context.WithValue(ctx, observer{}, func(_ context.Context, s fanout.Span) { queries[s.Strategy]++ }), draws)
	var parts []string
	for _, s := range slices.Sorted(maps.Keys(queries)) {
		part := s.String()
		if len(queries) > 1 {
			part += fmt.Sprintf(" for %d", queries[s])
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", "), err
}

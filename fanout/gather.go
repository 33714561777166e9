package fanout

import (
	"context"
	"fmt"
)

// Gather runs the queries at once and merges their rows into one map by key; with equal keys the row of the later query
// wins, and within a query the later row. See [Collect] for everything else: Gather is Collect followed by [Merge].
//
// The map holds the generated structs as the query functions returned them. No rows give an empty map; an error without
// any result a nil one. key is called in one goroutine at a time; where rows are many that begins while queries still run, and
// rows that others replace are let go of.
func Gather[Q, T any, K comparable](ctx context.Context, src Source[Q], key func(T) K, queries ...Query[Q, T]) (map[K]T, error) {
	mustBeSet(key != nil, "Gather", "key")
	m := newMerging(key, len(queries))
	call, err := newCollect(ctx, &src, "Gather", queries, m.lists)
	if err != nil {
		return nil, err
	}
	call.done = func(i int) { m.add(i, call) }
	lists, err := collected(call, m.lists)
	if lists == nil {
		return nil, err
	}
	return m.result(), err
}

// Collect runs the queries at once and returns the rows of each: list i is what query i returned, whatever order they
// finished in; a list without rows has length 0.
//
// It returns when all is over: no goroutine of the call runs, no connection of it is held. ctx bounds the whole; when
// it ends, running statements are cancelled, and if a query fails by that, the error matches ctx.Err(). A query that fails cancels the others, and
// Collect returns nil and an [*Error] that names the one that failed first. With Source.Partial the rest goes on, and
// the failed queries, whose lists are nil, are reported as [Errors] beside the lists; if all failed, the lists are nil
// too. An error that no query is to blame for, such as a pool without a free connection, is not an *Error; with
// Source.Partial it is reported for each query that was not started.
//
// A panic in a query function is passed on as a [*PanicError]. Without queries, Collect returns an empty list and takes
// no connection. It panics if a query is nil or src was not made by [New].
func Collect[Q, T any](ctx context.Context, src Source[Q], queries ...Query[Q, T]) ([][]T, error) {
	lists := make([][]T, len(queries))
	call, err := newCollect(ctx, &src, "Collect", queries, lists)
	if err != nil {
		return nil, err
	}
	return collected(call, lists)
}

// newCollect is the call of a Collect, which puts the rows into lists.
func newCollect[Q, T any](ctx context.Context, src *Source[Q], function string, queries []Query[Q, T], lists [][]T) (*call, error) {
	mustHaveAll(function, queries)
	if err := src.check(function); err != nil {
		return nil, err
	}
	return newCall(ctx, src, len(queries), func(ctx context.Context, i int, q Q) (err error) {
		lists[i], err = queries[i](ctx, q)
		return err
	}), nil
}

// collected runs the call, and returns the lists that it has made, nil if it has failed.
func collected[T any](call *call, lists [][]T) ([][]T, error) {
	err := call.runAll()
	if err == nil {
		return lists, nil
	}
	errs, partial := err.(Errors)
	if !partial || len(errs) == len(lists) {
		return nil, err
	}
	for _, e := range errs {
		// Though the function may have returned rows: in an attempt before, or before it turned out to have failed.
		lists[e.Index] = nil
	}
	return lists, errs
}

// mustHaveAll panics if one of the queries is nil.
func mustHaveAll[Q, T any](function string, queries []Query[Q, T]) {
	for i, query := range queries {
		if query == nil {
			panic(fmt.Sprintf("fanout: %s: query %d is nil", function, i))
		}
	}
}

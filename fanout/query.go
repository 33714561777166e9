package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// A Query is one thing to ask the database: a function over the query set q, which returns rows. A function literal is a
// Query, and so is what the adaptors below make of a method that sqlc generated, given as a method expression:
//
//	fanout.Many((*db.Queries).ListAByData, "a_7")
//
// A call runs a Query once, or once in each attempt (Source.Retries), in a goroutine of its own making, at the same
// time as others. q is the function's until it returns and serves one goroutine; ctx ends when the call fails or the
// caller's ctx ends, and is what a nested call on the same pool must be given. A Query must not wait for another Query
// of its call: that one may not have started. Nor may it use q while its goroutine is locked to a thread, or leave it
// locked: functions are run as coroutines where that is quicker, and Go ends the program when a locked one is switched.
type Query[Q, T any] func(ctx context.Context, q Q) ([]T, error)

// Many is the Query of a generated :many method with one argument. Where the SQL has more parameters than sqlc's
// query_parameter_limit, which is 1 by default, that argument is the generated Params struct. A method with several arguments,
// by a higher limit, is called in a function literal. Where sqlc knows no Go type for the parameter, as it does not for a
// domain, that is interface{}: then pass any(arg).
func Many[Q, T, A any](method func(Q, context.Context, A) ([]T, error), arg A) Query[Q, T] {
	mustBeSet(method != nil, "Many", "method")
	return func(ctx context.Context, q Q) ([]T, error) { return method(q, ctx, arg) }
}

// All is the Query of a generated :many method without an argument.
func All[Q, T any](method func(Q, context.Context) ([]T, error)) Query[Q, T] {
	mustBeSet(method != nil, "All", "method")
	return func(ctx context.Context, q Q) ([]T, error) { return method(q, ctx) }
}

// One is the Query of a generated :one method with one argument. Where there is no row the query fails, with
// [pgx.ErrNoRows]; see [Maybe].
func One[Q, T, A any](method func(Q, context.Context, A) (T, error), arg A) Query[Q, T] {
	mustBeSet(method != nil, "One", "method")
	return func(ctx context.Context, q Q) ([]T, error) {
		row, err := method(q, ctx, arg)
		if err != nil {
			return nil, err
		}
		return []T{row}, nil
	}
}

// Maybe is One for a row that need not be there: where there is none, the query succeeds without rows.
func Maybe[Q, T, A any](method func(Q, context.Context, A) (T, error), arg A) Query[Q, T] {
	mustBeSet(method != nil, "Maybe", "method")
	one := One(method, arg)
	return func(ctx context.Context, q Q) ([]T, error) {
		rows, err := one(ctx, q)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, nil
		}
		return rows, err
	}
}

// Each is Many for every argument: one Query per argument, in the order of the arguments.
func Each[Q, T, A any](method func(Q, context.Context, A) ([]T, error), args ...A) []Query[Q, T] {
	mustBeSet(method != nil, "Each", "method")
	queries := make([]Query[Q, T], len(args))
	for i, arg := range args {
		queries[i] = Many(method, arg)
	}
	return queries
}

// Chunk is for a :many method whose argument is a list of keys ("= any($1)"): one Query for each size keys in a row, the
// last with what is left. No keys, no queries. The chunks share the array of keys, which must not change until the
// queries have run. A method that takes the list in a Params struct, beside other parameters or with query_parameter_limit: 0,
// is called in function literals, one for each of slices.Chunk. Chunk panics if size is less than 1.
func Chunk[Q, T, A any](method func(Q, context.Context, []A) ([]T, error), keys []A, size int) []Query[Q, T] {
	mustBeSet(method != nil, "Chunk", "method")
	if size < 1 {
		panic(fmt.Sprintf("fanout: Chunk: size is %d; it must be 1 or more", size))
	}
	var queries []Query[Q, T]
	for chunk := range slices.Chunk(keys, size) {
		queries = append(queries, Many(method, chunk))
	}
	return queries
}

// mustBeSet panics unless ok: a nil function is a mistake in the program, found when it first runs.
func mustBeSet(ok bool, function, what string) {
	if !ok {
		panic("fanout: " + function + ": " + what + " is not set")
	}
}

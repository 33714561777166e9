package fanout

import (
	"context"
	"fmt"
)

// Run runs queries of different types at once: each [Task] has its own result type and its own destination. No
// destination is written unless the whole call succeeds; with Source.Partial, unless its own task does. None is written
// while queries run: a destination that Run has not returned from is as the caller left it. If two tasks share a
// destination, the later one's result stays. What tasks have written in the database when another one fails stays written,
// unless the call ran in a transaction, see [Source.On].
//
// Concurrency, cancellation, errors and panics are as in [Collect]; Error.Index is the position of the task. With
// Source.Partial the error of tasks is [Errors], whether or not any task succeeded. Run panics if a task is the zero Task.
func Run[Q any](ctx context.Context, src Source[Q], tasks ...Task[Q]) error {
	type unit struct {
		task, query int
		run         func(ctx context.Context, q Q) error
	}
	var units []unit
	plans := make([]plan[Q], len(tasks))
	for i, task := range tasks {
		if task.plan == nil {
			panic(fmt.Sprintf("fanout: Run: task %d is the zero Task", i))
		}
		plans[i] = task.plan()
		for j, run := range plans[i].units {
			units = append(units, unit{i, j, run})
		}
	}
	if err := src.check("Run"); err != nil {
		return err
	}
	call := newCall(ctx, &src, len(units), func(ctx context.Context, i int, q Q) error { return units[i].run(ctx, q) })
	call.locate = func(i int) (int, int) { return units[i].task, units[i].query }
	call.done = func(i int) {
		if done := plans[units[i].task].done; done != nil {
			done(units[i].query, call)
		}
	}
	err := call.runAll()
	errs, partial := err.(Errors)
	if err != nil && !partial {
		return err
	}
	for _, e := range errs {
		plans[e.Index].result = nil
	}
	// All results first, then all writes: a key function that panics must find no destination written.
	var writes []func()
	for _, p := range plans {
		if p.result != nil {
			writes = append(writes, p.result())
		}
	}
	for _, write := range writes {
		write()
	}
	return err
}

// A Task is one part of a [Run]: something to run, and where its result goes. [Into], [IntoFunc], [IntoMap], [Exec] and
// [Do] make them. A Task holds no state of a run, so it may be run again, also by several calls at once if its
// destination allows that.
type Task[Q any] struct {
	plan func() plan[Q]
}

// A plan is a Task in one run.
type plan[Q any] struct {
	units  []func(ctx context.Context, q Q) error
	done   func(i int, c *call)  // told of each unit that has succeeded, in call c; nil: nobody asks
	result func() (write func()) // called when all units have succeeded; write stores the result in the destination
}

// Into runs a generated method with one argument and stores what it returns in dst: the struct of a :one, the slice of a
// :many, the count of an :execrows or a :copyfrom, the tag of an :execresult. A :one without a row fails with
// pgx.ErrNoRows.
func Into[Q, T, A any](dst *T, method func(Q, context.Context, A) (T, error), arg A) Task[Q] {
	mustBeSet(dst != nil, "Into", "dst")
	mustBeSet(method != nil, "Into", "method")
	return IntoFunc(dst, func(ctx context.Context, q Q) (T, error) { return method(q, ctx, arg) })
}

// IntoFunc runs f, a function literal, and stores what it returns in dst. It is for every shape that Into does not fit: a
// method without an argument or with several, and functions of several statements, which run one after the other on one
// connection, each a transaction of its own.
func IntoFunc[Q, T any](dst *T, f func(ctx context.Context, q Q) (T, error)) Task[Q] {
	mustBeSet(dst != nil, "IntoFunc", "dst")
	mustBeSet(f != nil, "IntoFunc", "f")
	return Task[Q]{func() plan[Q] {
		var value T
		return plan[Q]{
			units: []func(context.Context, Q) error{func(ctx context.Context, q Q) (err error) {
				value, err = f(ctx, q)
				return err
			}},
			result: func() func() { return func() { *dst = value } },
		}
	}}
}

// IntoMap runs the queries of a whole [Gather] as one task. They are scheduled one by one, like the other tasks of the
// Run, and Error.Query says which of them failed. The task succeeds only if all of them do, even with Source.Partial; then
// *dst is replaced, not added to, by a map that is empty if there were no rows, and never nil.
func IntoMap[Q, T any, K comparable](dst *map[K]T, key func(T) K, queries ...Query[Q, T]) Task[Q] {
	mustBeSet(dst != nil, "IntoMap", "dst")
	mustBeSet(key != nil, "IntoMap", "key")
	mustHaveAll("IntoMap", queries)
	return Task[Q]{func() plan[Q] {
		m := newMerging(key, len(queries))
		p := plan[Q]{units: make([]func(context.Context, Q) error, len(queries)), done: m.add}
		for i, query := range queries {
			p.units[i] = func(ctx context.Context, q Q) (err error) {
				m.lists[i], err = query(ctx, q)
				return err
			}
		}
		p.result = func() func() {
			merged := m.result()
			return func() { *dst = merged }
		}
		return p
	}}
}

// Exec runs a generated :exec method with one argument.
func Exec[Q, A any](method func(Q, context.Context, A) error, arg A) Task[Q] {
	mustBeSet(method != nil, "Exec", "method")
	return Do(func(ctx context.Context, q Q) error { return method(q, ctx, arg) })
}

// Do runs f, for whatever has no result to store.
func Do[Q any](f func(ctx context.Context, q Q) error) Task[Q] {
	mustBeSet(f != nil, "Do", "f")
	return Task[Q]{func() plan[Q] {
		return plan[Q]{
			units:  []func(context.Context, Q) error{f},
			result: func() func() { return func() {} },
		}
	}}
}

package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// An experiment is one run of demo consistency, and what came of it so far.
type experiment struct {
	opts      consistencyOptions
	transfers atomic.Int64

	mu              sync.Mutex
	begun           time.Time
	elapsed         time.Duration // 0 until the end
	plain, snapshot tally
}

// A tally counts the gathers of one kind.
type tally struct {
	gathers, torn   int
	lowest, highest int64         // total
	took            time.Duration // all together
	last            []int64       // the last totals, the newest at the end
}

// lastTotals is how many of the last totals a tally keeps.
const lastTotals = 8

func newExperiment(opts consistencyOptions) *experiment { return &experiment{opts: opts} }

// total is what there is in all.
func (e *experiment) total() int64 { return int64(e.opts.accounts) * startBalance }

// gatherInTurn gathers without a snapshot and with one, for as long as the flags say and at least once.
func (e *experiment) gatherInTurn(ctx context.Context, src fanout.Source[*accounts]) error {
	queries := make([]fanout.Query[*accounts, int64], e.opts.accounts)
	for i := range queries {
		queries[i] = fanout.One((*accounts).Balance, int32(i+1))
	}
	inSnapshot := src
	inSnapshot.Snapshot = true

	begun := time.Now()
	e.mu.Lock()
	e.begun = begun
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.elapsed = time.Since(begun)
	}()
	for time.Since(begun) < e.opts.length || e.snapshot.gathers == 0 {
		if err := e.gather(ctx, src, &e.plain, queries); err != nil {
			return err
		}
		if err := e.gather(ctx, inSnapshot, &e.snapshot, queries); err != nil {
			return err
		}
	}
	return nil
}

// gather asks for every balance and adds them up.
func (e *experiment) gather(ctx context.Context, src fanout.Source[*accounts], t *tally, queries []fanout.Query[*accounts, int64]) error {
	begin := time.Now()
	balances, err := fanout.Collect(ctx, src, queries...)
	took := time.Since(begin)
	if err != nil {
		return err
	}
	var total int64
	for _, rows := range balances {
		total += rows[0]
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t.add(total, e.total(), took)
	return nil
}

// add counts a gather that has read total, where want would have been right.
func (t *tally) add(total, want int64, took time.Duration) {
	if t.gathers == 0 {
		t.lowest, t.highest = total, total
	}
	t.gathers++
	if total != want {
		t.torn++
	}
	t.lowest = min(t.lowest, total)
	t.highest = max(t.highest, total)
	t.took += took
	if len(t.last) == lastTotals {
		t.last = slices.Delete(t.last, 0, 1)
	}
	t.last = append(t.last, total)
}

// mean is how long a gather took.
func (t *tally) mean() time.Duration { return t.took / time.Duration(max(t.gathers, 1)) }

// A standing is how an experiment stands at one moment, or how it has ended.
type standing struct {
	elapsed         time.Duration
	transfers       int
	plain, snapshot tally
}

// complete reports whether there are figures of both kinds.
func (s standing) complete() bool { return s.plain.gathers > 0 && s.snapshot.gathers > 0 }

func (e *experiment) standing() standing {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := standing{e.elapsed, int(e.transfers.Load()), e.plain, e.snapshot}
	if s.elapsed == 0 && !e.begun.IsZero() {
		s.elapsed = time.Since(e.begun)
	}
	s.plain.last = slices.Clone(s.plain.last)
	s.snapshot.last = slices.Clone(s.snapshot.last)
	return s
}

package main

import (
	"context"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

const (
	// timeSlices is how many slices of time each contender has in a cell, in turn with the others, and loadSlices in one of
	// load, where calls are short.
	timeSlices    = 8
	loadSlices    = 16
	shortestSlice = 20 * time.Millisecond
	longestSlice  = 3 * time.Second

	// settling is the part of a slice at its start that does not count: the clients begin all at once, on an idle pool.
	settling = 0.1

	// rateQueries is how many look-ups are in a call that is to keep all connections busy.
	rateQueries = 3000

	// pgbenchFrom is the time from which on a cell has room for more than one run of pgbench. As it knows no shorter time
	// than a second, it runs in every other round only.
	pgbenchFrom = 12 * time.Second

	// lonePause is what the client of single look-ups makes between two of them.
	lonePause = time.Millisecond

	// loneLookUps is how many of them are wanted of the contenders that the claim is about: a 99th percentile of fewer
	// rests on a handful.
	loneLookUps = 2000
)

// A crowd is one contender's clients.
type crowd struct {
	contender
	task  task      // nil: of another program
	share float64   // of the time
	rates []float64 // queries per second, by slice
	calls []float64 // milliseconds, of all slices
	note  string
}

// crowds are those of the contenders that run in this program.
func (b *bench) crowds(pool *pgxpool.Pool, conns int, s statement) []*crowd {
	var all []*crowd
	for _, c := range b.contenders {
		if t := s.task(c, pool, conns); t != nil && !c.least && b.takesPart(c) {
			all = append(all, &crowd{contender: c, task: t, share: c.weight()})
		}
	}
	return all
}

// inTurn gives each of the crowds its slices, in an order drawn anew each time, as many as fit into budget. The first is
// half as long and does not count. Those who then still lack something have more of them, for half as long again at most.
func inTurn(all []*crowd, slices int, budget time.Duration, run func(i int, slice time.Duration, counts bool) error, lacking func(i int) bool) error {
	start := time.Now()
	shares := 0.0
	for _, c := range all {
		shares += c.share
	}
	for round := 0; ; round++ {
		extra := round > slices
		ran := false
		for _, i := range rand.Perm(len(all)) {
			if extra && (time.Since(start) > 3*budget/2 || lacking == nil || !lacking(i)) {
				continue
			}
			ran = true
			slice := time.Duration(float64(budget) / (float64(slices) + 0.5) * all[i].share / shares)
			slice = min(max(slice, shortestSlice), longestSlice)
			if round == 0 {
				slice /= 2
			}
			runtime.GC() // garbage is paid for by who makes it
			if err := run(i, slice, round > 0); err != nil {
				return err
			}
		}
		if !ran {
			return nil
		}
	}
}

// load runs a cell of many clients at once, each of which makes one call after the other.
func (b *bench) load(ctx context.Context, c *cell, budget time.Duration) error {
	if err := b.openPool(ctx, c.Connections, 0, c.Statement); err != nil {
		return err
	}
	s := b.statements[c.Statement]
	all := b.crowds(b.pool, c.Connections, s)
	err := inTurn(all, loadSlices, budget, func(i int, slice time.Duration, counts bool) error {
		return all[i].run(ctx, s, c.Clients, c.Queries, slice, counts)
	}, nil)
	if err != nil {
		return err
	}
	for _, crowd := range all {
		r := newResult(crowd.name, crowd.rates, crowd.note)
		if len(crowd.calls) > 0 {
			r.P50, r.P99 = quantile(crowd.calls, 0.5), quantile(crowd.calls, 0.99)
		}
		c.Results = append(c.Results, r)
	}
	return nil
}

// A call is a client's, by when it began and ended, since the start of its slice.
type call struct{ began, ended time.Duration }

// run has the clients make calls until the slice is over. A failure ends the crowd, with a note.
func (c *crowd) run(ctx context.Context, s statement, clients, queries int, slice time.Duration, counts bool) error {
	if c.note != "" {
		return nil
	}
	calls := make([][]call, clients)
	errs := make([]error, clients)
	start := time.Now()
	var wg sync.WaitGroup
	for client := range clients {
		random := rand.New(rand.NewPCG(uint64(client), uint64(len(c.rates))))
		wg.Go(func() {
			for began := time.Since(start); began < slice && ctx.Err() == nil; {
				if _, err := c.task(ctx, s.draw(random, queries)); err != nil {
					errs[client] = err
					return
				}
				ended := time.Since(start)
				calls[client] = append(calls[client], call{began, ended})
				began = ended
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, err := range errs {
		if err != nil {
			c.note, c.rates, c.calls = failedNote+program.OneLine(err), nil, nil
			return nil
		}
	}
	if !counts {
		return nil
	}
	from := time.Duration(settling * float64(slice))
	done := 0.0
	for _, of := range calls {
		for _, call := range of {
			done += call.within(from, slice)
			if call.began >= from {
				c.calls = append(c.calls, inMilliseconds(call.ended-call.began))
			}
		}
	}
	c.rates = append(c.rates, done*float64(queries)/(slice-from).Seconds())
	return nil
}

// within is the part of the call that lies between two points in time. To count whole calls only was decided against: of
// a long call, one more or less is much of a slice.
func (c call) within(from, to time.Duration) float64 {
	return float64(max(min(c.ended, to)-max(c.began, from), 0)) / float64(max(c.ended-c.began, 1))
}

// beside runs the cell of a lone client who wants one row at a time, beside the clients of each contender.
func (b *bench) beside(ctx context.Context, c *cell, budget time.Duration) error {
	if err := b.openPool(ctx, c.Connections, 0, c.Statement); err != nil {
		return err
	}
	s := b.statements[c.Statement]
	all := b.crowds(b.pool, c.Connections, s)
	claimed := func(c contender) bool { return c.name == parallel || c.name == auto }
	for _, crowd := range all {
		crowd.share /= 2 // the others' percentiles may rest on less
		if claimed(crowd.contender) {
			crowd.share = 6
		}
	}
	lone := make([][]float64, len(all))
	err := inTurn(all, timeSlices, budget, func(i int, slice time.Duration, counts bool) error {
		if all[i].note != "" {
			return nil
		}
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- all[i].run(ctx, s, c.Clients, c.Queries, slice, false) }()
		from := start.Add(time.Duration(settling * float64(slice)))
		took, err := b.loneClient(ctx, s, from, start.Add(slice))
		if ended := <-done; ended != nil {
			return ended
		}
		if counts {
			lone[i] = append(lone[i], took...)
		}
		return err
	}, func(i int) bool { return claimed(all[i].contender) && all[i].note == "" && len(lone[i]) < loneLookUps })
	if err != nil {
		return err
	}
	for i, crowd := range all {
		if crowd.note != "" {
			lone[i] = nil
		}
		r := newResult(crowd.name, lone[i], crowd.note)
		if len(lone[i]) > 0 {
			r.P99 = quantile(lone[i], 0.99)
		}
		c.Results = append(c.Results, r)
	}
	return nil
}

// loneClient looks up one row after the other, with a pause before each, and returns how long each took of those that it
// asked for between from and to. Without the pause it would ask most often while the answers are quick, and its
// percentiles would be of those. Look-ups at fixed times were decided against: where one takes longer than the time
// between them, they pile up, and what is measured is the pile.
func (b *bench) loneClient(ctx context.Context, s statement, from, to time.Time) (took []float64, err error) {
	q := benchdb.New(b.pool)
	for {
		select {
		case <-ctx.Done():
			return took, nil
		case <-time.After(lonePause):
		}
		draw := s.draw(b.random, 1)[0]
		start := time.Now()
		if !start.Before(to) {
			return took, nil
		}
		if _, err := q.LookUp(ctx, draw); err != nil {
			return nil, err
		}
		if !start.Before(from) {
			took = append(took, inMilliseconds(time.Since(start)))
		}
	}
}

// rate runs the cell of as many look-ups as go through the connections: one client whose calls are large enough to keep
// all of them busy, beside pgbench, the server's own measure of itself.
func (b *bench) rate(ctx context.Context, c *cell, budget time.Duration) error {
	if err := b.openPool(ctx, c.Connections, 0, c.Statement); err != nil {
		return err
	}
	s := b.statements[c.Statement]
	all := b.crowds(b.pool, c.Connections, s)
	here := len(all)
	path, missing := findPgbench(ctx)
	var scripts []pgbenchScript
	for _, contender := range b.contenders {
		if script, ok := pgbenchScripts[contender.name]; ok && b.takesPart(contender) {
			if missing != "" {
				b.note(contender.label + ": " + missing)
				continue
			}
			all = append(all, &crowd{contender: contender, share: contender.weight()})
			scripts = append(scripts, script)
		}
	}
	turns := make([]int, len(all))
	err := inTurn(all, timeSlices, budget, func(i int, slice time.Duration, counts bool) error {
		if i < here {
			return all[i].run(ctx, s, c.Clients, c.Queries, slice, counts)
		}
		if turns[i]++; !counts || all[i].note != "" || turns[i]%2 != 0 || budget < pgbenchFrom && len(all[i].rates) > 0 {
			return nil
		}
		seconds := max(1, int(math.Round(slice.Seconds())))
		rate, err := scripts[i-here].run(ctx, path, b.srv, c.Connections, b.opts.rows, seconds)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			all[i].note, all[i].rates = failedNote+program.OneLine(err), nil
			return nil
		}
		all[i].rates = append(all[i].rates, rate)
		return nil
	}, nil)
	if err != nil {
		return err
	}
	for _, crowd := range all {
		c.Results = append(c.Results, newResult(crowd.name, crowd.rates, crowd.note))
	}
	return nil
}

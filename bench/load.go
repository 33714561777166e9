package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
)

const (
	// timeSlices is how many slices of time each contender has in a cell of load, in turn with the others.
	timeSlices    = 4
	shortestSlice = 20 * time.Millisecond
	longestSlice  = 5 * time.Second

	// rateQueries is how many look-ups are in a call that is to keep all connections busy.
	rateQueries = 3000

	// lonePause is what the client of single look-ups makes between two of them.
	lonePause = time.Millisecond
)

// A crowd is one contender's clients.
type crowd struct {
	contender
	task  task      // nil: of another program
	rates []float64 // queries per second, by slice
	calls []float64 // milliseconds, of all slices
	note  string
}

// crowds are those of the contenders that run in this program, with a warm-up of a part of a slice.
func (b *bench) crowds(pool *pgxpool.Pool, conns int, s statement) []*crowd {
	var all []*crowd
	for _, c := range b.contenders {
		if t := s.task(c, pool, conns); t != nil {
			all = append(all, &crowd{contender: c, task: t})
		}
	}
	return all
}

// inTurn gives each of the crowds its slices, in an order drawn anew each time; the first, a short one, does not count.
func inTurn(all []*crowd, budget time.Duration, run func(i int, slice time.Duration, counts bool) error) error {
	weights := 0.0
	for _, c := range all {
		weights += c.weight()
	}
	for round := range timeSlices + 1 {
		for _, i := range rand.Perm(len(all)) {
			slice := time.Duration(float64(budget) / (timeSlices + 0.5) * all[i].weight() / weights)
			slice = min(max(slice, shortestSlice), longestSlice)
			if round == 0 {
				slice /= 2
			}
			if err := run(i, slice, round > 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// load runs a cell of many clients at once, each of which makes one call after the other.
func (b *bench) load(ctx context.Context, c *cell, budget time.Duration) error {
	if err := b.openPool(ctx, c.Connections, 0, c.Statement); err != nil {
		return err
	}
	s := b.statements[c.Statement]
	all := b.crowds(b.pool, c.Connections, s)
	err := inTurn(all, budget, func(i int, slice time.Duration, counts bool) error {
		return all[i].run(ctx, s, c.Clients, c.Queries, slice, counts)
	})
	if err != nil {
		return err
	}
	for _, crowd := range all {
		r := newResult(crowd.name, crowd.rates, crowd.note)
		if len(crowd.calls) > 0 {
			r.P99 = quantile(crowd.calls, 0.99)
		}
		c.Results = append(c.Results, r)
	}
	return nil
}

// run has the clients make calls until the slice is over. A failure ends the crowd, with a note.
func (c *crowd) run(ctx context.Context, s statement, clients, queries int, slice time.Duration, counts bool) error {
	if c.note != "" {
		return nil
	}
	start := time.Now()
	deadline := start.Add(slice)
	calls := make([][]float64, clients)
	errs := make([]error, clients)
	var wg sync.WaitGroup
	for client := range clients {
		random := rand.New(rand.NewPCG(uint64(client), uint64(len(c.rates))))
		wg.Go(func() {
			for began := start; began.Before(deadline) && ctx.Err() == nil; {
				if _, err := c.task(ctx, s.draw(random, queries)); err != nil {
					errs[client] = err
					return
				}
				now := time.Now()
				calls[client] = append(calls[client], inMilliseconds(now.Sub(began)))
				began = now
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	n := 0
	for client := range clients {
		if err := errs[client]; err != nil {
			c.note, c.rates, c.calls = "failed: "+oneLine(err), nil, nil
			return nil
		}
		n += len(calls[client])
		if counts {
			c.calls = append(c.calls, calls[client]...)
		}
	}
	if counts {
		c.rates = append(c.rates, float64(n*queries)/took.Seconds())
	}
	return nil
}

// beside runs the cell of a lone client who wants one row at a time, beside the clients of each contender.
func (b *bench) beside(ctx context.Context, c *cell, budget time.Duration) error {
	if err := b.openPool(ctx, c.Connections, 0, c.Statement); err != nil {
		return err
	}
	s := b.statements[c.Statement]
	all := b.crowds(b.pool, c.Connections, s)
	lone := make([][]float64, len(all))
	err := inTurn(all, budget, func(i int, slice time.Duration, counts bool) error {
		working, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- all[i].run(ctx, s, c.Clients, c.Queries, slice, false); stop() }()
		took, err := b.loneClient(working, s)
		if ended := <-done; ended != nil {
			return ended
		}
		if counts {
			lone[i] = append(lone[i], took...)
		}
		return err
	})
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

// loneClient looks up one row after the other until working ends, with a pause before each, and returns how long each
// took. Without the pause it would ask most often while the answers are quick, and its percentiles would be of those.
// Look-ups at fixed times were decided against: where one takes longer than the time between them, they pile up, and
// what is measured is the pile.
func (b *bench) loneClient(working context.Context, s statement) (took []float64, err error) {
	q := benchdb.New(b.pool)
	for {
		select {
		case <-working.Done():
			return took, nil
		case <-time.After(lonePause):
		}
		draw := s.draw(b.random, 1)[0]
		start := time.Now()
		// Not by working: the end of a slice is not to cost a connection.
		if _, err := q.LookUp(context.WithoutCancel(working), draw); err != nil {
			return nil, err
		}
		took = append(took, inMilliseconds(time.Since(start)))
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
	program, missing := findPgbench(ctx)
	var scripts []pgbenchScript
	for _, contender := range b.contenders {
		if script, ok := pgbenchScripts[contender.name]; ok {
			if missing != "" {
				b.note(contender.label + ": " + missing)
				continue
			}
			all = append(all, &crowd{contender: contender})
			scripts = append(scripts, script)
		}
	}
	err := inTurn(all, budget, func(i int, slice time.Duration, counts bool) error {
		if i < here {
			return all[i].run(ctx, s, c.Clients, c.Queries, slice, counts)
		}
		if !counts || all[i].note != "" || slice < time.Second/2 && len(all[i].rates) > 0 { // it knows no shorter time than a second
			return nil
		}
		rate, err := scripts[i-here].run(ctx, program, b.srv, c.Connections, b.opts.rows, slice)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			all[i].note, all[i].rates = "failed: "+oneLine(err), nil
			return nil
		}
		all[i].rates = append(all[i].rates, rate)
		return nil
	})
	if err != nil {
		return err
	}
	for _, crowd := range all {
		c.Results = append(c.Results, newResult(crowd.name, crowd.rates, crowd.note))
	}
	return nil
}

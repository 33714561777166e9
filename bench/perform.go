package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	gridConns = 10
	loadConns = 16

	coldLatency = 10 * time.Millisecond

	// leastShare is the part of its share of the time that a stage has in any case.
	leastShare = 0.6
)

// A bench is a run in progress.
type bench struct {
	opts       options
	srv        *server
	statements map[string]statement
	contenders []contender // bound to pool
	only       []string    // of these, that take part in what is measured now; nil: all
	progress   *progress
	random     *rand.Rand
	report     *report

	pool   *pgxpool.Pool      // of the current cells
	poolOf string             // its connections, latency and statements
	python map[string]*python // for the current cells, by contender
}

// perform opens the server, runs the cells and puts everything back.
func perform(ctx context.Context, opts options, stderr io.Writer) (rep *report, err error) {
	srv, err := openServer(ctx, opts.dsn)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, srv.close()) }()
	fmt.Fprintf(stderr, "bench: using %s\n", srv.description)

	box, err := openSandbox(ctx, srv.config.ConnConfig, opts.rows, stderr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, box.End(srv.throwaway())) }()

	b := &bench{opts: opts, srv: srv, progress: newProgress(stderr), random: rand.New(rand.NewPCG(1, 2))}
	defer b.progress.end()
	defer b.closePool()
	if err := b.prepare(ctx, box.Conn); err != nil {
		return nil, err
	}
	if err := b.measure(ctx); err != nil {
		return nil, err
	}
	if err := b.measureAgain(ctx, b.report.Started.Add(time.Duration(againUntil*float64(opts.time)))); err != nil {
		return nil, err
	}
	b.report.Seconds = time.Since(b.report.Started).Seconds()
	b.report.conclude()
	return b.report, b.report.failures()
}

// prepare finds out what there is to know before anything is measured.
func (b *bench) prepare(ctx context.Context, conn *pgx.Conn) error {
	b.report = &report{
		Started: time.Now(),
		Machine: fmt.Sprintf("%s/%s, %s, %s", runtime.GOOS, runtime.GOARCH, counted(runtime.NumCPU(), "CPU"), runtime.Version()),
		Rows:    b.opts.rows,
	}
	var version string
	if err := conn.QueryRow(ctx, "select current_setting('server_version')").Scan(&version); err != nil {
		return err
	}
	b.report.Server = "PostgreSQL " + version
	if b.srv.throwaway() {
		b.report.Server += ", a throwaway server on this machine"
	}
	var err error
	if b.report.RoundTrip, err = roundTrip(ctx, conn); err != nil {
		return err
	}
	if b.report.BurnCount, err = calibrate(ctx, conn); err != nil {
		return fmt.Errorf("finding out how far the server counts in %v: %w", burnTime, err)
	}
	b.statements = statements(b.opts.rows, b.report.BurnCount)
	b.contenders = slices.DeleteFunc(contenders(), func(c contender) bool { return !slices.Contains(b.opts.contenders, c.name) })
	return nil
}

// note adds a note to the report, once.
func (b *bench) note(text string) {
	if !slices.Contains(b.report.Notes, text) {
		b.report.Notes = append(b.report.Notes, text)
	}
}

// openPool has b.pool be one of so many connections and that latency, acquainted with the statements. The one before is
// closed: the server need not have room for both.
func (b *bench) openPool(ctx context.Context, conns int, latency time.Duration, names ...string) (err error) {
	of := fmt.Sprint(conns, latency, names)
	if b.pool != nil && b.poolOf == of {
		return nil
	}
	b.closePool()
	var all []statement
	for _, name := range names {
		all = append(all, b.statements[name])
	}
	if b.pool, err = b.srv.pool(ctx, conns, latency, all); err != nil {
		return err
	}
	b.poolOf = of
	b.contenders = bound(b.contenders, b.pool, conns)
	return nil
}

func (b *bench) closePool() {
	for _, p := range b.python {
		p.close()
	}
	b.python = map[string]*python{}
	if b.pool != nil {
		b.pool.Close()
		b.pool = nil
	}
}

// A stage is a cell that is to be run. Weight is its share of the time, as against 1 for a cell of the grid.
type stage struct {
	cell   cell
	weight float64
}

// stages are all that is to be run. The grid comes last: its cells may take more than their share.
func (b *bench) stages() []stage {
	var all []stage
	if b.opts.has(rateCells) {
		all = append(all, stage{cell{Kind: rateCells, Statement: looking, Queries: rateQueries, Connections: gridConns, Clients: 1, Unit: perSecond}, 5})
	}
	if b.opts.has(loadCells) {
		for _, clients := range []int{1, 16, 128} {
			all = append(all, stage{cell{Kind: loadCells, Statement: looking, Queries: 8, Connections: loadConns, Clients: clients, Unit: perSecond}, 8})
		}
	}
	if b.opts.has(coldCells) {
		all = append(all, stage{cell{Kind: coldCells, Statement: thirty, Queries: len(nearTexts), Connections: gridConns, Clients: 1,
			LatencyMS: inMilliseconds(coldLatency), Unit: milliseconds}, 3})
	}
	if b.opts.has(besideCells) {
		all = append(all, stage{cell{Kind: besideCells, Statement: looking, Queries: 30, Connections: loadConns, Clients: 16, Unit: milliseconds}, 12})
	}
	if b.opts.has(gridCells) {
		for _, latency := range b.opts.latencies {
			for _, name := range b.opts.statements {
				for _, queries := range b.opts.queries {
					all = append(all, stage{cell{Kind: gridCells, Statement: name, Queries: queries, Connections: gridConns, Clients: 1,
						LatencyMS: inMilliseconds(latency), Unit: milliseconds}, gridWeight(name, queries)})
				}
			}
		}
	}
	return all
}

// gridWeight is the weight of a cell of the grid: what takes longer gets more time, or it would have no rounds to speak of.
func gridWeight(statement string, queries int) float64 {
	weight := 0.8
	if queries > 100 {
		weight = 2
	} else if queries > 1 {
		weight = 1
	}
	if statement == ranging {
		weight *= 2
	}
	return weight
}

// measure runs all stages. Each gets its share of the time that is left, so that what one does not need is the others';
// but where some have taken more than theirs, those after them are not left with next to nothing.
func (b *bench) measure(ctx context.Context) error {
	deadline := b.report.Started.Add(b.opts.time)
	all := b.stages()
	weights := 0.0
	for _, s := range all {
		weights += s.weight
	}
	least := leastShare * float64(b.opts.time) / weights
	for i, s := range all {
		b.progress.show(i+1, len(all), s.cell.Title())
		budget := time.Duration(s.weight * max(float64(time.Until(deadline))/weights, least))
		weights -= s.weight
		if err := b.run(ctx, &s.cell, budget); err != nil {
			return in(ctx, &s.cell, err)
		}
		b.report.Cells = append(b.report.Cells, s.cell)
	}
	return nil
}

// run runs a cell for about as long as the budget.
func (b *bench) run(ctx context.Context, c *cell, budget time.Duration) error {
	run := map[string]func(context.Context, *cell, time.Duration) error{
		gridCells: b.grid, loadCells: b.load, coldCells: b.cold, besideCells: b.beside, rateCells: b.rate,
	}[c.Kind]
	return run(ctx, c, budget)
}

// in says in which cell err has ended the run; if that was ctx, why it has.
func in(ctx context.Context, c *cell, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w", c.Title(), err)
}

// takesPart reports whether the contender is to be measured now.
func (b *bench) takesPart(c contender) bool { return b.only == nil || slices.Contains(b.only, c.name) }

// grid runs a cell of the grid.
func (b *bench) grid(ctx context.Context, c *cell, budget time.Duration) error {
	latency := time.Duration(c.LatencyMS * float64(time.Millisecond))
	if err := b.openPool(ctx, c.Connections, latency, b.opts.statements...); err != nil {
		return err
	}
	s := b.statements[c.Statement]
	var runners []*runner
	for _, contender := range b.contenders {
		if !b.takesPart(contender) {
			continue
		}
		r := b.runner(ctx, contender, s, latency)
		if r == nil || contender.least && (c.Queries == 1 || latency > 0) {
			continue
		}
		if expected := b.expected(c, contender); expected > tooLong || expected > tooLongAside && contender.aside {
			r.out = true
			r.note = fmt.Sprintf("left out: would take about %.0f s", expected.Seconds())
		}
		if b.only != nil {
			r.aside = false // a claim rests on all that are measured again
		}
		runners = append(runners, r)
	}
	course := course{draw: func() []int32 { return s.draw(b.random, c.Queries) }, budget: budget}
	if err := course.rounds(ctx, runners); err != nil {
		return err
	}
	for _, r := range runners {
		if r.name == auto && !r.out {
			how, err := chosen(ctx, r.task, s.draw(b.random, c.Queries))
			if err != nil {
				return err
			}
			r.note = "chose " + how
		}
	}
	c.Results = results(runners)
	return nil
}

// runner is the contender in a cell of the grid, or nil if it cannot do the work.
func (b *bench) runner(ctx context.Context, c contender, s statement, latency time.Duration) *runner {
	if c.name == byPython || c.name == byPythonExample {
		return b.pythonRunner(ctx, c, s, latency)
	}
	if t := s.task(c, b.pool, gridConns); t != nil {
		return taskRunner(c, t)
	}
	return nil
}

// expected is how long the contender would take, going by the quicker calls in the cells with fewer queries, or 0 if there
// are none.
func (b *bench) expected(c *cell, contender contender) time.Duration {
	ms := 0.0
	for _, queries := range b.opts.queries {
		if before := b.report.inGrid(c.Statement, queries, c.LatencyMS); before != nil && queries < c.Queries {
			if r, ok := before.of(contender.name); ok {
				ms = r.P10 * float64(c.Queries) / float64(queries)
			} else if slices.ContainsFunc(before.Results, func(r result) bool { return r.Contender == contender.name }) {
				return 2 * tooLong // it was left out there already
			}
		}
	}
	return time.Duration(ms * float64(time.Millisecond))
}

// cold runs the cell of connections that have not seen the statements, while the Source has.
func (b *bench) cold(ctx context.Context, c *cell, budget time.Duration) error {
	if err := b.openPool(ctx, c.Connections, coldLatency); err != nil {
		return err
	}
	s := b.statements[c.Statement]
	var runners []*runner
	for _, contender := range b.contenders {
		if t := s.task(contender, b.pool, c.Connections); t != nil {
			runners = append(runners, taskRunner(contender, t))
		}
	}
	renew := func() error {
		b.pool.Reset()
		return open(ctx, b.pool, nil)
	}
	course := course{draw: func() []int32 { return s.draw(b.random, c.Queries) }, renew: renew, budget: budget}
	if err := course.rounds(ctx, runners); err != nil {
		return err
	}
	c.Results = results(runners)
	return nil
}

package fanout_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// handWritten is what a careful team writes without the library: an errgroup with a limit, a pooled connection for each
// query, and the rows merged under a lock.
func handWritten(ctx context.Context, pool *pgxpool.Pool, limit int, args []string) (map[int32]db.A, error) {
	var (
		mu     sync.Mutex
		merged = map[int32]db.A{}
	)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(limit)
	for _, arg := range args {
		g.Go(func() error {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				return err
			}
			defer conn.Release()
			rows, err := db.New(conn).ListAByData(ctx, arg)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, row := range rows {
				merged[row.ID] = row
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return merged, nil
}

// BenchmarkGatherVersusHandWritten runs both in turn, 30 look-ups on 10 connections, and reports the median of the ratios
// over the pairs: "ratio" in time, "allocs-ratio" in allocations.
//
//	go test ./fanout -run '^$' -bench VersusHandWritten -benchtime 3000x -count 5
func BenchmarkGatherVersusHandWritten(b *testing.B) {
	const conns, queries = 10, 30
	pool := pgtest.Pool(b, conns)
	fill(b, pool, 100)
	warm(b, pool)
	src := fanout.New(pool, db.New)
	ctx := context.Background()
	args := make([]string, queries)
	gather := func() {
		if _, err := fanout.Gather(ctx, src, id, fanout.Each((*db.Queries).ListAByData, args...)...); err != nil {
			b.Fatal(err)
		}
	}
	byHand := func() {
		if _, err := handWritten(ctx, pool, conns, args); err != nil {
			b.Fatal(err)
		}
	}
	contenders := []func(){gather, byHand}
	var took [2][]time.Duration
	for i := 0; b.Loop(); i++ {
		for j := range args {
			args[j] = fmt.Sprintf("a_%d", rand.IntN(100))
		}
		for j := range contenders {
			j = (i + j) % 2 // each goes first every other time
			start := time.Now()
			contenders[j]()
			took[j] = append(took[j], time.Since(start))
		}
	}
	var ratios []float64
	for i := range took[0] {
		ratios = append(ratios, float64(took[0][i])/float64(took[1][i]))
	}
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(allocations(gather)/allocations(byHand), "allocs-ratio")
	b.ReportMetric(float64(median(took[0]).Microseconds()), "gather-µs")
	b.ReportMetric(float64(median(took[1]).Microseconds()), "by-hand-µs")
	b.ReportMetric(0, "ns/op") // of both together: of no use
}

// warm opens all connections of the pool, and prepares the statement on each.
func warm(tb testing.TB, pool *pgxpool.Pool) {
	var conns []*pgxpool.Conn
	for range pool.Stat().MaxConns() {
		conn, err := pool.Acquire(context.Background())
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := db.New(conn).ListAByData(context.Background(), ""); err != nil {
			tb.Fatal(err)
		}
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		conn.Release()
	}
}

func median[T float64 | time.Duration](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// allocations is how many f makes, goroutines of its own included: unlike testing.AllocsPerRun, at full GOMAXPROCS.
func allocations(f func()) float64 {
	const runs = 200
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / runs
}

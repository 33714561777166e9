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
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
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
	fanouttest.Fill(b, pool, 100)
	fanouttest.Warm(b, pool)
	src := fanout.New(pool, db.New)
	ctx := context.Background()
	args := make([]string, queries)
	gather := func() {
		if _, err := fanout.Gather(ctx, src, fanouttest.ID, fanout.Each((*db.Queries).ListAByData, args...)...); err != nil {
			b.Fatal(err)
		}
	}
	byHand := func() {
		if _, err := handWritten(ctx, pool, conns, args); err != nil {
			b.Fatal(err)
		}
	}
	versus(b, "gather", gather, "by-hand", byHand, func() {
		for j := range args {
			args[j] = fmt.Sprintf("a_%d", rand.IntN(100))
		}
	}, func() {})
	b.ReportMetric(allocations(gather)/allocations(byHand), "allocs-ratio")
}

// versus runs both contenders in turn, each first every other time, and reports their medians and the median of the
// ratios over the pairs. prepare runs before each pair, settle before each contender.
func versus(b *testing.B, name string, contender func(), otherName string, other func(), prepare, settle func()) {
	contenders := []func(){contender, other}
	var took [2][]time.Duration
	for i := 0; b.Loop(); i++ {
		prepare()
		for j := range contenders {
			j = (i + j) % 2
			settle()
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
	b.ReportMetric(float64(median(took[0]).Microseconds()), name+"-µs")
	b.ReportMetric(float64(median(took[1]).Microseconds()), otherName+"-µs")
	b.ReportMetric(0, "ns/op") // of both together: of no use
}

// BenchmarkSnapshotVersusPlain runs the same 30 look-ups on 10 connections with and without a snapshot, with no added
// round-trip time and with 10 ms of it.
//
//	go test ./fanout -run '^$' -bench SnapshotVersusPlain -benchtime 1000x -count 5
func BenchmarkSnapshotVersusPlain(b *testing.B) {
	for _, latency := range []time.Duration{0, 10 * time.Millisecond} {
		b.Run(fmt.Sprint("latency=", latency), func(b *testing.B) {
			const conns, queries = 10, 30
			pool := pgtest.Pool(b, conns, (&fanouttest.Traffic{Latency: latency}).Attach)
			fanouttest.Fill(b, pool, 100)
			fanouttest.Warm(b, pool)
			plain := fanout.New(pool, db.New)
			snapshot := plain
			snapshot.Snapshot = true
			args := make([]string, queries)
			run := func(src fanout.Source[*db.Queries]) func() {
				return func() {
					if _, err := fanout.Gather(context.Background(), src, fanouttest.ID, fanout.Each((*db.Queries).ListAByData, args...)...); err != nil {
						b.Fatal(err)
					}
				}
			}
			versus(b, "snapshot", run(snapshot), "plain", run(plain), func() {
				for j := range args {
					args[j] = fmt.Sprintf("a_%d", rand.IntN(100))
				}
			}, func() {})
		})
	}
}

// BenchmarkFailureVersusHandWritten runs a call in which one query fails at once while nine sleep for ten seconds,
// followed by one of ten queries that succeeds; and the same by hand, where the failure has closed nine connections. Ten
// quick look-ups can do with the one that is left; ten statements that take the server 5 ms each cannot.
//
// Each contender has a pool of its own, so that neither has to do with what the other has left there: by hand, backends that
// know neither the tables nor the statements yet.
//
//	go test ./fanout -run '^$' -bench FailureVersusHandWritten -benchtime 50x -count 5
func BenchmarkFailureVersusHandWritten(b *testing.B) {
	const conns = 10
	good := map[string]fanout.Query[fanout.DBTX, string]{
		"look-ups": fanouttest.Statement[string]("-- name: LookUp :one\nselect data from a where data = $1", "a_1"),
		"each=5ms": fanouttest.Statement[string]("-- name: Work :one\nselect pg_sleep($1)::text", 0.005),
	}
	for _, kind := range []string{"look-ups", "each=5ms"} {
		b.Run(kind, func(b *testing.B) {
			dsn := pgtest.DSN(b)
			ours, theirs := pgtest.PoolOn(b, dsn, conns), pgtest.PoolOn(b, dsn, conns)
			fanouttest.Fill(b, ours, 100)
			src := fanouttest.Raw(ours)
			bad := fanouttest.Repeated(conns, fanouttest.Sleep)
			bad[conns-1] = fails
			then := fanouttest.Repeated(conns, good[kind])
			gather := func() {
				if _, err := fanout.Collect(context.Background(), src, bad...); fanouttest.SQLState(err) != "22012" {
					b.Fatal(err)
				}
				if _, err := fanout.Collect(context.Background(), src, then...); err != nil {
					b.Fatal(err)
				}
			}
			group := func(queries []fanout.Query[fanout.DBTX, string]) error {
				g, ctx := errgroup.WithContext(context.Background())
				for _, query := range queries {
					g.Go(func() error {
						conn, err := theirs.Acquire(ctx)
						if err != nil {
							return err
						}
						defer conn.Release()
						_, err = query(ctx, conn)
						return err
					})
				}
				return g.Wait()
			}
			byHand := func() {
				if err := group(bad); fanouttest.SQLState(err) != "22012" {
					b.Fatal(err)
				}
				if err := group(then); err != nil {
					b.Fatal(err)
				}
			}
			versus(b, "gather", gather, "by-hand", byHand, func() {}, func() {
				for n := 0; n != 2*conns; { // until the server has ended what is left behind by hand
					fanouttest.Warm(b, ours)
					fanouttest.Warm(b, theirs)
					if err := ours.QueryRow(context.Background(), "select count(*) from pg_stat_activity where datname = current_database() and application_name <> 'pgtest'").Scan(&n); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
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

// BenchmarkPipelinedVersusHandWritten runs the same 30 look-ups on 10 connections pipelined and by hand.
//
//	go test ./fanout -run '^$' -bench PipelinedVersusHandWritten -benchtime 1000x -count 5
func BenchmarkPipelinedVersusHandWritten(b *testing.B) {
	for _, latency := range []time.Duration{0, 10 * time.Millisecond} {
		b.Run(fmt.Sprint("latency=", latency), func(b *testing.B) {
			const conns, queries = 10, 30
			pool := pgtest.Pool(b, conns, (&fanouttest.Traffic{Latency: latency}).Attach)
			fanouttest.Fill(b, pool, 100)
			fanouttest.Warm(b, pool)
			src := fanout.New(pool, db.New)
			src.Strategy = fanout.Pipelined
			ctx := context.Background()
			args := make([]string, queries)
			pipelined := func() {
				if _, err := fanout.Gather(ctx, src, fanouttest.ID, fanout.Each((*db.Queries).ListAByData, args...)...); err != nil {
					b.Fatal(err)
				}
			}
			byHand := func() {
				if _, err := handWritten(ctx, pool, conns, args); err != nil {
					b.Fatal(err)
				}
			}
			versus(b, "pipelined", pipelined, "by-hand", byHand, func() {
				for j := range args {
					args[j] = fmt.Sprintf("a_%d", rand.IntN(100))
				}
			}, func() {})
		})
	}
}

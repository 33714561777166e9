package servers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A server that does not answer the cancel request either: after the grace the call returns, and the pool has room at once.
func TestFrozenServer(t *testing.T) {
	for _, f := range []fanouttest.Fault{fanouttest.Freeze, fanouttest.FreezeAll} {
		t.Run(string(f), func(t *testing.T) {
			w := &fanouttest.Wire{}
			pool := pgtest.Pool(t, 2, w.Attach)
			defer w.Thaw()
			src := fanouttest.Raw(pool)
			if _, err := fanout.Collect(t.Context(), src, fanouttest.PID, fanouttest.PID); err != nil {
				t.Fatal(err)
			}
			w.Arm(f, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := fanout.Collect(ctx, src, fanouttest.Repeated(2, fanouttest.Sleep)...)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if d := time.Since(start); d > 100*time.Millisecond+fanouttest.Grace {
				t.Errorf("the call returned after %v", d)
			}
			if n := pool.Stat().AcquiredConns(); n != 0 {
				t.Errorf("%d connections still acquired", n)
			}
			w.ServesAgain(t, src, 4)
		})
	}
}

// A connection is cut in the middle of each query in turn: an error that names it, and with Partial the others' rows.
func TestCutConnection(t *testing.T) {
	w := &fanouttest.Wire{}
	pool := pgtest.Pool(t, 2, w.Attach)
	src := fanouttest.Raw(pool)
	src.Partial, src.Strategy = true, fanout.Serial
	one := fanouttest.Statement[int32]("-- name: Seven :one\nselect 7")
	for range 10 {
		if _, err := fanout.Collect(t.Context(), src, one); err != nil {
			t.Fatal(err)
		}
		w.Arm(fanouttest.Cut, 1)
		lists, err := fanout.Collect(t.Context(), src, one, one, one)
		w.Mend(t)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 0 || errs[0].Name != "Seven" {
			t.Fatalf("%v", err)
		}
		if len(lists[1]) != 1 || len(lists[2]) != 1 {
			t.Errorf("%v", lists)
		}
		fanouttest.Serves(t, pool)
	}
}

// Random faults under random calls. No call outlives its deadline by more than the grace, every result that is returned
// equals Serial's, and afterwards nothing is acquired and the pool serves. There are several storms at once, because a frozen
// connection is mostly waited for.
func TestFaultStorm(t *testing.T) {
	storms, rounds := 3, 20
	if *fanouttest.Soak {
		storms, rounds = 12, 1000
	}
	var (
		all   sync.WaitGroup
		wires []*fanouttest.Wire
		pools []*pgxpool.Pool
	)
	met := make([]storm, storms)
	for i := range storms {
		w := &fanouttest.Wire{}
		pool := pgtest.Pool(t, 4, w.Attach)
		t.Cleanup(w.Thaw)
		fanouttest.Fill(t, pool, 20)
		all.Go(func() { met[i].rage(t, w, pool, i*rounds, rounds) })
		wires, pools = append(wires, w), append(pools, pool)
	}
	all.Wait()
	sum := storm{tried: map[fanouttest.Fault]int{}, hit: map[fanout.Strategy]int64{}}
	hits := int64(0)
	for _, s := range met {
		sum.failed += s.failed
		sum.returned += s.returned
		sum.together += s.together
		for f, n := range s.tried {
			sum.tried[f] += n
		}
		for strategy, n := range s.hit {
			sum.hit[strategy] += n
			hits += n
		}
	}
	t.Logf("faults armed %v, hit %v, %d of them calls that coalesced; %d calls returned results, %d an error", sum.tried, sum.hit, sum.together, sum.returned, sum.failed)
	if hits < int64(storms*rounds/3) || sum.returned == 0 || sum.failed == 0 || sum.together == 0 || len(sum.hit) < len(fanouttest.Strategies) {
		t.Error("the storms were none")
	}
	for i, pool := range pools {
		wires[i].Thaw()
		src := fanout.New(pool, db.New)
		src.Retries = 5 // a connection may have been cut behind the last word on it
		if _, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(8, fanout.All((*db.Queries).ListA))...); err != nil {
			t.Error(err)
		}
		fanouttest.Serves(t, pool)
	}
}

// A storm counts the calls that failed, that returned results, and that were hit and coalesced; and the faults.
type storm struct {
	failed, returned, together int
	tried                      map[fanouttest.Fault]int
	hit                        map[fanout.Strategy]int64
}

// rage makes calls on the pool over w. Unless it is a soak, they are the same every time, from the number first on.
func (s *storm) rage(t *testing.T, w *fanouttest.Wire, pool *pgxpool.Pool, first, rounds int) {
	src := fanout.New(pool, db.New)
	s.tried, s.hit = map[fanouttest.Fault]int{}, map[fanout.Strategy]int64{}
	for round := range rounds {
		seed := uint64(first + round)
		if *fanouttest.Soak {
			seed = rand.Uint64()
		}
		r := rand.New(rand.NewPCG(seed, 1))
		f := []fanouttest.Fault{fanouttest.Cut, fanouttest.Cut, fanouttest.Cut, fanouttest.Cut, fanouttest.Cut, fanouttest.Cut, fanouttest.Delay, fanouttest.Delay, fanouttest.Freeze, fanouttest.FreezeAll}[r.IntN(10)]
		s.tried[f]++
		src := src
		src.Strategy = fanouttest.Strategies[r.IntN(len(fanouttest.Strategies))]
		src.Partial = r.IntN(2) == 0
		src.Limit = r.IntN(6)
		src.Snapshot = r.IntN(2) == 0
		src.Retries = r.IntN(3)
		kind := []string{"Collect", "Run", "Stream"}[r.IntN(3)]
		timeout := 5 * time.Second
		if f == fanouttest.Freeze || f == fanouttest.FreezeAll {
			timeout = time.Duration(1+r.IntN(100)) * time.Millisecond
		}
		coalesced := false
		src.Observe = func(_ context.Context, span fanout.Span) { coalesced = coalesced || span.Shared > 0 }
		queries := make([]fanout.Query[*db.Queries, db.A], 1+r.IntN(20))
		want := make([]int32, len(queries))
		for i := range queries {
			want[i] = 1 + r.Int32N(20)
			get := fanout.One((*db.Queries).GetA, want[i])
			switch queries[i] = get; r.IntN(6) {
			case 0: // a second statement that depends on the first
				queries[i] = func(ctx context.Context, q *db.Queries) ([]db.A, error) {
					if _, err := q.CountA(ctx); err != nil {
						return nil, err
					}
					return get(ctx, q)
				}
			case 1: // a call of its own
				nested := src
				nested.Observe, nested.Partial = nil, false
				queries[i] = func(ctx context.Context, q *db.Queries) ([]db.A, error) {
					lists, err := fanout.Collect(ctx, nested, get, get)
					return slices.Concat(lists...)[:min(len(lists), 1)], err
				}
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		w.Arm(f, 1+r.Int64N(int64(100+100*len(queries))))
		start, hits := time.Now(), w.Hits.Load()
		lists, err := fanouttest.CollectBy(kind, ctx, src, queries)
		took := time.Since(start)
		w.Disarm()
		if hits = w.Hits.Load() - hits; hits > 0 {
			s.hit[src.Strategy] += hits
			if coalesced {
				s.together++
			}
		}
		cancel()
		what := fmt.Sprintf("round %d, seed %d: %s %v partial=%v snapshot=%v retries=%d limit=%d, %d queries, %s", round, seed, kind, src.Strategy, src.Partial, src.Snapshot, src.Retries, src.Limit, len(queries), f)
		if took > timeout+fanouttest.Grace {
			t.Errorf("%s: took %v with a timeout of %v", what, took, timeout)
		}
		var errs fanout.Errors
		partial := errors.As(err, &errs)
		if err != nil {
			s.failed++
		}
		if err != nil && !partial {
			continue // Run's destinations are checked elsewhere
		}
		s.returned++
		for i, list := range lists {
			failed := slices.ContainsFunc(errs, func(e *fanout.Error) bool { return e.Index == i })
			if !failed && (len(list) != 1 || list[0].ID != want[i]) {
				t.Errorf("%s: query %d returned %v, want id %d", what, i, list, want[i])
			}
			if failed && len(list) != 0 {
				t.Errorf("%s: query %d failed and returned %v", what, i, list)
			}
		}
	}
}

// So does one that does not answer what the package asks for itself, though the pool's owner has pgx wait longer when a ctx ends.
func TestFrozenServerWithAContextWatcher(t *testing.T) {
	w := &fanouttest.Wire{}
	pool := pgtest.Pool(t, 1, w.Attach, func(config *pgxpool.Config) {
		config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
			return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: time.Minute}
		}
	})
	defer w.Thaw()
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		var frozen time.Time
		_, err := fanout.Collect(t.Context(), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			pids, err := fanouttest.PID(ctx, tx)
			w.Arm(fanouttest.FreezeAll, 1) // what ends the transaction
			frozen = time.Now()
			return pids, err
		})
		if took := time.Since(frozen); took > fanouttest.Grace {
			t.Errorf("%v: the call returned after %v: %v", s, took, err)
		}
		w.Disarm()
		fanouttest.Serves(t, pool)
	}
}

// A server that logs everybody in and then resets the connection is not asked again and again.
func TestEveryConnectionIsReset(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		var left, opened atomic.Int32
		pool := pgtest.Pool(t, 2, fanouttest.Over(func(conn net.Conn) net.Conn {
			opened.Add(1)
			return &resetConn{Conn: conn, left: &left}
		}))
		src := fanouttest.Raw(pool)
		src.Strategy = s
		if _, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(4, fanouttest.PID)...); err != nil {
			t.Fatal(err)
		}
		opened.Store(0)
		left.Store(1000)
		_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(4, fanouttest.PID)...)
		left.Store(0)
		if n := opened.Load(); err == nil || errors.Is(err, context.DeadlineExceeded) || n > 20 {
			t.Errorf("%v: %d connections were opened: %v", s, n, err)
		}
		fanouttest.Serves(t, pool)
	}
}

// Connections are reset for a while: with Retries, a query of which nothing was sent comes through.
func TestConnectionsAreResetForAWhile(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, conns := range []int{1, 2} {
			var left atomic.Int32
			pool := pgtest.Pool(t, conns, fanouttest.Over(func(conn net.Conn) net.Conn { return &resetConn{Conn: conn, left: &left} }))
			src := fanouttest.Raw(pool)
			src.Strategy, src.Retries = s, 6
			if _, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(2, fanouttest.PID)...); err != nil {
				t.Fatal(err)
			}
			left.Store(int32(conns) + 3)
			_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID)
			if err != nil {
				t.Errorf("%v, %d connections: %v", s, conns, err)
			}
			left.Store(0)
			fanouttest.Serves(t, pool)
		}
	}
}

// A resetConn is a connection that cannot be written to once it is open, as long as some are left to be reset.
type resetConn struct {
	net.Conn
	left   *atomic.Int32
	writes int
}

func (c *resetConn) Write(b []byte) (int, error) {
	if c.writes++; c.writes > 1 && c.left.Load() > 0 { // the first one opens it
		c.left.Add(-1)
		_ = c.Conn.Close()
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(b)
}

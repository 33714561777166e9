package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// In fake time, on a pool whose server never answers: only scheduling is tested.
func TestAcquireTimeoutInFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, err := pgxpool.ParseConfig("host=127.0.0.1 user=u pool_max_conns=4 sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		config.ConnConfig.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()

		src := fanouttest.Raw(pool)
		src.AcquireTimeout = 2 * time.Second
		start := time.Now()
		_, err = fanout.Collect(t.Context(), src, fanouttest.Repeated(30, fanouttest.PID)...)
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("gave up after %v", d)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		fanouttest.Mention(t, err, "fanout: no connection within 2s: 0 of 4 in use, 4 being opened: context deadline exceeded")

		// The ctx of the caller is shorter.
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		start = time.Now()
		err = fanout.Run(ctx, src, fanout.Do(func(context.Context, fanout.DBTX) error { return nil }))
		if d := time.Since(start); d != 500*time.Millisecond || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", d, err)
		}
		fanouttest.Mention(t, err, "no connection within 500ms")
	})
}

// The caller's own goroutine holds the pool's last connection: words that say so.
func TestCallerHoldsTheLastConnection(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	src := fanouttest.Raw(pool)
	src.AcquireTimeout = 50 * time.Millisecond
	var held []*pgxpool.Conn
	for range 4 {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	_, err := fanout.Collect(t.Context(), src, fanouttest.PID, fanouttest.PID)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	fanouttest.Mention(t, err, "fanout: no connection within 50ms: 4 of 4 in use (if the caller holds one of them itself")

	src.AcquireTimeout = 0
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // a call is not started when its ctx has ended
	defer cancel()
	src.Partial = true
	_, err = fanout.Collect(ctx, src, fanouttest.PID, fanouttest.PID)
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 2 || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	fanouttest.Mention(t, err, ": 4 of 4 in use")

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for !waitForConn() && ctx.Err() == nil {
			runtime.Gosched()
		}
		cancel()
	}()
	src.Partial = false
	_, err = fanout.Collect(ctx, src, fanouttest.PID)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	fanouttest.Mention(t, err, "fanout: no connection: 4 of 4 in use")
	for _, conn := range held {
		conn.Release()
	}
	fanouttest.Serves(t, pool)
}

// AcquireTimeout is for the first connection only: a call that has one goes on with it.
func TestOneConnectionIsEnough(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	fanouttest.Warm(t, pool)
	src := fanouttest.Raw(pool)
	src.AcquireTimeout = 50 * time.Millisecond
	for range 3 {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
	lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(10, fanouttest.Statement[string]("select pg_sleep(0.01)::text"))...)
	if err != nil || len(lists) != 10 {
		t.Errorf("%v, %v", lists, err)
	}
	if n := pool.Stat().AcquiredConns(); n != 3 {
		t.Errorf("%d connections acquired", n)
	}
}

// A call stops asking for connections as soon as nothing waits for one: here while its only connection is still busy.
func TestPendingAcquiresAreGivenUp(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	held, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	before := pool.Stat().CanceledAcquireCount()
	last := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		for pool.Stat().CanceledAcquireCount() == before && ctx.Err() == nil {
			runtime.Gosched()
		}
		return fanouttest.PID(ctx, tx)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// The second lane asks for a connection while query 0 runs, and must stop when query 1 is taken.
	first := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		for !waitForConn() && ctx.Err() == nil {
			runtime.Gosched()
		}
		return fanouttest.PID(ctx, tx)
	}
	if _, err := fanout.Collect(ctx, fanouttest.Raw(pool), first, last); err != nil {
		t.Error(err)
	}
}

// waitForConn reports whether goroutines wait for a connection of a pool.
func waitForConn() bool {
	return strings.Contains(fanouttest.Stacks(), "semaphore.(*Weighted).Acquire")
}

func TestLimit(t *testing.T) {
	for _, c := range []struct{ conns, limit, queries, want int }{
		{8, 0, 30, 8},
		{8, 3, 30, 3},
		{3, 100, 30, 3},
		{8, 0, 5, 5},
		{8, 1, 30, 1},
	} {
		pool := pgtest.Pool(t, c.conns)
		src := fanouttest.Raw(pool)
		src.Limit = c.limit
		var now, most atomic.Int64
		full := make(chan struct{})
		release := sync.OnceFunc(func() { close(full) })
		query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			if int(n) == c.want {
				release()
			}
			<-full // until as many run at once as are wanted
			return fanouttest.PID(ctx, tx)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		stop := context.AfterFunc(ctx, release)
		if _, err := fanout.Collect(ctx, src, fanouttest.Repeated(c.queries, fanout.Query[fanout.DBTX, int32](query))...); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		stop()
		cancel()
		if int(most.Load()) != c.want {
			t.Errorf("%+v: %d at once", c, most.Load())
		}
	}
}

// No strategy takes more connections than Limit, of a pool that has more; nor fewer, where statements take long: these take
// until as many wait as are to be at once.
func TestLimitOfEveryStrategy(t *testing.T) {
	const limit = 3
	// The pool is not to ping what has been idle: what it still pings when a lane is not needed any more is in nobody's use,
	// but not idle either, so that the next one has another opened.
	pool := pgtest.Pool(t, 8, func(c *pgxpool.Config) {
		c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	})
	locker := pgtest.Connect(t, pool.Config().ConnString())
	for _, s := range fanouttest.Strategies {
		for _, snapshot := range []bool{false, true} {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Limit, src.Snapshot = s, limit, snapshot
			backends := map[uint32]int{}
			most := int32(0)
			src.Observe = func(_ context.Context, s fanout.Span) {
				backends[s.PID]++
				most = max(most, pool.Stat().AcquiredConns())
			}
			want := limit
			if s == fanout.Serial {
				want = 1
			}
			text := fmt.Sprintf("select pg_advisory_xact_lock_shared(1)::text as %v%v", s, snapshot) // new, since the others are quick in the end
			pgtest.Exec(t, locker, "select pg_advisory_lock(1)")
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			call := make(chan error, 1)
			go func() {
				_, err := fanout.Collect(ctx, src, fanouttest.Repeated(30, fanouttest.Statement[string](text))...)
				call <- err
			}()
			for len(call) == 0 && fanouttest.Awaiting(t, locker) < want {
				time.Sleep(time.Millisecond)
			}
			pgtest.Exec(t, locker, "select pg_advisory_unlock(1)")
			err := <-call
			cancel()
			if err != nil {
				t.Fatalf("%v, snapshot=%v: %v", s, snapshot, err)
			}
			if len(backends) != want || most > limit || pool.Stat().NewConnsCount() > limit {
				t.Errorf("%v, snapshot=%v: by backend %v, %d at once, %d opened", s, snapshot, backends, most, pool.Stat().NewConnsCount())
			}
		}
	}
}

func TestManyQueries(t *testing.T) {
	eachStrategy(t, 4, 10, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		n := 100_000
		if src.Strategy == fanout.Serial {
			n = 10_000 // a goroutine for each would be as plain to see, and each takes a round trip
		}
		before := runtime.NumGoroutine()
		most := 0
		src.Observe = func(context.Context, fanout.Span) { most = max(most, runtime.NumGoroutine()-before) }
		got, err := fanout.Gather(t.Context(), src, fanouttest.ID, fanouttest.Repeated(n, fanout.One((*db.Queries).GetA, 3))...)
		if err != nil || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
		bound := 20
		if src.Strategy >= fanout.Pipelined {
			// The functions that run ahead: a coroutine each, and where one is kept waiting, by the machine or by a lock whose
			// holder is, the goroutine that it is left with.
			bound += 2 * 4 * 32
		}
		if most > bound {
			t.Errorf("%d goroutines more than before the call", most)
		}
	})
}

// AcquireTimeout is for all attempts together, as long as none has got a connection.
func TestAcquireTimeoutBoundsRetries(t *testing.T) {
	pool := pgtest.Pool(t, 1, func(c *pgxpool.Config) {
		c.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("refused") }
	})
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Retries, src.AcquireTimeout = s, 1000, 100*time.Millisecond
		ctx := fanouttest.InTime(t)
		_, err := fanout.Collect(ctx, src, fanouttest.PID)
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// Nor do the pauses between attempts go beyond it.
func TestAcquireTimeoutBoundsPauses(t *testing.T) {
	pool := pgtest.Pool(t, 1, func(c *pgxpool.Config) {
		c.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("refused") }
	})
	src := fanouttest.Raw(pool)
	src.Retries, src.AcquireTimeout = 1000, 1600*time.Millisecond // the pauses are of a second or so by then
	start := time.Now()
	for range 2 {
		if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	if late := time.Since(start) - 2*src.AcquireTimeout; late > 800*time.Millisecond {
		t.Errorf("two calls have taken %v longer", late)
	}
}

// A hook of the pool is not interrupted because the connection that it prepares has turned out not to be needed: as long as
// the pool has places left.
func TestHooksAreNotInterrupted(t *testing.T) {
	var hooked, interrupted atomic.Int32
	pool := pgtest.Pool(t, 10, func(config *pgxpool.Config) {
		config.PrepareConn = func(ctx context.Context, _ *pgx.Conn) (bool, error) {
			hooked.Add(1)
			select {
			case <-ctx.Done():
				interrupted.Add(1)
			case <-time.After(5 * time.Millisecond):
			}
			return true, nil
		}
	})
	fanouttest.Fill(t, pool, 100)
	fanouttest.Warm(t, pool)
	for _, s := range fanouttest.Strategies {
		src := fanout.New(pool, db.New)
		src.Strategy, src.Limit = s, 5
		queries := fanout.Each((*db.Queries).ListAByData, make([]string, 300)...)
		for range 20 {
			hooked.Store(0)
			interrupted.Store(0)
			if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
				t.Fatal(err)
			}
			if n := interrupted.Load(); n > 0 {
				t.Errorf("%v: %d of %d hooks were interrupted", s, n, hooked.Load())
			}
		}
	}
}

// The pool's BeforeClose is called for each connection, also for one that the call has taken out of the pool.
func TestBeforeCloseOfALostConnection(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		var open atomic.Int32
		pool := pgtest.Pool(t, 2, func(c *pgxpool.Config) {
			c.AfterConnect = func(context.Context, *pgx.Conn) error { open.Add(1); return nil }
			c.BeforeClose = func(*pgx.Conn) { open.Add(-1) }
		})
		src := fanouttest.Raw(pool)
		src.Strategy = s
		if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(2, fanouttest.Statement[bool]("select pg_terminate_backend(pg_backend_pid())"))...); err == nil {
			t.Errorf("%v: no error", s)
		}
		pool.Close()
		for ctx := fanouttest.InTime(t); open.Load() != 0 && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		}
		if n := open.Load(); n != 0 {
			t.Errorf("%v: BeforeClose was not called for %d connections", s, n)
		}
	}
}

// pgxpool pings a connection that has been idle for long, and that ends with the deadline of whoever waits for it: pgx closes
// the connection then. The end of a call's ctx costs none.
func TestDeadlineWhileConnectionsArePinged(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		way := &fanouttest.Traffic{Latency: 20 * time.Millisecond}
		pool := pgtest.Pool(t, 4, way.Attach, func(c *pgxpool.Config) {
			c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
		})
		for _, conn := range fanouttest.AcquireAll(t, pool) {
			conn.Release()
		}
		before := pgtest.Backends(t, pool)
		src := fanouttest.Raw(pool)
		src.Strategy = s
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := fanout.Collect(ctx, src, fanouttest.Repeated(4, fanouttest.PID)...)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: %v", s, err)
		}
		fanouttest.Serves(t, pool)
		if after := pgtest.Backends(t, pool); !slices.Equal(before, after) {
			t.Errorf("%v: backends before %v, after %v", s, before, after)
		}
	}
}

// A losing is a connection on which one answer, when that is due, is lost.
type losing struct {
	net.Conn
	due *atomic.Bool
}

func (c *losing) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && c.due.Swap(false) {
		return c.Conn.Read(b)
	}
	return n, err
}

// A connection that does not answer pgxpool's ping keeps its place no longer than the documented second beyond the deadline.
func TestDeadlineWhileAConnectionIsSilent(t *testing.T) {
	var due atomic.Bool
	pool := pgtest.Pool(t, 1, fanouttest.Over(func(conn net.Conn) net.Conn { return &losing{conn, &due} }), func(config *pgxpool.Config) {
		config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
	})
	fanouttest.Serves(t, pool)
	for _, s := range []fanout.Strategy{fanout.Serial, fanout.Pipelined} {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		due.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := fanout.Collect(ctx, src, fanouttest.PID, fanouttest.PID)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: %v", s, err)
		}
		ended := time.Now()
		fanouttest.Serves(t, pool)
		if took := time.Since(ended); took > fanouttest.Grace {
			t.Errorf("%v: the connection kept its place for %v", s, took)
		}
	}
}

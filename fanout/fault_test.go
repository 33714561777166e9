package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
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
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A wire is the network between a pool and its server, with one fault to come: after so many bytes in either direction,
// the connection that carries the last of them is cut, frozen or delayed, or the whole server freezes.
type wire struct {
	left  atomic.Int64 // bytes until the fault
	fault atomic.Value // of fault
	hits  atomic.Int64

	dead   atomic.Bool // the server is frozen: all connections swallow what they carry
	closed atomic.Bool // nor can new ones be opened: they are refused
	mu     sync.Mutex
	conns  map[*faultConn]bool
}

type fault string

const (
	cut       fault = "cut"       // the socket is closed
	freeze    fault = "freeze"    // the connection carries nothing any more, in either direction
	freezeAll fault = "freezeAll" // nor does any other
	delay     fault = "delay"     // the byte arrives late
)

// attach makes a pool's connections run over w.
func (w *wire) attach(config *pgxpool.Config) {
	w.disarm()
	w.conns = map[*faultConn]bool{}
	config.ConnConfig.ConnectTimeout = 4 * time.Second // of a connection that freezes while it is opened, which is pgx's to end
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if w.closed.Load() {
			return nil, errors.New("refused")
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := &faultConn{Conn: conn, wire: w}
		w.mu.Lock()
		w.conns[c] = true
		w.mu.Unlock()
		return c, nil
	}
}

func (w *wire) arm(f fault, bytes int64) {
	w.fault.Store(f)
	w.left.Store(bytes)
}

func (w *wire) disarm() {
	w.left.Store(1 << 62)
	w.dead.Store(false)
}

// mend is disarm between two cuts: it lets new connections be opened again, and waits until pgx has done with the one that was
// cut. That takes a cancel request, in the background, which the next cut could hit in place of what it is meant for.
func (w *wire) mend(t testing.TB) {
	t.Helper()
	w.disarm()
	w.closed.Store(false)
	for deadline := time.Now().Add(10 * time.Second); strings.Contains(stacks(), "(*PgConn).asyncClose."); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("pgx has not done with a connection that was cut")
		}
	}
}

// cutAll closes the sockets of all connections.
func (w *wire) cutAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Conn.Close()
	}
}

// thaw ends what waits on frozen connections, by closing them: pgx's clean-up, and the pings of pgxpool's, for which it
// keeps a place in the pool for up to 15 seconds.
func (w *wire) thaw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if c.frozen.Load() {
			_ = c.Conn.Close()
		}
	}
}

type faultConn struct {
	net.Conn
	wire   *wire
	frozen atomic.Bool
}

// spend counts n bytes and, if they are the fault's, lets it happen.
func (c *faultConn) spend(n int) error {
	w := c.wire
	left := w.left.Add(int64(-n))
	if left > 0 || left+int64(n) <= 0 {
		return nil
	}
	w.hits.Add(1)
	switch w.fault.Load().(fault) {
	case cut:
		_ = c.Conn.Close()
		return io.ErrUnexpectedEOF
	case freeze:
		c.frozen.Store(true)
	case freezeAll:
		w.dead.Store(true)
	case delay:
		time.Sleep(20 * time.Millisecond) // the fault itself, not a synchronisation
	}
	return nil
}

func (c *faultConn) swallows() bool { return c.frozen.Load() || c.wire.dead.Load() }

func (c *faultConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err == nil {
			err = c.spend(n)
		}
		if err != nil || !c.swallows() {
			return n, err
		}
		c.frozen.Store(true) // what it has swallowed is gone for good
	}
}

func (c *faultConn) Write(b []byte) (int, error) {
	if err := c.spend(len(b)); err != nil {
		return 0, err
	}
	if c.swallows() {
		c.frozen.Store(true)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *faultConn) Close() error {
	c.wire.mu.Lock()
	delete(c.wire.conns, c)
	c.wire.mu.Unlock()
	return c.Conn.Close()
}

// grace is how long a call may take after its deadline: the documented second, and what a loaded machine needs.
const grace = time.Second + 4*time.Second

// A server that does not answer the cancel request either: after the grace the call returns, and the pool has room at once.
func TestFrozenServer(t *testing.T) {
	for _, f := range []fault{freeze, freezeAll} {
		t.Run(string(f), func(t *testing.T) {
			w := &wire{}
			pool := pgtest.Pool(t, 2, w.attach)
			defer w.thaw()
			src := raw(pool)
			if _, err := fanout.Collect(t.Context(), src, pid, pid); err != nil {
				t.Fatal(err)
			}
			w.arm(f, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := fanout.Collect(ctx, src, repeated(2, sleep)...)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			if d := time.Since(start); d > 100*time.Millisecond+grace {
				t.Errorf("the call returned after %v", d)
			}
			if n := pool.Stat().AcquiredConns(); n != 0 {
				t.Errorf("%d connections still acquired", n)
			}
			w.disarm()
			ctx, cancel = context.WithTimeout(t.Context(), grace)
			defer cancel()
			if _, err := fanout.Collect(ctx, src, repeated(4, pid)...); err != nil {
				t.Errorf("the pool does not serve the next call: %v", err)
			}
		})
	}
}

// A connection is cut in the middle of each query in turn: an error that names it, and with Partial the others' rows.
func TestCutConnection(t *testing.T) {
	w := &wire{}
	pool := pgtest.Pool(t, 2, w.attach)
	src := raw(pool)
	src.Partial, src.Strategy = true, fanout.Serial
	one := statement[int32]("-- name: Seven :one\nselect 7")
	for range 10 {
		if _, err := fanout.Collect(t.Context(), src, one); err != nil {
			t.Fatal(err)
		}
		w.arm(cut, 1)
		lists, err := fanout.Collect(t.Context(), src, one, one, one)
		w.mend(t)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 0 || errs[0].Name != "Seven" {
			t.Fatalf("%v", err)
		}
		if len(lists[1]) != 1 || len(lists[2]) != 1 {
			t.Errorf("%v", lists)
		}
		serves(t, pool)
	}
}

// Random faults under random calls. No call outlives its deadline by more than the grace, every result that is returned
// equals Serial's, and afterwards nothing is acquired and the pool serves. There are several storms at once, because a frozen
// connection is mostly waited for.
func TestFaultStorm(t *testing.T) {
	storms, rounds := 3, 20
	if *soak {
		storms, rounds = 12, 1000
	}
	var (
		all   sync.WaitGroup
		wires []*wire
		pools []*pgxpool.Pool
	)
	met := make([]storm, storms)
	for i := range storms {
		w := &wire{}
		pool := pgtest.Pool(t, 4, w.attach)
		t.Cleanup(w.thaw)
		fill(t, pool, 20)
		all.Go(func() { met[i].rage(t, w, pool, i*rounds, rounds) })
		wires, pools = append(wires, w), append(pools, pool)
	}
	all.Wait()
	sum := storm{tried: map[fault]int{}, hit: map[fanout.Strategy]int64{}}
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
	if hits < int64(storms*rounds/3) || sum.returned == 0 || sum.failed == 0 || sum.together == 0 || len(sum.hit) < len(strategies) {
		t.Error("the storms were none")
	}
	for i, pool := range pools {
		wires[i].thaw()
		src := fanout.New(pool, db.New)
		src.Retries = 5 // a connection may have been cut behind the last word on it
		if _, err := fanout.Collect(t.Context(), src, repeated(8, fanout.All((*db.Queries).ListA))...); err != nil {
			t.Error(err)
		}
		serves(t, pool)
	}
}

// A storm counts the calls that failed, that returned results, and that were hit and coalesced; and the faults.
type storm struct {
	failed, returned, together int
	tried                      map[fault]int
	hit                        map[fanout.Strategy]int64
}

// rage makes calls on the pool over w. Unless it is a soak, they are the same every time, from the number first on.
func (s *storm) rage(t *testing.T, w *wire, pool *pgxpool.Pool, first, rounds int) {
	src := fanout.New(pool, db.New)
	s.tried, s.hit = map[fault]int{}, map[fanout.Strategy]int64{}
	for round := range rounds {
		seed := uint64(first + round)
		if *soak {
			seed = rand.Uint64()
		}
		r := rand.New(rand.NewPCG(seed, 1))
		f := []fault{cut, cut, cut, cut, cut, cut, delay, delay, freeze, freezeAll}[r.IntN(10)]
		s.tried[f]++
		src := src
		src.Strategy = strategies[r.IntN(len(strategies))]
		src.Partial = r.IntN(2) == 0
		src.Limit = r.IntN(6)
		src.Snapshot = r.IntN(2) == 0
		src.Retries = r.IntN(3)
		kind := []string{"Collect", "Run", "Stream"}[r.IntN(3)]
		timeout := 5 * time.Second
		if f == freeze || f == freezeAll {
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
		w.arm(f, 1+r.Int64N(int64(100+100*len(queries))))
		start, hits := time.Now(), w.hits.Load()
		lists, err := collectBy(kind, ctx, src, queries)
		took := time.Since(start)
		w.disarm()
		if hits = w.hits.Load() - hits; hits > 0 {
			s.hit[src.Strategy] += hits
			if coalesced {
				s.together++
			}
		}
		cancel()
		what := fmt.Sprintf("round %d, seed %d: %s %v partial=%v snapshot=%v retries=%d limit=%d, %d queries, %s", round, seed, kind, src.Strategy, src.Partial, src.Snapshot, src.Retries, src.Limit, len(queries), f)
		if took > timeout+grace {
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
	w := &wire{}
	pool := pgtest.Pool(t, 1, w.attach, func(config *pgxpool.Config) {
		config.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
			return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: time.Minute}
		}
	})
	defer w.thaw()
	for _, s := range strategies {
		src := raw(pool)
		src.Strategy, src.Snapshot = s, true
		var frozen time.Time
		_, err := fanout.Collect(t.Context(), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			pids, err := pid(ctx, tx)
			w.arm(freezeAll, 1) // what ends the transaction
			frozen = time.Now()
			return pids, err
		})
		if took := time.Since(frozen); took > grace {
			t.Errorf("%v: the call returned after %v: %v", s, took, err)
		}
		w.disarm()
		serves(t, pool)
	}
}

// A server that logs everybody in and then resets the connection is not asked again and again.
func TestEveryConnectionIsReset(t *testing.T) {
	for _, s := range strategies {
		var left, opened atomic.Int32
		pool := pgtest.Pool(t, 2, over(func(conn net.Conn) net.Conn {
			opened.Add(1)
			return &resetConn{Conn: conn, left: &left}
		}))
		src := raw(pool)
		src.Strategy = s
		if _, err := fanout.Collect(t.Context(), src, repeated(4, pid)...); err != nil {
			t.Fatal(err)
		}
		opened.Store(0)
		left.Store(1000)
		_, err := fanout.Collect(inTime(t), src, repeated(4, pid)...)
		left.Store(0)
		if n := opened.Load(); err == nil || errors.Is(err, context.DeadlineExceeded) || n > 20 {
			t.Errorf("%v: %d connections were opened: %v", s, n, err)
		}
		serves(t, pool)
	}
}

// Connections are reset for a while: with Retries, a query of which nothing was sent comes through.
func TestConnectionsAreResetForAWhile(t *testing.T) {
	for _, s := range strategies {
		for _, conns := range []int{1, 2} {
			var left atomic.Int32
			pool := pgtest.Pool(t, conns, over(func(conn net.Conn) net.Conn { return &resetConn{Conn: conn, left: &left} }))
			src := raw(pool)
			src.Strategy, src.Retries = s, 6
			if _, err := fanout.Collect(t.Context(), src, repeated(2, pid)...); err != nil {
				t.Fatal(err)
			}
			left.Store(int32(conns) + 3)
			_, err := fanout.Collect(inTime(t), src, pid)
			if err != nil {
				t.Errorf("%v, %d connections: %v", s, conns, err)
			}
			left.Store(0)
			serves(t, pool)
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

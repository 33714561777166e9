package fanout

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// newTurns are the turns of a pool that others use, too.
func newTurns(maxConns int) *turns {
	t, theirs := &turns{}, int64(0)
	t.init(maxConns, func() int64 { theirs++; return t.ours.Load() + theirs })
	return t
}

// crowd has n callers make calls on t for so long. A call is 1 ms of work for a server that has so many processors, and
// shares them among those at work. It returns how many calls were made, and the most at work in the second half.
func crowd(t *turns, n, processors int, long time.Duration) (calls, most int) {
	var mu sync.Mutex
	var busy int
	var wg sync.WaitGroup
	x := newText("select 1")
	end := time.Now().Add(long)
	for range n {
		wg.Go(func() {
			for time.Now().Before(end) {
				mine := t.take(context.Background(), turnPatience)
				t.ours.Add(1)
				mu.Lock()
				busy++
				if time.Until(end) < long/2 {
					most = max(most, busy)
				}
				mu.Unlock()
				for range 10 {
					mu.Lock()
					share := max(1, float64(busy)/float64(processors))
					mu.Unlock()
					time.Sleep(time.Duration(share * float64(100*time.Microsecond)))
				}
				mu.Lock()
				busy--
				calls++
				mu.Unlock()
				t.learn(&mine, new(time.Duration), x, 0, time.Millisecond, 10)
				t.end(&mine)
			}
		})
	}
	wg.Wait()
	return calls, most
}

func TestTurnsFollowWhatTheServerCanDo(t *testing.T) {
	for _, test := range []struct {
		name       string
		processors int
		low, high  int // of how many should be at work
	}{
		{"of few processors", 4, 5, 9},
		{"of as many processors as connections", 64, 60, 64},
		{"no fewer than a part of the pool", 1, 21, 22},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool := 64
				if test.processors == 4 {
					pool = 15 // a third is not what ends it
				}
				turns := newTurns(pool)
				crowd(turns, 1, test.processors, 100*time.Millisecond)
				for range 100 { // calls of another kind do not count, which take longer for the same work
					slow := turns.take(context.Background(), turnPatience)
					slow.snapshot = true
					time.Sleep(10 * time.Millisecond)
					slow.work = time.Millisecond
					turns.end(&slow)
				}
				calls, most := crowd(turns, 64, test.processors, 2*time.Second)
				if most < test.low || most > test.high {
					t.Errorf("%d at work, wanted %d to %d", most, test.low, test.high)
				}
				if least := test.processors * 2000 * 8 / 10; calls < min(least, 64*2000*8/10) {
					t.Errorf("%d calls, wanted %d or more", calls, least)
				}
			})
		})
	}
}

// Fewer are at work for the sake of others who use the pool; where there are none, as many are as there are connections.
func TestTurnsAreForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, theirs := &turns{}, int64(0)
		turns.init(15, func() int64 { return turns.ours.Load() + theirs })
		for _, others := range []bool{false, true, false} {
			ctx, leave := context.WithCancel(t.Context())
			if others {
				go func() {
					for ctx.Err() == nil {
						turns.mu.Lock()
						theirs++
						turns.mu.Unlock()
						time.Sleep(time.Millisecond)
					}
				}()
			}
			_, most := crowd(turns, 64, 4, 4*time.Second)
			leave()
			synctest.Wait()
			if !others && most != 15 || others && (most < 5 || most > 9) {
				t.Errorf("%d at work, with others: %v; wanted all 15, or 5 to 9", most, others)
			}
		}
	})
}

// What others acquire from the pool is told from what calls do that take turns, whatever becomes of these.
func TestTurnsTellOthers(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	src := New(pool, func(tx DBTX) DBTX { return tx })
	src.Strategy = Auto
	turns := &src.shared.turns
	query := func(ctx context.Context, tx DBTX) ([]int, error) {
		_, err := tx.Exec(ctx, "select pg_sleep(0.001)")
		return nil, err
	}
	queries := slices.Repeat([]Query[DBTX, int]{query}, 30)
	call := func(ctx context.Context, src Source[DBTX], n int, wanted error) {
		t.Helper()
		if _, err := Collect(ctx, src, queries[:n]...); !errors.Is(err, wanted) {
			t.Errorf("%v, wanted %v", err, wanted)
		}
	}
	for range 5 {
		call(t.Context(), src, 30, nil)
	}
	conns := make([]*pgxpool.Conn, 4)
	for i := range conns {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn
	}
	hasty := src
	hasty.AcquireTimeout = 10 * time.Millisecond
	call(t.Context(), hasty, 30, context.DeadlineExceeded)
	for _, conn := range conns {
		conn.Release()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
	defer cancel()
	call(ctx, src, 30, context.DeadlineExceeded)
	call(t.Context(), src, 1, nil) // it does not wait for a turn
	serial := src
	serial.Strategy = Serial
	call(t.Context(), serial, 30, nil)
	if got, want := turns.acquires()-turns.ours.Load(), int64(len(conns)+1+1); got != want {
		t.Errorf("%d connections are taken to have been acquired by others, wanted %d", got, want)
	}
}

// What has made calls slow for a while does not leave a small pool with one call at work for ever.
func TestTurnsRecover(t *testing.T) {
	for connections := 2; connections <= 5; connections++ {
		synctest.Test(t, func(t *testing.T) {
			turns := newTurns(connections)
			crowd(turns, 2*connections, 1, time.Second)
			if _, most := crowd(turns, 2*connections, 64, 3*time.Second); most != connections {
				t.Errorf("%d of %d are at work", most, connections)
			}
		})
	}
}

// Nothing is known before a call has been at work alone; then one is let in by itself.
func TestTurnsLookHowLongACallTakesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(15)
		turns.look = time.Now().Add(time.Hour)
		if _, most := crowd(turns, 64, 4, time.Second); most != 15 {
			t.Errorf("%d at work while nothing was known, wanted 15", most)
		}
		turns.look = time.Now()
		if _, most := crowd(turns, 64, 4, 2*time.Second); most < 5 || most > 9 {
			t.Errorf("%d at work, wanted 5 to 9", most)
		}
	})
}

// Calls of which it is not known what they take do not count, and as long as there are only such, not all wait for one to
// be alone.
func TestTurnsDoNotCountWhatTheyMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(15)
		for range 3 {
			mine := turns.take(context.Background(), turnPatience)
			time.Sleep(50 * time.Millisecond)
			turns.miss(&mine)
			turns.end(&mine)
		}
		if _, most := crowd(turns, 64, 4, 2*time.Second); most < 5 || most > 9 {
			t.Errorf("%d at work, wanted 5 to 9", most)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(15)
		var calls atomic.Int64
		var wg sync.WaitGroup
		end := time.Now().Add(time.Second)
		for range 64 {
			wg.Go(func() {
				for time.Now().Before(end) {
					mine := turns.take(context.Background(), turnPatience)
					time.Sleep(time.Millisecond)
					turns.miss(&mine)
					turns.end(&mine)
					calls.Add(1)
				}
			})
		}
		wg.Wait()
		if n, least := calls.Load(), int64(14000); n < least {
			t.Errorf("%d calls of 1 ms in a second, wanted %d or more", n, least)
		}
	})
}

// A call that fails has waited for what it did not get: how long says nothing of what its work takes.
func TestTurnsDoNotCountWhatFails(t *testing.T) {
	long := func(ctx context.Context, tx DBTX) ([]int, error) {
		_, err := tx.Exec(ctx, "select pg_sleep($1)", 60)
		return nil, err
	}
	giveUp := func(ctx context.Context, tx DBTX) ([]int, error) {
		own, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return long(own, tx)
	}
	for _, test := range []struct {
		name    string
		query   Query[DBTX, int]
		partial bool
		within  time.Duration // of the call
		taken   bool          // all connections are
	}{
		{"by the caller's ctx", long, false, time.Second, false},
		{"by a statement's ctx", giveUp, true, time.Minute, false},
		{"by no connection", long, false, time.Second, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			pool := pgtest.Pool(t, 4)
			src := New(pool, func(tx DBTX) DBTX { return tx })
			src.Strategy, src.Partial = Auto, test.partial
			short := func(ctx context.Context, tx DBTX) ([]int, error) {
				_, err := tx.Exec(ctx, "select pg_sleep($1)", 0.001)
				return nil, err
			}
			for range 30 {
				if _, err := Collect(t.Context(), src, slices.Repeat([]Query[DBTX, int]{short}, 2)...); err != nil {
					t.Fatal(err)
				}
			}
			alone := &src.shared.turns.plain.apart
			before := alone.took / alone.work
			var conns []*pgxpool.Conn
			for test.taken && len(conns) < 4 {
				conn, err := pool.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, conn)
			}
			ctx, cancel := context.WithTimeout(t.Context(), test.within)
			defer cancel()
			_, err := Collect(ctx, src, slices.Repeat([]Query[DBTX, int]{test.query}, 2)...)
			if err == nil || test.within == time.Second && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			for _, conn := range conns {
				conn.Release()
			}
			if after := alone.took / alone.work; after > 4*before {
				t.Errorf("calls took %.1f times their work alone, and do %.1f times since one has failed", before, after)
			}
		})
	}
}

// A call whose turn does not come goes ahead, one whose ctx has ended at once.
func TestTurnsArePatientForSoLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		turns.look = time.Now().Add(time.Hour)
		first := turns.take(context.Background(), turnPatience)
		began := time.Now()
		second := turns.take(context.Background(), turnPatience)
		if waited := time.Since(began); waited != turnPatience {
			t.Errorf("waited %v, wanted %v", waited, turnPatience)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		began = time.Now()
		third := turns.take(ctx, turnPatience)
		if waited := time.Since(began); waited != time.Millisecond {
			t.Errorf("waited %v with a ctx that ended after 1ms", waited)
		}
		for _, mine := range []turn{first, second, third} {
			turns.end(&mine)
		}
		if turns.working != 0 || len(turns.waiting) != 0 {
			t.Errorf("%d at work and %d waiting when all had ended", turns.working, len(turns.waiting))
		}
		began = time.Now()
		last := turns.take(context.Background(), turnPatience)
		turns.end(&last)
		if waited := time.Since(began); waited != 0 {
			t.Errorf("waited %v when nobody was at work", waited)
		}
	})
}

// Where calls are so long that none is alone for a while, it is not for each of them to wait for that.
func TestTurnsDoNotWaitForLongCalls(t *testing.T) {
	for _, working := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			turns := newTurns(15)
			turns.look = time.Now().Add(time.Hour)
			var wg sync.WaitGroup
			call := func() {
				mine := turns.take(context.Background(), turnPatience)
				time.Sleep(time.Second)
				turns.end(&mine)
			}
			for range working {
				wg.Go(call)
			}
			synctest.Wait()
			turns.look = time.Now()
			began := time.Now()
			for range 10 {
				time.Sleep(10 * time.Millisecond)
				wg.Go(call)
			}
			wg.Wait()
			if took, most := time.Since(began), time.Second+turnPatience+30*time.Millisecond; took > most {
				t.Errorf("with %d at work, ten calls of 1s took %v, wanted %v at most", working, took, most)
			}
		})
	}
}

// Whichever connections are too many are given back, while one of them is busy for long.
func TestAutoGivesBackBesideALongStatement(t *testing.T) {
	const conns = 8
	dsn := pgtest.DSN(t)
	pool := pgtest.PoolOn(t, dsn, conns)
	locker := pgtest.Connect(t, dsn)
	pgtest.Exec(t, locker, "select pg_advisory_lock(1)")
	src := New(pool, func(tx DBTX) DBTX { return tx })
	src.Strategy = Auto
	short := func(ctx context.Context, tx DBTX) ([]int, error) {
		_, err := tx.Exec(ctx, "select pg_sleep(0.002)")
		return nil, err
	}
	for range 5 {
		if _, err := Collect(t.Context(), src, slices.Repeat([]Query[DBTX, int]{short}, 64)...); err != nil {
			t.Fatal(err)
		}
	}
	var once, stop atomic.Bool
	long := make(chan struct{})
	query := func(ctx context.Context, tx DBTX) ([]int, error) {
		if stop.Load() {
			return nil, nil
		}
		if _, err := short(ctx, tx); err != nil {
			return nil, err
		}
		x := tx.(*handle).exchange
		x.mu.Lock()
		latest := len(x.lanes) == conns && x.lanes[conns-1] == tx.(*handle).pipeline
		x.mu.Unlock()
		if latest && once.CompareAndSwap(false, true) {
			close(long)
			_, err := tx.Exec(ctx, "select pg_advisory_xact_lock_shared(1)")
			return nil, err
		}
		return nil, nil
	}
	var wide sync.WaitGroup
	wide.Go(func() {
		if _, err := Collect(t.Context(), src, slices.Repeat([]Query[DBTX, int]{query}, 100_000)...); err != nil {
			t.Error(err)
		}
	})
	<-long
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := Collect(ctx, src, slices.Repeat([]Query[DBTX, int]{short}, 2)...); err != nil {
		t.Errorf("another call: %v", err)
	}
	stop.Store(true)
	pgtest.Exec(t, locker, "select pg_advisory_unlock(1)")
	wide.Wait()
}

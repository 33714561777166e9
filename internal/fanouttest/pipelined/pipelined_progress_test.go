package pipelined

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// While a function has a connection to itself, what others ask for goes by other connections: also what they ask for only
// then.
func TestPipelinedBesideAnOwnedConnection(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, functions := range []int{1, 3, 100} {
		src := pipelined(pool)
		asked := make(chan struct{})
		owner := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if _, err := tx.Exec(ctx, "begin"); err != nil {
				return nil, err
			}
			err := fanouttest.After(ctx, asked)
			_, rollBack := tx.Exec(context.WithoutCancel(ctx), "rollback")
			return nil, errors.Join(err, rollBack)
		}
		late := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			time.Sleep(20 * time.Millisecond) // until the other one has its connection: not a synchronisation
			defer close(asked)
			return fanouttest.PID(ctx, tx)
		}
		queries := append(fanouttest.Repeated(functions, fanouttest.PID), owner, late)
		if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
			t.Errorf("%d functions: %v", functions, err)
		}
	}
	fanouttest.Serves(t, pool)
}

// Connections that functions have to themselves are left alone by what waits for another one.
func TestPipelinedOwnedConnectionsRest(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := pipelined(pool)
	least := uint64(math.MaxUint64)
	for range 3 { // because the rest of the process may be busy
		owned := make(chan struct{}, 2)
		waited := make(chan struct{})
		owner := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if _, err := tx.Exec(ctx, "begin"); err != nil {
				return nil, err
			}
			owned <- struct{}{}
			err := fanouttest.After(ctx, waited)
			_, rollBack := tx.Exec(context.WithoutCancel(ctx), "rollback")
			return nil, errors.Join(err, rollBack)
		}
		waits := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			<-owned
			<-owned
			time.AfterFunc(100*time.Millisecond, func() { close(waited) }) // for as long nobody has anything to do
			before := scheduled()
			rows, err := fanouttest.PID(ctx, tx)
			least = min(least, scheduled()-before)
			return rows, err
		}
		if _, err := fanout.Collect(fanouttest.InTime(t), src, owner, owner, waits); err != nil {
			t.Error(err)
		}
	}
	if least > 500 {
		t.Errorf("goroutines have been scheduled %d times", least)
	}
	fanouttest.Serves(t, pool)
}

// scheduled is how often goroutines have been scheduled, of which the runtime counts one in eight.
func scheduled() (n uint64) {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	for _, count := range sample[0].Value.Float64Histogram().Counts {
		n += count
	}
	return n
}

// A function of a nested call that is busy does not hold up what another one of it has asked for before, although no lane
// has anything else to do.
func TestNestedBusyFunction(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := pipelined(pool)
	outer := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		time.Sleep(10 * time.Millisecond) // longer than others wait for it: from now on a goroutine of its own runs it
		answered := make(chan struct{})
		lists, err := fanout.Collect(ctx, src,
			func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				defer close(answered)
				return fanouttest.PID(ctx, tx)
			},
			func(ctx context.Context, _ fanout.DBTX) ([]int32, error) { return nil, fanouttest.After(ctx, answered) })
		if err != nil {
			return nil, err
		}
		return lists[0], nil
	}
	if _, err := fanout.Collect(fanouttest.InTime(t), src, outer); err != nil {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

// A function that returns while another goroutine of it asks for a statement, which has no lane yet, keeps nobody waiting
// for ever.
func TestPipelinedAbandonedBeforeItHasALane(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := pipelined(pool)
	src.Partial = true
	for range 3 {
		leaves := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			time.Sleep(5 * time.Millisecond) // until the other statement is executing, and nobody waits for this function
			go func() { _, _ = tx.Exec(ctx, "select 1") }()
			for !asks(t.Name()) && ctx.Err() == nil {
				runtime.Gosched()
			}
			return nil, nil
		}
		_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Statement[string]("select pg_sleep(0.5)::text"), leaves)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 1 {
			t.Error(err)
		}
	}
	fanouttest.Serves(t, pool)
}

// asks reports whether a goroutine that the test has started itself waits for what it has asked for.
func asks(test string) bool {
	for stack := range strings.SplitSeq(fanouttest.Stacks(), "\n\n") {
		if strings.Contains(stack, "(*handle).await(") && strings.Contains(stack, "."+test+".func") {
			return true
		}
	}
	return false
}

// The end of a ctx is noticed although there are always rows to be read: the function is slower than the server.
func TestPipelinedCtxEndsBesideRows(t *testing.T) {
	const all = 100_000
	pool := pgtest.Pool(t, 2)
	src := pipelined(pool)
	slowly := func(ctx context.Context, tx fanout.DBTX, end func()) (read int, err error) {
		rows, err := tx.Query(ctx, "select repeat('x', 100) from generate_series(1, $1::int)", all)
		if err != nil {
			return 0, err
		}
		defer rows.Close()
		for rows.Next() {
			switch read++; {
			case read == 1:
				end()
			case read%250 == 0:
				time.Sleep(2 * time.Millisecond) // or the server would be the slower one
			}
		}
		return read, rows.Err()
	}
	ended := func(name string, read int, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) || read > all/10 {
			t.Errorf("%s: %d rows, %v", name, read, err)
		}
	}
	for _, others := range []int{0, 8} { // which wait behind it
		queries := []fanout.Query[fanout.DBTX, int32]{func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			own, cancel := context.WithCancel(ctx)
			defer cancel()
			read, err := slowly(own, tx, cancel)
			ended(fmt.Sprintf("a statement's, beside %d", others), read, err)
			return nil, nil
		}}
		if _, err := fanout.Collect(fanouttest.InTime(t), src, append(queries, fanouttest.Repeated(others, fanouttest.PID)...)...); err != nil {
			t.Error(err)
		}

		ctx, cancel := context.WithCancel(fanouttest.InTime(t))
		queries[0] = func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			read, err := slowly(ctx, tx, cancel)
			ended(fmt.Sprintf("the call's, beside %d", others), read, err)
			return nil, err
		}
		if _, err := fanout.Collect(ctx, src, append(queries, fanouttest.Repeated(others, fanouttest.PID)...)...); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		cancel()
	}
	fanouttest.Serves(t, pool)
}

// A statement that nobody wants any more is not cancelled before the transaction of its snapshot call has begun, which
// travels ahead of it: others rely on that.
func TestPipelinedCancelBehindAPrologue(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	monitor := fanouttest.Outsider(t, pool)
	src := pipelined(pool)
	for range 3 { // so that statements go together
		if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(4, fanouttest.PID)...); err != nil {
			t.Fatal(err)
		}
	}
	src.Snapshot = true
	if _, err := monitor.Exec(t.Context(), "begin; lock table pg_catalog.pg_extension in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	impatient := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		own, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		_, err := fanouttest.PID(own, tx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it has waited: %v", err)
		}
		time.Sleep(50 * time.Millisecond) // until a cancel request has come to bear, if there is one
		_, err = monitor.Exec(ctx, "rollback")
		return nil, err
	}
	lists, err := fanout.Collect(fanouttest.InTime(t), src, impatient, fanouttest.PID, fanouttest.PID)
	if err != nil || len(lists[1]) != 1 || len(lists[2]) != 1 {
		t.Errorf("%v, %v", lists, err)
	}
	fanouttest.Serves(t, pool)
}

// A dripping conn hands over one byte at a time until so many answers are complete. What follows them is late, and comes
// with all that has come in meanwhile.
type dripping struct {
	net.Conn
	answers int
	latest  []byte
}

func (d *dripping) Read(b []byte) (int, error) {
	if d.answers == 0 {
		if d.latest != nil {
			d.latest = nil
			time.Sleep(50 * time.Millisecond) // the way itself, not a synchronisation
		}
		return d.Conn.Read(b)
	}
	n, err := d.Conn.Read(b[:min(1, len(b))])
	d.latest = append(d.latest, b[:n]...)
	if bytes.HasSuffix(d.latest, []byte{'Z', 0, 0, 0, 5, 'I'}) {
		if d.answers--; d.answers > 0 {
			d.latest = nil
		}
	}
	return n, err
}

// A statement that is to be sent again, now that it is described, is held up by a function that does not take its rows no
// more than one that is to be sent for the first time.
func TestPipelinedBusyFunctionBeforeDescribed(t *testing.T) {
	var conn *dripping
	pool := pgtest.Pool(t, 1, fanouttest.Over(func(c net.Conn) net.Conn {
		conn = &dripping{Conn: c}
		return conn
	}))
	fanouttest.Warm(t, pool)
	conn.answers = 2 // the measured round trip's, and one description
	done := make(chan struct{})
	err := fanout.Run(fanouttest.InTime(t), pipelined(pool), fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select repeat('x', 100) from generate_series(1, 20000)")
		if err != nil {
			return err
		}
		defer rows.Close()
		rows.Next()
		return fanouttest.After(ctx, done)
	}), fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
		err := tx.QueryRow(ctx, "select 1").Scan(new(int))
		close(done)
		return err
	}))
	if err != nil {
		t.Error(err)
	}
}

// A function that is busy with the loss of its connection does not hold up the others that had something under way there.
func TestPipelinedBusyFunctionAfterALoss(t *testing.T) {
	w := &fanouttest.Wire{}
	pool := pgtest.Pool(t, 1, w.Attach)
	src := pipelined(pool)
	src.Partial = true
	locked := fanouttest.Statement[int]("select 1 from (select pg_advisory_xact_lock($1)) l", 1)
	for range 3 { // to learn that it is quick
		if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(5, locked)...); err != nil {
			t.Fatal(err)
		}
	}
	monitor := pgtest.Connect(t, pool.Config().ConnString()) // not by w
	pgtest.Exec(t, monitor, "select pg_advisory_lock(1)")
	var monitoring sync.WaitGroup
	monitoring.Go(func() {
		for fanouttest.Awaiting(t, monitor) == 0 {
		}
		w.CutAll()
		pgtest.Exec(t, monitor, "select pg_advisory_unlock(1)")
	})
	through := make(chan struct{})
	var lost atomic.Int32
	_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(5, func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
		list, err := locked(ctx, tx)
		switch {
		case err == nil:
		case lost.Add(1) == 1:
			return nil, errors.Join(err, fanouttest.After(ctx, through))
		case lost.Load() == 5:
			close(through)
		}
		return list, err
	})...)
	monitoring.Wait()
	if lost.Load() != 5 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d functions have lost the connection: %v", lost.Load(), err)
	}
	fanouttest.Serves(t, pool)
}

// The catalog may be locked, by who maintains it. To look at it is given up then, without costing a connection, or any query;
// also when the call ends meanwhile.
func TestCoalescedBesideALockedCatalog(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, conn := range fanouttest.AcquireAll(t, pool) {
		conn.Release()
	}
	before := pgtest.Backends(t, pool)
	monitor := fanouttest.Outsider(t, pool)
	if _, err := monitor.Exec(t.Context(), "begin; lock table pg_catalog.pg_policy in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	for _, snapshot := range []bool{false, true} {
		src := fanouttest.Raw(pool) // which asks no more for a minute when it has had no answer
		src.Strategy, src.Snapshot = fanout.Coalesced, snapshot
		sql := fmt.Sprintf("select $1::integer + 1 -- %v", snapshot)
		query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if _, err := fanouttest.PID(ctx, tx); err != nil {
				return nil, err
			}
			return fanouttest.Statement[int32](sql, 1)(ctx, tx)
		}
		queries := fanouttest.Repeated(8, fanout.Query[fanout.DBTX, int32](query))
		// The first call has the statement described, at least. One that has a look ends by its ctx before that is given up.
		for range 3 {
			ctx, cancel := context.WithTimeout(fanouttest.InTime(t), 300*time.Millisecond)
			if _, err := fanout.Collect(ctx, src, queries...); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("snapshot=%v: %v", snapshot, err)
			}
			cancel()
		}
		for range 2 {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			if err != nil || len(lists[7]) != 1 || lists[7][0] != 2 {
				t.Errorf("snapshot=%v: %v, %v", snapshot, lists, err)
			}
		}
	}
	if _, err := monitor.Exec(t.Context(), "rollback"); err != nil {
		t.Fatal(err)
	}
	if now := pgtest.Backends(t, pool); !slices.Equal(before, now) {
		t.Errorf("backends before %v, after %v", before, now)
	}
	fanouttest.Serves(t, pool)
}

// One that does not answer in time is not asked again and again, for each text or by each call, also if the server has ended
// the wait.
func TestCoalescedBesideACatalogThatIsLate(t *testing.T) {
	for _, s := range fanouttest.Pipelining {
		pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) {
			config.ConnConfig.RuntimeParams["statement_timeout"] = "300ms"
		})
		src := fanouttest.Raw(pool)
		var queries []fanout.Query[fanout.DBTX, int32]
		for text := range 10 {
			sql := fmt.Sprintf("select $1::integer + %d", text)
			queries = append(queries, fanouttest.Repeated(3, fanouttest.Statement[int32](sql, 1))...)
		}
		if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil { // all is described, and loaded
			t.Fatal(err)
		}
		monitor := fanouttest.Outsider(t, pool)
		if _, err := monitor.Exec(t.Context(), "begin; lock table pg_catalog.pg_policy in access exclusive mode"); err != nil {
			t.Fatal(err)
		}
		src.Strategy = s
		late := 0
		for range 10 {
			start := time.Now()
			if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
				t.Fatalf("%v: %v", s, err)
			}
			if time.Since(start) > 250*time.Millisecond {
				late++
			}
		}
		if late > 5 {
			t.Errorf("%v: %d of 10 calls have waited", s, late)
		}
		if _, err := monitor.Exec(t.Context(), "rollback"); err != nil {
			t.Fatal(err)
		}
		fanouttest.Serves(t, pool)
	}
}

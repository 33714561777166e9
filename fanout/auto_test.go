package fanout_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// auto is a Source of hand-written statements with Strategy Auto.
func auto(pool *pgxpool.Pool) fanout.Source[fanout.DBTX] {
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Auto
	return src
}

// middle is the median of n calls.
func middle(n int, call func() int) int {
	values := make([]int, n)
	for i := range values {
		values[i] = call()
	}
	slices.Sort(values)
	return values[n/2]
}

// sleeping is n queries that the server takes d each for, and that cannot be coalesced.
func sleeping(n int, d time.Duration) []fanout.Query[fanout.DBTX, string] {
	return fanouttest.Repeated(n, fanouttest.Statement[string]("select pg_sleep($1)::text", d.Seconds()))
}

// A call takes many connections while it is the only one, and about one of 16 while there are 128.
func TestAutoWidth(t *testing.T) {
	pool := pgtest.Pool(t, 16)
	fanouttest.Warm(t, pool)
	src := auto(pool)
	if n := middle(5, func() int { return fanouttest.Width(fanouttest.SpansOf(t, src, sleeping(32, 5*time.Millisecond)...)) }); n < 8 {
		t.Errorf("alone, a call uses %d connections", n)
	}
	const clients, calls = 128, 3
	var widths [clients * calls]int
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for k := range calls {
				widths[i*calls+k] = fanouttest.Width(fanouttest.SpansOf(t, src, sleeping(8, 2*time.Millisecond)...))
			}
		})
	}
	all.Wait()
	slices.Sort(widths[:])
	if n := widths[len(widths)/2]; n != 1 {
		t.Errorf("of 128 at once, a call uses %d connections: %v", n, widths)
	}
	if n := middle(5, func() int { return fanouttest.Width(fanouttest.SpansOf(t, src, sleeping(32, 5*time.Millisecond)...)) }); n < 8 {
		t.Errorf("alone again, a call uses %d connections", n)
	}
	fanouttest.Serves(t, pool)
}

// A call that is in progress gives back what is more than its share when others come.
func TestAutoGivesBack(t *testing.T) {
	const conns, others = 16, 7
	pool := pgtest.Pool(t, conns)
	fanouttest.Warm(t, pool)
	src := auto(pool)
	const before, most = 1000, 20_000
	come, stop, leave := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var done atomic.Int32
	wide := func(ctx context.Context, tx fanout.DBTX) (rows []string, err error) {
		select {
		case <-stop:
			return nil, nil
		default:
		}
		rows, err = sleeping(1, time.Millisecond)[0](ctx, tx)
		if done.Add(1) == before {
			close(come)
		}
		return rows, err
	}
	var spans []fanout.Span
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		spans = fanouttest.SpansOf(t, src, fanouttest.Repeated(most, fanout.Query[fanout.DBTX, string](wide))...)
	}()
	<-come

	// Others come, each for one connection, while the call has more to do than it would in a minute.
	var here, gone sync.WaitGroup
	here.Add(others)
	for range others {
		gone.Go(func() {
			err := fanout.Run(t.Context(), src, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
				_, err := fanouttest.PID(ctx, tx)
				here.Done()
				<-leave
				return err
			}))
			if err != nil {
				t.Error(err)
			}
		})
	}
	here.Wait()
	if done.Load() == most {
		t.Error("others had to wait for the end of the call")
	}
	enough := min(most, done.Load()+500)
	for done.Load() < enough {
		time.Sleep(time.Millisecond) // what is under way is to end by itself
	}
	close(stop)
	<-ended
	close(leave)
	gone.Wait()

	spans = slices.DeleteFunc(spans, func(s fanout.Span) bool { return s.Statements == 0 })
	if n := fanouttest.Width(spans[before-300 : before]); n < conns/2 {
		t.Errorf("alone, the call has used %d connections", n)
	}
	slices.SortStableFunc(spans, func(a, b fanout.Span) int { return a.Started.Compare(b.Started) })
	if n := fanouttest.Width(spans[len(spans)-100:]); n > conns/(others+1) {
		t.Errorf("beside %d others, the call has used %d connections", others, n)
	}
	fanouttest.Serves(t, pool)
}

// While somebody else uses the pool, one connection is left for whoever comes next.
func TestAutoLeavesOneFree(t *testing.T) {
	const conns = 4
	pool := pgtest.Pool(t, conns)
	fanouttest.Warm(t, pool)
	src := auto(pool)
	wide := func() (n int, most int32) {
		var acquired atomic.Int32
		query := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			now := pool.Stat().AcquiredConns()
			for before := acquired.Load(); now > before && !acquired.CompareAndSwap(before, now); before = acquired.Load() {
			}
			return sleeping(1, 2*time.Millisecond)[0](ctx, tx)
		}
		spans := fanouttest.SpansOf(t, src, fanouttest.Repeated(40, fanout.Query[fanout.DBTX, string](query))...)
		return fanouttest.Width(spans), acquired.Load()
	}
	for range 3 {
		if n, _ := wide(); n != conns {
			t.Errorf("alone, a call has used %d connections of %d", n, conns)
		}
	}
	for held := 1; held < conns; held++ {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		want := max(1, conns-held-1)
		for range 3 {
			if n, acquired := wide(); n != want || acquired > int32(held+want) {
				t.Errorf("beside %d others, a call has used %d connections, and %d were in use", held, n, acquired)
			}
		}
	}
}

// A call that has a connection does not stand in front of others for more. The pool is first come, first served: what
// somebody waits for who asks for a connection beside 16 calls is how many others get theirs before he gets his.
func TestAutoStandsInLineOnce(t *testing.T) {
	const conns, gathering, asks = 16, 16, 100
	var acquired atomic.Int64
	pool := pgtest.Pool(t, conns, func(config *pgxpool.Config) {
		config.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) {
			acquired.Add(1)
			return true, nil
		}
	})
	fanouttest.Warm(t, pool)
	src := auto(pool)
	var stop atomic.Bool
	var all sync.WaitGroup
	for range gathering {
		all.Go(func() {
			for !stop.Load() {
				if _, err := fanout.Collect(t.Context(), src, sleeping(30, 500*time.Microsecond)...); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var before []int
	for range asks {
		n := acquired.Load()
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, int(acquired.Load()-n)-1)
		_, err = conn.Exec(t.Context(), "select 1")
		conn.Release()
		if err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	all.Wait()
	slices.Sort(before)
	if before[asks/2] > 4 || before[asks*9/10] > gathering {
		t.Errorf("others that got a connection before: %v", before)
	}
	fanouttest.Serves(t, pool)
}

// A span says what Auto has chosen.
func TestAutoSpans(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	src := auto(pool)
	by := func(spans []fanout.Span) (strategies []fanout.Strategy) {
		for _, s := range spans {
			strategies = append(strategies, s.Strategy)
		}
		slices.Sort(strategies)
		return slices.Compact(strategies)
	}
	only := func(s fanout.Strategy) []fanout.Strategy { return []fanout.Strategy{s} }

	var equal, different []fanout.Query[fanout.DBTX, int32]
	for i := range 20 {
		equal = append(equal, fanouttest.Statement[int32]("select $1::int + 1", i))
		different = append(different, fanouttest.Statement[int32](fmt.Sprintf("select $1::int + %d", i), i))
	}
	var got []fanout.Strategy
	for range 30 { // until a call is one statement, which takes as long as it takes to know the text
		spans := fanouttest.SpansOf(t, src, equal...)
		if got = by(spans); slices.Equal(got, only(fanout.Coalesced)) && fanouttest.Shared(spans) == len(equal)-1 {
			break
		}
	}
	if !slices.Equal(got, only(fanout.Coalesced)) {
		t.Errorf("equal statements ran by %v", got)
	}
	for range 5 {
		if got := by(fanouttest.SpansOf(t, src, different...)); !slices.Equal(got, only(fanout.Pipelined)) {
			t.Errorf("different statements ran by %v", got)
		}
		if got := by(fanouttest.SpansOf(t, src, equal[0])); !slices.Equal(got, only(fanout.Parallel)) {
			t.Errorf("a single query ran by %v", got)
		}
	}
	// Until one has made a call of its own.
	outer := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		_, err := fanout.Collect(ctx, src, equal...)
		return nil, err
	}
	fanouttest.SpansOf(t, src, outer)
	if got := by(fanouttest.SpansOf(t, src, equal[0])); !slices.Equal(got, only(fanout.Pipelined)) {
		t.Errorf("a single query ran by %v", got)
	}
}

// pace makes a function work(n) that returns n, and takes as long as the function that is returned has last been told.
func pace(t *testing.T, pool *pgxpool.Pool, volatility string) (set func(time.Duration)) {
	t.Helper()
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec("create table pace (seconds float8 not null)")
	exec("insert into pace values (0)")
	exec(`create function work(n int) returns int language plpgsql ` + volatility + ` as $$
		begin
			perform pg_sleep(seconds) from pace where seconds > 0;
			return n;
		end $$`)
	return func(d time.Duration) {
		t.Helper()
		exec("update pace set seconds = $1", d.Seconds())
	}
}

// working is n queries of work(n); all of one text, or each of its own.
func working(n int, ownTexts bool) (queries []fanout.Query[fanout.DBTX, int32]) {
	for i := range n {
		text := "select work($1)"
		if ownTexts {
			text += fmt.Sprintf(" as w%d", i)
		}
		queries = append(queries, fanouttest.Statement[int32](text, i))
	}
	return queries
}

// What nothing is known of may be slow: the first call of a Source does not have it wait on one lane, coalesced or not.
func TestAutoFirstCall(t *testing.T) {
	for _, volatility := range []string{"volatile", "stable"} {
		for _, ownTexts := range []bool{false, true} {
			for _, warmed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/own texts=%v/warm=%v", volatility, ownTexts, warmed), func(t *testing.T) {
					pool := pgtest.Pool(t, 10)
					takes, part := 80*time.Millisecond, 3 // connections that are opened meanwhile come one by one
					if warmed {
						fanouttest.Warm(t, pool)
						takes, part = 20*time.Millisecond, 4
					}
					pace(t, pool, volatility)(takes)
					for _, n := range []int{30, 150} {
						if n > 30 && ownTexts {
							continue
						}
						busiest := 0
						per := fanouttest.PerBackend(fanouttest.SpansOf(t, auto(pool), working(n, ownTexts)...))
						for _, queries := range per {
							busiest = max(busiest, queries)
						}
						if len(per) < 8 || busiest > n/part {
							t.Errorf("%d queries on %d backends, %d of them on one", n, len(per), busiest)
						}
					}
				})
			}
		}
	}
}

// adapts is how many calls of 30 it may take until the choice follows what has changed; of fewer, as many more.
const adapts = 5

// Statements that are slow one by one are as slow together: each lane gets its part of them, however they come in.
func TestAutoDividesEvenly(t *testing.T) {
	const n, conns = 300, 10
	pool := pgtest.Pool(t, conns)
	fanouttest.Warm(t, pool)
	pace(t, pool, "stable")(3 * time.Millisecond)
	src := auto(pool)
	var busiest [12]int
	for i := range busiest {
		for _, queries := range fanouttest.PerBackend(fanouttest.SpansOf(t, src, working(n, false)...)) {
			busiest[i] = max(busiest[i], queries)
		}
	}
	sorted := slices.Sorted(slices.Values(busiest[:]))
	if sorted[len(sorted)-3] > n/4 { // where a busy machine keeps lanes from their work for a while, others do it
		t.Errorf("of %d queries on one of %d backends, by call: %v", n, conns, busiest)
	}
}

// What a lane has picked up is its load while it writes it, too: the others have as many.
func TestPipelinedDividesEvenly(t *testing.T) {
	const n, conns = 30, 10
	w := &way{}
	pool := pgtest.Pool(t, conns, w.attach)
	fanouttest.Warm(t, pool)
	pace(t, pool, "volatile")(5 * time.Millisecond)
	w.delay.Store(int64(10 * time.Millisecond)) // so that a lane sends several at once
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Pipelined
	var queries []fanout.Query[fanout.DBTX, int32]
	for i := range n {
		queries = append(queries, fanouttest.Statement[int32]("select work($1)", slowlyEncoded(i)))
	}
	busiest := func() (most int) {
		for _, queries := range fanouttest.PerBackend(fanouttest.SpansOf(t, src, queries...)) {
			most = max(most, queries)
		}
		return most
	}
	for range adapts {
		busiest()
	}
	if most := middle(7, busiest); most > n/conns {
		t.Errorf("%d of %d queries on one of %d backends", most, n, conns)
	}
}

// A slowlyEncoded is an argument that a lane is busy with for a while.
type slowlyEncoded int

func (v slowlyEncoded) Int64Value() (pgtype.Int8, error) {
	time.Sleep(time.Millisecond)
	return pgtype.Int8{Int64: int64(v), Valid: true}, nil
}

// Statements become slow, because the data has changed, and quick again. A machine that is busy with something else may get
// several attempts: a Source goes by what it measures, and leaves a catalog alone that has not answered in time.
func TestAutoFollowsTheData(t *testing.T) {
	for _, c := range []struct {
		volatility string
		n          int
	}{{"volatile", 30}, {"stable", 30}, {"stable", 10}} {
		t.Run(fmt.Sprint(c.volatility, " ", c.n), func(t *testing.T) {
			pool := pgtest.Pool(t, 10)
			fanouttest.Warm(t, pool)
			set := pace(t, pool, c.volatility)
			follows := func() error {
				src := auto(pool)
				call := func() []fanout.Span { return fanouttest.SpansOf(t, src, working(c.n, false)...) }
				quick := func(when string) error {
					together := 0
					w := middle(5, func() int {
						spans := call()
						together = max(together, fanouttest.Shared(spans))
						return fanouttest.Width(spans)
					})
					if w > 5 || c.volatility == "stable" && together < c.n/2 {
						return fmt.Errorf("%s: on %d backends, %d with another", when, w, together)
					}
					return nil
				}
				for range 15 {
					call()
				}
				if err := quick("at first"); err != nil {
					return err
				}
				set(5 * time.Millisecond)
				for range adapts {
					call()
				}
				w := middle(11, func() int { return fanouttest.Width(call()) })
				set(0)
				if w < 8 {
					return fmt.Errorf("slow statements on %d backends", w)
				}
				for range adapts * 30 / c.n {
					call()
				}
				return quick("quick again")
			}
			var err error
			for range 4 {
				if err = follows(); err == nil {
					return
				}
			}
			t.Error(err)
		})
	}
}

// The way to the server becomes longer, and short again. That is not taken for the statements' doing: they go on as one.
func TestAutoFollowsTheNetwork(t *testing.T) {
	w := &way{}
	pool := pgtest.Pool(t, 10, w.attach)
	fanouttest.Warm(t, pool)
	src := auto(pool)
	var queries []fanout.Query[fanout.DBTX, int32]
	for i := range 30 {
		queries = append(queries, fanouttest.Statement[int32]("select $1::int + 1", i))
	}
	for range 15 {
		fanouttest.SpansOf(t, src, queries...)
	}
	const calls = 14
	together := map[time.Duration][]int{}
	all, most := 0, 0
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 0, 10 * time.Millisecond} {
		w.delay.Store(int64(delay))
		for range calls {
			n := 1 + fanouttest.Shared(fanouttest.SpansOf(t, src, queries...))
			together[delay] = append(together[delay], n)
			all++
			if n >= len(queries)*9/10 {
				most++
			}
		}
	}
	if most < all*9/10 {
		t.Errorf("of %d equal statements are one, by the way's length: %v", len(queries), together)
	}
}

// What is under way on a lane lasts a round trip: the longer the way, the more is sent at once, on few lanes.
func TestAutoFillsTheWay(t *testing.T) {
	w := &way{}
	pool := pgtest.Pool(t, 2, w.attach)
	fanouttest.Warm(t, pool)
	src := auto(pool)
	var queries []fanout.Query[fanout.DBTX, int32]
	for i := range 300 {
		queries = append(queries, fanouttest.Statement[int32]("select $1::int + random()::int", i))
	}
	// packets is how many it takes to send them all: each but the first of a lane is sent after an answer.
	packets := func() int {
		before := w.packets.Load()
		fanouttest.SpansOf(t, src, queries...)
		return int(w.packets.Load() - before)
	}
	for range 5 {
		packets()
	}
	for range 2 {
		w.delay.Store(int64(10 * time.Millisecond))
		for range adapts {
			packets()
		}
		far := packets()
		for tries := 1; far > len(queries)/10 && tries < 16; tries++ { // where the machine is busy, statements take longer
			far = min(far, packets())
		}
		if far > len(queries)/10 {
			t.Errorf("%d statements are sent in %d packets", len(queries), far)
		}
		w.delay.Store(0)
		for range adapts {
			packets()
		}
	}
}

// A way is the network to a server. Its length may change at any time; what is on it does not keep the sender.
type way struct {
	delay   atomic.Int64 // of what is written
	packets atomic.Int64
}

func (w *way) attach(config *pgxpool.Config) {
	fanouttest.Over(func(conn net.Conn) net.Conn {
		c := &wayConn{Conn: conn, way: w, sent: make(chan packet, 1024), closed: make(chan struct{})}
		go c.deliver()
		return c
	})(config)
}

type wayConn struct {
	net.Conn
	way    *way
	sent   chan packet
	once   sync.Once
	closed chan struct{}
}

// A packet is what one Write has written, and when it arrives.
type packet struct {
	data []byte
	due  time.Time
}

func (c *wayConn) Write(b []byte) (int, error) {
	c.way.packets.Add(1)
	select {
	case c.sent <- packet{slices.Clone(b), time.Now().Add(time.Duration(c.way.delay.Load()))}:
		return len(b), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *wayConn) deliver() {
	for {
		select {
		case p := <-c.sent:
			time.Sleep(time.Until(p.due)) // the network itself, not a synchronisation
			if _, err := c.Conn.Write(p.data); err != nil {
				_ = c.Close()
				return
			}
		case <-c.closed:
			return
		}
	}
}

func (c *wayConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// A call whose functions are busy with something else keeps no connections that another call wants.
func TestAutoGivesBackIdleConnections(t *testing.T) {
	const conns = 8
	pool := pgtest.Pool(t, conns)
	fanouttest.Warm(t, pool)
	src := auto(pool)
	for range 5 {
		fanouttest.SpansOf(t, src, sleeping(64, 3*time.Millisecond)...)
	}
	const working = 400
	leave := make(chan struct{})
	var number, done atomic.Int32
	query := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		if number.Add(1) > working {
			<-leave
			return nil, nil
		}
		rows, err := sleeping(1, 3*time.Millisecond)[0](ctx, tx)
		done.Add(1)
		return rows, err
	}
	var call sync.WaitGroup
	call.Go(func() {
		if _, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(1200, fanout.Query[fanout.DBTX, string](query))...); err != nil {
			t.Error(err)
		}
	})
	for done.Load() < working {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond) // the connections are to be at rest by then: not a synchronisation
	if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(2, fanouttest.PID)...); err != nil {
		t.Error(err)
	}
	close(leave)
	call.Wait()
}

// Behind a statement of which nothing is known goes one other at most, also where it has been described before.
func TestAutoBehindTheUnknown(t *testing.T) {
	const quick = 29
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec} {
		t.Run(mode.String(), func(t *testing.T) {
			dsn := pgtest.DSN(t)
			pool := pgtest.PoolOn(t, dsn, 10, func(config *pgxpool.Config) { config.ConnConfig.DefaultQueryExecMode = mode })
			locker := pgtest.Connect(t, dsn)
			fanouttest.Warm(t, pool)
			src := auto(pool)
			known := fanouttest.Repeated(quick, fanouttest.Statement[string]("select ($1::int + random()::int)::text", 1))
			for range 20 {
				fanouttest.SpansOf(t, src, known...)
			}
			for i := range 5 {
				// It has only failed so far.
				text := fmt.Sprintf("select pg_advisory_xact_lock_shared(1)::text as t%d where 1 / $1::int > 0", i)
				partial := src
				partial.Partial = true
				for range 20 {
					if _, err := fanout.Collect(t.Context(), partial, fanouttest.Repeated(10, fanouttest.Statement[string](text, 0))...); err == nil {
						t.Fatal("no error")
					}
				}
				pgtest.Exec(t, locker, "select pg_advisory_lock(1)")
				var others atomic.Int32
				queries := []fanout.Query[fanout.DBTX, string]{fanouttest.Statement[string](text, 1)}
				for _, query := range known {
					queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
						rows, err := query(ctx, tx)
						if others.Add(1) == quick-1 { // all but one, while it waits
							pgtest.Exec(t, locker, "select pg_advisory_unlock(1)")
						}
						return rows, err
					})
				}
				if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
					t.Fatalf("%v; %d others had ended", err, others.Load())
				}
			}
		})
	}
}

// inUseBesideOthers is how many of the pool's connections are in use, on average, while so many clients call as often as they
// can for so long, and somebody else uses the pool too.
func inUseBesideOthers(t *testing.T, pool *pgxpool.Pool, clients int, long time.Duration, call func()) float64 {
	t.Helper()
	var others, all sync.WaitGroup
	end := time.Now().Add(long)
	var done atomic.Bool
	others.Go(func() {
		for !done.Load() {
			_, _ = pool.Exec(t.Context(), "select 1")
			time.Sleep(5 * time.Millisecond)
		}
	})
	for range clients {
		all.Go(func() {
			for time.Now().Before(end) {
				call()
			}
		})
	}
	time.Sleep(long / 2)
	sum, n := 0, 0
	for ; time.Now().Before(end); n++ {
		sum += int(pool.Stat().AcquiredConns())
		time.Sleep(5 * time.Millisecond)
	}
	all.Wait()
	done.Store(true)
	others.Wait()
	return float64(sum) / float64(n)
}

// Calls are told to stand in the server's way by what takes longer than it would for a call that is alone. Not by having
// fewer connections each, when there are more of them, nor by being of another kind than those that were alone: where the
// network is far, what a call takes does not follow its statements' work.
func TestAutoTakesNoShareForAQueue(t *testing.T) {
	const conns, clients = 15, 20
	sleeps := sleeping(4, 20*time.Millisecond)
	job := sleeping(8, 20*time.Millisecond)
	var lookups []fanout.Query[fanout.DBTX, string]
	for i := range 10 {
		lookups = append(lookups, fanouttest.Statement[string]("select ($1::integer + 1)::text", i))
	}
	for name, c := range map[string]struct {
		delay        time.Duration
		alone, among []fanout.Query[fanout.DBTX, string]
	}{
		"less for each": {0, sleeps, sleeps},
		"another kind":  {20 * time.Millisecond, job, lookups},
	} {
		t.Run(name, func(t *testing.T) {
			w := &way{}
			pool := pgtest.Pool(t, conns, w.attach)
			fanouttest.Warm(t, pool)
			w.delay.Store(int64(c.delay))
			src := fanouttest.Raw(pool)
			src.Strategy = fanout.Auto
			call := func(queries []fanout.Query[fanout.DBTX, string]) {
				if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
					t.Error(err)
				}
			}
			for range 5 {
				call(c.among) // of which the statements are known then
			}
			for range 20 {
				call(c.alone)
			}
			if inUse := inUseBesideOthers(t, pool, clients, 2*time.Second, func() { call(c.among) }); inUse < conns*2/3 {
				t.Errorf("%d clients are at work on %.1f of %d connections", clients, inUse, conns)
			}
			w.delay.Store(0)
			fanouttest.Serves(t, pool)
		})
	}
}

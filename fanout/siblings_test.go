package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// dials counts a pool's dials: of its connections, and of cancel requests.
func dials(n *atomic.Int32) func(*pgxpool.Config) {
	return func(config *pgxpool.Config) {
		dial := config.ConnConfig.DialFunc
		config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			n.Add(1)
			return dial(ctx, network, addr)
		}
	}
}

// fails is a Query that fails on the server.
var fails = fanouttest.Statement[string](fanouttest.BoomSQL, 0)

// endsSiblings checks how a call ends whose last query fails while the others sleep: at once, for that reason, with all its
// connections as they were. It returns how many cancel requests that took.
func endsSiblings(t *testing.T, pool *pgxpool.Pool, monitor *pgx.Conn, dialled *atomic.Int32, src fanout.Source[fanout.DBTX], failing fanout.Query[fanout.DBTX, string]) (requests int32) {
	t.Helper()
	n := int(pool.Stat().MaxConns())
	fanouttest.Warm(t, pool)
	before, opened := pgtest.Backends(t, pool), dialled.Load()
	queries := fanouttest.Repeated(n, fanouttest.Sleep)
	queries[n-1] = fanouttest.Asleep(monitor, n-1, failing)
	start := time.Now()
	_, err := fanout.Collect(t.Context(), src, queries...)
	if e := fanouttest.AsError(t, err); e.Index != n-1 || fanouttest.SQLState(err) != "22012" {
		t.Error(err)
	}
	if d := time.Since(start); d > 8*time.Second {
		t.Errorf("waited %v for a sleeping statement", d)
	}
	if acquired := pool.Stat().AcquiredConns(); acquired != 0 {
		t.Errorf("%d connections still acquired", acquired)
	}
	if after := pgtest.Backends(t, pool); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("backends before %v, after %v", before, after)
	}
	return dialled.Load() - opened
}

// endsSiblingsByOneStatement checks that the server is asked once to cancel all, and not once for each: but for the rounds in
// which a busy machine has taken its time to answer.
func endsSiblingsByOneStatement(t *testing.T, pool *pgxpool.Pool, monitor *pgx.Conn, dialled *atomic.Int32, src fanout.Source[fanout.DBTX], failing fanout.Query[fanout.DBTX, string]) {
	t.Helper()
	const rounds = 20
	requested := 0
	for range rounds {
		if endsSiblings(t, pool, monitor, dialled, src, failing) > 0 {
			requested++
		}
	}
	if requested > rounds/2 {
		t.Errorf("cancel requests were made in %d of %d rounds", requested, rounds)
	}
}

func TestFailureEndsSiblingsByOneStatement(t *testing.T) {
	var dialled atomic.Int32
	pool := pgtest.Pool(t, 6, dials(&dialled))
	monitor := fanouttest.Outsider(t, pool)
	src := fanouttest.Raw(pool)
	failing := map[string]fanout.Query[fanout.DBTX, string]{
		"by the server": fails,
		"by a nested call": func(ctx context.Context, _ fanout.DBTX) ([]string, error) {
			_, err := fanout.Collect(ctx, src, fails)
			return nil, err
		},
		"after a statement": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			if _, err := fanouttest.PID(ctx, tx); err != nil {
				return nil, err
			}
			return fails(ctx, tx)
		},
	}
	for name, f := range failing {
		for _, snapshot := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, snapshot=%v", name, snapshot), func(t *testing.T) {
				src := src
				src.Snapshot = snapshot
				endsSiblingsByOneStatement(t, pool, monitor, &dialled, src, f)
			})
		}
	}
}

// A sibling's statement is that of a call nested in it: its own watch ends it.
func TestFailureEndsNestedSiblings(t *testing.T) {
	fanouttest.SameBackends(t, 3, func(src fanout.Source[fanout.DBTX]) {
		nested := func(ctx context.Context, _ fanout.DBTX) ([]string, error) {
			lists, err := fanout.Collect(ctx, src, fanouttest.Sleep, fanouttest.Sleep)
			if err != nil {
				return nil, err
			}
			return lists[0], nil
		}
		_, err := fanout.Collect(t.Context(), src, nested, fanouttest.Asleep(outsiderOf(t, src), 2, fails), fanouttest.Sleep)
		if e := fanouttest.AsError(t, err); e.Index != 1 || fanouttest.SQLState(err) != "22012" {
			t.Error(err)
		}
	})
}

// outsiderOf opens a connection beside the pool of src, to the same database.
func outsiderOf(t *testing.T, src fanout.Source[fanout.DBTX]) *pgx.Conn {
	t.Helper()
	var conn *pgx.Conn
	err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select 1")
		if err != nil {
			return err
		}
		defer rows.Close()
		conn, err = pgx.ConnectConfig(ctx, rows.Conn().Config())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Over TCP, where the server compares ports.
func TestFailureEndsSiblingsOverTCP(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0") // somebody's own server may have the usual port
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().(*net.TCPAddr)
	_ = free.Close()
	s, err := localpg.Start(t.Context(), "listen_addresses="+address.IP.String(), fmt.Sprintf("port=%d", address.Port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	if _, err := pgtest.Connect(t, s.DSN()).Exec(t.Context(), "create table a (id int, data text)"); err != nil {
		t.Fatal(err)
	}
	var dialled atomic.Int32
	pool := pgtest.PoolOn(t, s.DSN(), 6, func(config *pgxpool.Config) { config.ConnConfig.Host = address.IP.String() }, dials(&dialled))
	endsSiblingsByOneStatement(t, pool, fanouttest.Outsider(t, pool), &dialled, fanouttest.Raw(pool), fails)
}

// Somebody is between the pool and the server, who is not known to pass connections on one for one: the server's process
// ids are not trusted, and it is not asked again.
func TestFailureEndsSiblingsThroughAProxy(t *testing.T) {
	dsn := pgtest.DSN(t)
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if config.ConnConfig.Host[0] != '/' {
		t.Log("NOT TESTED: TEST_DATABASE_URL does not lead to a unix socket, from which a proxy could be told apart")
		return
	}
	network, addr := "unix", fmt.Sprintf("%s/.s.PGSQL.%d", config.ConnConfig.Host, config.ConnConfig.Port)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, addr)
			if err != nil {
				t.Error(err)
				_ = client.Close()
				continue
			}
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_ = to.Close()
				_ = from.Close()
			}
			wg.Go(func() { pass(server, client) })
			wg.Go(func() { pass(client, server) })
		}
	})
	var dialled atomic.Int32
	pool := pgtest.PoolOn(t, dsn, 4, func(config *pgxpool.Config) {
		at := listener.Addr().(*net.TCPAddr)
		config.ConnConfig.Host, config.ConnConfig.Port = at.IP.String(), uint16(at.Port)
	}, dials(&dialled))
	monitor := fanouttest.Outsider(t, pool)
	for range 5 {
		if n := endsSiblings(t, pool, monitor, &dialled, fanouttest.Raw(pool), fails); n < 3 {
			t.Errorf("%d cancel requests were made", n)
		}
	}
}

// The network fails the lane that is to end its siblings, at some byte of what it sends or is sent for that.
func TestFailureOnAConnectionThatFails(t *testing.T) {
	for _, f := range []fanouttest.Fault{fanouttest.Cut, fanouttest.Freeze, fanouttest.Delay, fanouttest.FreezeAll} {
		hits, step := int64(0), 150
		if f == fanouttest.Freeze || f == fanouttest.FreezeAll {
			step = 350 // each takes the grace
		}
		for bytes := 1; bytes < 1100; bytes += step {
			t.Run(fmt.Sprintf("%s/%d", f, bytes), func(t *testing.T) {
				w := &fanouttest.Wire{}
				pool := pgtest.Pool(t, 4, w.Attach)
				defer w.Thaw()
				monitor := pgtest.Connect(t, pool.Config().ConnString())
				fanouttest.Warm(t, pool)
				failing := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					_, err := fails(ctx, tx)
					w.Arm(f, int64(bytes))
					return nil, err
				}
				src := fanouttest.Raw(pool)
				start := time.Now()
				_, err := fanout.Collect(t.Context(), src, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Sleep, fanouttest.Asleep(monitor, 3, failing))
				if d := time.Since(start); d > fanouttest.Grace {
					t.Errorf("returned after %v", d)
				}
				if e := fanouttest.AsError(t, err); e.Index != 3 || fanouttest.SQLState(err) != "22012" || errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				// A connection that is cut is pgx's to clean up, in the background.
				if acquired := pool.Stat().AcquiredConns(); acquired != 0 && f != fanouttest.Cut {
					t.Errorf("%d connections still acquired", acquired)
				}
				src.Retries = 5 // a connection may have been cut behind the last word on it
				w.ServesAgain(t, src, 8)
				hits += w.Hits.Load()
			})
		}
		if hits < 3 {
			t.Errorf("%s: only %d faults were hit", f, hits)
		}
	}
}

package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	sqlcfanout "github.com/sqlc-fanout/sqlc-fanout"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// The tests in this file take two servers, a primary and a hot standby that follows it. They start both themselves, with
// TEST_DATABASE_URL set too.

// servers starts a primary, with the schema, and a hot standby of it with the settings.
func servers(t *testing.T, settings ...string) (primary, standby *localpg.Server) {
	t.Helper()
	started := func(s *localpg.Server, err error) *localpg.Server {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	// A commit that is not synchronous reaches the standby only with the next round of the WAL writer, five times a second.
	// A vacuum is to conflict with what the standby runs when the test says so, and at no other time.
	primary = started(localpg.Start(t.Context(), "synchronous_commit=on", "autovacuum=off"))
	if _, err := pgtest.Connect(t, primary.DSN()).Exec(t.Context(), sqlcfanout.Schema); err != nil {
		t.Fatal(err)
	}
	standby = started(localpg.StartStandby(t.Context(), primary, settings...))
	return primary, standby
}

// follow returns when the standby has replayed all that the primary has written.
func follow(ctx context.Context, primary, standby *pgx.Conn) error {
	var end string
	if err := primary.QueryRow(ctx, "select pg_current_wal_insert_lsn()::text").Scan(&end); err != nil {
		return err
	}
	for replayed := false; !replayed; {
		err := standby.QueryRow(ctx, "select pg_last_wal_replay_lsn() >= $1::pg_lsn", end).Scan(&replayed)
		if err != nil && fanouttest.SQLState(err) != "40001" {
			return err
		}
	}
	return nil
}

// tornUnlessSnapshot makes calls in snapshots by every strategy, half as many by each, none of which may be torn, after
// that many plain ones, of which a good share must be. On a busy machine the writers may not get anywhere for a while, or
// a standby; then there are more.
func tornUnlessSnapshot(t *testing.T, src fanout.Source[fanout.DBTX], calls int) {
	t.Helper()
	plain, made := 0, 0
	for plain < calls/20 && made < 10*calls {
		plain += fanouttest.Torn(t, src, calls)
		made += calls
	}
	t.Logf("torn %d of %d plain", plain, made)
	if plain < calls/20 {
		t.Errorf("only %d of %d plain calls were torn: the test shows nothing", plain, made)
	}
	src.Snapshot = true
	for _, s := range fanouttest.Strategies {
		src.Strategy = s
		if n := fanouttest.Torn(t, src, calls/2); n != 0 {
			t.Errorf("%v: %d of %d snapshot calls were torn", s, n, calls/2)
		}
	}
}

// The transaction that waits for the others on a standby is not ended for being idle.
func TestSnapshotOnAStandbyThatEndsIdleTransactions(t *testing.T) {
	_, standby := servers(t)
	for _, s := range fanouttest.Strategies {
		pool := pgtest.PoolOn(t, standby.DSN(), 2, func(c *pgxpool.Config) {
			c.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "300"
		})
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		exported := make(chan struct{})
		_, err := fanout.Collect(fanouttest.InTime(t), src,
			func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				defer close(exported)
				return fanouttest.Statement[string]("select 'quick'")(ctx, tx)
			},
			func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				if s != fanout.Serial {
					_ = fanouttest.After(ctx, exported)
				}
				return fanouttest.Statement[string]("select pg_sleep($1)::text", 0.7)(ctx, tx)
			})
		if err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// Money moves on the primary, and the calls are made on the standby. It tells the primary which rows it needs still: or a
// standby that waits for the exporter before it removes rows does not wait for who has imported meanwhile.
func TestSnapshotOnAStandby(t *testing.T) {
	primary, standby := servers(t, "hot_standby_feedback=on", "wal_receiver_status_interval=1")
	calls := 400
	if *fanouttest.Soak {
		calls = 20_000
	}
	stop := fanouttest.Accounts(t, pgtest.PoolOn(t, primary.DSN(), 1))
	defer stop()
	if err := follow(t.Context(), pgtest.Connect(t, primary.DSN()), pgtest.Connect(t, standby.DSN())); err != nil {
		t.Fatal(err)
	}
	for _, conns := range []int{1, 4} {
		pool := pgtest.PoolOn(t, standby.DSN(), conns)
		tornUnlessSnapshot(t, fanouttest.Raw(pool), calls)
		if n := pool.Stat().NewConnsCount(); n > int64(conns) || n < int64(min(conns, 2)) { // not all, if the first ones are quick enough
			t.Errorf("%d connections were opened in a pool of %d", n, conns)
		}
		fanouttest.Serves(t, pool)
	}
}

// A snapshot call stands in the way of what the standby has to replay: it fails, by name, and not the pool.
func TestRecoveryConflict(t *testing.T) {
	primary, standby := servers(t)
	writer, reader := pgtest.Connect(t, primary.DSN()), pgtest.Connect(t, standby.DSN())
	for _, sql := range []string{"alter system set max_standby_streaming_delay = 0", "select pg_reload_conf()"} {
		if _, err := reader.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for now := ""; now != "0"; {
		if err := reader.QueryRow(t.Context(), "show max_standby_streaming_delay").Scan(&now); err != nil {
			t.Fatal(err)
		}
	}
	// conflict makes the standby replay that rows are gone for good which every snapshot before can see.
	conflict := func(ctx context.Context) error {
		for _, sql := range []string{"delete from doomed", "vacuum doomed"} {
			if _, err := writer.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return follow(ctx, writer, reader)
	}
	count := fanouttest.Statement[string]("-- name: Doomed :one\nselect count(*)::text from doomed where $1 = 1", 1)
	for _, during := range []bool{false, true} {
		for _, partial := range []bool{false, true} {
			t.Run(fmt.Sprintf("during a statement=%v, partial=%v", during, partial), func(t *testing.T) {
				pool := pgtest.PoolOn(t, standby.DSN(), 2)
				src := fanouttest.Raw(pool)
				src.Snapshot, src.Partial = true, partial
				_, err := writer.Exec(t.Context(), "drop table if exists doomed; create table doomed as select generate_series(1, 100)")
				if err == nil {
					err = follow(t.Context(), writer, reader)
				}
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				begun, over := make(chan struct{}), make(chan struct{})
				wait := func(c <-chan struct{}) error {
					select {
					case <-c:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				hit := func(fctx context.Context, tx fanout.DBTX) ([]string, error) {
					if rows, err := count(fctx, tx); err != nil || rows[0] != "100" {
						return nil, fmt.Errorf("%v, %w", rows, err)
					}
					close(begun)
					if during {
						return fanouttest.Sleep(fctx, tx)
					}
					if err := wait(over); err != nil {
						return nil, err
					}
					return count(fctx, tx)
				}
				spared := func(fctx context.Context, tx fanout.DBTX) ([]string, error) {
					rows, err := count(fctx, tx)
					if err != nil {
						return nil, err
					}
					if err := wait(begun); err != nil {
						return nil, err
					}
					for asleep := false; during && !asleep; {
						if err := reader.QueryRow(ctx, "select exists (select from pg_stat_activity where state = 'active' and query = $1)", fanouttest.SleepSQL).Scan(&asleep); err != nil {
							return nil, err
						}
					}
					defer close(over)
					return rows, conflict(ctx) // with its last statement behind it
				}
				lists, err := fanout.Collect(ctx, src, spared, hit)
				var e *fanout.Error
				if partial && !errors.As(err, &e) {
					// The exporter was hit: then nobody's rows can be trusted.
					fanouttest.Mention(t, err, "the snapshot was lost with the connection that had exported it")
					if lists != nil {
						t.Errorf("%v", lists)
					}
					fanouttest.Serves(t, pool)
					return
				}
				e = fanouttest.AsError(t, err)
				if during && (e.Index != 1 || e.Name != "Sleep" || fanouttest.SQLState(err) != "40001") {
					t.Errorf("%v", err)
				}
				// Between statements the server's words may go unread: pgx cannot write, and says so.
				if !during && (e.Index != 1 || e.Name != "Doomed" || fanouttest.SQLState(err) != "40001" && fanouttest.SQLState(err) != "") {
					t.Errorf("%v", err)
				}
				if partial && (len(lists) != 2 || len(lists[0]) != 1 || lists[0][0] != "100") || !partial && lists != nil {
					t.Errorf("%v", lists)
				}
				t.Logf("%v", err)
				fanouttest.Serves(t, pool)
				if _, err := fanout.Collect(ctx, src, fanouttest.Repeated(8, fanouttest.InSnapshot)...); err != nil {
					t.Error(err)
				}
				fanouttest.Serves(t, pool)
			})
		}
	}
}

// balanced is the DSN of what leads to this server or to that.
const balanced = "postgres://postgres@/postgres?host=/balanced&sslmode=disable"

// balance makes the pool's connections lead to the servers in turn. Cancel requests still go to the right one.
func balance(servers ...*localpg.Server) func(*pgxpool.Config) {
	return func(config *pgxpool.Config) {
		balancer := "/balanced/.s.PGSQL.5432"
		var addrs []string
		for _, s := range servers {
			c, err := pgx.ParseConfig(s.DSN())
			if err != nil {
				panic(err)
			}
			addrs = append(addrs, c.Host+"/.s.PGSQL.5432")
		}
		var dialled atomic.Int64
		dial := config.ConnConfig.DialFunc
		config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == balancer {
				addr = addrs[int(dialled.Add(1))%len(addrs)]
			}
			return dial(ctx, network, addr)
		}
	}
}

// onServer is what tells servers and their snapshots apart.
var onServer = fanouttest.Statement[string]("-- name: OnServer :one\nselect pg_postmaster_start_time()::text || ' ' || pg_current_snapshot()::text where $1 = 1", 1)

// A call whose connections lead to different servers returns rows of one of them, or the error that says so.
func TestSnapshotOnSeveralServers(t *testing.T) {
	primary, standby := servers(t)
	calls := 300
	if *fanouttest.Soak {
		calls = 20_000
	}
	stop := fanouttest.Accounts(t, pgtest.PoolOn(t, primary.DSN(), 1)) // so that there are many snapshots
	defer stop()
	pool := pgtest.PoolOn(t, balanced, 6, balance(primary, standby))
	var whole, refused, parts atomic.Int64
	var wg sync.WaitGroup
	for caller := range 3 {
		wg.Go(func() {
			src := fanouttest.Raw(pool)
			src.Snapshot = true
			for i := range calls / 3 {
				src.Limit, src.Partial = []int{0, 1, 2}[i%3], caller == 0
				lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(8, onServer)...)
				switch {
				case err == nil:
					whole.Add(1)
				case !errors.Is(err, fanout.ErrSnapshotServer):
					t.Errorf("%v", err)
				default:
					refused.Add(1)
				}
				seen := map[string]bool{}
				for _, list := range lists {
					for _, row := range list {
						seen[row] = true
					}
				}
				if err != nil && len(seen) > 0 {
					parts.Add(1)
				}
				if len(seen) > 1 || err == nil && len(lists) != 8 {
					t.Errorf("%v, %v", lists, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d calls ran on one server, %d were refused, of which %d returned a part", whole.Load(), refused.Load(), parts.Load())
	if whole.Load() == 0 || refused.Load() == 0 {
		t.Error("the test shows nothing")
	}
	fanouttest.Serves(t, pool)
}

// virtualXID is the backend's number and the transaction's, which a snapshot's id is made of.
const virtualXID = "select split_part(v, '/', 1)::int, split_part(v, '/', 2)::int from pg_locks, lateral (select virtualtransaction) x(v) where pid = pg_backend_pid() and locktype = 'virtualxid'"

// Both servers have a snapshot of the same id, because each counts them up in the same way. The import of the one instead
// of the other succeeds, and is found out.
func TestSnapshotIDsCollide(t *testing.T) {
	primary, standby := servers(t)
	of := map[bool]*localpg.Server{false: primary, true: standby} // by pg_is_in_recovery
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// Connections whose transactions are numbered higher than those that are to catch up with them.
	pool := pgtest.PoolOn(t, balanced, 2, balance(primary, standby), func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "do 'begin for i in 1..2000 loop commit; end loop; end'")
			if err == nil {
				_, err = conn.Exec(ctx, "set extra_float_digits = -15") // by which all servers would seem to have started at once
			}
			return err
		}
	})
	// The pool's two backends must have different numbers. Else neither's number is free on the other server.
	for {
		numbers := map[int]bool{}
		var conns []*pgxpool.Conn
		for range 2 {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var number, transaction int
			if err := conn.QueryRow(ctx, virtualXID).Scan(&number, &transaction); err != nil {
				t.Fatal(err)
			}
			numbers[number] = true
			conns = append(conns, conn)
		}
		for _, conn := range conns {
			conn.Release()
		}
		if len(numbers) == 2 {
			break
		}
		pool.Reset()
		pgtest.Connect(t, primary.DSN())
	}

	// twin exports a snapshot on the server, under the id that a snapshot of the given transaction has on the other.
	twin := func(s *localpg.Server, number, transaction int) (id string, err error) {
		var conn *pgx.Conn
		for n := -1; n != number; {
			if n > number {
				return "", fmt.Errorf("backend number %d is taken", number)
			}
			conn = pgtest.Connect(t, s.DSN())
			if err := conn.QueryRow(ctx, virtualXID).Scan(&n, new(int)); err != nil {
				return "", err
			}
		}
		for {
			tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
			if err != nil {
				return "", err
			}
			var got int
			if err := tx.QueryRow(ctx, virtualXID).Scan(new(int), &got); err != nil {
				return "", err
			}
			if got > transaction {
				return "", fmt.Errorf("transaction %d is over on the other server too, at %d", transaction, got)
			}
			if got == transaction {
				err := tx.QueryRow(ctx, "select pg_export_snapshot()").Scan(&id)
				return id, err // and leave it open
			}
			if err := tx.Rollback(ctx); err != nil {
				return "", err
			}
		}
	}

	src := fanouttest.Raw(pool)
	src.Snapshot = true
	var first atomic.Bool
	both, ready := make(chan struct{}), make(chan struct{})
	wait := func(c <-chan struct{}) error {
		select {
		case <-c:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	query := func(fctx context.Context, tx fanout.DBTX) ([]string, error) {
		if !first.CompareAndSwap(false, true) {
			close(both) // each has a connection
			if err := wait(ready); err != nil {
				return nil, err
			}
			return onServer(fctx, tx)
		}
		if err := wait(both); err != nil {
			return nil, err
		}
		var number, transaction int
		var recovering bool
		if err := tx.QueryRow(fctx, virtualXID).Scan(&number, &transaction); err != nil {
			return nil, err
		}
		if err := tx.QueryRow(fctx, "select pg_is_in_recovery()").Scan(&recovering); err != nil {
			return nil, err
		}
		id, err := twin(of[!recovering], number, transaction)
		if err != nil {
			return nil, err
		}
		if want := fmt.Sprintf("%08X-%08X-1", number, transaction); id != want {
			t.Errorf("the other server's snapshot is %s, not %s", id, want)
		}
		other := pgtest.Connect(t, of[!recovering].DSN())
		if _, err := other.Exec(ctx, "begin isolation level repeatable read, read only; set transaction snapshot '"+id+"'; select 1; commit"); err != nil {
			t.Errorf("the wrong server's import of %s: %v", id, err)
		}
		close(ready)
		return nil, nil
	}
	lists, err := fanout.Collect(ctx, src, query, query)
	if lists != nil || !errors.Is(err, fanout.ErrSnapshotServer) || fanouttest.SQLState(err) != "" {
		t.Errorf("%v, %v", lists, err)
	}
	if e := fanouttest.AsError(t, err); e.Name != "OnServer" {
		t.Errorf("%v", err)
	}
	fanouttest.Serves(t, pool)
}

// Replay waits for the exporter before it removes rows, and not for who has imported meanwhile: so the exporter stays.
func TestImportedSnapshotOnAStandbyKeepsItsRows(t *testing.T) {
	primary, standby := servers(t, "max_standby_streaming_delay=-1")
	w, r := pgtest.Connect(t, primary.DSN()), pgtest.Connect(t, standby.DSN())
	_, err := w.Exec(t.Context(), "create table doomed as select generate_series(1, 100)")
	if err != nil {
		t.Fatal(err)
	}
	if err := follow(t.Context(), w, r); err != nil {
		t.Fatal(err)
	}
	pool := pgtest.PoolOn(t, standby.DSN(), 2)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	both, blocked, imported := make(chan struct{}), make(chan struct{}), make(chan struct{})
	count := fanouttest.Statement[int]("select count(*) from doomed where $1 = 1", 1)
	exporter := func(fctx context.Context, tx fanout.DBTX) ([]int, error) {
		<-both
		rows, err := count(fctx, tx)
		if err != nil {
			return nil, err
		}
		if _, err := w.Exec(ctx, "delete from doomed"); err != nil {
			return nil, err
		}
		if _, err := w.Exec(ctx, "vacuum doomed"); err != nil {
			return nil, err
		}
		for ev := ""; ev != "RecoveryConflictSnapshot"; {
			if err := r.QueryRow(ctx, "select coalesce(max(wait_event), '') from pg_stat_activity where backend_type = 'startup'").Scan(&ev); err != nil {
				return nil, err
			}
		}
		close(blocked)
		<-imported
		return rows, nil
	}
	importer := func(fctx context.Context, tx fanout.DBTX) ([]int, error) {
		close(both)
		<-blocked
		first, err := count(fctx, tx)
		if err != nil {
			return nil, err
		}
		close(imported)
		last := first
		for i := 0; i < 2000 && last[0] == first[0]; i++ {
			if last, err = count(fctx, tx); err != nil {
				return nil, err
			}
		}
		return append(first, last...), nil
	}
	lists, err := fanout.Collect(ctx, src, exporter, importer)
	if err != nil {
		t.Fatal(err) // the standby waits for ever
	}
	if lists[1][0] != 100 || lists[1][1] != 100 {
		t.Errorf("%v, %v", lists, err)
	}
}

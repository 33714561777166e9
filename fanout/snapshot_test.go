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
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Money moves all the time: plain calls see sums that never were, snapshot calls never do.
func TestSnapshotIsNotTorn(t *testing.T) {
	calls := 300
	if *fanouttest.Soak {
		calls = 5000
	}
	for _, conns := range []int{1, 2, 5} {
		pool := pgtest.Pool(t, conns)
		stop := fanouttest.Accounts(t, pool)
		src := fanouttest.Raw(pool)
		plain, made := fanouttest.Torn(t, src, calls), calls
		for start := time.Now(); plain < 10 && time.Since(start) < time.Minute; made += calls { // the writers may be slow today
			plain += fanouttest.Torn(t, src, calls)
		}
		t.Logf("%d connections: torn %d of %d plain", conns, plain, made)
		if plain < 10 {
			t.Errorf("%d connections: only %d of %d plain calls were torn: the test shows nothing", conns, plain, made)
		}
		src.Snapshot = true
		for _, s := range fanouttest.Strategies {
			src.Strategy = s
			if n := fanouttest.Torn(t, src, calls/3); n != 0 {
				t.Errorf("%v, %d connections: %d of %d snapshot calls were torn", s, conns, n, calls/3)
			}
		}
		stop()
		fanouttest.Serves(t, pool)
	}
}

func TestSnapshotTransactions(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		fanouttest.SameBackends(t, 4, func(src fanout.Source[fanout.DBTX]) {
			src.Strategy, src.Snapshot = s, true
			for range 3 {
				lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(20, fanouttest.InSnapshot)...)
				if err != nil {
					t.Fatal(err)
				}
				for i, list := range lists {
					if len(list) != 1 || list[0] != lists[0][0] {
						t.Errorf("%v: query %d sees %v, query 0 %v", s, i, list, lists[0])
					}
				}
				fanouttest.Mention(t, lists[0][0], "repeatable read on ")
			}
		})
	}
}

// A failing statement costs no other query the snapshot, nor the function that has caught the error its next statement.
func TestSnapshotSurvivesErrors(t *testing.T) {
	for _, conns := range []int{1, 3} {
		for _, s := range fanouttest.Strategies {
			fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
				src.Strategy, src.Snapshot, src.Partial = s, true, true
				caught := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					for _, sql := range []string{fanouttest.BoomSQL, "select 1 / $1::int from pg_class"} {
						if _, err := fanouttest.Statement[int32](sql, 0)(ctx, tx); fanouttest.SQLState(err) != "22012" {
							t.Errorf("%v", err)
						}
						if _, err := tx.Exec(ctx, "select 1 / 0"); fanouttest.SQLState(err) != "22012" {
							t.Errorf("%v", err)
						}
						if err := tx.QueryRow(ctx, fanouttest.BoomSQL, 0).Scan(new(int)); fanouttest.SQLState(err) != "22012" {
							t.Errorf("%v", err)
						}
					}
					return fanouttest.InSnapshot(ctx, tx)
				}
				fails := fanouttest.Statement[string](fanouttest.BoomSQL, 0)
				queries := fanouttest.Repeated(24, fanouttest.InSnapshot)
				for i := range queries {
					switch i % 4 {
					case 0:
						queries[i] = fails
					case 1:
						queries[i] = caught
					}
				}
				lists, err := fanout.Collect(t.Context(), src, queries...)
				var errs fanout.Errors
				if !errors.As(err, &errs) || len(errs) != 6 {
					t.Fatalf("%v", err)
				}
				for i, list := range lists {
					if i%4 != 0 && (len(list) != 1 || list[0] != lists[1][0]) {
						t.Errorf("query %d sees %v, query 1 %v", i, list, lists[1])
					}
				}
			})
		}
	}
}

func TestSnapshotRefusesWrites(t *testing.T) {
	eachStrategy(t, 2, 3, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries]) {
		src.Snapshot = true
		text := "new"
		for name, task := range map[string]fanout.Task[*db.Queries]{
			"InsertA":  fanout.Into(new(db.A), (*db.Queries).InsertA, &text),
			"TouchA":   fanout.Into(new(int64), (*db.Queries).TouchA, 1),
			"DeleteA":  fanout.Exec((*db.Queries).DeleteA, 1),
			`copy "a"`: fanout.Into(new(int64), (*db.Queries).InsertAs, []*string{&text}),
		} {
			for _, beside := range []int{0, 5} { // others, which read
				tasks := slices.Repeat([]fanout.Task[*db.Queries]{fanout.Into(new(db.A), (*db.Queries).GetA, 1)}, beside)
				err := fanout.Run(t.Context(), src, append(tasks, task)...)
				if e := fanouttest.AsError(t, err); e.Name != name || e.Index != beside || fanouttest.SQLState(err) != "25006" {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		batch := func(ctx context.Context, tx fanout.DBTX) error {
			b := &pgx.Batch{}
			b.Queue("-- name: InBatch :batchexec\ninsert into a (data) values ('x')")
			return tx.SendBatch(ctx, b).Close()
		}
		rawSrc := fanouttest.Raw(pool)
		rawSrc.Strategy, rawSrc.Snapshot = src.Strategy, true
		if err := fanouttest.Do(t, rawSrc, batch); fanouttest.SQLState(err) != "25006" || fanouttest.AsError(t, err).Name != "InBatch" {
			t.Error(err)
		}
		if n, err := db.New(pool).CountA(t.Context()); n != 3 || err != nil {
			t.Errorf("%d rows, %v", n, err)
		}
		fanouttest.Serves(t, pool)
	})
}

// More calls than connections, nested ones among them: none blocks another for good.
func TestManySnapshotCallsOnFewConnections(t *testing.T) {
	rounds := 1
	if *fanouttest.Soak {
		rounds = 200
	}
	for conns := 1; conns <= 3; conns++ {
		pool := pgtest.Pool(t, conns)
		src := fanouttest.Raw(pool)
		src.Snapshot = true
		for range rounds {
			manyCalls(t, src, 40, func(src fanout.Source[fanout.DBTX], i int) fanout.Query[fanout.DBTX, int32] {
				return fanouttest.Nest(src, i%3)
			})
		}
		fanouttest.Serves(t, pool)
	}
}

// A nested call of a snapshot call runs in its snapshot; a nested snapshot call of a plain query has one of its own.
func TestSnapshotNested(t *testing.T) {
	fanouttest.SameBackends(t, 2, func(plain fanout.Source[fanout.DBTX]) {
		src := plain
		src.Snapshot = true
		for _, inner := range []fanout.Source[fanout.DBTX]{plain, src} {
			// Once with the outer transaction begun, and once before.
			lists, err := fanout.Collect(t.Context(), src,
				func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					first, err := fanouttest.InSnapshot(ctx, tx)
					if err != nil {
						return nil, err
					}
					lists, err := fanout.Collect(ctx, inner, fanouttest.InSnapshot, fanouttest.InSnapshot)
					return append(first, slices.Concat(lists...)...), err
				},
				func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					lists, err := fanout.Collect(ctx, inner, fanouttest.InSnapshot, fanouttest.InSnapshot)
					if err != nil {
						return nil, err
					}
					last, err := fanouttest.InSnapshot(ctx, tx)
					return append(last, slices.Concat(lists...)...), err
				})
			if err != nil {
				t.Fatal(err)
			}
			for _, seen := range slices.Concat(lists...) {
				if seen != lists[0][0] {
					t.Errorf("%v", lists)
				}
			}
		}
		lists, err := fanout.Collect(t.Context(), plain, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			lists, err := fanout.Collect(ctx, src, fanouttest.InSnapshot, fanouttest.InSnapshot)
			if err != nil {
				return nil, err
			}
			after, err := fanouttest.InSnapshot(ctx, tx)
			return append(after, slices.Concat(lists...)...), err
		})
		if err != nil {
			t.Fatal(err)
		}
		fanouttest.Mention(t, lists[0][0], "read committed off")
		fanouttest.Mention(t, lists[0][1], "repeatable read on")
		fanouttest.Mention(t, lists[0][2], "repeatable read on")
	})
}

// The exporter runs out of work while another query has not sent its first statement yet: that one has the snapshot all
// the same, and the exporter's connection is free for others meanwhile.
func TestSnapshotLateStatement(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	running := make(chan struct{})
	quick := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		select {
		case <-running:
		case <-ctx.Done():
		}
		return fanouttest.InSnapshot(ctx, tx)
	}
	late := func(fctx context.Context, tx fanout.DBTX) ([]string, error) {
		close(running)
		conn, err := pool.Acquire(ctx) // not nested: the exporter's connection must come back
		if err != nil {
			return nil, err
		}
		_, err = conn.Exec(ctx, "insert into a (data) values ('after the snapshot')")
		conn.Release()
		if err != nil {
			return nil, err
		}
		var n int
		if err := tx.QueryRow(fctx, "select count(*) from a").Scan(&n); err != nil || n != 0 {
			return nil, fmt.Errorf("%d rows seen, %w", n, err)
		}
		return fanouttest.InSnapshot(fctx, tx)
	}
	lists, err := fanout.Collect(ctx, src, quick, late)
	if err != nil || lists[0][0] != lists[1][0] {
		t.Errorf("%v, %v", lists, err)
	}
	fanouttest.Serves(t, pool)
}

// What would end the call's transaction is refused, also where another one would begin at once.
func TestSnapshotNotEndedByTheFunction(t *testing.T) {
	ends := []string{
		"commit", "COMMIT AND CHAIN", "commit work", "end", "rollback", "rollback and chain", "abort transaction",
		"rollback transaction and no chain", "select 1; commit; begin", "/* so */ end; begin isolation level repeatable read",
		"prepare transaction 'x'",
	}
	does := []string{
		"savepoint s", "rollback to s", "rollback work to savepoint s", "ROLLBACK TRANSACTION TO s", "release s",
		"prepare p as select 1", "deallocate p", "set fanout.mine = 'a; commit'; reset fanout.mine",
	}
	for _, s := range fanouttest.Strategies {
		fanouttest.SameBackends(t, 2, func(src fanout.Source[fanout.DBTX]) {
			src.Strategy, src.Snapshot = s, true
			lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.InSnapshot, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				for _, sql := range does {
					if _, err := tx.Exec(ctx, sql); err != nil {
						return nil, fmt.Errorf("%s: %w", sql, err)
					}
				}
				for _, sql := range ends {
					_, err := tx.Exec(ctx, sql)
					rows, _ := tx.Query(ctx, sql)
					rows.Close()
					b := &pgx.Batch{}
					b.Queue("select 1")
					b.Queue(sql)
					for _, err := range []error{err, rows.Err(), tx.QueryRow(ctx, sql).Scan(), tx.SendBatch(ctx, b).Close()} {
						if err == nil || !strings.Contains(err.Error(), "was not sent; the transaction is the call's") {
							return nil, fmt.Errorf("%s: %w", sql, err)
						}
					}
				}
				return fanouttest.InSnapshot(ctx, tx)
			}, fanouttest.InSnapshot)
			if err != nil || lists[0][0] != lists[1][0] || lists[0][0] != lists[2][0] {
				t.Errorf("%v: %v, %v", s, lists, err)
			}
		})
	}
}

// What cannot be seen to end the transaction is noticed when it has.
func TestSnapshotEndedByTheFunction(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		fanouttest.SameBackends(t, 1, func(src fanout.Source[fanout.DBTX]) {
			src.Strategy, src.Snapshot, src.Partial = s, true, true
			var ended atomic.Bool
			end := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				if _, err := fanouttest.InSnapshot(ctx, tx); err != nil {
					return nil, err
				}
				if _, err := tx.Exec(ctx, "set local work_mem = '4MB'"); err != nil { // the connection is the function's now
					return nil, err
				}
				rows, err := tx.Query(ctx, "select 1")
				if err != nil {
					return nil, err
				}
				conn := rows.Conn()
				rows.Close()
				_, err = conn.Exec(ctx, "commit") // which nobody can see
				ended.Store(true)
				return nil, err
			}
			after := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				for !ended.Load() {
					if _, err := fanouttest.InSnapshot(ctx, tx); err != nil {
						return nil, err
					}
				}
				return fanouttest.InSnapshot(ctx, tx)
			}
			lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.InSnapshot, end, after)
			var errs fanout.Errors
			if !errors.As(err, &errs) || len(errs) != 2 || len(lists[0]) != 1 {
				t.Fatalf("%v: %v, %v", s, lists, err)
			}
			fanouttest.Mention(t, errs[0], "ended the transaction of the snapshot call")
			fanouttest.Mention(t, errs[1], "the snapshot was lost")
		})
	}
}

// A text that only the server can read, and that may end the transaction, is not sent: what comes behind its end could write,
// or see another snapshot.
func TestSnapshotEndedByATextThatCannotBeRead(t *testing.T) {
	for _, text := range []string{
		`select '\'; commit; insert into a (data) values ('x')`,
		`commit; insert into a (data) values ('c:\dir\')`,
		`commit; insert into a (data) values ('x'); select 1 as ` + strings.Repeat("n", 64),
		`select '\'; commit and chain`,
		`commit; select 1 as u&"a"`,
	} {
		for _, s := range fanouttest.Strategies {
			fanouttest.SameBackends(t, 1, func(src fanout.Source[fanout.DBTX]) {
				src.Strategy, src.Snapshot, src.Retries = s, true, 2
				_, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
					_, err := tx.Exec(ctx, text)
					return nil, err
				})
				if err == nil {
					t.Errorf("%v: %.60s: no error", s, text)
				} else {
					fanouttest.Mention(t, err, "ends the transaction of the snapshot call was not sent")
				}
				src.Snapshot = false
				lists, err := fanout.Collect(t.Context(), src, fanouttest.Statement[int]("select count(*)::int from a"))
				if err != nil || lists[0][0] != 0 {
					t.Errorf("%v: %.60s: %v rows written, %v", s, text, lists, err)
				}
			})
		}
	}
}

// Citus accepts an import and does not honour it. It is known by its extension, here a row that says so.
func TestSnapshotOnCitus(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	_, err := pool.Exec(t.Context(), "insert into pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) values (99999, 'citus', 10, 2200, false, '12.1')")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		if _, err := fanout.Collect(t.Context(), src, fanouttest.PID); err != nil {
			t.Errorf("%v: %v", s, err)
		}
		src.Snapshot = true
		for range 2 {
			lists, err := fanout.Collect(t.Context(), src, fanouttest.PID, fanouttest.PID, fanouttest.PID)
			if lists != nil || !errors.Is(err, fanout.ErrSnapshotUnsupported) {
				t.Errorf("%v: %v, %v", s, lists, err)
			}
			fanouttest.Mention(t, err, "not honoured for distributed tables")
		}
	}
	if _, err := pool.Exec(t.Context(), "delete from pg_extension where oid = 99999"); err != nil {
		t.Fatal(err)
	}
	fanouttest.Serves(t, pool)
}

// Somebody wants a table for himself while the exporter has read it, and the other lane's first statement queues behind
// him: the exporter must not wait for that lane before it lets the table go.
func TestSnapshotBesideDDL(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	admin, monitor := fanouttest.Outsider(t, pool), fanouttest.Outsider(t, pool)
	waiting := func(want int) {
		for n := 0; n < want && ctx.Err() == nil; {
			if err := monitor.QueryRow(ctx, "select count(*) from pg_locks where not granted and relation = 'a'::regclass and database = (select oid from pg_database where datname = current_database())").Scan(&n); err != nil {
				t.Error(err)
				return
			}
		}
	}
	const count = "-- name: Count :one\nselect count(*)::int from a where id > $1"
	read := make(chan struct{})
	locked := make(chan error, 1)
	first := func(fctx context.Context, tx fanout.DBTX) ([]int32, error) {
		rows, err := fanouttest.Statement[int32](count, 0)(fctx, tx)
		go func() {
			_, err := admin.Exec(ctx, "begin; lock table a in access exclusive mode; commit")
			locked <- err
		}()
		waiting(1)
		close(read)
		waiting(2)
		return rows, err
	}
	second := func(fctx context.Context, tx fanout.DBTX) ([]int32, error) {
		<-read
		return fanouttest.Statement[int32](count, 0)(fctx, tx)
	}
	if _, err := fanout.Collect(ctx, src, first, second); err != nil {
		t.Errorf("the call and the lock wait for each other: %v", err)
	}
	if err := <-locked; err != nil {
		t.Error(err)
	}
}

// The first statement of the exporter is a slow one: nobody waits for its end to begin.
func TestSnapshotBesideASlowStatement(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	fanouttest.Warm(t, pool)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sent := make(chan struct{})
	slow := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		close(sent)
		return fanouttest.Statement[string]("select pg_advisory_lock($1)::text", 7)(ctx, tx)
	}
	admin := fanouttest.Outsider(t, pool)
	if _, err := admin.Exec(ctx, "select pg_advisory_lock(7)"); err != nil {
		t.Fatal(err)
	}
	quick := func(fctx context.Context, tx fanout.DBTX) ([]string, error) {
		<-sent
		rows, err := fanouttest.InSnapshot(fctx, tx)
		if err != nil {
			return nil, err
		}
		_, err = admin.Exec(ctx, "select pg_advisory_unlock(7)")
		return rows, err
	}
	if _, err := fanout.Collect(ctx, src, slow, quick); err != nil {
		t.Errorf("%v", err)
	}
}

// The lanes of a small call do not all join at once. They do when there is something for them to do.
func TestSnapshotUsesAllConnections(t *testing.T) {
	const conns = 10
	pool := pgtest.Pool(t, conns)
	fanouttest.Warm(t, pool)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	backends := map[uint32]bool{}
	src.Observe = func(_ context.Context, s fanout.Span) { backends[s.PID] = true }
	var begun atomic.Int32
	all := make(chan struct{})
	query := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		pids, err := fanouttest.PID(ctx, tx)
		if begun.Add(1) == conns {
			close(all)
		}
		select { // or whoever is done first might have run another one before a late lane came
		case <-all:
		case <-ctx.Done():
			err = ctx.Err()
		}
		return pids, err
	}
	_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(conns, fanout.Query[fanout.DBTX, int32](query))...)
	if err != nil || len(backends) != conns {
		t.Errorf("%d of %d have begun, on %d backends: %v", begun.Load(), conns, len(backends), err)
	}
}

// The first query function is busy with something else before it sends a statement: nobody waits for it.
func TestSnapshotBesideABusyFunction(t *testing.T) {
	pool := pgtest.Pool(t, 3)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var others sync.WaitGroup
	others.Add(5)
	queries := fanouttest.Repeated(6, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		defer others.Done()
		return fanouttest.InSnapshot(ctx, tx)
	})
	queries[0] = func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		others.Wait()
		return fanouttest.InSnapshot(ctx, tx)
	}
	if _, err := fanout.Collect(ctx, src, queries...); err != nil {
		t.Error(err)
	}
}

// A query function that ends its goroutine (runtime.Goexit) does not take the snapshot with it.
func TestSnapshotSurvivesGoexit(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, conns := range []int{1, 2} {
			pool := pgtest.Pool(t, conns)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Partial, src.Snapshot = s, true, true
			exit := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				if _, err := fanouttest.PID(ctx, tx); err != nil {
					return nil, err
				}
				runtime.Goexit()
				return nil, nil
			}
			queries := []fanout.Query[fanout.DBTX, int32]{exit, fanouttest.PID, exit, fanouttest.PID, fanouttest.PID}
			_, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			var errs fanout.Errors
			if !errors.As(err, &errs) || len(errs) != 2 || errs[0].Index != 0 || errs[1].Index != 2 {
				t.Errorf("%v on %d: %v", s, conns, err)
			}
			fanouttest.Serves(t, pool)
			if n := pool.Stat().NewConnsCount(); n > int64(conns) {
				t.Errorf("%v on %d: %d connections were opened", s, conns, n)
			}
		}
	}
}

// A cancel that hits what begins the transaction, and not the statement that it is meant for, leaves nothing behind.
func TestSnapshotCancelledAtTheStart(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	other := fanouttest.Outsider(t, pool)
	for _, s := range []fanout.Strategy{fanout.Parallel, fanout.Serial} {
		src := fanouttest.Raw(pool) // which does not know yet that there is no Citus, and asks
		src.Strategy, src.Snapshot = s, true
		if _, err := other.Exec(t.Context(), "begin; lock table pg_extension"); err != nil {
			t.Fatal(err)
		}
		_, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			if _, err := tx.Exec(short, "select $1::int", 1); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v: %v", s, err)
			}
			if _, err := other.Exec(ctx, "commit"); err != nil {
				t.Error(err)
			}
			return fanouttest.PID(ctx, tx)
		})
		if err != nil {
			t.Errorf("%v: %v", s, err)
		}
		fanouttest.Serves(t, pool)
	}
	if n := pool.Stat().NewConnsCount(); n > 2 {
		t.Errorf("%d connections were opened", n)
	}
}

// Likewise in a snapshot call that is nested in a query, whose connection is the only one that it can have: with Partial the
// other queries run there.
func TestNestedSnapshotCancelledAtTheStart(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	other := fanouttest.Outsider(t, pool)
	for _, s := range []fanout.Strategy{fanout.Parallel, fanout.Serial} {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		if _, err := other.Exec(t.Context(), "begin; lock table pg_extension"); err != nil {
			t.Fatal(err)
		}
		err := fanouttest.Do(t, src, func(ctx context.Context, _ fanout.DBTX) error {
			src.Snapshot, src.Partial = true, true
			lists, err := fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				_, err := tx.Exec(short, "select $1::int", 1)
				if _, err := other.Exec(ctx, "commit"); err != nil {
					t.Error(err)
				}
				return nil, err
			}, fanouttest.PID, fanouttest.PID)
			var errs fanout.Errors
			if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 0 || len(lists[1]) != 1 || len(lists[2]) != 1 {
				t.Errorf("%v: %v, %v", s, lists, err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%v: %v", s, err)
		}
		fanouttest.Serves(t, pool)
	}
}

// Connections that freeze before their lanes have begun are given up by whoever would begin for them, all at the same time,
// and the call starts again.
func TestSnapshotFrozenBeforeTheStart(t *testing.T) {
	const late = 3
	w := &fanouttest.Wire{}
	pool := pgtest.Pool(t, 1+late, w.Attach)
	fanouttest.Warm(t, pool)
	defer w.Thaw()
	src := fanouttest.Raw(pool)
	src.Snapshot, src.Retries = true, 1
	var attempts, begun atomic.Int32
	all, frozen := make(chan struct{}), make(chan time.Time, 1)
	exporter := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if attempts.Add(1) > 1 {
			return fanouttest.PID(ctx, tx)
		}
		rows, err := tx.Query(ctx, fanouttest.PIDSQL)
		if err != nil {
			return nil, err
		}
		own := rows.Conn().PgConn().Conn()
		rows.Close()
		select {
		case <-all:
		case <-ctx.Done():
		}
		w.FreezeBut(own)
		frozen <- time.Now()
		return nil, nil
	}
	var took time.Duration
	over := make(chan struct{})
	other := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if attempts.Load() > 1 {
			return fanouttest.PID(ctx, tx)
		}
		if begun.Add(1) == late {
			close(all)
			since := <-frozen
			for w.AnyFrozen() && ctx.Err() == nil {
				runtime.Gosched()
			}
			took = time.Since(since)
			close(over)
		}
		select {
		case <-over:
		case <-ctx.Done():
		}
		return fanouttest.PID(ctx, tx)
	}
	queries := append(fanouttest.Repeated(late, fanout.Query[fanout.DBTX, int32](other)), exporter)
	slices.Reverse(queries)
	_, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
	if err != nil || attempts.Load() != 2 {
		t.Errorf("%v after %d attempts", err, attempts.Load())
	}
	if took >= late*time.Second {
		t.Errorf("%d connections were given up in %v, one after the other", late, took)
	}
	// The frozen connections' places in the pool are free, though pgx is still at cleaning up.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range pool.Stat().MaxConns() {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
	}
}

// A mute is a connection that loses what is written to it, once it is told to.
type mute struct {
	net.Conn
	on   *atomic.Bool
	lost func()
}

func (c *mute) Write(b []byte) (int, error) {
	if !c.on.Load() {
		return c.Conn.Write(b)
	}
	c.lost()
	return len(b), nil
}

// A statement that waits for another lane to export the snapshot ends with its own ctx, as any other does.
func TestSnapshotStatementThatWaitsForTheExport(t *testing.T) {
	var on atomic.Bool
	exporting := make(chan struct{})
	lost := sync.OnceFunc(func() { close(exporting) })
	pool := pgtest.Pool(t, 2, fanouttest.Over(func(conn net.Conn) net.Conn {
		if on.Load() {
			return conn
		}
		return &mute{conn, &on, lost}
	}))
	fanouttest.Warm(t, pool)
	on.Store(true)
	src := fanouttest.Raw(pool)
	src.Snapshot = true
	ctx, cancel := context.WithCancel(fanouttest.InTime(t))
	defer cancel()
	begun := make(chan struct{})
	var ended, late error
	err := fanout.Run(ctx, src,
		fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			<-begun // the other lane may have its connection only then
			_, err := tx.Exec(ctx, "select 1")
			return err
		}),
		fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			close(begun)
			<-exporting
			own, stop := context.WithTimeout(ctx, 10*time.Millisecond)
			defer stop()
			_, ended = tx.Exec(own, "select 1")
			late = ctx.Err()
			cancel()
			return ended
		}))
	if !errors.Is(ended, context.DeadlineExceeded) || late != nil {
		t.Errorf("the statement: %v; the call by then: %v", ended, late)
	}
	if err == nil {
		t.Error("no error")
	}
}

// A failed statement costs nothing that an earlier one has left in the transaction.
func TestSnapshotKeepsWhatAFailedStatementHasNotDone(t *testing.T) {
	pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "create temporary table if not exists scratch (word text)")
			return err
		}
	})
	var object uint32
	if err := pool.QueryRow(t.Context(), "select lo_from_bytea(0, 'kept')").Scan(&object); err != nil {
		t.Fatal(err)
	}
	const locks = "select case count(*) when 1 then 'kept' end from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
	const setting = "select current_setting('fanout.x', true)"
	for _, s := range fanouttest.Strategies {
		for name, c := range map[string]struct{ leave, look string }{
			"advisory lock":                     {"select pg_advisory_xact_lock(7)", locks},
			"advisory lock, tried":              {"select pg_try_advisory_xact_lock(7)", locks},
			"advisory lock, shared":             {"select pg_advisory_xact_lock_shared(7)", locks},
			"advisory lock of the session":      {"select pg_advisory_lock(7)", locks},
			"row of a temporary table, by with": {"with w as (insert into scratch values ('kept') returning word) select word from w", "select min(word) from scratch"},
			"row of a temporary table":          {"insert into scratch values ('kept')", "select min(word) from scratch"},
			"set local":                         {"set local fanout.x = 'kept'", setting},
			"set_config":                        {"select set_config('fanout.x', 'kept', true)", setting},
			"cursor":                            {"declare c cursor for select 'kept'::text", "fetch c"},
			"large object":                      {fmt.Sprintf("select lo_open(%d, 262144)", object), "select convert_from(loread(0, 4), 'UTF8')"},
			"copy to a temporary table":         {"", "select min(word) from scratch"},
		} {
			t.Run(s.String()+"/"+name, func(t *testing.T) {
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot, src.Partial = s, true, true
				var got *string
				err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
					if _, err := tx.Exec(ctx, "select 1"); err != nil {
						return err
					}
					var err error
					if c.leave != "" {
						_, err = tx.Exec(ctx, c.leave)
					} else {
						_, err = tx.CopyFrom(ctx, pgx.Identifier{"scratch"}, []string{"word"}, pgx.CopyFromRows([][]any{{"kept"}}))
					}
					if err != nil {
						return err
					}
					if _, err := tx.Exec(ctx, "select 1/0"); err == nil {
						t.Error("no error")
					}
					return tx.QueryRow(ctx, c.look, pgx.QueryExecModeSimpleProtocol).Scan(&got)
				})
				if err != nil || got == nil || *got != "kept" {
					t.Errorf("it is lost; %v", err)
				}
				if _, err := pool.Exec(t.Context(), "select pg_advisory_unlock_all(); truncate scratch"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// connectedAndSlow returns a query that takes its time, and is known to, once the pool has conns connections open.
func connectedAndSlow(t *testing.T, src fanout.Source[fanout.DBTX], conns int) fanout.Query[fanout.DBTX, string] {
	t.Helper()
	sleeps := fanouttest.Statement[string]("select pg_sleep($1)::text", 0.1)
	for range 3 {
		if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(conns, sleeps)...); err != nil {
			t.Fatal(err)
		}
	}
	return sleeps
}

// A lane that has nothing left to do does not stay in its transaction while another one works: somebody's DDL waits for what it
// has read, a function of the other lane would wait behind that, and the three of them for ever.
func TestSnapshotBesideWaitingDDL(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		ddl, monitor := pgtest.Connect(t, pool.Config().ConnString()), pgtest.Connect(t, pool.Config().ConnString())
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		sleeps := connectedAndSlow(t, src, 2)
		var altering sync.WaitGroup
		_, err := fanout.Collect(fanouttest.InTime(t), src,
			fanouttest.Statement[int64]("select count(*) from a"),
			func(ctx context.Context, tx fanout.DBTX) ([]int64, error) {
				if _, err := sleeps(ctx, tx); err != nil {
					return nil, err
				}
				altering.Go(func() { pgtest.Exec(t, ddl, "alter table a add column more int") })
				for patience := time.Now().Add(100 * time.Millisecond); time.Now().Before(patience); {
					if pgtest.QueryRow[int](t, monitor, "select count(*)::int from pg_locks where not granted and database = (select oid from pg_database where datname = current_database())") > 0 {
						break
					}
				}
				return fanouttest.Statement[int64]("select count(*) from a")(ctx, tx)
			})
		if err != nil {
			t.Errorf("%v: %v", s, err)
		}
		altering.Wait()
		fanouttest.Serves(t, pool)
	}
}

// But it stays for functions that have sent nothing yet: they are to have connections of their own.
func TestSnapshotWhileFunctionsAreBusy(t *testing.T) {
	pool := pgtest.Pool(t, 8)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		sleeps := connectedAndSlow(t, src, 8)
		queries := fanouttest.Repeated(8, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			time.Sleep(50 * time.Millisecond) // at something else; the others have sent theirs meanwhile
			return sleeps(ctx, tx)
		})
		queries[0], queries[1] = fanouttest.Statement[string]("select 'quick'"), sleeps
		if n := len(fanouttest.PerBackend(fanouttest.SpansOf(t, src, queries...))); n < 4 && s != fanout.Serial {
			t.Errorf("%v: eight functions have run on %d connections", s, n)
		}
	}
	fanouttest.Serves(t, pool)
}

// And they have the snapshot also if a connection is lost that another function has used.
func TestSnapshotOfOthersAfterALoss(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 3)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot, src.Partial = s, true, true
		sleeps := connectedAndSlow(t, src, 3)
		for try := 0; ; try++ {
			exported, lost := make(chan struct{}), make(chan struct{})
			pids := [3]uint32{}
			src.Observe = func(_ context.Context, s fanout.Span) { pids[s.Index] = s.PID }
			lists, err := fanout.Collect(fanouttest.InTime(t), src,
				func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					defer close(exported)
					if _, err := fanouttest.Statement[string]("select 'quick'")(ctx, tx); err != nil || s == fanout.Serial {
						return nil, err
					}
					exported <- struct{}{}
					return sleeps(ctx, tx)
				},
				func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					defer close(lost)
					<-exported
					if _, err := sleeps(ctx, tx); err != nil {
						return nil, err
					}
					return fanouttest.Statement[string]("select pg_terminate_backend(pg_backend_pid())::text")(ctx, tx)
				},
				func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
					if s != fanout.Serial {
						<-lost
						time.Sleep(20 * time.Millisecond)
					}
					return fanouttest.Statement[string]("select 'fine'")(ctx, tx)
				})
			if pids[0] == pids[1] && s != fanout.Serial && try < 20 {
				continue // it was the exporter's that was lost
			}
			var errs fanout.Errors
			if !errors.As(err, &errs) || len(errs) != 1 && s != fanout.Serial {
				t.Errorf("%v: %v %v", s, lists, err)
			}
			break
		}
		fanouttest.Serves(t, pool)
	}
}

// Connections that print numbers differently lead to one server all the same.
func TestSnapshotOnConnectionsWithSettings(t *testing.T) {
	var opened atomic.Int32
	pool := pgtest.Pool(t, 2, func(c *pgxpool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, fmt.Sprintf("set extra_float_digits = %d", opened.Add(1)%2))
			return err
		}
	})
	fanouttest.Warm(t, pool)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(2, fanouttest.Statement[string]("select pg_sleep(0.1)::text"))...); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// A notification of one query is not undone by another one's failure, and is not repeated by Retries. Neither are large objects,
// which PostgreSQL up to 15 lets a read-only transaction write.
func TestSnapshotNotifies(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2)
		if _, err := pool.Exec(t.Context(), `
			create function fail_at(attempt int) returns text language plpgsql volatile as $$ begin
				if attempt = 1 then perform pg_sleep(0.3); raise exception 'once more' using errcode = '40001'; end if;
				return 'ok'; end $$`); err != nil {
			t.Fatal(err)
		}
		listener := pgtest.Connect(t, pool.Config().ConnString())
		pgtest.Exec(t, listener, "listen news")
		notified := func() (payloads []string) {
			pgtest.Exec(t, listener, "notify news, 'end'")
			for {
				n, err := listener.WaitForNotification(fanouttest.InTime(t))
				if err != nil {
					t.Fatal(err)
				}
				if n.Payload == "end" {
					return payloads
				}
				payloads = append(payloads, n.Payload)
			}
		}
		notify := fanouttest.Statement[string]("select pg_notify('news', $1)::text", "one")
		objects := func() (n int) {
			if err := pool.QueryRow(t.Context(), "select count(*) from pg_largeobject_metadata").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		object := fanouttest.Statement[string]("select lo_from_bytea($1, 'x')::text", uint32(0))

		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot, src.Partial, src.Limit = s, true, true, 1
		lists, err := fanout.Collect(fanouttest.InTime(t), src, notify, object, fanouttest.Statement[string]("select (1 / $1::int)::text", 0))
		var errs fanout.Errors
		if !errors.As(err, &errs) {
			t.Fatal(err)
		}
		if got := notified(); len(errs) != 1 || len(got) != 1 || objects() != len(lists[1]) {
			t.Errorf("%v: notified %q, %d objects, %v: %v", s, got, objects(), lists, err)
		}

		src.Partial, src.Limit, src.Retries = false, 0, 3
		var attempt atomic.Int32
		_, err = fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			return fanouttest.Statement[string]("select fail_at($1)", attempt.Add(1))(ctx, tx)
		}, notify)
		if got := notified(); len(got) > 1 || err == nil && attempt.Load() > 1 && len(got) != 1 {
			t.Errorf("%v: notified %q by %d attempts: %v", s, got, attempt.Load(), err)
		}
		fanouttest.Serves(t, pool)
	}
}

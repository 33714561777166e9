package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// failing is a Query that raises an error of this SQLSTATE the first n times, and counts how often it ran.
func failing(state string, n int, ran *atomic.Int32) fanout.Query[fanout.DBTX, int32] {
	return func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if int(ran.Add(1)) <= n {
			return fanouttest.Statement[int32]("select fail($1)", state)(ctx, tx)
		}
		return fanouttest.PID(ctx, tx)
	}
}

func TestSnapshotCallStartsAgain(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	fanouttest.Fill(t, pool, 3)
	fanouttest.Failable(t, pool)
	for _, s := range fanouttest.Strategies {
		for state, partial := range map[string]bool{"40001": false, "40P01": true} {
			for _, kind := range []string{"Collect", "Run", "Stream"} {
				if kind != "Collect" && s != fanout.Serial && s != fanout.Pipelined {
					continue // each pauses twice
				}
				src, inner := fanout.New(pool, db.New), fanouttest.Raw(pool)
				src.Strategy, inner.Strategy = s, s
				src.Snapshot, src.Partial, src.Retries = true, partial, 3
				var runs atomic.Int32
				flaky := func(ctx context.Context, q *db.Queries) ([]db.A, error) {
					var ran atomic.Int32
					if runs.Add(1) <= 2 {
						// The query set has no statement that raises: a nested call runs on the same connection.
						_, err := fanout.Collect(ctx, inner, failing(state, 1, &ran))
						return nil, err
					}
					return q.ListA(ctx)
				}
				queries := []fanout.Query[*db.Queries, db.A]{flaky}
				if kind != "Stream" || s == fanout.Serial { // or the others might have been yielded when the failure comes
					queries = append(queries, fanouttest.Repeated(2, fanout.All((*db.Queries).ListA))...)
				}
				lists, err := fanouttest.CollectBy(kind, t.Context(), src, queries)
				if err != nil || len(lists[0]) != 3 || len(lists[len(queries)-1]) != 3 || runs.Load() != 3 {
					t.Errorf("%v, %s %s partial=%v: %v, %v after %d runs", s, state, kind, partial, lists, err, runs.Load())
				}
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// Every attempt's error is told if the last one fails; what is not transient is not tried again.
func TestRetriesRunOut(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	fanouttest.Failable(t, pool)
	for _, s := range fanouttest.Strategies {
		for _, partial := range []bool{false, true} {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot, src.Retries, src.Partial = s, true, 2, partial
			var ran atomic.Int32
			_, err := fanout.Collect(t.Context(), src, fanouttest.PID, failing("40001", 100, &ran))
			if ran.Load() != 3 || fanouttest.SQLState(err) != "40001" || strings.Count(err.Error(), "once more") != 3 {
				t.Errorf("%v, partial %v: ran %d times: %v", s, partial, ran.Load(), err)
			}
			if e := fanouttest.AsError(t, err); e.Index != 1 {
				t.Errorf("%v: %v", s, err)
			}
			fanouttest.Mention(t, err, "attempt 3; before: ")

			ran.Store(0)
			_, err = fanout.Collect(t.Context(), src, fanouttest.PID, failing("22012", 1, &ran))
			if ran.Load() != 1 || fanouttest.SQLState(err) != "22012" {
				t.Errorf("%v, partial %v: ran %d times: %v", s, partial, ran.Load(), err)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// A backend is terminated in the middle of a snapshot call: it starts again, and every query has its rows.
func TestSnapshotCallSurvivesALostBackend(t *testing.T) {
	for _, conns := range []int{1, 3} {
		pool := pgtest.Pool(t, conns)
		for _, s := range fanouttest.Strategies {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot, src.Retries = s, true, 3
			var spans []int
			src.Observe = func(_ context.Context, s fanout.Span) { spans = append(spans, s.Attempt) }
			var ran atomic.Int32
			kill := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				if ran.Add(1) == 1 {
					return fanouttest.Statement[string]("select pg_terminate_backend(pg_backend_pid())::text")(ctx, tx)
				}
				return fanouttest.InSnapshot(ctx, tx)
			}
			queries := fanouttest.Repeated(8, fanouttest.InSnapshot)
			queries[4] = kill
			lists, err := fanout.Collect(t.Context(), src, queries...)
			if err != nil {
				t.Fatalf("%v: %v", s, err)
			}
			for i, list := range lists {
				if len(list) != 1 || list[0] != lists[0][0] {
					t.Errorf("%v: query %d sees %v, query 0 %v", s, i, list, lists[0])
				}
			}
			if last := spans[len(spans)-1]; last != 2 {
				t.Errorf("%v: the last span is of attempt %d", s, last)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// What may have written is never repeated: the connection is lost in the middle of a write, before its answer.
func TestWritesAreNotRepeated(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	if _, err := pool.Exec(t.Context(), "create table counter (n int); insert into counter values (0)"); err != nil {
		t.Fatal(err)
	}
	src := fanouttest.Raw(pool)
	src.Retries, src.Partial = 5, true
	runs := 0
	err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
		runs++
		if _, err := tx.Exec(ctx, "update counter set n = n + 1"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
		return err
	})
	fanouttest.Mention(t, err, "the connection was lost")
	var n int
	if err := pool.QueryRow(t.Context(), "select n from counter").Scan(&n); err != nil || n != 1 || runs != 1 {
		t.Errorf("written %d times by %d runs, %v", n, runs, err)
	}
	fanouttest.Serves(t, pool)
}

// An unanswering is a connection that is lost, once that is due, when the server has answered, before a byte of that arrives.
type unanswering struct {
	net.Conn
	due *atomic.Bool
}

func (c *unanswering) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && c.due.Swap(false) {
		_ = c.Conn.Close()
		return 0, io.EOF
	}
	return n, err
}

// Nor by whatever way the statement goes: up to 5.12, pgx took one for unsent that had gone by the simple protocol, as those
// without arguments do.
func TestUnansweredWritesAreNotRepeated(t *testing.T) {
	const write = "-- name: Count :exec\nupdate counter set n = n + 1"
	writes := map[string]func(ctx context.Context, tx fanout.DBTX) error{
		"Exec": func(ctx context.Context, tx fanout.DBTX) error {
			_, err := tx.Exec(ctx, write)
			return err
		},
		"Query": func(ctx context.Context, tx fanout.DBTX) error {
			rows, err := tx.Query(ctx, write)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		},
		"QueryRow": func(ctx context.Context, tx fanout.DBTX) error {
			var n int
			return tx.QueryRow(ctx, write+" returning n").Scan(&n)
		},
		"SendBatch": func(ctx context.Context, tx fanout.DBTX) error {
			var batch pgx.Batch
			batch.Queue(write)
			return tx.SendBatch(ctx, &batch).Close()
		},
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		var due atomic.Bool
		pool := pgtest.Pool(t, 1, fanouttest.InMode(mode), fanouttest.Over(func(conn net.Conn) net.Conn { return &unanswering{conn, &due} }))
		if _, err := pool.Exec(t.Context(), "create table counter (n int); insert into counter values (0)"); err != nil {
			t.Fatal(err)
		}
		ask := func(sql string, answer any) {
			t.Helper()
			if err := pool.QueryRow(t.Context(), sql).Scan(answer); err != nil {
				t.Fatal(err)
			}
		}
		written := func() (n int) {
			for running := true; running; { // what nobody waits for any more may run still
				ask("select exists(select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and application_name <> 'pgtest')", &running)
			}
			ask("select n from counter", &n)
			return n
		}
		for _, s := range fanouttest.Strategies {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Retries = s, 3
			for way, write := range writes {
				if err := fanouttest.Do(t, src, write); err != nil { // so that it is prepared
					t.Fatal(err)
				}
				before, runs := written(), 0
				err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
					runs++
					due.Store(true)
					return write(ctx, tx)
				})
				fanouttest.Mention(t, err, "query 0 (Count): the connection was lost")
				if n := written() - before; n > 1 || runs != 1 {
					t.Errorf("%v, %v, %s: written %d times by %d runs", mode, s, way, n, runs)
				}
			}
		}
		fanouttest.Serves(t, pool)
	}
}

// A query whose connection turns out to be dead before anything of it was sent runs again, alone, on another one.
func TestUnsentQueryRunsAgain(t *testing.T) {
	w := &fanouttest.Wire{}
	pool := pgtest.Pool(t, 1, w.Attach)
	fanouttest.Fill(t, pool, 3)
	src := fanout.New(pool, db.New)
	src.Retries = 2
	for i := range 2 * len(fanouttest.Strategies) {
		src.Strategy, src.Partial = fanouttest.Strategies[i/2], i%2 == 1
		spans := map[int]fanout.Span{}
		src.Observe = func(_ context.Context, s fanout.Span) { spans[s.Index] = s }
		for last := range 3 { // also of the last query, when the call asks for no more connections
			clear(spans)
			queries := fanouttest.Repeated(3, fanout.All((*db.Queries).ListA))
			armed := false
			queries[last] = func(ctx context.Context, q *db.Queries) ([]db.A, error) {
				if !armed {
					armed = true
					w.Arm(fanouttest.Cut, 1) // the write of the next statement
				}
				return q.ListA(ctx)
			}
			w.Hits.Store(0)
			lists, err := fanout.Collect(t.Context(), src, queries...)
			w.Mend(t)
			if err != nil || len(lists[last]) != 3 || w.Hits.Load() != 1 {
				t.Fatalf("%v, partial=%v, query %d: %v, %v after %d cuts", src.Strategy, src.Partial, last, lists, err, w.Hits.Load())
			}
			if again := spans[last].Attempt == 2; again != (src.Strategy < fanout.Pipelined) { // otherwise its statement waits for another lane
				t.Errorf("%v, query %d: %+v", src.Strategy, last, spans[last])
			}
		}
	}
	src.Strategy = fanout.Serial
	// And where there is no other connection to be had.
	src.Retries, src.Partial = 1, true
	spans := map[int]fanout.Span{}
	src.Observe = func(_ context.Context, s fanout.Span) { spans[s.Index] = s }
	closing := func(ctx context.Context, q *db.Queries) ([]db.A, error) {
		w.Arm(fanouttest.Cut, 1)
		w.Closed.Store(true)
		return q.ListA(ctx)
	}
	_, err := fanout.Collect(t.Context(), src, closing, fanout.All((*db.Queries).ListA))
	w.Mend(t)
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 2 || errs[0].Name != "ListA" {
		t.Errorf("%v", err)
	}
	if s := spans[0]; len(spans) != 1 || s.Err == nil || s.Name != "ListA" {
		t.Errorf("spans %+v", spans)
	}

	src.Retries = 0
	fanouttest.Warm(t, pool)
	w.Arm(fanouttest.Cut, 1)
	_, err = fanout.Collect(t.Context(), src, fanout.All((*db.Queries).ListA))
	w.Disarm()
	if fanouttest.AsError(t, err).Name != "ListA" {
		t.Error(err)
	}
	fanouttest.Serves(t, pool)
}

// The attempts of such a query are spread over the time for which the server is away: one that gets no connection is not
// the last.
func TestUnsentQueryWaitsForTheServer(t *testing.T) {
	var w fanouttest.Wire
	var connects atomic.Int32
	pool := pgtest.Pool(t, 1, w.Attach, func(config *pgxpool.Config) {
		config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
			if connects.Add(1) == 4 { // with one retry, three at most: one for both queries, and one for each again
				w.Closed.Store(false)
			}
			return nil
		}
	})
	fanouttest.Fill(t, pool, 3)
	src := fanout.New(pool, db.New)
	for _, s := range fanouttest.Strategies {
		for retries, wanted := range map[int]bool{1: false, 6: true} {
			src.Strategy, src.Retries = s, retries
			fanouttest.Warm(t, pool)
			connects.Store(0)
			var armed atomic.Bool // who is busy for long has the other one run beside it
			query := func(ctx context.Context, q *db.Queries) ([]db.A, error) {
				if !armed.Swap(true) {
					w.Closed.Store(true)
					w.Arm(fanouttest.Cut, 1) // the write of the next statement
				}
				return q.ListA(ctx)
			}
			lists, err := fanout.Collect(t.Context(), src, query, query)
			w.Mend(t)
			switch {
			case wanted && (err != nil || len(lists[0]) != 3 || len(lists[1]) != 3):
				t.Errorf("%v: %v, %v after %d connects", s, lists, err, connects.Load())
			case !wanted && (err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "(attempt 2; before: ")):
				t.Errorf("%v: with %d retries, %v", s, retries, err)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

func TestRetriesStopWithCtx(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	fanouttest.Failable(t, pool)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot, src.Retries = s, true, 1_000_000
		ctx, cancel := context.WithCancel(t.Context())
		var ran atomic.Int32
		query := failing("40001", 1_000_000, &ran)
		_, err := fanout.Collect(ctx, src, func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if ran.Load() == 2 {
				cancel()
			}
			return query(ctx, tx)
		})
		if !errors.Is(err, context.Canceled) || ran.Load() > 3 {
			t.Errorf("%v: after %d runs: %v", s, ran.Load(), err)
		}
		cancel()
	}
	fanouttest.Serves(t, pool)
}

func TestNoServerIsTriedAgain(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), "host=127.0.0.1 port=1 user=u sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Retries = s, 2
		_, err = fanout.Collect(t.Context(), src, fanouttest.PID, fanouttest.PID)
		if n := strings.Count(err.Error(), "fanout: no connection"); n != 3 {
			t.Errorf("%v: %d attempts: %v", s, n, err)
		}
	}
}

// What a nested call has written is not written again when the outer function's own statement cannot be sent.
func TestRetriesDoNotRepeatNestedCalls(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, inner := range fanouttest.Strategies {
			w := &fanouttest.Wire{}
			pool := pgtest.Pool(t, 1, w.Attach)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Retries = s, 2
			nested := src
			nested.Strategy = inner
			runs := 0
			err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
				runs++
				err := fanout.Run(ctx, nested, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
					_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromRows([][]any{{"written"}}))
					return err
				}))
				if err != nil {
					return err
				}
				w.Arm(fanouttest.Cut, 1)
				_, err = tx.Exec(ctx, "select 1")
				return err
			})
			// A function whose nested call has joined has no connection yet: its statement can be sent by another one.
			joined := s >= fanout.Pipelined && s < fanout.Auto && inner >= fanout.Pipelined // a single query of Auto runs as with Parallel
			if (err == nil) != joined || runs != 1 {
				t.Errorf("%v in %v: ran %d times: %v", inner, s, runs, err)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// Nor is what a nested call has written where the call around it does not look: in a transaction, or on another pool.
func TestRetriesDoNotRepeatNestedWrites(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		for _, elsewhere := range []bool{false, true} {
			for _, snapshot := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/otherPool=%v/snapshot=%v", s, elsewhere, snapshot), func(t *testing.T) {
					w := &fanouttest.Wire{}
					pool := pgtest.Pool(t, 2, w.Attach)
					fanouttest.Failable(t, pool)
					target := pool
					if elsewhere {
						target = pgtest.Pool(t, 1)
					}
					tx, err := target.Begin(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					src, on := fanouttest.Raw(pool), fanouttest.Raw(target).On(tx)
					src.Strategy, src.Retries, src.Snapshot = s, 2, snapshot
					runs := 0
					err = fanouttest.Do(t, src, func(ctx context.Context, q fanout.DBTX) error {
						runs++
						err := fanout.Run(ctx, on, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
							_, err := tx.Exec(ctx, "insert into a (data) values ($1)", "x")
							return err
						}))
						if err != nil || runs > 1 {
							return err
						}
						if snapshot {
							_, err = q.Exec(ctx, "select fail($1)", "40001")
							return err
						}
						w.Arm(fanouttest.Cut, 1)
						_, err = q.Exec(ctx, "select 1")
						return err
					})
					w.Disarm()
					var written int
					if e := tx.QueryRow(t.Context(), "select count(*) from a").Scan(&written); e != nil || written != 1 {
						t.Errorf("%d rows after %d runs, %v, %v", written, runs, err, e)
					}
					if err := tx.Rollback(t.Context()); err != nil {
						t.Error(err)
					}
					fanouttest.Serves(t, pool)
				})
			}
		}
	}
}

// Such a call may also be made by a goroutine that a function leaves behind, while its own call starts again.
func TestRetriesBesideACallInTheBackground(t *testing.T) {
	pool, other := pgtest.Pool(t, 2), pgtest.Pool(t, 1)
	fanouttest.Failable(t, pool)
	src, audit := fanouttest.Raw(pool), fanouttest.Raw(other)
	src.Snapshot, src.Retries = true, 3
	var background sync.WaitGroup
	var once sync.Once
	_ = fanouttest.Do(t, src, func(ctx context.Context, q fanout.DBTX) error {
		once.Do(func() {
			background.Go(func() {
				time.Sleep(20 * time.Millisecond) // the function has returned
				for range 50 {
					if _, err := fanout.Collect(context.WithoutCancel(ctx), audit, fanouttest.PID); err != nil {
						t.Error(err)
					}
					time.Sleep(2 * time.Millisecond)
				}
			})
		})
		_, err := q.Exec(ctx, "select fail($1)", "40001")
		return err
	})
	background.Wait()
}

// With Partial and a ctx that ends in the last attempt, a query that has not been run in that has no rows of the one before.
func TestRetriesForgetRows(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	fanouttest.Failable(t, pool)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial, src.Snapshot, src.Retries = s, true, true, 1
		ctx, cancel := context.WithCancel(t.Context())
		var attempt atomic.Int32
		queries := []fanout.Query[fanout.DBTX, int32]{
			func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				attempt.Add(1)
				return fanouttest.PID(ctx, tx)
			},
			func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				if attempt.Load() == 2 {
					cancel()
					<-ctx.Done()
				}
				return fanouttest.PID(ctx, tx)
			},
			func(ctx context.Context, tx fanout.DBTX) ([]int32, error) { return []int32{attempt.Load()}, nil },
			func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
				if attempt.Load() == 1 {
					return fanouttest.Statement[int32]("select fail($1)", "40001")(ctx, tx)
				}
				return fanouttest.PID(ctx, tx)
			},
		}
		lists, err := fanout.Collect(ctx, src, queries...)
		cancel()
		var errs fanout.Errors
		if !errors.As(err, &errs) || attempt.Load() != 2 {
			t.Errorf("%v: %v after %d attempts", s, err, attempt.Load())
		}
		for _, e := range errs {
			if lists != nil && lists[e.Index] != nil {
				t.Errorf("%v: query %d has failed (%v), and its list is %v", s, e.Index, e.Err, lists[e.Index])
			}
		}
		if lists != nil && lists[2] != nil && lists[2][0] != 2 {
			t.Errorf("%v: rows of attempt %d", s, lists[2][0])
		}
		fanouttest.Serves(t, pool)
	}
}

// A password that is wrong will be wrong again.
func TestRefusedLogInIsNotTriedAgain(t *testing.T) {
	config := pgtest.Pool(t, 1).Config()
	config.ConnConfig.Database = "there_is_none"
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	src := fanouttest.Raw(pool)
	src.Retries = 2
	if _, err := fanout.Collect(t.Context(), src, fanouttest.PID); err == nil || strings.Contains(err.Error(), "attempt") || fanouttest.SQLState(err) != "3D000" {
		t.Error(err)
	}
}

// Where an argument of a batch cannot be encoded, though those of its first statement can, pgx closes the connection. Whoever
// fails by that, the error says why, and it is not tried again.
func TestBatchThatCannotBeEncoded(t *testing.T) {
	bad := func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
		if _, err := fanouttest.Statement[int]("select $1::int", 1)(ctx, tx); err != nil {
			return nil, err
		}
		err := tx.SendBatch(ctx, fanouttest.Unencodable()).Close()
		time.Sleep(2 * time.Millisecond) // as who logs it
		return nil, err
	}
	good := func(ctx context.Context, tx fanout.DBTX) (rows []int, err error) {
		for i := 0; i < 3 && err == nil; i++ {
			rows, err = fanouttest.Statement[int]("-- name: Good :many\nselect $1::int", i)(ctx, tx)
		}
		return rows, err
	}
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		for _, snapshot := range []bool{false, true} {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot, src.Retries = s, snapshot, 3
			_, err := fanout.Collect(fanouttest.InTime(t), src, bad, good, good, good)
			if e := fanouttest.AsError(t, err); s < fanout.Pipelined && (e.Index != 0 || strings.Contains(err.Error(), "lost")) {
				t.Errorf("%v, snapshot=%v: %v", s, snapshot, err)
			}
			fanouttest.Mention(t, err, "Bad")
			fanouttest.Mention(t, err, "greater than maximum value for int2")
			if strings.Contains(err.Error(), "attempt") {
				t.Errorf("%v, snapshot=%v: %v", s, snapshot, err)
			}
		}
	}
}

// A snapshot call starts again when a connection is lost that a function has to itself for one statement only.
func TestRetriesAfterALostStatementByItself(t *testing.T) {
	dsn := pgtest.DSN(t)
	admin := pgtest.Connect(t, dsn)
	for _, batch := range []bool{false, true} {
		for _, s := range fanouttest.Strategies {
			src := fanouttest.Raw(pgtest.PoolOn(t, dsn, 1))
			src.Strategy, src.Snapshot, src.Retries = s, true, 1
			attempt := 0
			lists, err := fanout.Collect(fanouttest.InTime(t), src,
				func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
					attempt++
					own, err := fanouttest.PID(ctx, tx)
					if err != nil {
						return nil, err
					}
					if attempt == 1 {
						pgtest.Exec(t, admin, "select pg_terminate_backend($1, 1000)", own[0])
					}
					if !batch {
						return fanouttest.Statement[int]("select $1::int", pgx.QueryExecModeExec, 5)(ctx, tx)
					}
					b := &pgx.Batch{}
					b.Queue("select $1::int", 5)
					results := tx.SendBatch(ctx, b)
					rows, err := results.Query()
					return []int{5}, errors.Join(err, rows.Err(), results.Close())
				}, fanouttest.Statement[int]("select 1"))
			if err != nil || attempt != 2 || lists[0][0] != 5 {
				t.Errorf("batch=%v, %v: %v, attempt %d: %v", batch, s, lists, attempt, err)
			}
		}
	}
}

// A server that does not answer, so that pgx's connect_timeout ends the attempt, cannot be reached any more than one that
// refuses.
func TestRetriesAfterConnectTimeout(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		var dials atomic.Int32
		pool := pgtest.Pool(t, 1, func(c *pgxpool.Config) {
			c.ConnConfig.ConnectTimeout = 400 * time.Millisecond // those that answer need some of it on a busy machine
			dial := c.ConnConfig.DialFunc
			c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if dials.Add(1) == 1 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return dial(ctx, network, addr)
			}
		})
		src := fanouttest.Raw(pool)
		src.Strategy, src.Retries = s, 3
		if _, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID, fanouttest.PID); err != nil {
			t.Errorf("%v: after %d dials: %v", s, dials.Load(), err)
		}
	}
}

// But a function's own deadline for a connection to somewhere else is no reason to run a call again.
func TestRetriesNotForADeadlineElsewhere(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	config := pool.Config().ConnConfig.Copy()
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot, src.Retries = s, true, 3
		runs := 0
		err := fanouttest.Do(t, src, func(ctx context.Context, _ fanout.DBTX) error {
			runs++
			own, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			_, err := pgx.ConnectConfig(own, config)
			return err
		})
		if runs != 1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: %d runs: %v", s, runs, err)
		}
	}
}

// That a ctx which a function has made ends before its statement is sent, while it waits for a connection or before, is no
// failure that passes.
func TestRetriesNotAfterAnOwnCtx(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 1)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Retries, src.Partial = s, 2, true
		var runs atomic.Int32
		_, err := fanout.Collect(fanouttest.InTime(t), src,
			func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				_, err := tx.Exec(ctx, "select set_config('a.b', 'c', false)") // alone on the connection
				if err == nil {
					_, err = tx.Exec(ctx, "select pg_sleep(0.3)")
				}
				return nil, err
			},
			func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				runs.Add(1)
				own, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				if s < fanout.Pipelined {
					<-own.Done()
				}
				return fanouttest.Statement[string]("select 'x'")(own, tx)
			})
		if n := runs.Load(); n != 1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: run %d times: %v", s, n, err)
		}
	}
}

// An elsewhere is a destination that asks another database, on a connection that is closed: its error is of that.
type elsewhere struct{ conn *pgx.Conn }

func (e elsewhere) Scan(any) error {
	_, err := e.conn.Exec(context.Background(), "select 1")
	return err
}

// An elsewhereRow is one for a whole row.
type elsewhereRow struct{ elsewhere }

func (e elsewhereRow) ScanRow(pgx.Rows) error { return e.Scan(nil) }

// What is safe to retry for the code that reads a result says nothing of the statement: that has been executed.
func TestReadersErrorDoesNotRepeatAWrite(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	if _, err := pool.Exec(t.Context(), "create table written (n int)"); err != nil {
		t.Fatal(err)
	}
	other := pgtest.Connect(t, pgtest.DSN(t))
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	reader := elsewhere{other}
	if err := reader.Scan(nil); !pgconn.SafeToRetry(err) {
		t.Fatal(err)
	}
	const insert = "insert into written values ($1) returning n"
	writes := map[string]func(ctx context.Context, tx fanout.DBTX) error{
		"QueryRow": func(ctx context.Context, tx fanout.DBTX) error {
			return tx.QueryRow(ctx, insert, 1).Scan(reader)
		},
		"QueryRow of the whole row": func(ctx context.Context, tx fanout.DBTX) error {
			return tx.QueryRow(ctx, insert, 1).Scan(elsewhereRow{reader})
		},
		"Query": func(ctx context.Context, tx fanout.DBTX) error {
			rows, err := tx.Query(ctx, insert, 1)
			if err != nil {
				return err
			}
			_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (int, error) { return 0, row.Scan(elsewhereRow{reader}) })
			return err
		},
		"SendBatch": func(ctx context.Context, tx fanout.DBTX) error {
			var batch pgx.Batch
			batch.Queue(insert, 1).QueryRow(func(row pgx.Row) error {
				var n int
				if err := row.Scan(&n); err != nil {
					return err
				}
				return reader.Scan(n)
			})
			return tx.SendBatch(ctx, &batch).Close()
		},
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Retries = s, 2
		for way, write := range writes {
			if _, err := pool.Exec(t.Context(), "truncate written"); err != nil {
				t.Fatal(err)
			}
			runs := 0
			err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
				runs++
				return write(ctx, tx)
			})
			if !errors.Is(err, pgconn.ErrConnClosed) {
				t.Error(err)
			}
			var n int
			if err := pool.QueryRow(t.Context(), "select count(*) from written").Scan(&n); err != nil || n != 1 || runs != 1 {
				t.Errorf("%v, %s: written %d times by %d runs, %v", s, way, n, runs, err)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// A connection may be lost while a hook of the pool uses it, as when the server goes away meanwhile: the call has had none, and
// tries again.
func TestRetriesWhenAHookLosesTheConnection(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, hook := range []string{"AfterConnect", "PrepareConn"} {
		for _, snapshot := range []bool{false, true} {
			for _, s := range fanouttest.Strategies {
				var times atomic.Int32
				use := func(ctx context.Context, conn *pgx.Conn) error {
					if times.Add(1) == 1 {
						_ = conn.PgConn().Conn().Close()
					}
					_, err := conn.Exec(ctx, "set application_name = 'x'")
					return err
				}
				pool := pgtest.PoolOn(t, dsn, 1, func(config *pgxpool.Config) {
					if hook == "AfterConnect" {
						config.AfterConnect = use
						return
					}
					config.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
						err := use(ctx, conn)
						return err == nil, err
					}
				})
				src := fanouttest.Raw(pool)
				src.Strategy, src.Retries, src.Snapshot = s, 1, snapshot
				if _, err := fanout.Collect(t.Context(), src, fanouttest.PID, fanouttest.PID); err != nil || times.Load() < 2 {
					t.Errorf("%s, %v, snapshot=%v: after %d uses: %v", hook, s, snapshot, times.Load(), err)
				}
			}
		}
	}
}

// All connections of the pool die, as in a failover: one retry is enough for a call that may start again, however many the
// pool still has.
func TestRetriesPassDeadConnectionsBy(t *testing.T) {
	dsn := pgtest.DSN(t)
	admin, pool := pgtest.Connect(t, dsn), pgtest.PoolOn(t, dsn, 3)
	for _, s := range fanouttest.Strategies {
		for _, snapshot := range []bool{false, true} {
			fanouttest.Warm(t, pool)
			terminateAll(t, admin)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot, src.Retries = s, snapshot, 1
			if _, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(8, fanouttest.PID)...); err != nil {
				t.Errorf("%v, snapshot %v: %v", s, snapshot, err)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// terminateAll ends every other backend of the database, and returns when their processes are gone, and so the sockets closed.
func terminateAll(t *testing.T, admin *pgx.Conn) {
	t.Helper()
	pgtest.Exec(t, admin, "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
}

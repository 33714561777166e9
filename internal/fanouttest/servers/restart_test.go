//go:build unix

package servers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// restarting is a pool on a server of the test's own. The returned function has the server restart, as it does of itself when
// one of its processes is killed, here the backend of tx: it ends all the others, and refuses new ones until it has recovered.
func restarting(t *testing.T, conns int) (pool *pgxpool.Pool, restart func(ctx context.Context, tx fanout.DBTX) error) {
	t.Helper()
	s, err := localpg.Start(t.Context(), "synchronous_commit=on") // what has been committed is there after the restart
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	pool = pgtest.PoolOn(t, s.DSN(), conns)
	witness, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	return pool, func(ctx context.Context, tx fanout.DBTX) error {
		pids, err := fanouttest.PID(ctx, tx)
		if err != nil {
			return err
		}
		if err := syscall.Kill(int(pids[0]), syscall.SIGKILL); err != nil {
			return err
		}
		for witness.Ping(ctx) == nil { // until the server has taken note, and ended the others
		}
		_, err = fanouttest.PID(ctx, tx)
		if err == nil {
			err = errors.New("a killed backend has answered")
		}
		return err
	}
}

// answers waits until the server takes connections again.
func answers(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
		if err == nil {
			_ = conn.Close(t.Context())
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// The server restarts in the middle of a snapshot call: it starts again until the server is there, and every query has its
// rows, of one snapshot.
func TestSnapshotCallSurvivesARestart(t *testing.T) {
	for _, conns := range []int{1, 4} {
		pool, restart := restarting(t, conns)
		src := fanouttest.Raw(pool)
		src.Snapshot, src.Retries = true, 20
		last := 0
		src.Observe = func(_ context.Context, s fanout.Span) { last = s.Attempt }
		var ran atomic.Int32
		queries := fanouttest.Repeated(12, fanouttest.InSnapshot)
		queries[5] = func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			if ran.Add(1) == 1 {
				return nil, restart(ctx, tx)
			}
			return fanouttest.InSnapshot(ctx, tx)
		}
		lists, err := fanout.Collect(t.Context(), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			if len(list) != 1 || list[0] != lists[0][0] {
				t.Errorf("query %d sees %v, query 0 %v", i, list, lists[0])
			}
		}
		if last < 2 {
			t.Errorf("the last span is of attempt %d", last)
		}
		t.Logf("%d connections: attempt %d", conns, last)
		pool.Reset() // what is idle there may be of the server as it was before
		if _, err := fanout.Collect(t.Context(), fanouttest.Raw(pool), fanouttest.Repeated(8, fanouttest.PID)...); err != nil {
			t.Error(err)
		}
	}
}

// The server restarts in the middle of a plain call, whose query has written: it is not repeated. A query that had sent
// nothing yet is.
func TestWritesAreNotRepeatedAfterARestart(t *testing.T) {
	pool, restart := restarting(t, 2)
	if _, err := pool.Exec(t.Context(), "create table counter (n int); insert into counter values (0)"); err != nil {
		t.Fatal(err)
	}
	src := fanouttest.Raw(pool)
	src.Retries, src.Partial = 20, true
	var writes, reads atomic.Int32
	connected, killed := make(chan struct{}), make(chan struct{})
	write := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		defer close(killed)
		<-connected // the other one, to the server as it was before
		writes.Add(1)
		if _, err := tx.Exec(ctx, "update counter set n = n + 1"); err != nil {
			return nil, err
		}
		return nil, restart(ctx, tx)
	}
	read := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if reads.Add(1) == 1 {
			close(connected)
			<-killed
			answers(t, pool)
		}
		return fanouttest.Statement[int32]("-- name: Counter :one\nselect n from counter where n > $1", -1)(ctx, tx)
	}
	lists, err := fanout.Collect(t.Context(), src, write, read)
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != 0 {
		t.Fatalf("%v, %v", lists, err)
	}
	fanouttest.Mention(t, errs[0], "the connection was lost")
	if fmt.Sprint(lists[1]) != "[1]" || writes.Load() != 1 || reads.Load() < 2 {
		t.Errorf("written by %d runs; %d runs have read %v", writes.Load(), reads.Load(), lists[1])
	}
	pool.Reset()
	var n int
	if err := pool.QueryRow(t.Context(), "select n from counter").Scan(&n); err != nil || n != 1 {
		t.Errorf("the counter is %d, %v", n, err)
	}
}

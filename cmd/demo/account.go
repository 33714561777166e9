package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/connstring"
	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

const (
	// startBalance is what each account has at first.
	startBalance = 1000

	// largestTransfer is the most that is moved at once.
	largestTransfer = 100

	// transferGrace is how long a transfer may go on that was under way when the writers were told to end.
	transferGrace = 500 * time.Millisecond

	// checkTimeout bounds the question for the total at the end. The user may be waiting for it.
	checkTimeout = 10 * time.Second
)

// accounts is what sqlc would generate for a schema of its own with the one query below. It is written by hand, since the
// table is the demo's alone.
type accounts struct {
	db fanout.DBTX
}

func newAccounts(db fanout.DBTX) *accounts { return &accounts{db} }

const balanceSQL = `-- name: Balance :one
select balance from account where id = $1
`

// Balance returns what is in the account.
func (q *accounts) Balance(ctx context.Context, id int32) (int64, error) {
	var balance int64
	err := q.db.QueryRow(ctx, balanceSQL, id).Scan(&balance)
	return balance, err
}

// openAccounts creates the table with n accounts, numbered from 1.
func openAccounts(ctx context.Context, tx pgx.Tx, n int) error {
	for _, sql := range []string{
		"create table account (id integer primary key, balance bigint not null)",
		fmt.Sprintf("insert into account select i, %d from generate_series(1, %d) i", startBalance, n),
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("opening accounts: %w", err)
		}
	}
	return nil
}

// checkTotal asks for the total in one statement, which is right in any case, unless somebody else has put his hand in.
func checkTotal(conn *pgx.Conn, want int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	var total int64
	if err := conn.QueryRow(ctx, "select coalesce(sum(balance), 0)::bigint from account").Scan(&total); err != nil {
		return fmt.Errorf("asking for the total at the end: %w", err)
	}
	if total != want {
		return fmt.Errorf("there is %s in all at the end, not %s: somebody else has changed the accounts, and the figures mean nothing",
			program.Thousands(int(total)), program.Thousands(int(want)))
	}
	return nil
}

// writers are the connections by which money is moved.
type writers struct {
	conns    []*pgx.Conn
	accounts int
}

func openWriters(ctx context.Context, config *pgx.ConnConfig, opts consistencyOptions) (writers, error) {
	w := writers{accounts: opts.accounts}
	// Where the server's default is a stricter one, two that meet at an account would fail, rather than wait.
	config = config.Copy()
	config.RuntimeParams["default_transaction_isolation"] = "read committed"
	for range opts.writers {
		conn, err := pgx.ConnectConfig(ctx, config.Copy())
		if err != nil {
			w.close()
			return writers{}, fmt.Errorf("opening %s (-writers): %w", counted(opts.writers, "connection", "connections"), connstring.ConnectError(err))
		}
		w.conns = append(w.conns, conn)
	}
	return w, nil
}

func (w writers) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, conn := range w.conns {
		_ = conn.Close(ctx)
	}
}

// start has all writers move money until ctx ends, and count their transfers. A writer that cannot go on reports it. Wait
// returns when all have ended.
func (w writers) start(ctx context.Context, transfers *atomic.Int64, fail func(error)) (wait func()) {
	// A transfer that is under way when ctx ends is completed: cutting it off would cost the connection.
	working, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-working.Done():
		case <-time.After(transferGrace):
			cancel()
		}
	})
	var wg sync.WaitGroup
	for _, conn := range w.conns {
		wg.Go(func() {
			// Of every account a part is this writer's to move, and it keeps account of it: so no balance falls below
			// zero, though nobody asks for one. The transfers stay two plain updates.
			purse := make([]int64, w.accounts)
			for i := range purse {
				purse[i] = int64(startBalance / len(w.conns))
			}
			for ctx.Err() == nil {
				if err := move(working, conn, purse); err != nil {
					if !errors.Is(err, context.Canceled) {
						fail(fmt.Errorf("moving money: %w", err))
					}
					return
				}
				transfers.Add(1)
			}
		})
	}
	return func() {
		wg.Wait()
		stop()
		cancel()
	}
}

// move makes one transfer of a random amount between two random accounts.
func move(ctx context.Context, conn *pgx.Conn, purse []int64) error {
	from := rand.IntN(len(purse))
	for purse[from] == 0 {
		from = rand.IntN(len(purse))
	}
	to := (from + 1 + rand.IntN(len(purse)-1)) % len(purse)
	amount := 1 + rand.Int64N(min(largestTransfer, purse[from]))
	purse[from] -= amount
	purse[to] += amount

	// The batch is one transaction and one round trip. The accounts in it are always in the same order: writers who meet
	// wait for each other, and never both.
	var batch pgx.Batch
	for _, i := range []int{min(from, to), max(from, to)} {
		delta := amount
		if i == from {
			delta = -amount
		}
		batch.Queue("update account set balance = balance + $1 where id = $2", delta, i+1)
	}
	return conn.SendBatch(ctx, &batch).Close()
}

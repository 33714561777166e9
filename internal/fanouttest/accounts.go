package fanouttest

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// Accounts makes eight accounts, one per row, and has writers move money between them until the returned function is
// called: the sum over all is always the same.
func Accounts(t testing.TB, pool *pgxpool.Pool) (stop func()) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), "create table account (id int primary key, balance int); insert into account select i, 100 from generate_series(0, 7) i"); err != nil {
		t.Fatal(err)
	}
	writers, err := pgxpool.NewWithConfig(t.Context(), pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := rand.IntN(8)
				to := (from + 1 + rand.IntN(7)) % 8
				_, err := writers.Exec(context.Background(), `with less as (update account set balance = balance - 1 where id = $1)
					update account set balance = balance + 1 where id = $2`, min(from, to), max(from, to))
				if err != nil && SQLState(err) != "40P01" {
					t.Error(err)
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
		writers.Close()
	}
}

// sums is eight queries, one per account.
func sums() []fanout.Query[fanout.DBTX, int32] {
	var queries []fanout.Query[fanout.DBTX, int32]
	for i := range 8 {
		queries = append(queries, Statement[int32]("-- name: Balance :one\nselect balance from account where id = $1", i))
	}
	return queries
}

// Torn makes calls and returns how many of them saw a sum that never was.
func Torn(t testing.TB, src fanout.Source[fanout.DBTX], calls int) (n int) {
	t.Helper()
	for range calls {
		lists, err := fanout.Collect(t.Context(), src, sums()...)
		if err != nil {
			t.Fatal(err)
		}
		sum := int32(0)
		for _, list := range lists {
			sum += list[0]
		}
		if sum != 800 {
			n++
		}
	}
	return n
}

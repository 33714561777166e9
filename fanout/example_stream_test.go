package fanout_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Results as they come: the loop may use the pool, and leaving it early stops what still runs.
func ExampleStream() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, pgtest.ExampleDSN())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "insert into a (data) select 'a_' || i from generate_series(0, 99) i"); err != nil {
		log.Fatal(err)
	}

	src := fanout.New(pool, db.New)
	keys := make([]int32, 100)
	for i := range keys {
		keys[i] = int32(i + 1)
	}
	rows := 0
	for result, err := range fanout.Stream(ctx, src, fanout.Chunk((*db.Queries).ListAByIDs, keys, 10)...) {
		if err != nil {
			log.Fatal(err)
		}
		// result.Index says which chunk it is. They come in any order.
		if rows += len(result.Rows); rows >= 50 {
			break
		}
	}
	fmt.Println(rows, "rows are enough;", pool.Stat().AcquiredConns(), "connections in use")
	// Output:
	// 50 rows are enough; 0 connections in use
}

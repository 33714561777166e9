package fanout_test

import (
	"context"
	"fmt"
	"log"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Thirty look-ups at once, each an unmodified sqlc method on its own pooled connection, merged by primary key.
func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, pgtest.ExampleDSN()) // your DSN; package db is what sqlc generated for you
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "insert into a (data) select 'a_' || i % 10 from generate_series(0, 99) i"); err != nil {
		log.Fatal(err)
	}

	src := fanout.New(pool, db.New)
	var args []string
	for i := range 30 {
		args = append(args, fmt.Sprintf("a_%d", i%5))
	}
	rows, err := fanout.Gather(ctx, src,
		func(a db.A) int32 { return a.ID },
		fanout.Each((*db.Queries).ListAByData, args...)...)
	if err != nil {
		log.Fatal(err)
	}
	ids := slices.Sorted(maps.Keys(rows))
	fmt.Println(len(ids), "rows, the first of them:", ids[:5])
	fmt.Println(rows[3].ID, *rows[3].Data)
	// Output:
	// 50 rows, the first of them: [1 2 3 4 5]
	// 3 a_2
}

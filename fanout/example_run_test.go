package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Queries of different types in one call, each into its own variable; and what happens when one of them fails.
func ExampleRun() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, pgtest.ExampleDSN())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "insert into a (data) values ('one'), ('two'), ('three')"); err != nil {
		log.Fatal(err)
	}

	src := fanout.New(pool, db.New)
	var (
		first db.A
		some  []db.A
		count int64
		byID  map[int32]db.A
	)
	err = fanout.Run(ctx, src,
		fanout.Into(&first, (*db.Queries).GetA, 1),
		fanout.Into(&some, (*db.Queries).ListAByIDs, []int32{2, 3}),
		fanout.IntoFunc(&count, func(ctx context.Context, q *db.Queries) (int64, error) { return q.CountA(ctx) }),
		fanout.IntoMap(&byID, func(a db.A) int32 { return a.ID },
			fanout.Each((*db.Queries).ListAByData, "one", "three", "nine")...),
	)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(*first.Data, len(some), count, len(byID))

	// Without Partial it is all or error, and the error says which query failed.
	err = fanout.Run(ctx, src,
		fanout.Into(&first, (*db.Queries).GetA, 2),
		fanout.Into(&first, (*db.Queries).GetA, 99),
	)
	var failed *fanout.Error
	if errors.As(err, &failed) && errors.Is(err, pgx.ErrNoRows) {
		fmt.Printf("task %d, %s; still %s\n", failed.Index, failed.Name, *first.Data)
	}
	fmt.Println(err)

	// With it, what succeeded is kept.
	src.Partial = true
	var second db.A
	err = fanout.Run(ctx, src,
		fanout.Into(&first, (*db.Queries).GetA, 99),
		fanout.Into(&second, (*db.Queries).GetA, 2),
	)
	fmt.Println(*second.Data, "and", err)
	// Output:
	// one 2 3 2
	// task 1, GetA; still one
	// fanout: query 1 (GetA): no rows in result set
	// two and fanout: query 0 (GetA): no rows in result set
}

package fanout_test

import (
	"context"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A call inside the caller's own transaction, which sees what that has written; and a call inside a query function,
// which runs on the connection that the function has, so that even a pool of one connection is enough.
func ExampleSource_On() {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(pgtest.ExampleDSN())
	if err != nil {
		log.Fatal(err)
	}
	config.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	src := fanout.New(pool, db.New)
	text := "written"
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		return fanout.Run(ctx, src.On(tx),
			fanout.Do(func(ctx context.Context, q *db.Queries) error {
				_, err := q.InsertA(ctx, &text)
				return err
			}),
			fanout.Do(func(ctx context.Context, q *db.Queries) error {
				count, err := q.CountA(ctx)
				if err != nil {
					return err
				}
				// ctx tells the nested call whose connection to use.
				rows, err := fanout.Gather(ctx, src, func(a db.A) int32 { return a.ID },
					fanout.Each((*db.Queries).ListAByData, "written", "read")...)
				fmt.Println("in the transaction:", count, len(rows))
				return err
			}),
		)
	})
	if err != nil {
		log.Fatal(err)
	}
	rows, err := fanout.Collect(ctx, src, fanout.All((*db.Queries).ListA))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("committed:", *rows[0][0].Data)
	// Output:
	// in the transaction: 1 1
	// committed: written
}

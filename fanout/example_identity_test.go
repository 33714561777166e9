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

// One value per primary key over several calls: a pointer stays valid while later merges refresh what it points to.
func ExampleIdentity() {
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
	session := fanout.NewIdentity(func(a db.A) int32 { return a.ID })
	load := func() []*db.A {
		lists, err := fanout.Collect(ctx, src, fanout.Each((*db.Queries).ListAByData, "two", "three", "TWO")...)
		if err != nil {
			log.Fatal(err)
		}
		var merged []*db.A
		for _, list := range lists {
			pointers, err := session.Merge(list)
			if err != nil {
				log.Fatal(err)
			}
			merged = append(merged, pointers...)
		}
		return merged
	}

	two := load()[0]
	fmt.Println(*two.Data)
	if _, err := pool.Exec(ctx, "update a set data = 'TWO' where id = $1", two.ID); err != nil {
		log.Fatal(err)
	}
	load()
	fmt.Println(*two.Data)
	for id, a := range session.All() {
		fmt.Println(id, *a.Data)
	}
	// Output:
	// two
	// TWO
	// 2 TWO
	// 3 three
}

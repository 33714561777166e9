package fanout_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func BenchmarkZZ(b *testing.B) {
	const conns, queries = 10, 30
	pool := pgtest.Pool(b, conns)
	fill(b, pool, 100)
	warm(b, pool)
	src := fanout.New(pool, db.New)
	src.Strategy = fanout.Pipelined
	ctx := context.Background()
	args := make([]string, queries)
	pipelined := func() {
		if _, err := fanout.Gather(ctx, src, id, fanout.Each((*db.Queries).ListAByData, args...)...); err != nil {
			b.Fatal(err)
		}
	}
	byHand := func() {
		if _, err := handWritten(ctx, pool, conns, args); err != nil {
			b.Fatal(err)
		}
	}
	batch := func() {
		var bt pgx.Batch
		m := map[int32]db.A{}
		for _, a := range args {
			bt.Queue("-- name: ListAByData :many\nselect id, data from a where data = $1 order by id", a).Query(func(rows pgx.Rows) error {
				for rows.Next() {
					var i db.A
					if err := rows.Scan(&i.ID, &i.Data); err != nil {
						return err
					}
					m[i.ID] = i
				}
				return rows.Err()
			})
		}
		if err := pool.SendBatch(ctx, &bt).Close(); err != nil {
			b.Fatal(err)
		}
	}
	prep := func() {
		for j := range args {
			args[j] = fmt.Sprintf("a_%d", rand.IntN(100))
		}
	}
	b.Run("hand", func(b *testing.B) { versus(b, "pipelined", pipelined, "by-hand", byHand, prep) })
	b.Run("batch", func(b *testing.B) { versus(b, "pipelined", pipelined, "batch", batch, prep) })
}

func BenchmarkYY(b *testing.B) {
	const conns, queries = 10, 30
	pool := pgtest.Pool(b, conns)
	fill(b, pool, 100)
	warm(b, pool)
	src := fanout.New(pool, db.New)
	src.Strategy = fanout.Pipelined
	ctx := context.Background()
	args := make([]string, queries)
	b.ReportAllocs()
	for b.Loop() {
		for j := range args {
			args[j] = fmt.Sprintf("a_%d", rand.IntN(100))
		}
		if _, err := fanout.Gather(ctx, src, id, fanout.Each((*db.Queries).ListAByData, args...)...); err != nil {
			b.Fatal(err)
		}
	}
}

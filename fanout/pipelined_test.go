package fanout_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestPipelinedSimple(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	fill(t, pool, 100)
	src := fanout.New(pool, db.New)
	src.Strategy = fanout.Pipelined
	for range 3 {
		var args []string
		for i := range 30 {
			args = append(args, fmt.Sprint("a_", i))
		}
		m, err := fanout.Gather(context.Background(), src, id, fanout.Each((*db.Queries).ListAByData, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if len(m) != 30 {
			t.Fatal(len(m))
		}
	}
	serves(t, pool)
}

package fanout_test

import (
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	sqlcfanout "github.com/sqlc-fanout/sqlc-fanout"
	"github.com/sqlc-fanout/sqlc-fanout/db"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/shop"
)

// More tests of this package are in ../internal/fanouttest.

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m, sqlcfanout.Schema, shop.Schema)) }

// eachStrategy runs f once for every strategy, on a pool of its own with n rows a_0 … in table a.
func eachStrategy(t *testing.T, conns, n int, f func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[*db.Queries])) {
	for _, s := range fanouttest.Strategies {
		t.Run(s.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, conns)
			fanouttest.Fill(t, pool, n)
			src := fanout.New(pool, db.New)
			src.Strategy = s
			f(t, pool, src)
		})
	}
}

package main

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
)

// roundTrip is the median time of a round trip, in milliseconds, without anything for the server to do.
func roundTrip(ctx context.Context, conn *pgx.Conn) (float64, error) {
	const times = 51
	var took []float64
	for range times {
		start := time.Now()
		if err := conn.Ping(ctx); err != nil {
			return 0, err
		}
		took = append(took, inMilliseconds(time.Since(start)))
	}
	return quantile(took, 0.5), nil
}

// calibrate returns how far the server counts in burnTime.
func calibrate(ctx context.Context, conn *pgx.Conn) (int32, error) {
	const times = 15
	q := benchdb.New(conn)
	burn := func(count int32) (time.Duration, error) {
		var took []time.Duration
		for range times {
			start := time.Now()
			if _, err := q.Burn(ctx, benchdb.BurnParams{Count: count, ID: 1}); err != nil {
				return 0, err
			}
			took = append(took, time.Since(start))
		}
		// Not the median: what disturbs it makes it longer, and on a busy machine the server would count for less than it should.
		slices.Sort(took)
		return took[times/5], nil
	}
	none, err := burn(0)
	if err != nil {
		return 0, err
	}
	for count := int32(1000); ; count *= 2 {
		took, err := burn(count)
		if err != nil {
			return 0, err
		}
		if took -= none; took >= burnTime || count > 1<<28 {
			return int32(float64(count) * float64(burnTime) / float64(max(took, 1))), nil
		}
	}
}

// touchSQL reads table big by its index. A process of the server maps a page of the memory that they share when it first
// touches it: until each has, look-ups on many connections take longer than the same on few, by what depends on chance.
const touchSQL = `begin;
	set local enable_seqscan = off; set local enable_bitmapscan = off; set local max_parallel_workers_per_gather = 0;
	select sum(length(data)) from big where id > 0;
	commit`

// warm runs every text of the statements on the connection, so many times, after touchSQL.
func warm(ctx context.Context, conn *pgxpool.Conn, statements []statement, times int) error {
	if _, err := conn.Conn().PgConn().Exec(ctx, touchSQL).ReadAll(); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(0, 0))
	for _, s := range statements {
		seen := map[string]bool{}
		var batch pgx.Batch
		draws := s.draw(random, 30)
		for i, draw := range draws {
			sql, args := s.text(i, draw)
			if seen[sql] {
				continue
			}
			seen[sql] = true
			for range times {
				batch.Queue(sql, args...)
			}
		}
		if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
			return err
		}
		for i := 0; s.all != nil && i < times; i++ {
			if err := s.all(ctx, conn, draws); err != nil {
				return err
			}
		}
	}
	return nil
}

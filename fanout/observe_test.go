package fanout_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestObserve(t *testing.T) {
	type key struct{}
	for _, s := range strategies {
		pool := pgtest.Pool(t, 3)
		src := raw(pool)
		src.Strategy, src.Partial = s, true
		var spans []fanout.Span
		var inside atomic.Int32
		src.Observe = func(ctx context.Context, s fanout.Span) {
			if inside.Add(1) != 1 {
				t.Error("two goroutines at once")
			}
			if ctx.Value(key{}) != "of the call" {
				t.Error("not the ctx of the call")
			}
			spans = append(spans, s)
			inside.Add(-1)
		}
		batch := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			b := &pgx.Batch{}
			for range 3 {
				b.Queue("-- name: InBatch :batchmany\nselect generate_series(1, 5)")
			}
			b.Queue("select 1")
			results := tx.SendBatch(ctx, b)
			for range 3 {
				rows, err := results.Query()
				if err != nil {
					return nil, err
				}
				if _, err := pgx.CollectRows(rows, pgx.RowTo[int32]); err != nil {
					return nil, err
				}
			}
			if err := results.QueryRow().Scan(new(int)); err != nil {
				return nil, err
			}
			return nil, results.Close()
		}
		copied := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromRows([][]any{{"x"}}))
			return nil, err
		}
		two := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			var n int
			if err := tx.QueryRow(ctx, "-- name: First :one\nselect 1").Scan(&n); err != nil {
				return nil, err
			}
			_, err := tx.Exec(ctx, "-- name: Second :exec\nselect 2")
			return nil, err
		}
		nothing := func(context.Context, fanout.DBTX) ([]int32, error) { return nil, nil }
		ctx := context.WithValue(t.Context(), key{}, "of the call")
		lists, err := fanout.Collect(ctx, src, pid, boom, statement[int32]("select generate_series(1, 7)"), batch, copied, two, nothing)
		var errs fanout.Errors
		if !errors.As(err, &errs) || len(errs) != 1 {
			t.Fatal(err)
		}
		if len(spans) != 7 {
			t.Fatalf("%d spans", len(spans))
		}
		slices.SortFunc(spans, func(a, b fanout.Span) int { return a.Index - b.Index })
		by := s
		if s == fanout.Auto {
			by = fanout.Pipelined // there is nothing to be coalesced
		}
		for i, want := range []struct {
			name             string
			statements, rows int
		}{{"PID", 1, 1}, {"Boom", 1, 0}, {"", 1, 7}, {"InBatch", 4, 16}, {`copy "a"`, 1, 0}, {"Second", 2, 1}, {"", 0, 0}} {
			got := spans[i]
			if got.Index != i || got.Name != want.name || got.Statements != want.statements || got.Rows != want.rows {
				t.Errorf("%v: span %d: %+v, want %+v", s, i, got, want)
			}
			if got.Strategy != by || got.Attempt != 1 || got.Shared != 0 || (got.Err != nil) != (i == 1) ||
				(got.PID == 0) != (i == 6 && s >= fanout.Pipelined) {
				t.Errorf("%v: span %d: %+v", s, i, got)
			}
			if i < 6 && got.Started.Before(got.Queued) || got.Finished.Before(got.Started) || got.Started.IsZero() != (i == 6) {
				t.Errorf("%v: span %d: queued %v, started %v, finished %v", s, i, got.Queued, got.Started, got.Finished)
			}
		}
		if uint32(lists[0][0]) != spans[0].PID {
			t.Errorf("%v: ran on %d, the span says %d", s, lists[0][0], spans[0].PID)
		}
	}
}

// One goroutine at a time holds for all calls of a Source, nested ones and copies included.
func TestObserveAcrossCalls(t *testing.T) {
	pool := pgtest.Pool(t, 4)
	src := raw(pool)
	spans := 0
	src.Observe = func(context.Context, fanout.Span) { spans++ } // a data race if it were otherwise
	done := make(chan error)
	for i := range 4 {
		src := src
		src.Limit = 1 + i
		go func() {
			_, err := fanout.Collect(context.Background(), src, repeated(5, nest(src, 1))...)
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if spans != 4*5*(1+3) {
		t.Errorf("%d spans", spans)
	}
}

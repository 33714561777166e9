package fanout_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// Long arguments of many executions are not all in one message: the server would take none that is too long, and would have
// them all in memory.
func TestCoalescedArgumentsInPortions(t *testing.T) {
	const length, executions, portion = 1 << 20, 32, 16
	pool := pgtest.Pool(t, 1)
	src := raw(pool)
	src.Strategy = fanout.Coalesced
	most := 0
	src.Observe = func(_ context.Context, s fanout.Span) { most = max(most, s.Shared+1) }
	argument := make([]byte, length)
	var queries []fanout.Query[fanout.DBTX, string]
	for i := range executions {
		queries = append(queries, statement[string]("select length($1::bytea) || ' ' || $2::int", argument[i:], i))
	}
	huge := make([]byte, 20*length)
	queries = append(queries, statement[string]("select length($1::bytea) || ' ' || $2::int", huge, 0))
	for range 3 {
		lists, err := fanout.Collect(inTime(t), src, queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			want := fmt.Sprint(length-i, " ", i)
			if i == executions {
				want = fmt.Sprint(len(huge), " ", 0)
			}
			if len(list) != 1 || list[0] != want {
				t.Errorf("query %d has %v, want %q", i, list, want)
			}
		}
	}
	if most < 2 || most > portion+1 {
		t.Errorf("a statement stood for up to %d executions", most)
	}
	serves(t, pool)
}

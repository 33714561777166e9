package fanouttest

import (
	"context"
	"testing"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// SpansOf makes a call and returns its spans, in the order in which its queries have finished.
func SpansOf[T any](t *testing.T, src fanout.Source[fanout.DBTX], queries ...fanout.Query[fanout.DBTX, T]) (spans []fanout.Span) {
	t.Helper()
	src.Observe = func(_ context.Context, s fanout.Span) { spans = append(spans, s) }
	if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
		t.Error(err)
	}
	return spans
}

// PerBackend is how many of the queries have run on each backend.
func PerBackend(spans []fanout.Span) map[uint32]int {
	n := map[uint32]int{}
	for _, s := range spans {
		n[s.PID]++
	}
	return n
}

// Width is how many backends a call has used.
func Width(spans []fanout.Span) int { return len(PerBackend(spans)) }

// Shared is how many queries the largest coalesced statement of a call has stood for, besides one.
func Shared(spans []fanout.Span) (n int) {
	for _, s := range spans {
		n = max(n, s.Shared)
	}
	return n
}

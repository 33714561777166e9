package pgtest

import (
	"testing"
	"time"
)

// SettleSoon shortens the wait for connections and goroutines that a test is about to leak on purpose.
func SettleSoon(t *testing.T) {
	usual := settleTimeout
	settleTimeout = 100 * time.Millisecond
	t.Cleanup(func() { settleTimeout = usual })
}

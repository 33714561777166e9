//go:build unix && !aix && !solaris

package localpg_test

import (
	"testing"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestStandby(t *testing.T) {
	scratch(t)
	primary := start(t)
	standby, err := localpg.StartStandby(t.Context(), primary)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, standby)
	if got := show(t, standby.DSN(), "select pg_is_in_recovery()::text"); got != "true" {
		t.Errorf("in recovery: %s", got)
	}
	if _, err := pgtest.Connect(t, primary.DSN()).Exec(t.Context(), "create table followed ()"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the standby has the primary's table", func() bool {
		return show(t, standby.DSN(), "select (to_regclass('followed') is not null)::text") == "true"
	})
}

package servers

import (
	"os"
	"testing"

	sqlcfanout "github.com/sqlc-fanout/sqlc-fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m, sqlcfanout.Schema)) }

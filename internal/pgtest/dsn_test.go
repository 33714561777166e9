package pgtest

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestWithDatabase(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:p%40w@h:6432/x?sslmode=disable",
		"postgresql://u:p?w@h:6432",
		"postgres://u@h:6432?dbname=x&application_name=a/b",
		"postgres://u@/x?host=h&database=y&port=6432",
		"postgres://u@h:6432,h2:6433/x?target_session_attrs=any",
		"host=h port=6432 user=u dbname=x password='p w'",
		"host=h port=6432 user=u",
	} {
		before, err := pgconn.ParseConfig(dsn)
		if err != nil {
			t.Fatalf("%s: %v", dsn, err)
		}
		replaced := withDatabase(dsn, "fanout_test_1")
		after, err := pgconn.ParseConfig(replaced)
		if err != nil {
			t.Errorf("%s: %v", replaced, err)
			continue
		}
		if after.Database != "fanout_test_1" {
			t.Errorf("%s is database %s", replaced, after.Database)
		}
		if after.Host != "h" || after.Port != 6432 || after.User != "u" || after.Password != before.Password ||
			len(after.Fallbacks) != len(before.Fallbacks) || after.RuntimeParams["application_name"] != before.RuntimeParams["application_name"] {
			t.Errorf("%s became %s", dsn, replaced)
		}
	}
}

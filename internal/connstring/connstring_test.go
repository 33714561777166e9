package connstring

import (
	"strings"
	"testing"
)

// A password with special characters that are not written as %XX is refused where it would be taken for a part of the name
// of a host or a database, which are shown.
func TestPasswordWithSpecialCharacters(t *testing.T) {
	for _, dsn := range []string{
		"postgres://user:pass@secret@localhost/database",
		"postgres://user:12/secret@localhost/database",
		"postgres://user:p@12/secret@localhost/database",
		"postgres://user:p@secret/34@localhost/database",
		"postgres://user:12?secret@localhost/database",
	} {
		if _, err := Parse(dsn, "-dsn"); err == nil || !strings.Contains(err.Error(), "special characters in it as %XX") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
	for _, dsn := range []string{
		"postgres://user:pass%40word@localhost/database",
		"postgres://user@localhost/database?password=a@b",
		"postgres://user:p@h1,h2/database",
		"postgres:///database?host=/tmp",
		"user=u password=a@b/c?d host=h",
	} {
		if _, err := Parse(dsn, "-dsn"); err != nil {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}

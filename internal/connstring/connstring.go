// Package connstring reads a user's connection string, and says what is wrong with it without giving its password away.
package connstring

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Parse is pgxpool.ParseConfig for a DSN from that source: a flag's or a variable's name, which the error tells.
func Parse(dsn, source string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err == nil {
		err = checkForStrayPassword(dsn)
	}
	if err != nil {
		return nil, parseError(source, err)
	}
	return config, nil
}

// parseError says what is wrong with a DSN. It does not repeat the DSN, as pgx does with the password masked as well as
// that can be: in one that cannot be parsed, nobody knows where the password is.
func parseError(source string, err error) error {
	const unreadable = "it is neither a URL (postgres://user:password@host:5432/database, special characters in it as %XX) " +
		"nor key=value pairs (values with spaces in single quotes)"
	// "cannot parse `the DSN`: what is wrong"
	detail := afterLast(err.Error(), "`: ")
	switch {
	case errors.Is(err, errStrayPassword) || strings.HasPrefix(detail, "failed to parse as"):
		detail = unreadable
	case detail == "invalid port": // where a password with a slash in it ends up
		detail += ", or special characters that in a URL are written as %XX"
	}
	return fmt.Errorf("the connection string from %s cannot be used: %s", source, detail)
}

// afterLast is what follows the last separator; "" if there is none.
func afterLast(s, sep string) string {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[i+len(sep):]
	}
	return ""
}

var errStrayPassword = errors.New("an @ too many")

// checkForStrayPassword refuses a URL like postgres://user:12/34@host/database. It is meant to have the password 12/34,
// and it parses: as host user, port 12 and database 34@host/database, which would be shown. So would be the host 34@host of
// postgres://user:12@34@host/database.
func checkForStrayPassword(dsn string) error {
	scheme, rest, ok := strings.Cut(dsn, "://")
	if !ok || scheme != "postgres" && scheme != "postgresql" {
		return nil
	}
	rest, parameters, _ := strings.Cut(rest, "?")
	host, path, _ := strings.Cut(rest, "/")
	name, _, _ := strings.Cut(parameters, "=")
	if strings.Count(host, "@") > 1 || strings.Contains(path, "@") || strings.Contains(name, "@") {
		return errStrayPassword
	}
	return nil
}

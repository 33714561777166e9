package connstring

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// ConnectError is what the server says, if it was reached. Pgx's text tells of every attempt, also of one by TLS before
// the one without.
func ConnectError(err error) error {
	pgErr := (*pgconn.PgError)(nil)
	if !errors.As(err, &pgErr) {
		return err
	}
	err = fmt.Errorf("failed to connect: %w", pgErr)
	if pgErr.Code == "08P01" && strings.Contains(pgErr.Message, "search_path") {
		return fmt.Errorf("%w: that is a pooler, and a schema of its own needs the server itself", err)
	}
	return err
}

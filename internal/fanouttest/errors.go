package fanouttest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// AsError returns err as the *fanout.Error that it must be.
func AsError(t testing.TB, err error) *fanout.Error {
	t.Helper()
	var e *fanout.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is a %T, not an *Error", err, err)
	}
	return e
}

// SQLState is the SQLSTATE of the server's error in err, or empty.
func SQLState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// Mention fails the test unless the text of v, an error or what was recovered, contains want.
func Mention(t testing.TB, v any, want string) {
	t.Helper()
	if text := fmt.Sprint(v); !strings.Contains(text, want) {
		t.Errorf("%q does not say %q", text, want)
	}
}

// Panicked runs f and returns the *PanicError that it panics with.
func Panicked(t testing.TB, f func()) (p *fanout.PanicError) {
	t.Helper()
	defer func() {
		t.Helper()
		r := recover()
		var ok bool
		if p, ok = r.(*fanout.PanicError); !ok {
			t.Errorf("recovered %v, want a *PanicError", r)
		}
	}()
	f()
	return nil
}

// OrPanic is f's error, or the *PanicError that it panics with.
func OrPanic(f func() error) (err error) {
	defer func() {
		if p, ok := recover().(*fanout.PanicError); ok {
			err = p
		}
	}()
	return f()
}

package fanout

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"github.com/jackc/pgx/v5"
)

// A copySource is the source of a CopyFrom. pgx reads it in a goroutine of its own, where a panic would end the process, and
// runtime.Goexit would leave the copy waiting for ever.
type copySource struct {
	pgx.CopyFromSource
	conn *pgx.Conn // nil where it is not known

	read     bool
	panicked *PanicError
	exited   bool
}

// conclude is called when the copy has ended: what has become of the source is h's function's affair.
func (s *copySource) conclude(h *handle) {
	if s.read {
		h.wrote() // rows that have been taken from the source need not be there a second time
	}
	switch {
	case s.panicked != nil:
		panic(s.panicked)
	case s.exited:
		runtime.Goexit()
	}
}

func (s *copySource) Next() (more bool) {
	s.read = true
	s.guard(func() { more = s.CopyFromSource.Next() })
	return more && s.panicked == nil
}

func (s *copySource) Values() (values []any, err error) {
	s.guard(func() { values, err = s.CopyFromSource.Values() })
	return values, cmp.Or(err, s.failure())
}

func (s *copySource) Err() (err error) {
	if s.panicked == nil {
		s.guard(func() { err = s.CopyFromSource.Err() })
	}
	return cmp.Or(err, s.failure())
}

// failure is an error if the source has panicked: then the copy is to fail.
func (s *copySource) failure() error {
	if s.panicked != nil {
		return s.panicked
	}
	return nil
}

// guard calls f, which is the source's.
func (s *copySource) guard(f func()) {
	completed := false
	defer func() {
		if completed {
			return
		}
		if v := recover(); v != nil {
			s.panicked = &PanicError{Value: v, Stack: debug.Stack()}
			return
		}
		s.exited = true
		if s.conn != nil {
			_ = s.conn.PgConn().Conn().Close() // nothing else ends pgx's wait for this goroutine
		}
	}()
	f()
	completed = true
}

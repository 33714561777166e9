package fanout

import (
	"cmp"
	"runtime"

	"github.com/jackc/pgx/v5"
)

// A copySource is the source of a CopyFrom. pgx reads it in a goroutine of its own, where a panic would end the process, and
// runtime.Goexit would leave the copy waiting for ever.
type copySource struct {
	pgx.CopyFromSource
	conn *pgx.Conn // nil where it is not known

	read  bool
	ended error // a *PanicError or errGoexit, once the source has unwound its goroutine
}

// conclude is called when the copy has ended: what has become of the source is h's function's affair.
func (s *copySource) conclude(h *handle) {
	if s.read {
		h.elsewhere.Store(true) // rows that have been taken from the source need not be there a second time
	}
	switch ended := s.ended.(type) {
	case nil:
	case *PanicError:
		panic(ended)
	default:
		runtime.Goexit()
	}
}

func (s *copySource) Next() (more bool) {
	s.read = true
	s.guard(func() { more = s.CopyFromSource.Next() })
	return more && s.ended == nil
}

func (s *copySource) Values() (values []any, err error) {
	s.guard(func() { values, err = s.CopyFromSource.Values() })
	return values, cmp.Or(err, s.ended)
}

func (s *copySource) Err() (err error) {
	if s.ended == nil {
		s.guard(func() { err = s.CopyFromSource.Err() })
	}
	return cmp.Or(err, s.ended)
}

// guard calls f, which is the source's.
func (s *copySource) guard(f func()) {
	completed := false
	defer func() {
		if completed {
			return
		}
		s.ended = unwound(recover())
		if s.ended == errGoexit && s.conn != nil {
			_ = s.conn.PgConn().Conn().Close() // nothing else ends pgx's wait for this goroutine
		}
	}()
	f()
	completed = true
}

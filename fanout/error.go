package fanout

import (
	"errors"
	"fmt"
	"strings"
)

// Error says which query of a call failed. It wraps what the query function returned, so that errors.As reaches a
// *pgconn.PgError and errors.Is a pgx.ErrNoRows. Where the query failed because the caller's ctx ended, errors.Is
// matches ctx.Err() as well, whatever the server or the connection said. [ErrSnapshotServer] and [ErrSnapshotUnsupported]
// are wrapped in one, where a query met them; the package's other errors are to be read, not matched. After Retries,
// errors.Is and errors.As find the errors of earlier attempts too.
type Error struct {
	Index int    // position among the call's queries or tasks, from 0
	Query int    // position among the queries of an IntoMap task, from 0; otherwise 0
	Name  string // sqlc's name of the last statement, of a batch the first ("ListAByData"), or `copy "table"`; "" if there is none
	Err   error  // what the query function returned, or what befell it
}

// Error reads "fanout: query 3 (ListAByData): " and the cause; for the fifth query of an IntoMap task, "query 3.4".
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fanout: query %d", e.Index)
	if e.Query != 0 {
		fmt.Fprintf(&b, ".%d", e.Query)
	}
	if e.Name != "" {
		fmt.Fprintf(&b, " (%s)", e.Name)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Errors is what a Partial call returns beside its results when some or all of its queries failed: one Error for each of
// them, in order of Index, then Query. It is never empty.
type Errors []*Error

// Error is the first Error's text, and how many more there are.
func (e Errors) Error() string {
	switch len(e) {
	case 0:
		return "fanout: no errors"
	case 1:
		return e[0].Error()
	default:
		return fmt.Sprintf("%v (and %d more)", e[0], len(e)-1)
	}
}

// Unwrap returns every Error, for errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// PanicError carries a panic of a query function to the goroutine that made the call, which panics with it once the
// call's other queries have been cancelled and their connections are back; that of the function has been closed, unless it
// is the caller's ([Source.On]), or an outer function's that recovers. Value is what the function panicked with, Stack the
// stack of the goroutine in which it did. Where statements are pipelined, arguments are encoded in another goroutine than the
// function's: if an encoder panics, the function itself is passed the panic as a PanicError.
type PanicError struct {
	Value any
	Stack []byte
}

// Error is the value's text followed by the stack, so that a crash report shows where the panic began.
func (e *PanicError) Error() string {
	return fmt.Sprintf("fanout: a query function panicked: %v\n\n%s", e.Value, e.Stack)
}

// Unwrap returns the value if it is an error, otherwise nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

var (
	// ErrSnapshotServer is returned by a Snapshot call that reached more than one server.
	ErrSnapshotServer = errors.New("fanout: the connections of a snapshot call lead to different servers")

	// ErrSnapshotUnsupported is returned by a Snapshot call on a server that does not honour an imported snapshot.
	ErrSnapshotUnsupported = errors.New("fanout: the server does not support shared snapshots")
)

// What befalls a query whose function misuses the connection. All of them are mistakes in the function, so they are told
// apart by their text, not by errors.Is.
var (
	errReturned   = errors.New("fanout: q, its rows or its ctx were used after the query function had returned; they are its own only until then")
	errConcurrent = errors.New("fanout: q was used by several goroutines at once; a query function has one connection: hand in several queries instead")
	errLent       = errors.New("fanout: q was used, or a second nested call was made, while a nested call runs on the query function's connection")
	errRowsOpen   = errors.New("fanout: the rows of the last statement, or the results of the last batch, are still open; read them to the end or close them before the next statement or a nested call")
	errOtherTx    = errors.New("fanout: the transaction handed in with Source.On is another one on the connection of the outer call's, where statements of other queries are under way; use that one")
	errAbandoned  = errors.New("fanout: the query function returned while another goroutine was still running a statement of it")
	errOpenTx     = errors.New("fanout: the query function left a transaction open on its connection; commit or roll back, or hand the transaction in with Source.On")
	errGoexit     = errors.New("fanout: the query function ended its goroutine (runtime.Goexit, or t.FailNow in a test)")
)

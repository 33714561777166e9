package fanout

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// maxRepeats is how often a statement is sent again that a cancel request for another one has hit.
const maxRepeats = 10

// repeat reports whether r is to be sent again: to be run, now that it is described; because another connection's
// description did not fit; or because what has failed was not it. None of these has been executed, or the server has
// undone it. aborted says that one in front of it has aborted the transaction.
func (p *pipeline) repeat(r *request, err error, aborted bool) bool {
	if err == nil && r.described && r.members != nil {
		return r.fits()
	}
	if err == nil {
		return r.described
	}
	return p.repeatFailed(r, err, aborted)
}

// repeatFailed is repeat for a request that err came of.
func (p *pipeline) repeatFailed(r *request, err error, aborted bool) bool {
	if err == errSkipped {
		r.apart = true // or a statement that fails each time could hold the others up
		return true
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch {
	case r.guarded:
		r.distrust = true
		return true
	case r.follows != nil && r.follows.distrust && pgErr.Code == "26000":
		return true
	case aborted && pgErr.Code == "25P02": // otherwise a function in the database says so, and would each time
		return true
	case r.pure && !r.apart && !r.streamed && p.transaction == nil && p.call.tx == nil &&
		(strings.HasPrefix(pgErr.Code, "40") || strings.HasPrefix(pgErr.Code, "53")):
		r.apart = true // it may have shared the transaction of others, and a deadlock, say, may be of their locks
		return true
	case outOfDate(err) && !inside(err) && p.call.tx == nil && !r.redone &&
		!r.described && !r.streamed && r.description != nil:
		// What was prepared is out of date. pgx reports that; but here several may have been sent relying on it.
		r.redone, r.distrust = true, true
		return true
	case p.haunted && pgErr.Code == "57014" && p.call.tx == nil && r.repeats < maxRepeats && !r.streamed:
		r.repeats++
		return true
	case r.members != nil && r.described && tells(err):
		r.members[0].text.refute()
	}
	return false
}

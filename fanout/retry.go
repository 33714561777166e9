package fanout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// retryBase and retryMost bound the pause before another attempt: half of it, and up to as much again by chance, so
	// that calls which have failed together do not come back together. It doubles with each attempt.
	retryBase = 50 * time.Millisecond
	retryMost = 2 * time.Second
)

// errConnectionLost marks the failure of a unit whose connection is gone.
var errConnectionLost = errors.New("the connection was lost")

// errNoAnswer marks the failure to open a connection that pgx's connect_timeout has ended, which is no deadline of the caller's.
type errNoAnswer struct{ error }

func (e errNoAnswer) Unwrap() error { return e.error }

// lostInHook reports whether err, of a wait for a connection, is that one has been lost while a hook of the pool used it.
func lostInHook(err error) bool {
	return !isServerError(err) && !errors.As(err, new(*pgconn.ConnectError)) &&
		(errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.As(err, new(*net.OpError)))
}

// unencoded reports whether err is of a batch with an argument that cannot be encoded. Where that is not in the first
// statement, pgx closes the connection because of it.
func unencoded(err error) bool {
	var batch pgx.ErrPreprocessingBatch
	return errors.As(err, &batch) && strings.Contains(batch.Error(), "(build)") // and not of the server, or of the network
}

// queryCanceled reports whether the server says that it has ended the statement: by a cancel request, or a timeout.
func queryCanceled(err error) bool { return hasCode(err, "57014") }

// hasCode reports whether the server says that it has failed by one of these.
func hasCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains(codes, pgErr.Code)
}

// transient reports whether another attempt may well succeed, for reasons that lie in time and not in the query.
func transient(err error) bool {
	if errors.Is(err, errSnapshotLost) {
		return true // perhaps because the server did not answer in time, which is no deadline of the caller's
	}
	if errors.As(err, new(errNoAnswer)) {
		return true
	}
	if ofCtx(err) {
		return false
	}
	if errors.Is(err, errConnectionLost) {
		return true
	}
	unconnected := errors.As(err, new(*pgconn.ConnectError))
	if isServerError(err) {
		return hasCode(err, "40001", "40P01", // serialization failure (or recovery conflict), deadlock
			"57P01", "57P02", "57P03", // the server shuts down, has crashed, does not take connections yet
			"53300") || // it has too many
			unconnected && hasCode(err, "08P01") // PgBouncer's code for whatever it is: too many, a server that it cannot reach
	}
	return unconnected
}

// ofCtx reports whether err is that a ctx has ended: the call's, or one that a function has made.
func ofCtx(err error) bool {
	return (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) && !errors.As(err, new(errNoAnswer))
}

// executeRetrying is execute, as often as Source.Retries allows. Whole calls start again only if they cannot have written
// anything: snapshot calls, read only by the server's word, and calls that have not had a connection. In other calls,
// runUnit repeats single units that have sent nothing.
func (c *call) executeRetrying() error {
	c.waitsFrom = time.Now()
	for c.attempt = 1; ; c.attempt++ {
		err := c.execute()
		if _, panicked := err.(*PanicError); panicked || !c.restarting {
			return err
		}
		c.earlier = append(c.earlier, err)
		c.pause()
		c.next, c.connected, c.noConn, c.first, c.taken, c.lanes = 0, false, nil, nil, nil, nil
		c.ctx, c.snapshot, c.exchange, c.restarting = nil, nil, nil, false
	}
}

// pause waits before the call's next attempt. If ctx ends meanwhile, or there is no time left to wait for a connection, the
// attempt says so.
func (c *call) pause() {
	ctx := c.parent
	if c.timeout > 0 && !c.connected {
		within, cancel := context.WithDeadline(ctx, c.waitsFrom.Add(c.timeout))
		defer cancel()
		ctx = within
	}
	pause(ctx, c.attempt)
	if c.connected {
		c.waitsFrom = time.Now()
	}
}

// startAgain decides whether a failure by err ends the attempt only, and not the call. It is called with mu held.
func (c *call) startAgain(err error) bool {
	if c.restarting {
		return true
	}
	if c.attempt > c.retries || c.guest() || c.parent.Err() != nil || !transient(err) {
		return false
	}
	if c.connected && (c.snapshot == nil || c.snapshot.lasting.Load() || c.elsewhere.Load()) {
		return false // something may have been written
	}
	c.restarting = c.restart == nil || c.restart()
	return c.restarting
}

// unitAgain decides whether h's unit may run again, alone, after err: if none of its statements was sent.
func (c *call) unitAgain(h *handle, attempt int, err error) bool {
	return c.snapshot == nil && !c.guest() && attempt <= c.retries && c.ctx.Err() == nil &&
		h.statements > 0 && !h.sent && !h.elsewhere.Load() && pgconn.SafeToRetry(err) && !ofCtx(err)
}

// pause waits before the next attempt, and reports whether there is to be one: ctx has not ended.
func pause(ctx context.Context, attempt int) bool {
	d := retryMost
	if attempt < 10 {
		d = min(d, retryBase<<(attempt-1))
	}
	select {
	case <-time.After(d/2 + rand.N(d/2)):
		return true
	case <-ctx.Done():
		return false
	}
}

// attempts is the error of the last of several attempts, and those of the ones before.
type attempts struct {
	last    error
	earlier []error
}

// afterEarlier returns err with the errors of earlier attempts, if there were any.
func afterEarlier(err error, earlier []error) error {
	if len(earlier) == 0 {
		return err
	}
	return &attempts{err, earlier}
}

func (e *attempts) Error() string {
	texts := make([]string, len(e.earlier))
	for i, err := range e.earlier {
		texts[i] = err.Error()
	}
	return fmt.Sprintf("%v (attempt %d; before: %s)", e.last, len(e.earlier)+1, strings.Join(texts, "; "))
}

func (e *attempts) Unwrap() []error { return append([]error{e.last}, e.earlier...) }

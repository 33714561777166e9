package fanout

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// cancelGrace is how long the server has to end a statement after its ctx has ended. It covers the cancel requests,
	// the statement's last words and one more round trip; then the connection is given up. The package's doc names it.
	cancelGrace = time.Second

	// cancelPatience is how long a statement that nobody wants any more may go on, beside a round trip, before the server is
	// to end it. Most are through by then, while for a cancel request the server forks a process, which takes about as
	// long; and what follows on the connection need not wait until the request can have come to bear.
	cancelPatience = 2 * time.Millisecond

	// cancelRepeat is how long a cancel request is given to take effect before it is sent again; each next time, twice as
	// long. A request that reaches the server before its statement does, or between two messages of one statement, is
	// lost: the server ignores it, because it finds nothing to cancel.
	cancelRepeat = time.Millisecond

	// closeTimeout is how long a connection that must not be used again may take to say good-bye.
	closeTimeout = time.Second
)

// A link is a lane's connection, with what it takes to interrupt or give it up. Lanes of nested calls use the link of the
// lane that they are nested in.
type link struct {
	conn *pgx.Conn // nil for a pgx.Tx that is not on a connection of pgx: then pgx's way of cancelling is left to it

	beforeClose func(*pgx.Conn) // the pool's hook

	// beside is held for round trips that are not a statement of the lane's query function: another lane may make them.
	beside sync.Mutex

	mu      sync.Mutex
	res     *pgxpool.Conn // nil once released or severed, and for the caller's own transaction
	severed bool          // and not released since
}

// patience is how long a statement may take to end by itself.
func (s *shared) patience() time.Duration {
	return cancelPatience + min(s.trip.time(), cancelGrace/10)
}

// endsWithin waits for ended, and reports whether it has been closed in time.
func endsWithin(patience time.Duration, ended <-chan struct{}) bool {
	select {
	case <-ended:
		return true
	case <-time.After(patience):
		return false
	}
}

// cancel has the server end the statement that is running, and returns when ended is closed. If that does not happen
// before deadline, the connection is severed, which ends the statement on this side.
//
// Cancel requests are how a failure costs no connection: pgx's own answer to the end of a ctx is to close the socket. When
// cancel returns, no request of its own is under way any more.
func (l *link) cancel(ended <-chan struct{}, deadline time.Time) {
	ctx, stop := context.WithDeadline(context.Background(), deadline)
	defer stop()
	for wait := cancelRepeat; ; wait *= 2 {
		_ = l.conn.PgConn().CancelRequest(ctx) // if it fails, it is tried again
		select {
		case <-ended:
			return
		case <-ctx.Done():
			l.sever()
			return
		case <-time.After(wait):
		}
	}
}

// absorb makes a harmless round trip after cancel. PostgreSQL confirms a cancel request when it has signalled the backend,
// but the signal may come to bear when the statement has ended already; by the end of the round trip it has, on nothing.
func (l *link) absorb(deadline time.Time) {
	l.beside.Lock()
	defer l.beside.Unlock()
	if l.conn.IsClosed() {
		return
	}
	_, _ = l.exec(deadline, ";")
}

// answers makes the same round trip to find out whether the connection is dead.
func (l *link) answers() bool {
	l.absorb(time.Now().Add(cancelGrace))
	return !l.closed()
}

// exec makes a round trip of the package's own, of which tracers are not told. A server that has not answered by the
// deadline costs the connection.
func (l *link) exec(deadline time.Time, sql string) (results []*pgconn.Result, err error) {
	err = l.within(deadline, func() error {
		results, err = l.conn.PgConn().Exec(context.Background(), sql).ReadAll()
		return err
	})
	if l.conn.IsClosed() {
		l.sever()
	}
	return results, err
}

// within calls f, which uses the connection, and severs that if f has not returned by the deadline, which is an error whatever f
// returns then. A ctx would not do: what pgx does at the end of one the pool's owner may have changed, to something that takes
// its time.
func (l *link) within(deadline time.Time, f func() error) error {
	severed := make(chan struct{})
	late := time.AfterFunc(time.Until(deadline), func() {
		defer close(severed)
		l.sever()
	})
	err := f()
	if late.Stop() {
		return err
	}
	<-severed
	return fmt.Errorf("%w: %w", context.DeadlineExceeded, cmp.Or(err, net.ErrClosed))
}

// sever takes the connection out of the pool, so that its place there is free at once, and closes the socket under pgx,
// which makes whoever waits for it fail. pgx then cleans up in the background: it takes up to 15 s to find out that a
// server does not answer, and pgxpool would keep the place for so long.
func (l *link) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.res != nil {
		l.res.Hijack()
		l.res = nil
		l.severed = true
	}
	_ = l.conn.PgConn().Conn().Close()
}

// destroy closes the connection, which makes the pool drop it.
func (l *link) destroy() {
	l.beside.Lock()
	defer l.beside.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = l.conn.Close(ctx)
}

// release gives the connection back. The pool destroys one that is closed, busy or in a transaction. The hook for one that
// has been severed runs only now, when nobody uses it any more, and as in the pool, in the background.
func (l *link) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if res := l.res; res != nil {
		l.res = nil
		res.Release()
	}
	if l.severed && l.beforeClose != nil {
		go l.beforeClose(l.conn)
	}
	l.severed = false
}

// pooled reports whether the connection is a lane's own, to give back or to destroy.
func (l *link) pooled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.res != nil
}

// idle reports whether the connection can serve another unit, or another user of the pool.
func (l *link) idle() bool {
	return l.pooled() && !l.conn.PgConn().IsBusy() && l.status() == 'I'
}

// closed reports whether the connection is lost.
func (l *link) closed() bool {
	l.beside.Lock()
	defer l.beside.Unlock()
	return l.conn != nil && l.conn.IsClosed()
}

// outside reports whether the connection is known to be in no transaction.
func (l *link) outside() bool { return l.status() == 'I' }

// leftOpen reports whether a unit has left a transaction open that was not there before.
func (l *link) leftOpen() bool {
	return l.pooled() && l.status() != 0 && !l.outside()
}

// status is where the server has last said that the connection is: outside a transaction ('I'), in one ('T') or in one that
// has failed ('E'). It is 0 if that is not known, or the connection is closed.
func (l *link) status() byte {
	if l.conn == nil || l.conn.IsClosed() {
		return 0
	}
	return l.conn.PgConn().TxStatus()
}

package fanouttest

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

// A Wire is the network between a pool and its server, with one fault to come: after so many bytes in either direction,
// the connection that carries the last of them is cut, frozen or delayed, or the whole server freezes.
type Wire struct {
	Hits   atomic.Int64 // how many faults there have been
	Closed atomic.Bool  // new connections cannot be opened: they are refused

	left  atomic.Int64 // bytes until the fault
	fault atomic.Value // of Fault
	dead  atomic.Bool  // the server is frozen: all connections swallow what they carry
	mu    sync.Mutex
	conns map[*faultConn]bool
}

// A Fault is what happens to a connection.
type Fault string

const (
	Cut       Fault = "cut"       // the socket is closed
	Freeze    Fault = "freeze"    // the connection carries nothing any more, in either direction
	FreezeAll Fault = "freezeAll" // nor does any other
	Delay     Fault = "delay"     // the byte arrives late
)

// Attach makes a pool's connections run over w.
func (w *Wire) Attach(config *pgxpool.Config) {
	w.Disarm()
	w.conns = map[*faultConn]bool{}
	config.ConnConfig.ConnectTimeout = 4 * time.Second // of a connection that freezes while it is opened, which is pgx's to end
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if w.Closed.Load() {
			return nil, errors.New("refused")
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := &faultConn{Conn: conn, wire: w}
		w.mu.Lock()
		w.conns[c] = true
		w.mu.Unlock()
		return c, nil
	}
}

// Arm has the fault come after so many bytes.
func (w *Wire) Arm(f Fault, bytes int64) {
	w.fault.Store(f)
	w.left.Store(bytes)
}

// Disarm takes back a fault that has not come, and thaws a server that has frozen, though not its connections.
func (w *Wire) Disarm() {
	w.left.Store(1 << 62)
	w.dead.Store(false)
}

// Mend is Disarm between two cuts: it lets new connections be opened again, and waits until pgx has done with the one that was
// cut. That takes a cancel request, in the background, which the next cut could hit in place of what it is meant for.
func (w *Wire) Mend(t testing.TB) {
	t.Helper()
	w.Disarm()
	w.Closed.Store(false)
	for deadline := time.Now().Add(10 * time.Second); strings.Contains(Stacks(), "(*PgConn).asyncClose."); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("pgx has not done with a connection that was cut")
		}
	}
}

// CutAll closes the sockets of all connections.
func (w *Wire) CutAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Conn.Close()
	}
}

// Thaw ends what waits on frozen connections, by closing them: pgx's clean-up, and the pings of pgxpool's, for which it
// keeps a place in the pool for up to 15 seconds.
func (w *Wire) Thaw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if c.frozen.Load() {
			_ = c.Conn.Close()
		}
	}
}

// FreezeBut freezes all connections but one, or all.
func (w *Wire) FreezeBut(but net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if net.Conn(c) != but {
			c.frozen.Store(true)
		}
	}
}

// AnyFrozen reports whether a frozen connection has not been closed yet.
func (w *Wire) AnyFrozen() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if c.frozen.Load() {
			return true
		}
	}
	return false
}

// ServesAgain disarms w, and checks that the pool serves the next call soon, which is src's and of n queries.
func (w *Wire) ServesAgain(t testing.TB, src fanout.Source[fanout.DBTX], n int) {
	t.Helper()
	w.Disarm()
	ctx, cancel := context.WithTimeout(t.Context(), Grace)
	defer cancel()
	if _, err := fanout.Collect(ctx, src, Repeated(n, PID)...); err != nil {
		t.Errorf("the pool does not serve the next call: %v", err)
	}
}

type faultConn struct {
	net.Conn
	wire   *Wire
	frozen atomic.Bool
}

// spend counts n bytes and, if they are the fault's, lets it happen.
func (c *faultConn) spend(n int) error {
	w := c.wire
	left := w.left.Add(int64(-n))
	if left > 0 || left+int64(n) <= 0 {
		return nil
	}
	w.Hits.Add(1)
	switch w.fault.Load().(Fault) {
	case Cut:
		_ = c.Conn.Close()
		return io.ErrUnexpectedEOF
	case Freeze:
		c.frozen.Store(true)
	case FreezeAll:
		w.dead.Store(true)
	case Delay:
		time.Sleep(20 * time.Millisecond) // the fault itself, not a synchronisation
	}
	return nil
}

func (c *faultConn) swallows() bool { return c.frozen.Load() || c.wire.dead.Load() }

func (c *faultConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err == nil {
			err = c.spend(n)
		}
		if err != nil || !c.swallows() {
			return n, err
		}
		c.frozen.Store(true) // what it has swallowed is gone for good
	}
}

func (c *faultConn) Write(b []byte) (int, error) {
	if err := c.spend(len(b)); err != nil {
		return 0, err
	}
	if c.swallows() {
		c.frozen.Store(true)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *faultConn) Close() error {
	c.wire.mu.Lock()
	delete(c.wire.conns, c)
	c.wire.mu.Unlock()
	return c.Conn.Close()
}

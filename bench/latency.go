package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// latent adds d to every round trip, by delaying what is written. As on a real way, what is under way does not keep the
// sender: he may write more, or read what comes back, meanwhile.
func latent(dial pgconn.DialFunc, d time.Duration) pgconn.DialFunc {
	if d == 0 {
		return dial
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return delayed(conn, d)
	}
}

// delayed is conn, with d added to what is written. It must be closed.
func delayed(conn net.Conn, d time.Duration) (net.Conn, error) {
	alarm, err := newAlarm()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	c := &latentConn{Conn: conn, delay: d, way: make(chan packet, 1024), alarm: alarm, closed: make(chan struct{})}
	go c.deliver()
	return c, nil
}

type latentConn struct {
	net.Conn
	delay  time.Duration
	way    chan packet
	alarm  *alarm
	once   sync.Once
	closed chan struct{}
}

// A packet is what one Write has written, and when it arrives.
type packet struct {
	data []byte
	due  time.Time
}

func (c *latentConn) Write(b []byte) (int, error) {
	select {
	case c.way <- packet{append([]byte(nil), b...), time.Now().Add(c.delay)}:
		return len(b), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// deliver passes packets on when they are due. An error of the connection shows where it is read.
func (c *latentConn) deliver() {
	for {
		select {
		case p := <-c.way:
			err := c.alarm.sleep(time.Until(p.due))
			if err == nil {
				_, err = c.Conn.Write(p.data)
			}
			if err != nil {
				_ = c.Close()
				return
			}
		case <-c.closed:
			return
		}
	}
}

func (c *latentConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.alarm.close()
	})
	return c.Conn.Close()
}

package main

import (
	"context"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// latent adds d to every round trip, by delaying what is written.
func latent(dial pgconn.DialFunc, d time.Duration) pgconn.DialFunc {
	if d == 0 {
		return dial
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return latentConn{conn, d}, nil
	}
}

type latentConn struct {
	net.Conn
	delay time.Duration
}

func (c latentConn) Write(b []byte) (int, error) {
	time.Sleep(c.delay)
	return c.Conn.Write(b)
}

package fanouttest

import (
	"encoding/binary"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A Traffic counts what a pool's connections write, and may make the way to the server longer, by Latency for each write.
type Traffic struct {
	Writes, Bytes atomic.Int64
	Binds, Syncs  atomic.Int64 // messages: executions of statements, and ends of transactions
	Latency       time.Duration
}

// Attach has a pool's connections counted.
func (c *Traffic) Attach(config *pgxpool.Config) {
	Over(func(conn net.Conn) net.Conn { return &countedConn{conn, c} })(config)
}

type countedConn struct {
	net.Conn
	traffic *Traffic
}

func (c *countedConn) Write(b []byte) (int, error) {
	c.traffic.Writes.Add(1)
	c.traffic.Bytes.Add(int64(len(b)))
	c.traffic.count(b)
	time.Sleep(c.traffic.Latency) // the network itself, not a synchronisation
	return c.Conn.Write(b)
}

// count counts the messages in what pgx writes, which are whole ones. Those that open a connection have no type.
func (c *Traffic) count(b []byte) {
	for len(b) >= 5 && b[0] != 0 {
		switch b[0] {
		case 'B':
			c.Binds.Add(1)
		case 'S':
			c.Syncs.Add(1)
		}
		b = b[min(len(b), 1+int(binary.BigEndian.Uint32(b[1:]))):]
	}
}

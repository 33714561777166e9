package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// cutter returns a DSN by which the server is reached through a wire that is cut when the client sends what cut says: data
// is what it has sent lately on its conn-th connection, counted from 0.
func cutter(t *testing.T, dsn string, cut func(conn int, data string) bool) string {
	t.Helper()
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, address)
			if err != nil {
				t.Error(err)
				client.Close()
				continue
			}
			closeBoth := func() { client.Close(); server.Close() }
			stop := context.AfterFunc(ctx, closeBoth)
			wg.Go(func() {
				defer stop()
				defer closeBoth()
				pump(server, client, func(data string) bool { return cut(n, data) })
			})
			wg.Go(func() {
				defer closeBoth()
				pump(client, server, func(string) bool { return false })
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		cancel()
		wg.Wait()
	})
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace
	addr := listener.Addr().(*net.TCPAddr)
	return fmt.Sprintf("host=%s port=%d user='%s' password='%s' dbname='%s' sslmode=disable",
		addr.IP, addr.Port, quote(config.User), quote(config.Password), quote(config.Database))
}

// pump copies until either end is closed, or cut says so of the data: what has just been read, with a little of what was
// read before it.
func pump(to, from net.Conn, cut func(data string) bool) {
	buf := make([]byte, 64<<10)
	var tail string
	for {
		n, err := from.Read(buf)
		if n > 0 {
			data := tail + string(buf[:n])
			if cut(data) {
				return
			}
			tail = data[max(0, len(data)-32):]
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

package fanout_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A source that panics, or ends its goroutine, does so in its query function, although pgx reads it elsewhere.
func TestCopySourceThatDoesNotReturn(t *testing.T) {
	for how, end := range map[string]func(){"exits": runtime.Goexit, "panics": func() { panic("copied") }} {
		for _, s := range fanouttest.Strategies {
			pool := pgtest.Pool(t, 2)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			err := fanouttest.OrPanic(func() error {
				return fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
					n := 0
					_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromFunc(func() ([]any, error) {
						if n++; n == 10 {
							end()
						}
						return []any{"x"}, nil
					}))
					return err
				})
			})
			var p *fanout.PanicError
			if err == nil || errors.As(err, &p) != (how == "panics") || p != nil && p.Value != "copied" {
				t.Errorf("%v, %s: %v", s, how, err)
			}
			var rows int
			if err := pool.QueryRow(t.Context(), "select count(*) from a").Scan(&rows); err != nil || rows != 0 {
				t.Errorf("%v, %s: %d rows, %v", s, how, rows, err)
			}
			fanouttest.Serves(t, pool)
		}
	}
}

// A brokenPipe fails one write, which is noticed before the failure of a read.
type brokenPipe struct {
	net.Conn
	broken *atomic.Bool
}

func (c brokenPipe) Write(b []byte) (int, error) {
	if c.broken.CompareAndSwap(true, false) {
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(b)
}

func (c brokenPipe) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		time.Sleep(10 * time.Millisecond) // the order of events, not a synchronisation
	}
	return n, err
}

// A copy that has begun is not repeated: the rows that it has taken from its source are not there a second time.
func TestCopyIsNotRepeated(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		var broken atomic.Bool
		pool := pgtest.Pool(t, 1, func(c *pgxpool.Config) {
			dial := c.ConnConfig.DialFunc
			c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return brokenPipe{conn, &broken}, err
			}
		})
		src := fanouttest.Raw(pool)
		src.Strategy, src.Retries = s, 1
		runs, taken := 0, 0
		err := fanouttest.Do(t, src, func(ctx context.Context, tx fanout.DBTX) error {
			runs++
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"a"}, []string{"data"}, pgx.CopyFromFunc(func() ([]any, error) {
				if taken++; taken > 1000 {
					return nil, nil
				} else if taken == 500 {
					broken.Store(true) // the first rows are still in memory
				}
				return []any{"x"}, nil
			}))
			return err
		})
		if runs != 1 || err == nil {
			t.Errorf("%v: %d runs, %v", s, runs, err)
		}
		fanouttest.Serves(t, pool)
	}
}

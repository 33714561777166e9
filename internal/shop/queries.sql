-- name: AddCustomers :copyfrom
-- AddCustomers adds customers by COPY and returns how many.
insert into customers (id, email, name, joined_at) values ($1, $2, $3, $4);

-- name: GetCustomer :one
-- GetCustomer returns the customer with this id, or pgx.ErrNoRows.
select * from customers where id = $1;

-- name: ListCustomersByIDs :many
-- ListCustomersByIDs returns the customers with the given ids, in id order. Unknown ids are left out.
select * from customers where id = any(sqlc.arg(ids)::bigint[]) order by id;

-- name: FindCustomers :many
-- FindCustomers returns, in id order, the customers who match every argument that is given. An invalid one matches all.
select * from customers
where (email like sqlc.narg(email_like)::text or sqlc.narg(email_like)::text is null)
  and (joined_at >= sqlc.narg(joined_since)::timestamptz or sqlc.narg(joined_since)::timestamptz is null)
order by id;

-- name: RenameCustomer :exec
-- RenameCustomer sets a customer's name.
update customers set name = sqlc.arg(name) where id = sqlc.arg(id);

-- name: DeleteCustomer :exec
-- DeleteCustomer removes the customer with this id, who must have no orders.
delete from customers where id = $1;

-- name: AddProducts :copyfrom
-- AddProducts adds products by COPY and returns how many.
insert into products (id, name, price, tags, attributes, sold_until) values ($1, $2, $3, $4, $5, $6);

-- name: GetProduct :one
-- GetProduct returns the product with this id, or pgx.ErrNoRows.
select * from products where id = $1;

-- name: ListProducts :many
-- ListProducts returns every product, in id order.
select * from products order by id;

-- name: ListProductsByIDs :many
-- ListProductsByIDs returns the products with the given ids, in id order. Unknown ids are left out.
select * from products where id = any(sqlc.arg(ids)::uuid[]) order by id;

-- name: ListProductsByTags :many
-- ListProductsByTags returns the products that have all of the tags, in id order.
select * from products where tags @> sqlc.arg(tags)::text[] order by id;

-- name: ListProductsByAttributes :many
-- ListProductsByAttributes returns the products whose attributes contain those of the argument, in id order.
select * from products where attributes @> sqlc.arg(attributes)::jsonb order by id;

-- name: RaisePrices :execresult
-- RaisePrices multiplies the price of every product by factor.
update products set price = price * sqlc.arg(factor)::numeric;

-- name: PlaceOrder :one
-- PlaceOrder adds an order, new, and returns it.
insert into orders (id, customer_id, placed_at) values ($1, $2, $3) returning *;

-- name: ListOrdersByCustomer :many
-- ListOrdersByCustomer returns a customer's orders, the latest first.
select * from orders where customer_id = $1 order by placed_at desc, id;

-- name: ListOrdersByStatus :many
-- ListOrdersByStatus returns the orders that have come this far, in id order.
select * from orders where status = $1 order by id;

-- name: CountOrdersByStatus :many
-- CountOrdersByStatus returns how many orders there are of every status that occurs, in the order of the enum.
select status, count(*) as orders, max(placed_at)::timestamptz as latest from orders group by status order by status;

-- name: CountOrders :one
-- CountOrders returns how many orders there are.
select count(*) from orders;

-- name: SetOrderStatus :execrows
-- SetOrderStatus moves an order on to another status, and returns how many rows there were: 1 or 0.
update orders set previous_status = status, status = sqlc.arg(status) where id = sqlc.arg(id);

-- name: SetOrderStatuses :batchexec
-- SetOrderStatuses is SetOrderStatus for many orders, in one batch.
update orders set previous_status = status, status = sqlc.arg(status) where id = sqlc.arg(id);

-- name: PlaceOrders :batchone
-- PlaceOrders is PlaceOrder for many orders, in one batch.
insert into orders (id, customer_id, placed_at) values ($1, $2, $3) returning *;

-- name: AddOrderLines :copyfrom
-- AddOrderLines adds lines to orders by COPY and returns how many.
insert into order_lines (order_id, line_no, product_id, quantity, unit_price, gift_note) values ($1, $2, $3, $4, $5, $6);

-- name: GetOrderLine :one
-- GetOrderLine returns the line with this key, or pgx.ErrNoRows.
select * from order_lines where order_id = $1 and line_no = $2;

-- name: ListOrderLines :many
-- ListOrderLines returns the lines of an order, by number.
select * from order_lines where order_id = $1 order by line_no;

-- name: ListLinesOfOrders :batchmany
-- ListLinesOfOrders is ListOrderLines for many orders, in one batch.
select * from order_lines where order_id = $1 order by line_no;

-- name: ListLinesOfProduct :many
-- ListLinesOfProduct returns the lines of all orders that sell at least so many pieces of a product, in key order.
select * from order_lines where product_id = $1 and quantity >= sqlc.arg(at_least) order by order_id, line_no;

-- name: SetQuantity :execrows
-- SetQuantity changes the quantity of a line, and returns how many rows there were: 1 or 0.
update order_lines set quantity = sqlc.arg(quantity) where order_id = sqlc.arg(order_id) and line_no = sqlc.arg(line_no);

-- name: DeleteOrderLine :exec
-- DeleteOrderLine removes the line with this key, if there is one.
delete from order_lines where order_id = $1 and line_no = $2;

-- name: ListReceiptLines :many
-- ListReceiptLines returns the lines of an order, by number, each with its product and with its total price.
select sqlc.embed(order_lines), sqlc.embed(products), (order_lines.quantity * order_lines.unit_price)::numeric as total
from order_lines
join products on products.id = order_lines.product_id
where order_lines.order_id = $1
order by order_lines.line_no;

-- name: OrderTotal :one
-- OrderTotal returns the sum of an order's lines, which is invalid for an order without lines.
select sum(quantity * unit_price)::numeric as total from order_lines where order_id = $1;

-- A small web shop: keys of several kinds, one of them composite, and the column types that the example's table a lacks.
create type order_status as enum ('new', 'paid', 'shipped', 'cancelled');

comment on type order_status is 'OrderStatus is how far an order has come.';

create table customers (
    id        bigint primary key,
    email     text not null unique,
    name      text,
    joined_at timestamptz not null
);

comment on table customers is 'Customer is somebody who may place orders.';
comment on column customers.name is 'Name is invalid for a customer who has not told it.';

create table products (
    id         uuid primary key,
    name       text not null,
    price      numeric not null,
    tags       text[],
    attributes jsonb,
    sold_until timestamptz not null default 'infinity'
);

comment on table products is 'Product is something that the shop sells.';
comment on column products.price is 'Price is for one piece. NaN: on request.';
comment on column products.tags is 'Tags is nil for a product that nobody has tagged yet, and empty for one that needs no tags.';
comment on column products.attributes is 'Attributes is a JSON document, or nil.';
comment on column products.sold_until is 'SoldUntil is infinity as long as no end is in sight.';

create table orders (
    id              uuid primary key,
    customer_id     bigint not null references customers,
    status          order_status not null default 'new',
    previous_status order_status,
    placed_at       timestamptz not null
);

comment on table orders is 'Order is what a customer has bought at one time.';
comment on column orders.previous_status is 'PreviousStatus is invalid as long as the status has not changed.';

create table order_lines (
    order_id   uuid    not null references orders on delete cascade,
    line_no    integer not null,
    product_id uuid    not null references products,
    quantity   integer not null check (quantity > 0),
    unit_price numeric not null,
    gift_note  text,
    primary key (order_id, line_no)
);

comment on table order_lines is 'OrderLine is one position of an order. Its key is the order and a number within it.';
comment on column order_lines.unit_price is 'UnitPrice is the price when the order was placed.';
comment on column order_lines.gift_note is 'GiftNote is invalid for a line that is no gift.';

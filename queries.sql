-- name: ListAByData :many
-- ListAByData returns the rows whose data equals the argument, in id order.
select id, data from a where data = sqlc.arg(data)::text order by id;

-- name: ListAByIDs :many
-- ListAByIDs returns the rows with the given ids, in id order. Unknown ids are left out.
select id, data from a where id = any(sqlc.arg(ids)::integer[]) order by id;

-- name: ListA :many
-- ListA returns every row, in id order.
select id, data from a order by id;

-- name: GetA :one
-- GetA returns the row with this id, or pgx.ErrNoRows.
select id, data from a where id = $1;

-- name: CountA :one
-- CountA returns the number of rows.
select count(*) from a;

-- name: InsertA :one
-- InsertA adds a row and returns it with its generated id.
insert into a (data) values ($1) returning id, data;

-- name: InsertAs :copyfrom
-- InsertAs adds many rows by COPY and returns how many.
insert into a (data) values ($1);

-- name: TouchA :execrows
-- TouchA rewrites the row with this id unchanged, and returns how many rows there were: 1 or 0.
update a set data = data where id = $1;

-- name: DeleteA :exec
-- DeleteA removes the row with this id, if there is one.
delete from a where id = $1;

-- The table of the example: a surrogate key and a nullable text.
create table a (
    id   integer generated always as identity primary key,
    data text
);

comment on table a is 'A is a row of table a: a generated key and some text.';
comment on column a.data is 'Data is nil where the column is NULL.';

-- What the contenders read. Nothing in it changes while they run.
create table small (
    id   integer primary key,
    data text not null
);

comment on table small is 'Small is a row of the table of a hundred rows, a_1 to a_100, which has no index on data.';

create table big (
    id   integer primary key,
    data text not null
);

comment on table big is 'Big is a row of the table of a million rows.';

package pipelined

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// execModes are pgx's.
var execModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// withTypes makes the schema's types known to every connection.
func withTypes(config *pgxpool.Config) {
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `
			select pg_advisory_lock(1);
			do $$ begin
				create type mood as enum ('sad', 'ok', 'happy');
				create type pair as (n int, t text);
				create domain positive as int check (value > 0);
			exception when duplicate_object then null;
			end $$;
			select pg_advisory_unlock(1)`)
		if err != nil {
			return err
		}
		types, err := conn.LoadTypes(ctx, []string{"mood", "_mood", "pair", "_pair", "positive"})
		conn.TypeMap().RegisterTypes(types)
		return err
	}
}

// values is what rows' values are as Rows.Values and as strings have them, and how many rows there are.
func values(ctx context.Context, db fanout.DBTX, sql string, args ...any) (list []string, err error) {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		row, err := rows.Values()
		if err != nil {
			return nil, err
		}
		raw := rows.RawValues()
		for i, field := range rows.FieldDescriptions() {
			list = append(list, fmt.Sprintf("%s %d %d %T %#v nil=%v %q", field.Name, field.DataTypeOID, field.Format, row[i], row[i], raw[i] == nil, raw[i]))
		}
	}
	if rows.Err() != nil {
		return nil, rows.Err()
	}
	return append(list, fmt.Sprintf("%d rows, %s", n, rows.CommandTag())), nil // rows may have no values at all
}

// Whatever pgx makes of a statement and its arguments on a connection of its own is what a query function gets.
func TestPipelinedDecodesAsPgx(t *testing.T) {
	statements := []struct {
		sql  string
		args []any
	}{
		{"select 'happy'::mood, array['sad', null]::mood[], row(1, 'x')::pair, array[row(2, null)]::pair[], 7::positive", nil},
		{"select $1::mood, $2::mood[], $3::positive", []any{"ok", []string{"ok", "sad"}, 3}},
		{"select null::int, null::text, ''::text, null::mood, ''::bytea", nil},
		{"select ''", nil},
		{"select null", nil},
		{"select from generate_series(1, 3)", nil},
		{"select generate_series(1, 0)", nil},
		{"select 1.50::numeric, '{1,2}'::int[], now()::date, '1 day'::interval, '{\"a\": 1}'::jsonb, 'infinity'::timestamptz, '127.0.0.1'::inet, int4range(1, 5)", nil},
		{"select $1::numeric, $2::int[], $3::timestamptz, $4::jsonb, $5::bytea", []any{"1.5", []int{1, 2}, time.Unix(1, 0), map[string]int{"a": 1}, []byte{0, 1, 2}}},
		{"select '(1,2)'::point, '\\x00ff'::bytea, 'x'::\"char\", 1::oid, 'pg_class'::regclass, b'101', '<a/>'::text", nil},
		{"insert into a (data) values ($1) returning data", []any{nil}},
		{"update a set data = data where id < 0", nil},
		{"select relname, relnatts from pg_class where relname = $1", []any{"pg_class"}},
		{"select $1::positive", []any{-1}},
		{"select 1 / $1::int", []any{0}},
		{"select nonsense", nil},
		{"selec", nil},
		{"select $1::int", []any{"no number"}},
		{"select $1::int", []any{1, 2}},
		{"select $1::int", nil},
		{"select 1; select 2", nil},
		{"-- nothing", nil},
		{"", nil},
	}
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 3, withTypes, func(config *pgxpool.Config) { config.ConnConfig.DefaultQueryExecMode = mode })
			type result struct {
				list []string
				err  error
			}
			var want []result
			for _, s := range statements {
				list, err := values(t.Context(), pool, s.sql, s.args...)
				want = append(want, result{list, err})
			}
			for _, snapshot := range []bool{false, true} {
				src := pipelined(pool)
				src.Partial, src.Snapshot = true, snapshot
				for range 3 {
					got := make([]result, 5*len(statements))
					var tasks []fanout.Task[fanout.DBTX]
					for i := range got {
						s := statements[i%len(statements)]
						tasks = append(tasks, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
							got[i].list, got[i].err = values(ctx, tx, s.sql, s.args...)
							return nil
						}))
					}
					if err := fanout.Run(fanouttest.InTime(t), src, tasks...); err != nil {
						t.Fatal(err)
					}
					for i, got := range got {
						s, want := statements[i%len(statements)], want[i%len(statements)]
						if snapshot && !strings.HasPrefix(s.sql, "select") {
							continue
						}
						if !slices.Equal(got.list, want.list) {
							t.Errorf("%q: got\n\t%v\nwant\n\t%v", s.sql, got.list, want.list)
						}
						if (got.err == nil) != (want.err == nil) || fanouttest.SQLState(got.err) != fanouttest.SQLState(want.err) {
							t.Errorf("%q: %v, want %v", s.sql, got.err, want.err)
						} else if want.err != nil && fanouttest.SQLState(want.err) == "" && got.err.Error() != want.err.Error() {
							t.Errorf("%q: %q, want %q", s.sql, got.err, want.err)
						}
					}
				}
			}
			fanouttest.Serves(t, pool)
		})
	}
}

// How often a connection is written to follows from pgx's mode: where one message can follow another, statements travel
// together, and each takes one round trip, or two where it is described first; in the simple protocol they go one by one.
// And only the mode that says so leaves statements prepared.
func TestPipelinedExecModesOnTheWire(t *testing.T) {
	const n = 30
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			way := &fanouttest.Traffic{}
			pool := pgtest.Pool(t, 1, way.Attach, fanouttest.InMode(mode))
			for _, s := range fanouttest.Pipelining {
				for _, snapshot := range []bool{false, true} {
					src := fanouttest.Raw(pool)
					src.Strategy, src.Snapshot = s, snapshot
					writes := func(n int) int64 {
						var queries []fanout.Query[fanout.DBTX, int32]
						for i := range n {
							queries = append(queries, fanouttest.Statement[int32]("select $1::int + 1", i))
						}
						least := int64(1000)
						for range 20 { // the first to learn what the statement costs
							before := way.Writes.Load()
							lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
							if err != nil {
								t.Fatal(err)
							}
							least = min(least, way.Writes.Load()-before)
							for i, list := range lists {
								if len(list) != 1 || list[0] != int32(i+1) {
									t.Errorf("%v, snapshot=%v: query %d returned %v", s, snapshot, i, list)
								}
							}
						}
						return least
					}
					one, many := writes(1), writes(n)
					t.Logf("%v, snapshot=%v: one statement in %d writes, %d in %d", s, snapshot, one, n, many)
					each := int64(1)
					if mode == pgx.QueryExecModeDescribeExec {
						each = 2
					}
					if !snapshot && one != each {
						t.Errorf("%v: one statement was sent in %d writes, want %d", s, one, each)
					}
					if alone := mode == pgx.QueryExecModeSimpleProtocol; alone && many < n || !alone && many > n/2 {
						t.Errorf("%v, snapshot=%v: %d statements were sent in %d writes", s, snapshot, n, many)
					}
				}
			}
			var prepared int
			if err := pool.QueryRow(t.Context(), "select count(*) from pg_prepared_statements", pgx.QueryExecModeSimpleProtocol).Scan(&prepared); err != nil {
				t.Fatal(err)
			}
			if (prepared > 0) != (mode == pgx.QueryExecModeCacheStatement) {
				t.Errorf("%d statements are prepared", prepared)
			}
		})
	}
}

// Large values, many columns, and more rows than come in one piece.
func TestPipelinedLargeResults(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := pipelined(pool)
	size := 100 << 20
	if testing.Short() {
		size = 1 << 20
	}
	large := func(ctx context.Context, tx fanout.DBTX) error {
		var got []byte
		if err := tx.QueryRow(ctx, "select convert_to(repeat('x', $1), 'utf8')", size).Scan(&got); err != nil {
			return err
		}
		if len(got) != size || bytes.Count(got, []byte("x")) != size {
			return fmt.Errorf("%d bytes", len(got))
		}
		return nil
	}
	back := func(ctx context.Context, tx fanout.DBTX) error {
		var n int
		if err := tx.QueryRow(ctx, "select length($1::bytea)", make([]byte, size/10)).Scan(&n); err != nil || n != size/10 {
			return fmt.Errorf("%d, %w", n, err)
		}
		return nil
	}
	var columns []string
	for i := range 1600 {
		columns = append(columns, fmt.Sprintf("%d as c%d", i, i))
	}
	wide := func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select "+strings.Join(columns, ", ")+" from generate_series(1, 20)")
		if err != nil {
			return err
		}
		n := 0
		for rows.Next() {
			row, err := rows.Values()
			if err != nil {
				return err
			}
			for i, v := range row {
				if v != int32(i) {
					return fmt.Errorf("column %d is %v", i, v)
				}
			}
			n++
		}
		if n != 20 {
			return fmt.Errorf("%d rows", n)
		}
		return rows.Err()
	}
	long := func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select n, repeat('x', n % 100), nullif(n % 3, 0) from generate_series(0, 99999) n")
		if err != nil {
			return err
		}
		n := 0
		for ; rows.Next(); n++ {
			var (
				i    int
				text string
				rest *int
			)
			if err := rows.Scan(&i, &text, &rest); err != nil {
				return err
			}
			if i != n || len(text) != n%100 || (rest == nil) != (n%3 == 0) || rest != nil && *rest != n%3 {
				return fmt.Errorf("row %d: %d %q %v", n, i, text, rest)
			}
		}
		if n != 100000 {
			return fmt.Errorf("%d rows", n)
		}
		return rows.Err()
	}
	// Fails in the middle of its rows.
	late := func(ctx context.Context, tx fanout.DBTX) error {
		rows, err := tx.Query(ctx, "select 1 / (50000 - n) from generate_series(1, 100000) n")
		if err != nil {
			return err
		}
		n := 0
		for rows.Next() {
			n++
		}
		if fanouttest.SQLState(rows.Err()) != "22012" || n != 49999 {
			return fmt.Errorf("%d rows, %w", n, rows.Err())
		}
		return nil
	}
	tasks := []fanout.Task[fanout.DBTX]{fanout.Do(large), fanout.Do(back)}
	for range 8 {
		tasks = append(tasks, fanout.Do(wide), fanout.Do(long), fanout.Do(late))
	}
	for _, snapshot := range []bool{false, true} {
		src.Snapshot = snapshot
		if err := fanout.Run(t.Context(), src, tasks...); err != nil {
			t.Error(err)
		}
	}
	fanouttest.Serves(t, pool)
}

// Connections whose search_path leads to tables of the same name with columns of other types.
func TestPipelinedSearchPaths(t *testing.T) {
	for _, mode := range execModes {
		t.Run(mode.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 4, fanouttest.InMode(mode), fanouttest.SearchPaths("s1, public", "s2, public", "s0, public"))
			_, err := pool.Exec(t.Context(), `
				create schema s0; create table s0.t (v int); insert into s0.t values (7);
				create schema s1; create table s1.t (v text); insert into s1.t values ('7');
				create schema s2; create table s2.t (v numeric, w text); insert into s2.t values (7, 'x')`)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string][]string{
				"s0": {"[7] int32", "[7] int32"},
				"s1": {"[7] string", "[7] string"},
				"s2": {"[{7 0 false finite true} x] pgtype.Numeric", "[{7 0 false finite true} x] pgtype.Numeric"},
			}
			query := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				var path string
				if err := tx.QueryRow(ctx, "select current_schema()::text").Scan(&path); err != nil {
					return nil, err
				}
				list := []string{path}
				for _, arg := range []any{nil, "7"} {
					args := []any{}
					sql := "select * from t"
					if arg != nil {
						sql, args = "select * from t where v = $1", []any{arg}
						if path != "s1" {
							args = []any{7}
						}
					}
					rows, err := tx.Query(ctx, sql, args...)
					if err != nil {
						return nil, err
					}
					rows.Next()
					row, err := rows.Values()
					rows.Close()
					if err = errors.Join(err, rows.Err()); err != nil {
						return nil, err
					}
					list = append(list, fmt.Sprintf("%v %T", row, row[0]))
				}
				return list, nil
			}
			for i := range 2 * len(fanouttest.Pipelining) {
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot = fanouttest.Pipelining[i/2], i%2 == 1
				call := func() (seen map[string]bool) {
					t.Helper()
					lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(40, fanout.Query[fanout.DBTX, string](query))...)
					if err != nil {
						t.Fatal(err)
					}
					seen = map[string]bool{}
					for _, list := range lists {
						seen[list[0]] = true
						if !slices.Equal(list[1:], want[list[0]]) {
							t.Errorf("%v, snapshot=%v, %s: %q, want %q", src.Strategy, src.Snapshot, list[0], list[1:], want[list[0]])
						}
					}
					return seen
				}
				// What one connection has learned of the statements is not for the next one.
				conns := fanouttest.AcquireAll(t, pool)
				all := map[string]bool{}
				for i, conn := range conns {
					conn.Release()
					for range 2 {
						seen := call()
						if len(seen) != 1 {
							t.Errorf("one connection has seen the schemas %v", seen)
						}
						maps.Copy(all, seen)
					}
					if conns[i], err = pool.Acquire(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				for _, conn := range conns {
					conn.Release()
				}
				if len(all) != 3 {
					t.Errorf("only the schemas %v took part", all)
				}
				for range 5 {
					call()
				}
			}
			fanouttest.Serves(t, pool)
		})
	}
}

// A statement costs a connection that has not seen it no round trip, if another one of the Source has.
func TestPipelinedDescribesOnce(t *testing.T) {
	way := &fanouttest.Traffic{}
	pool := pgtest.Pool(t, 2, way.Attach)
	src := pipelined(pool)
	first, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	warm := func() {
		for range 10 {
			if _, err := fanout.Collect(t.Context(), src, fanouttest.PID); err != nil {
				t.Fatal(err)
			}
		}
	}
	warm() // on the second one
	var queries []fanout.Query[fanout.DBTX, int]
	for i := range 20 {
		if i%2 == 0 {
			queries = append(queries, fanouttest.Statement[int](fmt.Sprintf("select %d + $1::int", i), 1))
		} else { // might call a function that is named like its type
			queries = append(queries, fanouttest.Statement[int](fmt.Sprintf("select %d + length(text($1))", i), "a"))
		}
	}
	for range 3 {
		if _, err := fanout.Collect(t.Context(), src, queries...); err != nil {
			t.Fatal(err)
		}
	}
	second, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	defer second.Release()
	for i := range queries {
		before := way.Writes.Load()
		lists, err := fanout.Collect(t.Context(), src, queries[i])
		if err != nil || lists[0][0] != i+1 {
			t.Fatal(lists, err)
		}
		if n := way.Writes.Load() - before; n != 1 {
			t.Errorf("statement %d was sent in %d writes", i, n)
		}
	}
}

// More texts than a connection remembers.
func TestPipelinedManyTexts(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	var queries []fanout.Query[fanout.DBTX, int]
	for i := range 700 {
		queries = append(queries, fanouttest.Statement[int](fmt.Sprintf("select %d + $1::int", i), 1))
	}
	for name, src := range map[string]fanout.Source[fanout.DBTX]{"plain": pipelined(pool), "in a transaction": pipelined(pool).On(tx)} {
		for range 3 {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for i, list := range lists {
				if list[0] != i+1 {
					t.Errorf("%s: query %d returned %v", name, i, list)
				}
			}
		}
	}
}

// What was prepared becomes out of date: by a change of the table, and by a session that forgets its statements.
func TestPipelinedPlansOutOfDate(t *testing.T) {
	for _, mode := range execModes {
		for _, conns := range []int{1, 3} {
			for _, snapshot := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/conns=%d/snapshot=%v", mode, conns, snapshot), func(t *testing.T) {
					pool := pgtest.Pool(t, conns, fanouttest.InMode(mode), func(config *pgxpool.Config) {
						if conns > 1 { // then an error says more of where it has come up
							config.ConnConfig.RuntimeParams["log_parameter_max_length_on_error"] = "-1"
						}
					})
					fanouttest.Fill(t, pool, 5)
					src := pipelined(pool)
					src.Snapshot, src.Partial = snapshot, true
					wanted := 2
					query := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
						row, err := values(ctx, tx, "select * from a where id = $1", 3)
						if err == nil && len(row) != wanted+1 {
							err = fmt.Errorf("%v, want %d columns", row, wanted)
						}
						return row, err
					}
					call := func(what string) {
						t.Helper()
						_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(30, fanout.Query[fanout.DBTX, string](query))...)
						if err != nil {
							t.Fatalf("%s: %v", what, err)
						}
					}
					for range 3 {
						call("at first")
					}
					for i := range 3 {
						if _, err := pool.Exec(t.Context(), fmt.Sprintf("alter table a add column c%d int", i)); err != nil {
							t.Fatal(err)
						}
						wanted++
						call("after the change")
						call("and again")
					}
					for _, forget := range []string{"deallocate all", "discard all"} {
						for _, conn := range pool.AcquireAllIdle(t.Context()) {
							if _, err := conn.Exec(t.Context(), forget, pgx.QueryExecModeSimpleProtocol); err != nil {
								t.Fatal(err)
							}
							conn.Release()
						}
						call(forget)
						call(forget + ", again")
					}
				})
			}
		}
	}
}

// What a function of the database is missing does not mean that a statement is out of date: it has been executed, and may have
// written by a transaction of its own.
func TestPipelinedFailsInsideAFunction(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		t.Run(s.String(), func(t *testing.T) {
			pool := pgtest.Pool(t, 1)
			admin := pgtest.Connect(t, pool.Config().ConnString())
			config := pool.Config().ConnConfig
			dsn := fmt.Sprintf("host=%s port=%d user=%s dbname=%s", config.Host, config.Port, config.User, config.Database)
			pgtest.Exec(t, admin, `create extension dblink; create table log (what text);
				create function attempt(what text) returns int language plpgsql as $$ begin
					perform dblink_exec('`+dsn+`', 'insert into log values (' || quote_literal(what) || ')');
					if what = 'bad' then perform no_such_function(1); end if;
					return 1; end $$`)
			src := fanouttest.Raw(pool)
			src.Strategy = s
			if _, err := fanout.Collect(t.Context(), src, fanouttest.Statement[int32]("select attempt($1)", "good")); err != nil {
				t.Fatal(err)
			}
			if _, err := fanout.Collect(t.Context(), src, fanouttest.Statement[int32]("select attempt($1)", "bad")); err == nil {
				t.Fatal("no error")
			}
			if n := pgtest.QueryRow[int](t, admin, "select count(*)::int from log where what = 'bad'"); n != 1 {
				t.Errorf("written %d times", n)
			}
		})
	}
}

// One function forgets the session's statements while others rely on them: they do not notice. It may itself, as with pgx,
// which says once that a statement of its own is gone.
func TestPipelinedDiscardInTheMiddle(t *testing.T) {
	for _, s := range fanouttest.Pipelining {
		pool := pgtest.Pool(t, 2)
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		discard := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
			if _, err := tx.Exec(ctx, "discard all"); err != nil {
				return nil, err
			}
			return fanouttest.PID(ctx, tx)
		}
		queries := fanouttest.Repeated(20, fanouttest.PID)
		for i := range 5 {
			queries = append(queries, fanouttest.Statement[int32]("select $1::int", i), discard)
		}
		const rounds = 20
		discarded := 0
		for range rounds {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			var errs fanout.Errors
			if err != nil && !errors.As(err, &errs) {
				t.Fatal(err)
			}
			for _, e := range errs {
				if fanouttest.SQLState(e) != "26000" || e.Index < 20 || e.Index%2 == 0 {
					t.Errorf("%v: %v", s, e)
				}
			}
			for i, list := range lists {
				if own := i >= 20 && i%2 == 1; own && len(list) == 1 {
					discarded++
				} else if !own && len(list) != 1 {
					t.Errorf("%v: query %d returned %v", s, i, list)
				}
			}
			// Nothing of it is left for the next call.
			if _, err := fanout.Collect(fanouttest.InTime(t), src, queries[:21]...); err != nil {
				t.Errorf("%v: the next call: %v", s, err)
			}
		}
		t.Logf("%v: %d of %d went on with their connection", s, discarded, 5*rounds)
		if 2*discarded < 5*rounds { // on a connection, at most every other one learns that its statement is gone
			t.Errorf("%v: only %d of %d functions could go on with their connection", s, discarded, 5*rounds)
		}
		fanouttest.Serves(t, pool)
	}
}

// numeric is a sql.Scanner, which makes pgx encode while it decodes.
type numeric struct{ text string }

func (n *numeric) Scan(v any) error {
	n.text = fmt.Sprint(v)
	return nil
}

// Functions decode, by the connection's type map, while another has the connection to itself, and uses the map as well.
func TestPipelinedDecodesBesideAnother(t *testing.T) {
	pool := pgtest.Pool(t, 1, withTypes)
	src := pipelined(pool)
	decode := func(ctx context.Context, tx fanout.DBTX) error {
		for range 5 {
			rows, err := tx.Query(ctx, "select n::numeric, array['ok']::mood[], row(n, 'x')::pair from generate_series(1, 300) n")
			if err != nil {
				return err
			}
			for i := 1; rows.Next(); i++ {
				var n numeric
				var moods []string
				var p any
				if err := rows.Scan(&n, &moods, &p); err != nil {
					return err
				}
				if n.text != fmt.Sprint(i) || len(moods) != 1 || moods[0] != "ok" || p == nil {
					return fmt.Errorf("row %d: %v %v %v", i, n, moods, p)
				}
			}
			if rows.Err() != nil {
				return rows.Err()
			}
		}
		return nil
	}
	alone := func(ctx context.Context, tx fanout.DBTX) error {
		for range 5 {
			b := &pgx.Batch{}
			for i := range 20 {
				b.Queue("select $1::numeric, $2::int[], $3::mood[]", rand.Float64(), []int{i}, []string{"sad"})
			}
			results := tx.SendBatch(ctx, b)
			for range 20 {
				var n numeric
				var list, moods any
				if err := results.QueryRow().Scan(&n, &list, &moods); err != nil {
					return err
				}
			}
			if err := results.Close(); err != nil {
				return err
			}
		}
		return nil
	}
	for range 5 {
		var tasks []fanout.Task[fanout.DBTX]
		for range 5 {
			tasks = append(tasks, fanout.Do(decode), fanout.Do(alone))
		}
		if err := fanout.Run(fanouttest.InTime(t), src, tasks...); err != nil {
			t.Fatal(err)
		}
	}
	fanouttest.Serves(t, pool)
}

// scanner is a destination whose decoder does as it is told.
type scanner func(any) error

func (s scanner) Scan(v any) error { return s(v) }

// Arguments that cannot be encoded: an error for their own function, on a lane that has nothing else to send, and on one
// that has.
func TestPipelinedArgumentErrors(t *testing.T) {
	refused := errors.New("refused")
	for _, conns := range []int{1, 3} {
		for _, snapshot := range []bool{false, true} {
			fanouttest.SameBackends(t, conns, func(src fanout.Source[fanout.DBTX]) {
				src.Strategy, src.Snapshot, src.Partial = fanout.Pipelined, snapshot, true
				text := "select $1::int"
				wrong := fanouttest.Statement[int](text, fanouttest.Valuer(func() (driver.Value, error) { return nil, refused }))
				right := fanouttest.Statement[int](text, 1)
				for range 20 { // while the way is measured, and when it is known
					for _, queries := range [][]fanout.Query[fanout.DBTX, int]{
						{right}, {wrong, right}, {right, wrong, wrong, right, wrong}, {wrong, wrong, right},
					} {
						lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
						var errs fanout.Errors
						if errors.As(err, &errs) != (len(queries) > 1) {
							t.Fatal(err)
						}
						for _, e := range errs {
							if !errors.Is(e, refused) || len(lists[e.Index]) != 0 {
								t.Errorf("%v", e)
							}
						}
						for i, list := range lists {
							failed := slices.ContainsFunc(errs, func(e *fanout.Error) bool { return e.Index == i })
							if !failed && (len(list) != 1 || list[0] != 1) {
								t.Errorf("query %d: %v", i, list)
							}
						}
						if len(queries) == 5 && len(errs) != 3 {
							t.Errorf("%v", errs)
						}
					}
				}
			})
		}
	}
}

// Panics wherever the caller's code is called, with others beside it that read, wait and work.
func TestPipelinedPanics(t *testing.T) {
	panics := map[string]func(ctx context.Context, tx fanout.DBTX) ([]string, error){
		"function": func(context.Context, fanout.DBTX) ([]string, error) { panic("boom") },
		"function with rows": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			if _, err := tx.Query(ctx, "select generate_series(1, 100000)"); err != nil {
				return nil, err
			}
			panic("boom")
		},
		"function with the lane": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			if _, err := tx.Exec(ctx, "begin"); err != nil {
				return nil, err
			}
			panic("boom")
		},
		"encoder": fanouttest.Statement[string]("select $1::text", fanouttest.Valuer(func() (driver.Value, error) { panic("boom") })),
		"scanner": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			return nil, tx.QueryRow(ctx, "select 1").Scan(scanner(func(any) error { panic("boom") }))
		},
		"encoder, alone": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			b := &pgx.Batch{}
			b.Queue("select $1::text", fanouttest.Valuer(func() (driver.Value, error) { panic("boom") }))
			return nil, tx.SendBatch(ctx, b).Close()
		},
		"nested": func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			return nil, fanout.Run(ctx, fanouttest.Raw(poolOf[fanout.DBTX](ctx)), fanout.Do(func(context.Context, fanout.DBTX) error { panic("boom") }))
		},
	}
	busy := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		for range 10 {
			rows, err := fanouttest.Statement[string]("select n::text from generate_series(1, 1000) n")(ctx, tx)
			if err != nil {
				return rows, err
			}
		}
		return nil, ctx.Err()
	}
	for name, query := range panics {
		for _, conns := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/conns=%d", name, conns), func(t *testing.T) {
				pool := pgtest.Pool(t, conns)
				src := pipelined(pool)
				ctx := withPool(fanouttest.InTime(t), pool)
				for round := range 2 * 3 {
					src.Snapshot = round%2 == 1
					src.Partial = round%3 == 1
					queries := fanouttest.Repeated(8, fanout.Query[fanout.DBTX, string](busy))
					queries[3], queries[6] = query, query
					if conns > 1 {
						queries[2] = fanouttest.Sleep
					}
					var err error
					p := fanouttest.Panicked(t, func() { _, err = fanout.Collect(ctx, src, queries...) })
					if p == nil || p.Value != "boom" {
						t.Fatalf("round %d: %v, %v", round, p, err)
					}
				}
				fanouttest.Serves(t, pool)
			})
		}
	}
}

type poolKey struct{}

func withPool(ctx context.Context, pool *pgxpool.Pool) context.Context {
	return context.WithValue(ctx, poolKey{}, pool)
}

func poolOf[Q any](ctx context.Context) *pgxpool.Pool { return ctx.Value(poolKey{}).(*pgxpool.Pool) }

// A recorder is a tracer that keeps account of what begins and ends, and may panic. What it is told must be right: the ctx
// of the start is made from the caller's and from the function's, that of the end is the one that the start has returned,
// and there are the arguments.
type recorder struct {
	panicStart, panicEnd atomic.Bool
	mayFail              atomic.Bool // whatever the statement is

	mu      sync.Mutex
	started int
	open    map[*recorded]bool // started and not ended
	wrong   []string
}

type (
	recorded    struct{ sql string }
	callerKey   struct{}
	functionKey struct{}
)

func (r *recorder) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if r.panicStart.Load() && strings.Contains(data.SQL, "trap") {
		panic("traced")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started++
	r.check(ctx, conn, data.SQL)
	// Who passes the arguments for the ctx's value has them there.
	if args, ok := ctx.Value(functionKey{}).([]any); strings.Contains(data.SQL, "$1") && (!ok || !slices.Equal(args, data.Args)) {
		r.wrong = append(r.wrong, fmt.Sprintf("%s: started with %v, the ctx says %v", data.SQL, data.Args, args))
	}
	rec := &recorded{data.SQL}
	if r.open == nil {
		r.open = map[*recorded]bool{}
	}
	r.open[rec] = true
	return context.WithValue(ctx, reflect.TypeFor[recorded](), rec)
}

func (r *recorder) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := ctx.Value(reflect.TypeFor[recorded]()).(*recorded)
	if !ok || !r.open[rec] {
		r.wrong = append(r.wrong, fmt.Sprintf("%v ended twice, or not as it was started", rec))
		return
	}
	delete(r.open, rec)
	r.check(ctx, conn, rec.sql)
	if strings.Contains(rec.sql, "boom") != (data.Err != nil) && !r.mayFail.Load() {
		r.wrong = append(r.wrong, fmt.Sprintf("%s ended with %v", rec.sql, data.Err))
	}
	if strings.HasPrefix(rec.sql, "select 'tag'") && data.Err == nil && data.CommandTag.String() != "SELECT 1" {
		r.wrong = append(r.wrong, fmt.Sprintf("%s ended with %v", rec.sql, data.CommandTag))
	}
	if r.panicEnd.Load() {
		panic("traced")
	}
}

func (r *recorder) check(ctx context.Context, conn *pgx.Conn, sql string) {
	if conn == nil || ctx.Value(callerKey{}) != "the caller" {
		r.wrong = append(r.wrong, fmt.Sprintf("%s: not the caller's ctx, or no connection", sql))
	}
}

// account is how many statements have begun since the last one, and what is wrong with it.
func (r *recorder) account() (started int, wrong []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	started, wrong = r.started, r.wrong
	for rec := range r.open {
		wrong = append(wrong, rec.sql+" has not ended")
	}
	r.started, r.open, r.wrong = 0, nil, nil
	return started, wrong
}

// traced is a Query of one statement with one column, whose ctx has the arguments for a value.
func traced(sql string, args ...any) fanout.Query[fanout.DBTX, string] {
	return func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		ctx = context.WithValue(ctx, functionKey{}, args)
		return fanouttest.Statement[string](sql, args...)(ctx, tx)
	}
}

func (r *recorder) attach(config *pgxpool.Config) { config.ConnConfig.Tracer = r }

// asCaller is InTime with the value that a recorder wants to see.
func asCaller(t *testing.T) context.Context {
	return context.WithValue(fanouttest.InTime(t), callerKey{}, "the caller")
}

// pgx's tracers see every statement once, from its start to its end; not what the package itself asks.
func TestPipelinedTracers(t *testing.T) {
	for _, mode := range execModes {
		rec := &recorder{}
		pool, ctx := pgtest.Pool(t, 3, fanouttest.InMode(mode), rec.attach), asCaller(t)
		for i := range 2 * len(fanouttest.Pipelining) {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot, src.Partial = fanouttest.Pipelining[i/2], i%2 == 1, true
			queries := fanouttest.Repeated(10, traced("select 'tag'"))
			for i := range 10 {
				queries = append(queries, traced("select 'other' where 0 <= $1", i))
			}
			queries = append(queries, fanouttest.Repeated(5, traced("/* boom */ select (1 / $1::int)::text", 0))...)
			queries = append(queries, fanouttest.Repeated(5, traced("select 'boom' where 1 / $1::int = 1", 0))...)
			queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
				lists, err := fanout.Collect(ctx, src, traced("select 'tag'"), traced("select 'other' where 0 <= $1", 1))
				return slices.Concat(lists...), err
			})
			for range 4 {
				_, err := fanout.Collect(ctx, src, queries...)
				var errs fanout.Errors
				if !errors.As(err, &errs) || len(errs) != 10 {
					t.Fatal(err)
				}
			}
			if n, wrong := rec.account(); n != 4*(len(queries)+1) || wrong != nil {
				t.Errorf("%v, %v, snapshot=%v: %d statements, want %d: %v", mode, src.Strategy, src.Snapshot, n, 4*(len(queries)+1), wrong)
			}
		}
	}
}

// When a call has returned, every statement has ended for the tracer too, however it went: what was cancelled, abandoned,
// not read or lost with its connection, in a transaction of the caller's as well.
func TestPipelinedTracersAfterFailures(t *testing.T) {
	const slow = "select pg_sleep($1)::text"
	impatient := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		own, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		if _, err := traced(slow, 0.5)(own, tx); !errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("not abandoned: %w", err)
		}
		return nil, nil
	}
	unread := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		_, err := tx.Query(ctx, "select generate_series(1, 50000)")
		return nil, err
	}
	refused := fanouttest.Valuer(func() (driver.Value, error) { return nil, errors.New("refused") })
	exploding := fanouttest.Valuer(func() (driver.Value, error) { panic("boom") })
	// The statements that pgx sends by itself do not end for it when an encoder panics.
	byPgx := func(mode pgx.QueryExecMode, s fanout.Strategy, wrong []string) bool {
		return (s < fanout.Pipelined || mode == pgx.QueryExecModeSimpleProtocol) && slices.Equal(wrong, []string{"select $1::text has not ended"})
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		rec, w := &recorder{}, &fanouttest.Wire{}
		rec.mayFail.Store(true)
		pool := pgtest.Pool(t, 3, fanouttest.InMode(mode), rec.attach, w.Attach)
		last := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			w.Closed.Store(true) // there will be no other connection
			return traced("select pg_terminate_backend(pg_backend_pid())::text")(ctx, tx)
		}
		for name, queries := range map[string][]fanout.Query[fanout.DBTX, string]{
			"failure":     {traced("select (1 / $1::int)::text from pg_sleep(0.02)", 0), traced(slow, 0.5)},
			"abandoned":   {impatient, traced("select 'tag'"), impatient},
			"deadline":    {traced(slow, 0.5), traced("select 'tag'")},
			"unread":      {unread, traced("select 'tag'")},
			"lost":        {traced("select pg_terminate_backend(pg_backend_pid())::text"), traced(slow, 0.01)},
			"lost, all":   {last},
			"not encoded": {traced("select $1::text", &refused), traced("select 'tag'")},
			"panic":       {traced("select $1::text", &exploding), traced("select 'tag'")},
		} {
			others := fanouttest.Repeated(4, traced("select 'other' where 0 <= $1", 1))
			queries = slices.Concat(others, queries, others)
			for i := range 3 * len(fanouttest.Strategies) {
				s, where := fanouttest.Strategies[i/3], []string{"plain", "snapshot", "on"}[i%3]
				t.Run(fmt.Sprintf("%v/%s/%v/%s", mode, name, s, where), func(t *testing.T) {
					ctx := asCaller(t)
					src := fanouttest.Raw(pool)
					src.Strategy, src.Snapshot = s, where == "snapshot"
					if name == "lost, all" {
						src.Limit, src.Partial = 1, true
					}
					if where == "on" {
						tx, err := pool.Begin(ctx)
						if err != nil {
							t.Fatal(err)
						}
						defer func() { _ = tx.Rollback(ctx) }()
						src = src.On(tx)
					}
					rec.account()
					own, cancel := context.WithCancel(ctx)
					if name == "deadline" {
						own, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
					}
					defer cancel()
					err := fanouttest.OrPanic(func() error {
						_, err := fanout.Collect(own, src, queries...)
						return err
					})
					w.Closed.Store(false)
					quiet := name == "unread" || name == "abandoned"
					either := name == "abandoned" && where == "on" // it costs the transaction, unless its time was up before it was sent
					if (err == nil) != quiet && !either {
						t.Errorf("%v", err)
					}
					n, wrong := rec.account()
					if n == 0 && name != "deadline" || wrong != nil && !(name == "panic" && byPgx(mode, s, wrong)) {
						t.Errorf("%d statements: %q", n, wrong)
					}
				})
			}
		}
		fanouttest.Serves(t, pool)
	}
}

func TestPipelinedTracerPanics(t *testing.T) {
	for _, start := range []bool{true, false} {
		for _, conns := range []int{1, 3} {
			rec := &recorder{}
			pool := pgtest.Pool(t, conns, func(config *pgxpool.Config) { config.ConnConfig.Tracer = rec })
			src := pipelined(pool)
			for range 5 {
				rec.panicStart.Store(start)
				rec.panicEnd.Store(!start)
				queries := fanouttest.Repeated(20, fanouttest.Statement[string]("select 'trap' where $1 = 1", 1))
				queries = append(queries, fanouttest.Repeated(5, fanouttest.Sleep)...)
				p := fanouttest.Panicked(t, func() { _, _ = fanout.Collect(fanouttest.InTime(t), src, queries...) })
				if p != nil && p.Value != "traced" {
					t.Errorf("%v", p)
				}
				rec.panicStart.Store(false)
				rec.panicEnd.Store(false)
				fanouttest.Serves(t, pool)
			}
		}
	}
}

// A tracer that panics at the start of a statement is no different where several go as one.
func TestPanicOfATracerOfCoalesced(t *testing.T) {
	rec := &recorder{}
	pool, ctx := pgtest.Pool(t, 1, rec.attach), asCaller(t)
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Coalesced
	var queries []fanout.Query[fanout.DBTX, string]
	for i := range 20 {
		queries = append(queries, traced("select 'trap' where 0 <= $1::int", i))
	}
	shared := 0
	src.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
	for range 5 {
		if _, err := fanout.Collect(ctx, src, queries...); err != nil {
			t.Fatal(err)
		}
	}
	if shared == 0 {
		t.Fatal("not coalesced")
	}
	rec.panicStart.Store(true)
	p := fanouttest.Panicked(t, func() {
		_, err := fanout.Collect(ctx, src, queries...)
		t.Errorf("no panic: %v", err)
	})
	if p == nil || p.Value != "traced" {
		t.Errorf("%v", p)
	}
	rec.panicStart.Store(false)
	if _, wrong := rec.account(); wrong != nil {
		t.Errorf("%q", wrong)
	}
	fanouttest.Serves(t, pool)
}

// What ends the goroutine that an argument is encoded or a tracer is told in, as a test does that fails there, ends the call.
func TestPipelinedGoexitOfTheLane(t *testing.T) {
	exit := fanouttest.Statement[string]("select $1::text", fanouttest.Valuer(func() (driver.Value, error) {
		runtime.Goexit()
		return nil, nil
	}))
	tracer := &exitingTracer{}
	pool := pgtest.Pool(t, 2, func(config *pgxpool.Config) { config.ConnConfig.Tracer = tracer })
	for _, s := range fanouttest.Pipelining {
		for _, limit := range []int{1, 2} {
			for _, snapshot := range []bool{false, true} {
				src := fanouttest.Raw(pool)
				src.Strategy, src.Limit, src.Snapshot, src.Partial = s, limit, snapshot, true
				other, trap := fanouttest.Statement[string]("select $1::text", "a"), fanouttest.Statement[string]("select 'trap'")
				for name, query := range map[string]fanout.Query[fanout.DBTX, string]{"encoder": exit, "start": trap, "end": trap} {
					tracer.at.Store(name)
					_, err := fanout.Collect(fanouttest.InTime(t), src, other, query, other, query, other)
					fanouttest.Mention(t, err, "ended its goroutine")
					tracer.at.Store("")
					fanouttest.Serves(t, pool)
				}
			}
		}
	}
}

// An exitingTracer ends the goroutine at the start or the end of a statement that is a trap.
type exitingTracer struct{ at atomic.Value }

func (e *exitingTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	if !strings.Contains(d.SQL, "trap") {
		return ctx
	}
	if e.at.Load() == "start" {
		runtime.Goexit()
	}
	return context.WithValue(ctx, e, true)
}

func (e *exitingTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(e) != nil && e.at.Load() == "end" {
		runtime.Goexit()
	}
}

// A function that the others have not waited for may still end its goroutine.
func TestPipelinedLateGoexit(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	src := pipelined(pool)
	src.Partial = true
	exit := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		if _, err := fanouttest.PID(ctx, tx); err != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond) // longer than the others wait for it: not a synchronisation
		runtime.Goexit()
		return nil, nil
	}
	lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.PID, exit, fanouttest.PID, exit)
	var errs fanout.Errors
	if !errors.As(err, &errs) || len(errs) != 2 || len(lists[0]) != 1 || len(lists[2]) != 1 {
		t.Errorf("%v, %v", lists, err)
	}
	fanouttest.Serves(t, pool)
}

// Notices reach their handler.
func TestPipelinedNotices(t *testing.T) {
	var notices atomic.Int32
	pool := pgtest.Pool(t, 2, func(config *pgxpool.Config) {
		config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
			if n.Message == "heard" {
				notices.Add(1)
			}
		}
	})
	if _, err := pool.Exec(t.Context(), "create function speak() returns int language plpgsql as $$ begin raise notice 'heard'; return 1; end $$"); err != nil {
		t.Fatal(err)
	}
	src := pipelined(pool)
	for _, snapshot := range []bool{false, true} {
		src.Snapshot = snapshot
		lists, err := fanout.Collect(t.Context(), src, fanouttest.Repeated(20, fanouttest.Statement[int32]("select speak()"))...)
		if err != nil || len(lists) != 20 {
			t.Error(err)
		}
	}
	if n := notices.Load(); n != 40 {
		t.Errorf("%d notices", n)
	}
}

// The rows of many wide results are not held more than about twice.
func TestPipelinedMemory(t *testing.T) {
	const rows = 10_000
	pool := pgtest.Pool(t, 10)
	fanouttest.Warm(t, pool)
	type wide struct {
		ID   int64
		Data string
		At   time.Time
		F    float64
	}
	query := func(i int) fanout.Query[fanout.DBTX, wide] {
		return func(ctx context.Context, tx fanout.DBTX) ([]wide, error) {
			r, err := tx.Query(ctx, "select n::int8, repeat('x', 60), now(), n::float8 from generate_series($1::int + 1, $1::int + $2::int) n", i*rows, rows)
			if err != nil {
				return nil, err
			}
			defer r.Close()
			list := make([]wide, 0, rows)
			for r.Next() {
				var w wide
				if err := r.Scan(&w.ID, &w.Data, &w.At, &w.F); err != nil {
					return nil, err
				}
				list = append(list, w)
			}
			return list, r.Err()
		}
	}
	var all []fanout.Query[fanout.DBTX, wide]
	for i := range 300 {
		all = append(all, query(i))
	}
	alive := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, c := range []struct {
		queries int
		known   bool // the Source has seen the statement
		merged  bool
	}{{300, true, false}, {100, false, true}} {
		src, all, queries := pipelined(pool), all[:c.queries], c.queries
		if c.known {
			if _, err := fanout.Collect(t.Context(), src, all[:30]...); err != nil {
				t.Fatal(err)
			}
		}
		before := alive()
		done := make(chan struct{})
		most := make(chan uint64)
		go func() {
			var peak uint64
			for {
				select {
				case <-done:
					most <- peak
					return
				default:
					peak = max(peak, alive())
				}
			}
		}()
		var lists [][]wide
		var merged map[int64]wide
		var err error
		if c.merged {
			merged, err = fanout.Gather(t.Context(), src, func(w wide) int64 { return w.ID }, all...)
		} else {
			lists, err = fanout.Collect(t.Context(), src, all...)
		}
		close(done)
		peak := <-most
		if err != nil {
			t.Fatal(err)
		}
		themselves := alive() - before
		runtime.KeepAlive(lists)
		if c.merged && len(merged) != queries*rows || !c.merged && (len(lists) != queries || len(lists[0]) != rows) {
			t.Fatal(len(merged), len(lists))
		}
		runtime.KeepAlive(merged)
		ratio := float64(peak-before) / float64(themselves)
		t.Logf("known=%v, merged=%v: %d MB of rows, at most %d MB alive: %.2f", c.known, c.merged, themselves>>20, (peak-before)>>20, ratio)
		if ratio > 2.2 {
			t.Errorf("at most %.2f times the rows were alive", ratio)
		}
	}
}

// Texts that come up once do not keep a Source, or a connection, from learning of those that come later.
func TestCoalescedAfterManyTexts(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Coalesced
	for i := 0; i < 5000; i += 100 {
		var queries []fanout.Query[fanout.DBTX, int]
		for j := range 100 {
			queries = append(queries, fanouttest.Statement[int](fmt.Sprintf("select %d + $1::int", i+j), 1))
		}
		if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
			t.Fatal(err)
		}
	}
	// What is prepared is remembered, or deallocated.
	lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Statement[int]("select count(*)::int from pg_prepared_statements where name like 'fanout%'"))
	if err != nil || lists[0][0] > 512 {
		t.Errorf("%v statements are prepared, %v", lists, err)
	}
	queries := fanouttest.Repeated(30, fanouttest.Statement[int]("select $1::int as latest", 1))
	together := 0
	for range 5 {
		together = fanouttest.Shared(fanouttest.SpansOf(t, src, queries...))
	}
	if together == 0 {
		t.Error("nothing is coalesced")
	}
}

// A function may have the connection, and with it the types, to itself when more texts have come up than it remembers.
func TestSnapshotManyTextsOfOneFunction(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = s, true
		if err := fanout.Run(fanouttest.InTime(t), src, fanout.Do(func(ctx context.Context, tx fanout.DBTX) error {
			for i := range 600 {
				if _, err := tx.Exec(ctx, fmt.Sprintf("select %d + $1::int", i), 1); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(ctx, "select set_config('fanout.x', 'y', true)"); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "select $1::int", 1)
			return err
		})); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// An ownCtxTracer knows its statements by the ctx that it has made for each, as pgx lets it: "The returned context is used for
// the rest of the call and will be passed to TraceQueryEnd."
type ownCtxTracer struct{}

type ownCtx struct{ context.Context }

func (ownCtxTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return &ownCtx{Context: ctx}
}

func (ownCtxTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	_ = ctx.(*ownCtx)
}

// A tracer is given the ctx that it has made, also at the end of a statement whose function does not wait for it any more.
func TestTracerIsGivenItsOwnCtx(t *testing.T) {
	for _, s := range fanouttest.Strategies {
		pool := pgtest.Pool(t, 2, func(c *pgxpool.Config) { c.ConnConfig.Tracer = ownCtxTracer{} })
		src := fanouttest.Raw(pool)
		src.Strategy = s
		err := fanouttest.OrPanic(func() error {
			_, err := fanout.Collect(fanouttest.InTime(t), src, func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
				if err := fanouttest.GiveUp(ctx, tx); err != nil {
					return nil, err
				}
				_, err := tx.Exec(ctx, "select 1")
				return nil, err
			})
			return err
		})
		if err != nil {
			t.Errorf("%v: %.300v", s, err)
		}
		fanouttest.Serves(t, pool)
	}
}

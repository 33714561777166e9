package equal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// corpusSource is a Source that coalesces, on the corpus's schema.
func corpusSource(t *testing.T, conns int, configure ...func(*pgxpool.Config)) (*pgxpool.Pool, fanout.Source[fanout.DBTX]) {
	t.Helper()
	dsn, _ := corpusDSN(t)
	pool := pgtest.PoolOn(t, dsn, conns, append(configure, corpusSession)...)
	src := fanouttest.Raw(pool)
	src.Strategy = fanout.Coalesced
	return pool, src
}

// coalesces shows that the queries, which do not fail, share statements once their text is known.
func coalesces[T any](t *testing.T, where string, src fanout.Source[fanout.DBTX], queries []fanout.Query[fanout.DBTX, T]) {
	t.Helper()
	shared := 0
	src.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
	// What it has taken before may have to be forgotten, and what it takes be seen on a machine that is busy with something else.
	for start, i := time.Now(), 0; i < 100 || time.Since(start) < 10*time.Second; i++ {
		if _, err := fanout.Collect(fanouttest.InTime(t), src, queries...); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		if shared > 0 {
			return
		}
	}
	t.Fatalf("%s: nothing is coalesced", where)
}

// eachWay runs f for the settings that change how a lane runs statements, each often enough for what has to be learned.
func eachWay(src fanout.Source[fanout.DBTX], f func(where string, src fanout.Source[fanout.DBTX])) {
	for _, snapshot := range []bool{false, true} {
		for _, limit := range []int{1, 0} {
			if !*fanouttest.Soak && snapshot == (limit == 1) {
				continue
			}
			for round := range 3 {
				src.Snapshot, src.Limit = snapshot, limit
				f(fmt.Sprintf("snapshot=%v, limit=%d, round %d", snapshot, limit, round), src)
			}
		}
	}
}

// One execution's error is its own, although the others' rows came from the same statement.
func TestCorpusErrors(t *testing.T) {
	pool, src := corpusSource(t, 3)
	for _, c := range []struct {
		name, sql, state string
		args             [][]any
		fail             []int
		harmless         [][]any // nil if the text is never coalesced
	}{
		{"ByZero", "select (100 / $1::int)::text", "22012", each[int32](1, 2, 0, 4, 5, 5, 7, 8), []int{2}, each[int32](1, 2, 3)},
		{"FirstByZero", "select (100 / $1::int)::text", "22012", each[int32](0, 2, 1), []int{0}, each[int32](1, 2, 3)},
		{"SeveralByZero", "select (100 / $1::int)::text", "22012", each[int32](1, 0, 0, 4, 0), []int{1, 2, 4}, each[int32](1, 2, 3)},
		{"OfTwo", "select (100 / $1::int)::text", "22012", each[int32](1, 0), []int{1}, each[int32](1, 2)},
		{"Cast", "select ($1::text::date)::text", "22007", each("2024-01-01", "2024-02-01", "soon", "2024-03-01"), []int{2}, each("2024-01-01", "2024-02-01")},
		{"Argument", "select name from person where level = $1 order by id limit 1", "22P02", each("low", "mid", "none", "high"), []int{2}, each("low", "mid")},
		{"Domain", "select ($1::positive)::text", "23514", each[int32](1, 2, 3, 4, -1), []int{4}, each[int32](1, 2)},
		{"InTheMiddle", "select string_agg((1000 / (n - 50))::text, ' ') from generate_series(1, $1::int) n", "22012", each[int32](20, 49, 50, 30, 20), []int{2}, each[int32](20, 49)},
		{"LateRow", "select (1000 / (3000 - n))::text from generate_series(1, $1::int) n", "22012", each[int32](1, 3001, 2, 3), []int{1}, each[int32](1, 2)},
		{"Subquery", "select coalesce((select name from person where team_id = $1), 'none')", "21000", each[int32](99, 98, 1, 99), []int{2}, each[int32](99, 98)},
		{"All", "select (100 / ($1::int - 7))::text", "22012", each[int32](7, 7, 7, 7), []int{0, 1, 2, 3}, each[int32](1, 2)},
		{"NoTable", "select name from missing where id = $1", "42P01", each[int32](1, 2, 3), []int{0, 1, 2}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			fails := map[int]bool{}
			for _, i := range c.fail {
				fails[i] = true
			}
			var queries []fanout.Query[fanout.DBTX, string]
			for _, args := range c.args {
				queries = append(queries, fanouttest.Statement[string]("-- name: "+c.name+" :many\n"+c.sql, args...))
			}
			var harmless []fanout.Query[fanout.DBTX, string]
			for _, args := range c.harmless {
				harmless = append(harmless, fanouttest.Statement[string]("-- name: "+c.name+" :many\n"+c.sql, args...))
			}
			eachWay(src, func(where string, src fanout.Source[fanout.DBTX]) {
				if harmless != nil {
					coalesces(t, where, src, harmless)
				}
				src.Partial = true
				lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
				var errs fanout.Errors
				if !errors.As(err, &errs) || len(errs) != len(c.fail) || (lists == nil) != (len(c.fail) == len(queries)) {
					t.Fatalf("%s: %d lists, %v", where, len(lists), err)
				}
				for i, e := range errs {
					if e.Index != c.fail[i] || e.Name != c.name || fanouttest.SQLState(e) != c.state {
						t.Errorf("%s: error %d is %d, %q, %v", where, i, e.Index, e.Name, e)
					}
				}
				for i, list := range lists {
					if (len(list) == 0) != fails[i] {
						t.Errorf("%s: query %d has %d rows", where, i, len(list))
					}
				}

				src.Partial = false
				lists, err = fanout.Collect(fanouttest.InTime(t), src, queries...)
				var e *fanout.Error
				if !errors.As(err, &e) || lists != nil {
					t.Fatalf("%s: %v, %v", where, lists, err)
				}
				if !fails[e.Index] || e.Name != c.name || fanouttest.SQLState(e) != c.state {
					t.Errorf("%s: %d, %q, %v", where, e.Index, e.Name, e)
				}
			})
		})
	}
	fanouttest.Serves(t, pool)
}

// A napper runs an execution in its own way.
type napper func(ctx context.Context, nap fanout.Query[fanout.DBTX, string], tx fanout.DBTX) ([]string, error)

// naps are executions of one text, of which the one sleeps for so long and is run by run, and the others do not sleep.
func naps(late int, seconds float64, run napper) (queries []fanout.Query[fanout.DBTX, string]) {
	for i := range 8 {
		nap := func(seconds float64) fanout.Query[fanout.DBTX, string] {
			return fanouttest.Statement[string]("-- name: Nap :many\nselect nap($1) || $2::text", seconds, fmt.Sprint(i))
		}
		if i == late {
			queries = append(queries, func(ctx context.Context, tx fanout.DBTX) ([]string, error) { return run(ctx, nap(seconds), tx) })
			continue
		}
		queries = append(queries, nap(0))
	}
	return queries
}

// Of executions that share a statement, one is ended: by its own ctx, or by the server. Only its own query fails.
func TestCorpusTimeoutOfOne(t *testing.T) {
	const late = 3
	plain := func(ctx context.Context, query fanout.Query[fanout.DBTX, string], tx fanout.DBTX) ([]string, error) {
		return query(ctx, tx)
	}
	for name, c := range map[string]struct {
		seconds  float64
		timeout  string // of the server
		run      func(monitor *pgx.Conn) napper
		expected func(error) bool
	}{
		"deadline": {
			seconds: 0.3,
			run: func(*pgx.Conn) napper {
				return func(ctx context.Context, query fanout.Query[fanout.DBTX, string], tx fanout.DBTX) ([]string, error) {
					ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
					defer cancel()
					return query(ctx, tx)
				}
			},
			expected: func(err error) bool { return errors.Is(err, context.DeadlineExceeded) },
		},
		"cancel": {
			seconds: 0.7,
			run: func(monitor *pgx.Conn) napper {
				return func(ctx context.Context, query fanout.Query[fanout.DBTX, string], tx fanout.DBTX) ([]string, error) {
					own, cancel := context.WithCancel(ctx)
					var seen error
					var wg sync.WaitGroup
					wg.Go(func() {
						defer cancel()
						_, seen = fanouttest.Asleep(monitor, 1, func(context.Context, fanout.DBTX) ([]string, error) { return nil, nil })(ctx, nil)
					})
					rows, err := query(own, tx)
					wg.Wait()
					return rows, errors.Join(err, seen)
				}
			},
			expected: func(err error) bool { return errors.Is(err, context.Canceled) },
		},
		"statement_timeout": {
			seconds:  20,
			timeout:  "600ms",
			run:      func(*pgx.Conn) napper { return plain },
			expected: func(err error) bool { return fanouttest.SQLState(err) == "57014" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool, src := corpusSource(t, 2, func(config *pgxpool.Config) {
				if c.timeout != "" {
					config.ConnConfig.RuntimeParams["statement_timeout"] = c.timeout
				}
			})
			monitor := fanouttest.Outsider(t, pool)
			for _, snapshot := range []bool{false, true} {
				for _, limit := range []int{1, 0} {
					if !*fanouttest.Soak && snapshot == (limit == 1) {
						continue
					}
					src.Snapshot, src.Limit = snapshot, limit
					where := fmt.Sprintf("snapshot=%v, limit=%d", snapshot, limit)
					src.Partial = false
					coalesces(t, where, src, naps(late, 0, plain))
					src.Partial = true
					lists, err := fanout.Collect(fanouttest.InTime(t), src, naps(late, c.seconds, c.run(monitor))...)
					var errs fanout.Errors
					if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Index != late || !c.expected(errs[0]) {
						t.Fatalf("%s: %v", where, err)
					}
					for i, list := range lists {
						if i != late && (len(list) != 1 || list[0] != fmt.Sprint("slept", i)) {
							t.Errorf("%s: query %d has %v", where, i, list)
						}
					}
				}
			}
			fanouttest.Serves(t, pool)
		})
	}
}

// One execution returns more than all others together, in one row and in many.
func TestCorpusHugeResults(t *testing.T) {
	const size = 5 << 20
	_, src := corpusSource(t, 2)
	for name, sql := range map[string]string{
		"one row":   "select repeat('x', $1::int) as t",
		"many rows": "select repeat('x', least(100, $1 - n * 100)) as t from generate_series(0, ($1 - 1) / 100) n order by n",
	} {
		sizes := []int{10, 200, size, 1, 999, 10}
		var queries []fanout.Query[fanout.DBTX, string]
		for _, n := range sizes {
			queries = append(queries, fanouttest.Statement[string](sql, n))
		}
		eachWay(src, func(where string, src fanout.Source[fanout.DBTX]) {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			if err != nil {
				t.Fatalf("%s, %s: %v", name, where, err)
			}
			for i, list := range lists {
				if text := strings.Join(list, ""); len(text) != sizes[i] || strings.Count(text, "x") != sizes[i] {
					t.Errorf("%s, %s: query %d has %d bytes, want %d", name, where, i, len(text), sizes[i])
				}
			}
		})
	}
}

// personTeam is a function of two statements, the second of which depends on the first.
func personTeam(id int32) fanout.Query[fanout.DBTX, string] {
	return func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
		teams, err := fanouttest.Statement[int32]("-- name: TeamOf :many\nselect team_id from person where id = $1", id)(ctx, tx)
		if err != nil || len(teams) == 0 {
			return nil, err
		}
		return fanouttest.Statement[string]("-- name: TeamName :many\nselect name from team where id = $1", teams[0])(ctx, tx)
	}
}

// Many executions of one text, several texts in one call, and functions whose second statement depends on the first.
func TestCorpusManyQueries(t *testing.T) {
	_, src := corpusSource(t, 4)
	var shared atomic.Int64
	src.Observe = func(_ context.Context, s fanout.Span) { shared.Add(int64(s.Shared)) }

	var one, mixed, levels []fanout.Query[fanout.DBTX, string]
	var wantOne, wantMixed, wantLevels [][]string
	for i := range 1000 {
		one = append(one, fanouttest.Statement[string]("select name from person where id = $1", i))
		want := []string{}
		if i >= 1 && i <= 300 {
			want = []string{fmt.Sprint("person ", i)}
		}
		wantOne = append(wantOne, want)
	}
	for i := range 60 {
		mixed = append(mixed,
			fanouttest.Statement[string]("select name from person where id = $1", i+1),
			fanouttest.Statement[string]("select name from team where id = $1 % 30 + 1", i),
			fanouttest.Statement[string]("select id::text from person where id = any($1::int[]) order by person.id", []int32{int32(i + 1), int32(i + 3)}),
			fanouttest.Statement[string]("select (i / ($1::int - $1))::text from generate_series(1, 2) i", i)) // fails
		wantMixed = append(wantMixed, []string{fmt.Sprint("person ", i+1)}, []string{fmt.Sprint("team ", i%30+1)}, []string{fmt.Sprint(i + 1), fmt.Sprint(i + 3)}, nil)
		levels = append(levels, personTeam(int32(i+1)), personTeam(int32(i+1001)))
		wantLevels = append(wantLevels, []string{fmt.Sprint("team ", 1+(i+1)%29)}, nil)
	}
	for _, c := range []struct {
		name    string
		queries []fanout.Query[fanout.DBTX, string]
		want    [][]string
		fails   int // how many
	}{
		{"one text", one, wantOne, 0},
		{"mixed", mixed, wantMixed, 60},
		{"two levels", levels, wantLevels, 0},
	} {
		shared.Store(0)
		eachWay(src, func(where string, src fanout.Source[fanout.DBTX]) {
			src.Partial = true
			lists, err := fanout.Collect(fanouttest.InTime(t), src, c.queries...)
			var errs fanout.Errors
			errors.As(err, &errs)
			if len(errs) != c.fails || len(errs) == 0 && err != nil {
				t.Fatalf("%s, %s: %v", c.name, where, err)
			}
			for i := range lists {
				if strings.Join(lists[i], ",") != strings.Join(c.want[i], ",") {
					t.Errorf("%s, %s: query %d has %q, want %q", c.name, where, i, lists[i], c.want[i])
				}
			}
		})
		if shared.Load() == 0 {
			t.Errorf("%s: nothing was coalesced", c.name)
		}
	}
}

// Inside a transaction, executions see what it has written, and an error aborts it as it does under Serial.
func TestCorpusOnTransaction(t *testing.T) {
	pool, src := corpusSource(t, 1)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "insert into locked (id, data) select n, 'mine ' || n from generate_series(1001, 1010) n; update locked set data = 'changed' where id = 1"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var queries []fanout.Query[fanout.DBTX, string]
		for i := range 10 {
			queries = append(queries, fanouttest.Statement[string]("select data from locked where id = $1", 1001+i), fanouttest.Statement[string]("select data from locked where id = $1", 1))
		}
		lists, err := fanout.Collect(fanouttest.InTime(t), src.On(tx), queries...)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range lists {
			want := "changed"
			if i%2 == 0 {
				want = fmt.Sprint("mine ", 1001+i/2)
			}
			if len(list) != 1 || list[0] != want {
				t.Errorf("query %d has %v, want %q", i, list, want)
			}
		}
	}

	src.Partial = true
	s := shape{name: "Divide", sql: "select 100 / $1::int as n", args: each[int32](1, 2, 0, 4, 0, 5)}
	call := func(strategy fanout.Strategy) replies {
		savepoint, err := tx.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer savepoint.Rollback(context.Background())
		src := src
		src.Strategy = strategy
		lists, err := fanout.Collect(fanouttest.InTime(t), src.On(savepoint), s.executions()...)
		if _, err := savepoint.Exec(t.Context(), "select 1"); fanouttest.SQLState(err) != "25P02" {
			t.Errorf("%v: the transaction is not aborted: %v", strategy, err)
		}
		return repliesOf(t, len(s.args), lists, err)
	}
	want := call(fanout.Serial)
	if !strings.Contains(want.Errors[2], "22012") || !strings.Contains(want.Errors[3], "25P02") || want.Replies[1] == nil {
		t.Errorf("serial: %v", want)
	}
	for round := range 3 {
		if diff := gocmp.Diff(want, call(fanout.Coalesced), ignoreDrawn); diff != "" {
			t.Errorf("round %d (-serial +got)\n%s", round, diff)
		}
	}
}

// Any executions of any shapes together, under every strategy, give what Serial gives.
func TestCorpusProperty(t *testing.T) {
	pool, src := corpusSource(t, 4)
	var shapes []shape
	for _, s := range corpus() {
		// What draws or writes is not to be compared by value, and a lock that is not waited for depends on the others.
		if s.drawn == nil && s.effects == "" && s.name != "AdvisoryLock" {
			shapes = append(shapes, s)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		src := src
		src.Snapshot = rapid.Bool().Draw(t, "snapshot")
		src.Limit = rapid.IntRange(0, 5).Draw(t, "limit")
		src.Partial = true
		chosen := rapid.SliceOfN(rapid.SampledFrom(shapes), 1, 6).Draw(t, "shapes")
		var names []string
		var queries []fanout.Query[fanout.DBTX, reply]
		for range rapid.IntRange(1, 40).Draw(t, "queries") {
			s := rapid.SampledFrom(chosen).Draw(t, "shape")
			i := rapid.IntRange(0, len(s.args)-1).Draw(t, "execution")
			queries = append(queries, s.execution(i))
			names = append(names, fmt.Sprint(s.name, " ", i))
		}
		serial := src
		serial.Strategy = fanout.Serial
		lists, err := fanout.Collect(context.Background(), serial, queries...)
		want := repliesOf(t, len(queries), lists, err)

		src.Strategy = rapid.SampledFrom([]fanout.Strategy{fanout.Parallel, fanout.Pipelined, fanout.Coalesced, fanout.Coalesced, fanout.Auto, fanout.Auto}).Draw(t, "strategy")
		src.Partial = rapid.Bool().Draw(t, "partial")
		lists, err = fanout.Collect(context.Background(), src, queries...)
		if strings.Join(want.Errors, "") != "" && !src.Partial {
			var e *fanout.Error
			if !errors.As(err, &e) || lists != nil {
				t.Fatalf("%v", err)
			}
			if got := e.Name + " " + failureOf(e.Err); got != want.Errors[e.Index] {
				t.Fatalf("%s fails with %q, under Serial %q", names[e.Index], got, want.Errors[e.Index])
			}
			return
		}
		if diff := gocmp.Diff(want, repliesOf(t, len(queries), lists, err), ignoreDrawn); diff != "" {
			t.Fatalf("%v (-serial +got)\n%s", names, diff)
		}
	})
	fanouttest.Serves(t, pool)
}

// Where a setting makes the planner's guesses high, the look at the catalog is not compiled, which takes seconds; nor is the
// setting for that anything that a function of the call sees.
func TestCoalescedWhereThePlannerGuessesHigh(t *testing.T) {
	pool := pgtest.Pool(t, 1, func(config *pgxpool.Config) {
		config.ConnConfig.RuntimeParams["enable_nestloop"] = "off"
		config.ConnConfig.RuntimeParams["jit"] = "on"
	})
	for _, snapshot := range []bool{false, true} {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Snapshot = fanout.Coalesced, snapshot
		query := func(ctx context.Context, tx fanout.DBTX) ([]string, error) {
			if _, err := fanouttest.Statement[int](fmt.Sprintf("select $1::int + 1 -- %v", snapshot), 1)(ctx, tx); err != nil {
				return nil, err
			}
			return fanouttest.Statement[string]("select current_setting('jit')")(ctx, tx)
		}
		queries := fanouttest.Repeated(5, fanout.Query[fanout.DBTX, string](query))
		for range 3 {
			lists, err := fanout.Collect(fanouttest.InTime(t), src, queries...)
			if err != nil || lists[4][0] != "on" {
				t.Errorf("snapshot=%v: %v, %v", snapshot, lists, err)
			}
		}
		coalesces(t, fmt.Sprintf("snapshot=%v", snapshot), src, queries)
	}
}

// The look at the catalog leaves alone what a function of the database has left in a snapshot's transaction.
func TestCoalescedProofUndoesNothing(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	for _, sql := range []string{
		"create function use_tenant() returns text language plpgsql as $$ begin return set_config('app.tenant', 'acme', true); end $$",
		"create function items() returns text language plpgsql as $$ declare c refcursor := 'items'; begin open c for select 'item'; return c; end $$",
		"create function guard() returns text language plpgsql as $$ begin perform pg_advisory_xact_lock_shared(1); return 'ok'; end $$",
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range [][3]string{
		{"select use_tenant()", "select current_setting('app.tenant', true)", "acme"},
		{"select items()", "fetch first from items", "item"},
		{"select guard()", "select count(*)::text from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())", "1"},
	} {
		for _, s := range fanouttest.Strategies {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot = s, true
			leaves := func(ctx context.Context, tx fanout.DBTX) error {
				if _, err := fanouttest.Statement[string](c[0])(ctx, tx); err != nil {
					return err
				}
				for range 2 { // to be described, and then looked up
					if _, err := fanout.Collect(ctx, src, fanouttest.Repeated(5, fanouttest.Statement[int]("select $1::int + 1", 1))...); err != nil {
						return err
					}
				}
				list, err := fanouttest.Statement[string](c[1])(ctx, tx)
				if err == nil && (len(list) != 1 || list[0] != c[2]) {
					err = fmt.Errorf("%v, want %s", list, c[2])
				}
				return err
			}
			for range 2 {
				if err := fanouttest.Do(t, src, leaves); err != nil {
					t.Errorf("%v: %s: %v", s, c[1], err)
				}
			}
		}
	}
}

// The catalog is asked by a prepared statement, where there are such; whether somebody has deallocated it or not.
func TestCoalescedAfterDeallocate(t *testing.T) {
	hook := func(config *pgxpool.Config) { config.AfterRelease = func(*pgx.Conn) bool { return true } }
	for name, test := range map[string]struct {
		mode     pgx.QueryExecMode
		hook     func(*pgxpool.Config)
		prepared int
	}{
		"":         {pgx.QueryExecModeCacheStatement, func(*pgxpool.Config) {}, 1},
		"hook":     {pgx.QueryExecModeCacheStatement, hook, 0},
		"describe": {pgx.QueryExecModeCacheDescribe, func(*pgxpool.Config) {}, 0},
	} {
		for _, snapshot := range []bool{false, true} {
			pool := pgtest.Pool(t, 1, fanouttest.InMode(test.mode), test.hook)
			fanouttest.Fill(t, pool, 10)
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot = fanout.Coalesced, snapshot
			shared := 0
			src.Observe = func(_ context.Context, s fanout.Span) { shared += s.Shared }
			for i := range 4 {
				shared = 0
				sql := fmt.Sprintf("select data || '%d' from a where id = $1", i)
				for range 2 {
					lists, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Statement[string](sql, 1), fanouttest.Statement[string](sql, 2), fanouttest.Statement[string](sql, 3))
					if err != nil || len(lists[2]) != 1 {
						t.Fatalf("%s, snapshot %v: %v, %v", name, snapshot, lists, err)
					}
				}
				if shared == 0 {
					t.Errorf("%s, snapshot %v: text %d was not coalesced", name, snapshot, i)
				}
				var prepared int
				const sqlPrepared = "select count(*) from pg_prepared_statements where statement like '%pg_proc%'"
				if err := pool.QueryRow(t.Context(), sqlPrepared, pgx.QueryExecModeSimpleProtocol).Scan(&prepared); err != nil || prepared > test.prepared || prepared == 0 && i == 0 && !snapshot && test.prepared > 0 {
					t.Errorf("%s, snapshot %v: prepared %d times, %v", name, snapshot, prepared, err)
				}
				if i == 1 {
					if _, err := pool.Exec(t.Context(), "deallocate all"); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}

// A statement that turns out to have an argument which cannot be encoded, once it has been described, has no rows: not those
// that a coalesced statement beside it has returned before it failed.
func TestUnencodedBesideAFailure(t *testing.T) {
	pool := pgtest.Pool(t, 6)
	fanouttest.Fill(t, pool, 100)
	first := func(n int) fanout.Query[fanout.DBTX, int32] {
		return fanouttest.Statement[int32]("select id from a where id > 50 order by id limit $1", n)
	}
	read := 0
	unencoded := func(ctx context.Context, tx fanout.DBTX) ([]int32, error) {
		rows, err := tx.Query(ctx, "select id from a where id = $1", struct{}{})
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			read++
		}
		return nil, rows.Err()
	}
	for round := range 60 {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial, src.Limit = fanouttest.Strategies[round%len(fanouttest.Strategies)], true, 1
		for range 3 {
			queries := make([]fanout.Query[fanout.DBTX, int32], 60)
			fails := 0
			for i := range queries {
				if n := rand.IntN(8); n < 2 {
					queries[i] = unencoded
					fails++
				} else if queries[i] = first(n - 3); n < 3 {
					fails++
				}
			}
			_, err := fanout.Collect(t.Context(), src, queries...)
			errs, _ := err.(fanout.Errors)
			if len(errs) != fails {
				t.Errorf("%v: %d of %d failures: %v", src.Strategy, len(errs), fails, err)
			}
		}
	}
	if read > 0 {
		t.Errorf("%d rows of statements that were not sent", read)
	}
	fanouttest.Serves(t, pool)
}

package equal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// leastCoalesced is how many shapes of the corpus must be coalesced, at least.
const leastCoalesced = 150

// A coalescing says whether executions of a shape may, and must, become one statement.
type coalescing int

const (
	either coalescing = iota // equal results are all that is asked for
	yes
	no
)

// A shape is one statement text with the arguments of several executions.
type shape struct {
	name    string // the sqlc name
	sql     string
	args    [][]any
	ordered bool // the statement orders its rows; otherwise they are compared as a multiset
	expect  coalescing

	drawn    []int  // columns with values of the moment: only whether they are null is compared
	disjoint bool   // no two executions may have the same value in a drawn column
	effects  string // a query of one number; a call must add to it as much as a Serial one
}

func (s shape) text() string { return "-- name: " + s.name + " :many\n" + s.sql }

// A reply is all that a query function can see of one execution.
type reply struct {
	Fields []pgconn.FieldDescription
	Rows   []string
	Tag    string
	drawn  []string // the values of the shape's drawn columns
}

// execution is a Query of one of the shape's executions.
func (s shape) execution(i int) fanout.Query[fanout.DBTX, reply] {
	return func(ctx context.Context, tx fanout.DBTX) ([]reply, error) {
		rows, err := tx.Query(ctx, s.text(), s.args[i]...)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var r reply
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				return nil, err
			}
			raw := rows.RawValues()
			if len(values) != len(raw) || len(raw) != len(rows.FieldDescriptions()) {
				return nil, fmt.Errorf("%d values, %d raw ones, %d fields", len(values), len(raw), len(rows.FieldDescriptions()))
			}
			var row strings.Builder
			for column, value := range values {
				switch {
				case raw[column] == nil:
					fmt.Fprintf(&row, "null %#v | ", value)
				case slices.Contains(s.drawn, column):
					r.drawn = append(r.drawn, string(raw[column]))
					fmt.Fprintf(&row, "%T | ", value)
				default:
					fmt.Fprintf(&row, "%q %#v | ", raw[column], value)
				}
			}
			r.Rows = append(r.Rows, row.String())
		}
		if rows.Err() != nil {
			return nil, rows.Err()
		}
		r.Fields = append(r.Fields, rows.FieldDescriptions()...) // its array is only valid until the next read
		r.Tag = rows.CommandTag().String()
		if !s.ordered {
			slices.Sort(r.Rows)
		}
		return []reply{r}, nil
	}
}

func (s shape) executions() (queries []fanout.Query[fanout.DBTX, reply]) {
	for i := range s.args {
		queries = append(queries, s.execution(i))
	}
	return queries
}

// replies are what a Partial call returned: by query, the reply, or what the error says.
type replies struct {
	Replies []*reply
	Errors  []string
}

// failureOf is what a query function can see of its error.
func failureOf(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return fmt.Sprintf("%s: %s (%s) at %d", pg.Code, pg.Message, pg.Detail, pg.Position)
	}
	return strings.TrimPrefix(err.Error(), "not sent: ") // which only says that it is safe to try again
}

func repliesOf(t interface{ Fatalf(string, ...any) }, n int, lists [][]reply, err error) replies {
	r := replies{make([]*reply, n), make([]string, n)}
	var errs fanout.Errors
	if err != nil && !errors.As(err, &errs) {
		t.Fatalf("not Errors: %v", err)
	}
	if len(lists) != n && len(errs) != n {
		t.Fatalf("%d lists and %d errors of %d queries", len(lists), len(errs), n)
	}
	for i, list := range lists {
		if len(list) > 0 {
			r.Replies[i] = &list[0]
		}
	}
	for _, e := range errs {
		r.Errors[e.Index] = e.Name + " " + failureOf(e.Err)
	}
	for i := range n {
		if (r.Replies[i] == nil) == (r.Errors[i] == "") {
			t.Fatalf("query %d has %v and error %q", i, r.Replies[i], r.Errors[i])
		}
	}
	return r
}

// corpusDSN is a database with the corpus's schema.
func corpusDSN(t *testing.T) (dsn string, monitor *pgx.Conn) {
	t.Helper()
	dsn = pgtest.DSN(t)
	monitor = pgtest.Connect(t, dsn)
	pgtest.Exec(t, monitor, corpusSchema)
	return dsn, monitor
}

// corpusSession knows some of the schema's types, not all, and is nobody whom row-security policies do not apply to: a
// superuser becomes a role that every server has, and other owners are subject to them by "force".
func corpusSession(config *pgxpool.Config) {
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		types, err := conn.LoadTypes(ctx, []string{"mood", "_mood", "pair", "_pair", "positive", "floatspan"})
		if err != nil {
			return err
		}
		conn.TypeMap().RegisterTypes(types)
		_, err = conn.Exec(ctx, `select set_config('corpus.tenant', '3', false), set_config('timezone', 'UTC', false);
			select set_config('role', 'pg_monitor', false) from pg_roles where rolname = current_user and rolsuper`)
		return err
	}
}

// TestCorpus runs every shape under Serial, Coalesced and Auto: nothing that a query function can see may differ.
func TestCorpus(t *testing.T) {
	dsn, monitor := corpusDSN(t)
	type setting struct {
		mode     pgx.QueryExecMode
		snapshot bool
		limit    int
		src      fanout.Source[fanout.DBTX]
	}
	var settings []*setting
	shared := map[fanout.Strategy]int{} // of the shape that is being run
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		pool := pgtest.PoolOn(t, dsn, 3, corpusSession, fanouttest.InMode(mode))
		for _, snapshot := range []bool{false, true} {
			for _, limit := range []int{1, 0} {
				if !*fanouttest.Soak && (mode == pgx.QueryExecModeCacheDescribe) != (snapshot != (limit == 0)) {
					continue // half of the combinations have every pair of them
				}
				src := fanouttest.Raw(pool) // each has to learn by itself
				src.Snapshot, src.Limit, src.Partial = snapshot, limit, true
				settings = append(settings, &setting{mode, snapshot, limit, src})
			}
		}
	}
	counts := map[coalescing]int{}
	ran, coalesced, byAuto := 0, 0, 0
	names := map[string]bool{}
	for _, s := range corpus() {
		if names[s.name] {
			t.Errorf("two shapes are called %s", s.name)
		}
		names[s.name] = true
		counts[s.expect]++
		t.Run(s.name, func(t *testing.T) {
			ran++
			clear(shared)
			if s.effects == logged { // what others have logged would only have to be counted again and again
				if _, err := monitor.Exec(t.Context(), "truncate log"); err != nil {
					t.Fatal(err)
				}
			}
			for _, setting := range settings {
				call := func(strategy fanout.Strategy) (replies, int) {
					t.Helper()
					src := setting.src
					src.Strategy = strategy
					src.Observe = func(_ context.Context, span fanout.Span) { shared[strategy] += span.Shared }
					before := effectsOf(t, monitor, s)
					lists, err := fanout.Collect(fanouttest.InTime(t), src, s.executions()...)
					return repliesOf(t, len(s.args), lists, err), effectsOf(t, monitor, s) - before
				}
				want, wantEffects := call(fanout.Serial)
				if s.disjoint {
					disjoint(t, "serial", want)
				}
				// The first may have to learn.
				for round, strategy := range []fanout.Strategy{fanout.Coalesced, fanout.Coalesced, fanout.Auto} {
					got, effects := call(strategy)
					where := fmt.Sprintf("%v, %v, snapshot=%v, limit=%d, round %d", strategy, setting.mode, setting.snapshot, setting.limit, round)
					if diff := gocmp.Diff(want, got, ignoreDrawn); diff != "" {
						t.Fatalf("%s (-serial +got)\n%s", where, diff)
					}
					if effects != wantEffects {
						t.Fatalf("%s: the effects are %d, under Serial %d", where, effects, wantEffects)
					}
					if s.disjoint {
						disjoint(t, where, got)
					}
				}
			}
			if s.expect == yes && shared[fanout.Coalesced] == 0 {
				t.Error("it was never coalesced")
			}
			if s.expect == no && shared[fanout.Coalesced]+shared[fanout.Auto] > 0 {
				t.Error("it was coalesced")
			}
			if shared[fanout.Coalesced] > 0 {
				coalesced++
			}
			if shared[fanout.Auto] > 0 {
				byAuto++
			}
		})
	}
	if ran == len(names) && (coalesced < leastCoalesced || byAuto < leastCoalesced) {
		t.Errorf("%d shapes were coalesced, by Auto %d; want %d", coalesced, byAuto, leastCoalesced)
	}
	t.Logf("%d shapes: %d coalesced, by Auto %d; %d must be, %d must not, %d may", len(names), coalesced, byAuto, counts[yes], counts[no], counts[either])
}

// TestCorpusTold runs every shape on a connection for which another one has described it: it means the same there.
func TestCorpusTold(t *testing.T) {
	dsn, _ := corpusDSN(t)
	pool := pgtest.PoolOn(t, dsn, 2, corpusSession, fanouttest.InMode(pgx.QueryExecModeCacheStatement))
	conns := fanouttest.AcquireAll(t, pool)
	src := fanouttest.Raw(pool)
	src.Partial = true
	for _, s := range corpus() {
		call := func(i int, strategy fanout.Strategy) replies {
			t.Helper()
			conns[i].Release() // the only one to be had
			src.Strategy = strategy
			lists, err := fanout.Collect(fanouttest.InTime(t), src, s.executions()...)
			got := repliesOf(t, len(s.args), lists, err)
			if conns[i], err = pool.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			return got
		}
		want := call(0, fanout.Serial)
		for i := range conns {
			if diff := gocmp.Diff(want, call(i, fanout.Pipelined), ignoreDrawn); diff != "" {
				t.Errorf("%s, on connection %d (-serial +got)\n%s", s.name, i, diff)
			}
		}
	}
	for _, c := range conns {
		c.Release()
	}
}

var ignoreDrawn = gocmp.FilterPath(func(p gocmp.Path) bool {
	field, ok := p.Last().(gocmp.StructField)
	return ok && field.Name() == "drawn"
}, gocmp.Ignore())

func effectsOf(t *testing.T, monitor *pgx.Conn, s shape) (n int) {
	t.Helper()
	if s.effects == "" {
		return 0
	}
	if err := monitor.QueryRow(t.Context(), s.effects).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// disjoint checks that the executions have drawn for themselves.
func disjoint(t *testing.T, where string, r replies) {
	t.Helper()
	owner := map[string]int{}
	for i, reply := range r.Replies {
		if reply == nil {
			continue
		}
		for _, value := range reply.drawn {
			if other, ok := owner[value]; ok && other != i {
				t.Fatalf("%s: executions %d and %d both have drawn %q", where, other, i, value)
			}
			owner[value] = i
		}
	}
}

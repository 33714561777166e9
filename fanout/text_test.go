package fanout

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A parameter gets another type, by whose old one its value would lose something without an error: new connections ask
// the server, once what another one was told is old.
func TestNewConnectionsLearnParameterTypes(t *testing.T) {
	const sql = "select n from u where f = $1"
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		for _, s := range []Strategy{Serial, Pipelined, Coalesced, Auto} {
			pool := pgtest.Pool(t, 1, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			src := New(pool, func(tx DBTX) DBTX { return tx })
			src.Strategy = s
			ask := func() (found int) {
				query := func(ctx context.Context, tx DBTX) ([]int32, error) {
					rows, err := tx.Query(ctx, sql, 0.1)
					if err != nil {
						return nil, err
					}
					return pgx.CollectRows(rows, pgx.RowTo[int32])
				}
				lists, err := Collect(t.Context(), src, query, query)
				if err != nil {
					t.Fatalf("%v, %v: %v", mode, s, err)
				}
				return len(lists[0]) + len(lists[1])
			}
			if _, err := pool.Exec(t.Context(), "create table u (f float4, n int); insert into u values (0.1, 1)"); err != nil {
				t.Fatal(err)
			}
			if n := ask(); n != 2 {
				t.Errorf("%v, %v: %d rows", mode, s, n)
			}
			if _, err := pool.Exec(t.Context(), "alter table u alter f type float8; update u set f = 0.1"); err != nil {
				t.Fatal(err)
			}
			text := src.shared.statements.get(sql)
			if told := text.description.Load(); told != nil {
				old := *told
				old.found = old.found.Add(-descriptionLasts)
				text.description.Store(&old)
			}
			pool.Reset()
			if n := ask(); n != 2 {
				t.Errorf("%v, %v: %d rows on a new connection", mode, s, n)
			}
		}
	}
}

// A way that has become longer is known after a few occasions, once something has come late; one that has become shorter
// at once. A machine that is busy now and then changes nothing.
func TestTripFollows(t *testing.T) {
	const near, far = 50 * time.Microsecond, 10 * time.Millisecond
	measured := func(t *trip, times int, d time.Duration) (n int) {
		for range times {
			if t.due() {
				t.observe(d, true)
				n++
			}
		}
		return n
	}
	known := func() *trip {
		trip := &trip{}
		if n := measured(trip, tripWindow, near); n != tripWindow {
			t.Fatalf("measured on %d of the first %d occasions", n, tripWindow)
		}
		if n := measured(trip, 10*tripEvery, near); n != 10 {
			t.Fatalf("measured on %d of %d occasions", n, 10*tripEvery)
		}
		return trip
	}
	times := func(n int, d time.Duration, sure bool) func(*trip) {
		return func(trip *trip) {
			for range n {
				trip.observe(d, sure)
			}
		}
	}
	for name, c := range map[string]struct {
		happens func(*trip)
		then    time.Duration // on the next occasions
		want    time.Duration
	}{
		"nothing":                  {times(0, 0, true), near, near},
		"late":                     {times(1, far, true), near, near},
		"late three times":         {times(3, far, true), far, far},
		"noticed late three times": {times(3, far, false), near, near},
		"a statement is":           {func(trip *trip) { trip.doubt(newText("select 1"), far, 1) }, far, far},
		"back":                     {func(trip *trip) { times(10*tripWindow, far, true)(trip); times(1, near, false)(trip) }, near, near},
	} {
		trip := known()
		c.happens(trip)
		measured(trip, tripSure, c.then)
		if got := trip.time(); got != c.want {
			t.Errorf("%s: a round trip is taken to last %v, not %v", name, got, c.want)
		}
	}
}

// What a statement seems to have taken counts when it is known that it was not the way; otherwise it never does.
func TestTripKeepsCosts(t *testing.T) {
	for _, changed := range []bool{false, true} {
		trip, x := &trip{}, newText("select 1")
		for range tripWindow {
			trip.observe(time.Millisecond, true)
		}
		x.observe(time.Millisecond, 1)
		trip.doubt(x, 10*time.Millisecond, 3)
		if _, n := x.expected(); n != 1 {
			t.Errorf("%d executions count too early", n-1)
		}
		for range tripSure {
			if changed {
				trip.observe(9*time.Millisecond, true)
			} else {
				trip.observe(time.Millisecond, true)
			}
		}
		want := int64(4)
		if changed {
			want = 1
		}
		if _, n := x.expected(); n != want {
			t.Errorf("changed=%v: %d executions count, not %d", changed, n, want)
		}
	}
}

// Two executions that are far slower are believed, and many that are far quicker; what is in between changes it slowly.
func TestTextFollows(t *testing.T) {
	const slow, quick = 5 * time.Millisecond, 50 * time.Microsecond
	for name, c := range map[string]struct {
		before, after time.Duration
		times         int
		least, most   time.Duration
	}{
		"once slow":    {quick, slow, 1, quick, slow / 10},
		"slow":         {quick, slow, longerMeans, slow, slow},
		"quick mostly": {slow, quick, shorterMeans / 2, 10 * quick, slow},
		"quick":        {slow, quick, shorterMeans, quick, quick},
		"a bit slower": {quick, 4 * quick, 4, quick, 3 * quick},
	} {
		x := newText("select 1")
		for range 100 {
			x.observe(c.before, 1)
		}
		for range c.times {
			x.observe(c.after, 1)
		}
		if got, _ := x.expected(); got < c.least || got > c.most {
			t.Errorf("%s: expected to take %v", name, got)
		}
	}
}

// What a statement has taken with its Parse, or as the first on its connection, counts until it is known what it takes by
// itself.
func TestTextInCompany(t *testing.T) {
	const ms = time.Millisecond
	x := newText("select 1")
	for i, c := range []struct {
		took time.Duration
		with company
		want time.Duration
	}{
		{20 * ms, fresh, 20 * ms},
		{25 * ms, fresh, 20 * ms},
		{10 * ms, fresh, 15 * ms}, // the mean of what was lower than before
		{2 * ms, withParse, 2 * ms},
		{20 * ms, fresh, 2 * ms},
		{4 * ms, withParse, 3 * ms},
		{1 * ms, byItself, 1 * ms},
		{4 * ms, withParse, 1 * ms},
		{20 * ms, fresh, 1 * ms},
		{2 * ms, byItself, 1500 * time.Microsecond},
	} {
		x.atMost(c.took, 1, c.with)
		got, n := x.expected()
		if got.Round(ms/10) != c.want || n != int64(i+1) {
			t.Errorf("after %d executions, %d of them counted: expected to take %v, not %v", i+1, n, got, c.want)
		}
	}
}

// A text is given up only when it is known what it takes by itself today, and what it took together counts only if it has
// been so lately. An execution with its Parse, as all in a snapshot call may be, is one by itself too.
func TestTextIsTried(t *testing.T) {
	for _, with := range []company{byItself, withParse} {
		x := newText("select $1")
		j := &joint{text: newText("select $1 of many")}
		together := func(times int, d time.Duration) {
			for range times {
				x.joined(j.text)
				j.text.observe(d, 10)
			}
		}
		alone := func(times int, d time.Duration) {
			for range times {
				x.atMost(d, 1, with)
			}
		}
		expects := func(want time.Duration) {
			t.Helper()
			if got, _ := j.expected(x); got != want {
				t.Errorf("company %d: expected to take %v, not %v", with, got, want)
			}
		}
		expects(0)
		alone(4, time.Millisecond)
		expects(time.Millisecond)
		together(4, 100*time.Microsecond)
		expects(100 * time.Microsecond)
		for i := range trialLength {
			if x.tried() || !x.onTrial() {
				t.Errorf("company %d: not tried, or no more after %d executions", with, i)
			}
			alone(1, 9*time.Millisecond)
		}
		if !x.tried() || x.onTrial() {
			t.Errorf("company %d: tried for longer", with)
		}
		expects(9 * time.Millisecond)
		together(1, 200*time.Microsecond)
		expects(200 * time.Microsecond) // at once: what was before was long ago
		x.trust()
		if x.tried() {
			t.Errorf("company %d: what was tried counts for ever", with)
		}
	}
}

// A Source does not remember more and longer texts than there is room for; the last one it does.
func TestTextsAreForgotten(t *testing.T) {
	for _, length := range []int{30, 100_000, maxTextBytes / 2, maxTextBytes + 1} {
		var s statements
		filler := strings.Repeat("x", length)
		for i := range 5000 {
			sql := fmt.Sprintf("select %d /* %s */", i, filler)
			if found := s.get(sql); s.get(sql) != found {
				t.Fatalf("text %d of %d bytes is forgotten at once", i, length)
			}
			if i*length > 3*maxTextBytes {
				break
			}
		}
		sum := 0
		for sql := range s.known {
			sum += len(sql)
		}
		if sum != s.bytes || len(s.known) > 1 && (sum > maxTextBytes || len(s.known) > maxTexts) {
			t.Errorf("of texts of %d bytes it knows %d: %d bytes, counted %d", length, len(s.known), sum, s.bytes)
		}
	}
}

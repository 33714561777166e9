package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// opened is a server with a filled schema, and a pool on it.
func opened(t *testing.T, rows, conns int) (*server, *pgxpool.Pool) {
	t.Helper()
	srv, err := openServer(t.Context(), pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	box, err := openSandbox(t.Context(), srv.config.ConnConfig, rows, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.End(srv.throwaway()); err != nil {
			t.Error(err)
		}
	})
	pool, err := srv.pool(t.Context(), conns, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return srv, pool
}

// All contenders come to the same rows for the same draws, for every statement, whether or not a row is drawn twice.
func TestSameRows(t *testing.T) {
	const rows, conns, burn = 100_000, 3, 100
	srv, pool := opened(t, rows, conns)
	there := bound(contenders(), pool, conns)
	python, err := startPython(t.Context(), srv, false, time.Millisecond, burn)
	if errors.Is(err, errNoPython) && os.Getenv("CI") != "true" { // .ci/run installs it
		t.Logf("without SQLAlchemy: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	defer python.close()
	for name, s := range statements(rows, burn) {
		t.Run(name, func(t *testing.T) {
			n := 31
			if name == ranging {
				n = 4 // of 10,000 rows each
			}
			draws := s.draw(rand.New(rand.NewPCG(3, 4)), n)
			if name != mixing {
				draws[2] = draws[3]
			}
			var want digest
			for _, c := range there {
				task := s.task(c, pool, conns)
				if task == nil {
					if !c.elsewhere && c.name != byAny && !c.least {
						t.Errorf("%s cannot do it", c.name)
					}
					continue
				}
				merged, err := task(t.Context(), draws)
				if err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if got := merged.digest(); c.name == single {
					want = got
				} else if got != want {
					t.Errorf("%s came to %v, want %v", c.name, got, want)
				}
			}
			if want.Rows < n/2 || name == ranging && want.Rows < rangeRows {
				t.Errorf("%v", want)
			}
			if python != nil && name != thirty {
				answer, err := python.ask(pythonRequest{name, draws, true})
				if err != nil || answer.Digest != want || answer.Seconds <= 0 {
					t.Errorf("%s came to %+v, %v; want %v", byPython, answer, err, want)
				}
			}
		})
	}
}

// One draw in ten of a mixed call is slow, and a call of one query has none.
func TestMixedDraw(t *testing.T) {
	draw := statements(1000, 1)[mixing].draw
	random := rand.New(rand.NewPCG(1, 1))
	for n, want := range map[int]int{1: 0, 30: 3, 300: 30} {
		slow := 0
		for _, d := range draw(random, n) {
			if d < 0 {
				slow++
			}
		}
		if slow != want {
			t.Errorf("%d of %d are slow", slow, n)
		}
	}
}

// The server counts to the calibrated number in about the time that is wanted.
func TestCalibrate(t *testing.T) {
	_, pool := opened(t, 1000, 1)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	count, err := calibrate(t.Context(), conn.Conn())
	if err != nil || count < 1000 || count > 100_000_000 {
		t.Errorf("%d, %v", count, err)
	}
}

// fake is a runner whose calls take as long as they are told: in a bubble, where the clock stands still while anything runs.
func fake(name string, took time.Duration, d digest, err error) *runner {
	return &runner{contender: contender{name: name}, run: func(context.Context, []int32, bool) (time.Duration, digest, error) {
		time.Sleep(took)
		return took, d, err
	}}
}

// Runners that are slow, fail or differ are told apart.
func TestRounds(t *testing.T) {
	same := digest{1, 1}
	for _, test := range []struct {
		name   string
		budget time.Duration
		least  int // figures of the quick one
		most   int
	}{
		{"time is left when each has made a call", 5 * time.Second, minShortFigures + 1, 100},
		{"the time is up by then", 3 * time.Second, minShortFigures, minShortFigures},
		{"it has been up for long", time.Second, 1, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := course{draw: func() []int32 { return nil }, budget: test.budget}
				quick, slow, bad := fake("quick", time.Millisecond, same, nil), fake("slow", 3*time.Second, same, nil), fake("bad", 0, digest{}, errors.New("no"))
				far := fake("far behind", 500*time.Millisecond, same, nil) // and so no claim rests on it
				aside := fake("aside", 350*time.Millisecond, same, nil)
				other := fake("another program", 350*time.Millisecond, same, nil)
				aside.aside, other.aside, other.elsewhere = true, true, true
				if err := c.rounds(t.Context(), []*runner{far, aside, other, quick, slow, bad}); err != nil {
					t.Fatal(err)
				}
				if n := len(quick.took); n < test.least || n > test.most || quick.took[0] != 1 || quick.note != "" {
					t.Errorf("%d figures, %+v", n, quick)
				}
				for _, r := range []*runner{far, aside, slow} {
					if len(r.took) != 1 || r.note != "one call" {
						t.Errorf("%+v", r)
					}
				}
				if len(other.took) < min(2, test.least) || other.note != "" {
					t.Errorf("%+v", other)
				}
				if len(bad.took) != 0 || bad.note != "failed: no" {
					t.Errorf("%+v", bad)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c := course{draw: func() []int32 { return nil }, budget: time.Second}
		if err := c.rounds(t.Context(), []*runner{fake("a", 1, same, nil), fake("b", 1, digest{2, 1}, nil)}); err == nil {
			t.Error("different rows, no error")
		}
	})
}

// In a round all have the same arguments, call by call, and connections are renewed before each call if they are to be.
func TestRoundsDraws(t *testing.T) {
	for _, renewed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			drawn, renewals, calls := int32(0), 0, 0
			c := course{draw: func() []int32 { drawn++; return []int32{drawn} }, budget: 100 * time.Millisecond}
			if renewed {
				c.renew = func() error { renewals++; return nil }
			}
			seen := map[string]map[int32]bool{}
			recorder := func(name string) *runner {
				seen[name] = map[int32]bool{}
				return &runner{contender: contender{name: name}, run: func(_ context.Context, draws []int32, _ bool) (time.Duration, digest, error) {
					calls++
					seen[name][draws[0]] = true
					time.Sleep(time.Millisecond)
					return time.Millisecond, digest{}, nil
				}}
			}
			if err := c.rounds(t.Context(), []*runner{recorder("a"), recorder("b")}); err != nil {
				t.Fatal(err)
			}
			common := 0
			for draw := range seen["a"] {
				if seen["b"][draw] {
					common++
				}
			}
			if common < minShortFigures || common < len(seen["a"])/2 {
				t.Errorf("of %d and %d arguments %d are the same", len(seen["a"]), len(seen["b"]), common)
			}
			if renewed && renewals != calls {
				t.Errorf("%d renewals for %d calls", renewals, calls)
			}
		})
	}
}

// The figure of short calls is of several turns, as these differ by more than the calls of one.
func TestFigureOfShortCalls(t *testing.T) {
	took := time.Duration(0)
	r := &runner{run: func(context.Context, []int32, bool) (time.Duration, digest, error) { return took, digest{}, nil }}
	c := course{draw: func() []int32 { return nil }}
	for _, test := range []struct{ quick, slow, turns, figures int }{ // in microseconds
		{50, 100, 10, 2},
		{400, 600, 10, 5}, // 25 fit into a turn's time
		{1000, 1010, 10, 10},
	} {
		r.shortest, r.took = 0, nil
		for i := range test.turns {
			took = time.Duration([]int{test.quick, test.slow}[i%2]) * time.Microsecond
			if err := c.turn(t.Context(), r, c.lists()); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.took) != test.figures {
			t.Errorf("%+v: figures %v", test, r.took)
		}
		for _, figure := range r.took {
			if mixed := figure > float64(test.quick)/1000 && figure < float64(test.slow)/1000; mixed != (test.figures < test.turns) {
				t.Errorf("%+v: figures %v", test, r.took)
			}
		}
	}
}

// All runners get on with their shares at the same pace, whatever a call of theirs takes.
func TestPace(t *testing.T) {
	a, b, c := fake("a", 1, digest{}, nil), fake("b", 1, digest{}, nil), fake("c", 1, digest{}, nil)
	all := []*runner{a, b, c}
	due := func() (n int) {
		for _, r := range all {
			if !r.out && r.share() <= pace(all) {
				n++
			}
		}
		return n
	}
	if due() != 3 {
		t.Error("not all begin")
	}
	a.spent, b.spent, c.spent = 100*time.Millisecond, time.Millisecond, time.Millisecond
	if due() != 2 {
		t.Error("who is ahead goes on")
	}
	b.out, c.out = true, true
	if due() != 1 {
		t.Error("who is alone waits")
	}
	b.out, c.out = false, false
	for spent := range 100 {
		a.spent, b.spent, c.spent = time.Duration(spent), time.Duration(spent), time.Duration(spent)
		if due() != 3 {
			t.Errorf("equals after %d wait", spent)
		}
	}
}

// Who is as quick as the best of those that run the functions as they are is measured as often as they are.
func TestCompete(t *testing.T) {
	all := map[string]*runner{}
	var runners []*runner
	for name, took := range map[string]time.Duration{
		single: 11, byErrgroup: 10, byConc: 20, byAny: 1, parallel: 12, serial: 14, parallel + withSnapshot: 10,
	} {
		r := fake(name, took, digest{}, nil)
		r.aside = slices.ContainsFunc(contenders(), func(c contender) bool { return c.name == name && c.aside })
		r.shortest = took
		all[name] = r
		runners = append(runners, r)
	}
	compete(runners)
	for name, aside := range map[string]bool{
		single: false, byErrgroup: false, byConc: true, byAny: false, parallel: false, serial: false, parallel + withSnapshot: true,
	} {
		if all[name].aside != aside {
			t.Errorf("%s: aside is %v", name, all[name].aside)
		}
	}
}

// Of a call, that part counts which lies in the slice.
func TestWithin(t *testing.T) {
	for c, want := range map[call]float64{{10, 20}: 1, {0, 10}: 0, {5, 15}: 0.5, {95, 105}: 0.5, {100, 110}: 0, {0, 200}: 0.45} {
		if got := c.within(10, 100); got != want {
			t.Errorf("%v: %v, want %v", c, got, want)
		}
	}
}

// The relay delays what goes to the server, and nothing else.
func TestRelay(t *testing.T) {
	const latency = 20 * time.Millisecond
	srv, err := openServer(t.Context(), pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	c := srv.config.ConnConfig
	r, err := startRelay(c.Host, c.Port, latency)
	if err != nil {
		t.Fatal(err)
	}
	host, port := r.address()
	conn := pgtest.Connect(t, fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s sslmode=disable", host, port, c.User, c.Password, c.Database))
	shortest := time.Hour // of several: the machine may be busy
	for range 10 {
		start := time.Now()
		if err := conn.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		shortest = min(shortest, time.Since(start))
	}
	if shortest < latency || shortest > 10*latency {
		t.Errorf("a round trip took %v", shortest)
	}
	conn.Close(t.Context())
	r.close()
}

// Pgbench runs on the server of the DSN, whatever else the user's variables say.
func TestPgbench(t *testing.T) {
	program, missing := findPgbench(t.Context())
	if missing != "" && os.Getenv("CI") != "true" {
		t.Skip(missing)
	}
	srv, _ := opened(t, 1000, 1)
	for name, value := range map[string]string{"PGHOSTADDR": "192.0.2.1", "PGSERVICE": "none", "PGSSLMODE": "verify-full", "PGOPTIONS": "--bad"} {
		t.Setenv(name, value)
	}
	rate, err := pgbenchScripts[byPgbench].run(t.Context(), program, srv, 1, 1000, 1)
	if err != nil || rate <= 0 {
		t.Errorf("%v, %v", rate, err)
	}
}

// It encrypts what the others do.
func TestSSLMode(t *testing.T) {
	for _, mode := range []string{"disable", "allow", "prefer", "require", "verify-full"} {
		c, err := pgx.ParseConfig("postgres://u@h/d?sslmode=" + mode)
		if err != nil {
			t.Fatal(err)
		}
		want := mode
		if mode == "verify-full" {
			want = "require"
		}
		if got := sslMode(c); got != want {
			t.Errorf("%s became %s", mode, got)
		}
	}
}

// A call can be asked afterwards how it ran.
func TestChosen(t *testing.T) {
	_, pool := opened(t, 1000, 2)
	s := statements(1000, 1)[looking]
	for _, c := range bound(contenders(), pool, 2) {
		if c.name != serial {
			continue
		}
		if how, err := chosen(t.Context(), s.task(c, pool, 2), []int32{1, 2, 3}); err != nil || how != serial {
			t.Errorf("%q, %v", how, err)
		}
	}
}

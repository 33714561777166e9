package main

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/bench/benchdb"
	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

const (
	smallRows = 100
	rangeRows = 10_000 // that a Range returns
	ranges    = 10     // of which a call draws, so that what is merged stays within bounds

	// burnTime is what a Burn is calibrated to.
	burnTime = 2 * time.Millisecond
)

// The statements' names.
const (
	scanning = "scan"
	looking  = "lookup"
	waiting  = "wait"
	burning  = "cpu"
	mixing   = "mixed"
	ranging  = "wide"
	thirty   = "thirty"
)

var gridStatements = []string{scanning, looking, waiting, burning, mixing, ranging}

// A statement is a kind of query, as the grid has them.
type statement struct {
	name string // on the command line

	// draw draws the arguments of a call of n queries.
	draw func(random *rand.Rand, n int) []int32

	// task is the work as this contender does it on pool, on so many connections at most; nil if it cannot be done so.
	task func(c contender, pool *pgxpool.Pool, conns int) task

	// text is the i-th query of a call as SQL.
	text func(i int, draw int32) (sql string, args []any)

	// all runs the one statement that stands for all queries of a call; nil if there is none.
	all func(ctx context.Context, conn benchdb.DBTX, draws []int32) error
}

// newStatement takes the type of the rows away.
func newStatement[T row](name string, draw func(*rand.Rand, int) []int32, w work[T]) statement {
	s := statement{
		name: name, draw: draw, text: w.text,
		task: func(c contender, pool *pgxpool.Pool, conns int) task { return w.task(c, pool, conns) },
	}
	if w.all != nil {
		s.all = func(ctx context.Context, conn benchdb.DBTX, draws []int32) error {
			_, err := w.all(ctx, benchdb.New(conn), draws)
			return err
		}
	}
	return s
}

// statements are all by name, for a table big of so many rows and a Burn that counts so far.
func statements(rows int, burn int32) map[string]statement {
	someID := each(func(random *rand.Rand) int32 { return 1 + random.Int32N(int32(rows)) })
	all := map[string]statement{}
	for _, s := range []statement{
		newStatement(scanning, each(func(random *rand.Rand) int32 { return 1 + random.Int32N(smallRows) }), scan()),
		newStatement(looking, someID, lookUpByIndex()),
		newStatement(waiting, someID, lookUp((*benchdb.Queries).Wait, benchdb.Wait)),
		newStatement(burning, someID, work[benchdb.Big]{
			query: func(_ int, draw int32) query[benchdb.Big] {
				return fanout.Many((*benchdb.Queries).Burn, benchdb.BurnParams{Count: burn, ID: draw})
			},
			text: func(_ int, draw int32) (string, []any) { return benchdb.Burn, []any{burn, draw} },
		}),
		newStatement(mixing, mixedDraw(someID), mixed()),
		newStatement(ranging, each(func(random *rand.Rand) int32 { return 1 + rangeRows*random.Int32N(ranges) }),
			lookUp((*benchdb.Queries).Range, benchdb.Range)),
		newStatement(thirty, each(func(random *rand.Rand) int32 { return 1 + random.Int32N(int32(rows-len(nearTexts))) }), work[benchdb.Big]{
			query: func(i int, draw int32) query[benchdb.Big] { return fanout.Many(nearMethods[i%len(nearMethods)], draw) },
			text:  func(i int, draw int32) (string, []any) { return nearTexts[i%len(nearTexts)], []any{draw} },
		}),
	} {
		all[s.name] = s
	}
	return all
}

var statementLabels = map[string]string{
	scanning: "scan of a 100-row table",
	looking:  "look-up by index",
	waiting:  "5 ms of waiting",
	burning:  "2 ms of CPU",
	mixing:   "mixed: 1 in 10 takes 20 ms",
	ranging:  "wide: 10,000 rows each",
	thirty:   "30 different look-ups",
}

func scan() work[benchdb.Small] {
	return work[benchdb.Small]{
		query: func(_ int, draw int32) query[benchdb.Small] { return fanout.Many((*benchdb.Queries).Scan, data(draw)) },
		text:  func(_ int, draw int32) (string, []any) { return benchdb.Scan, []any{data(draw)} },
		all: func(ctx context.Context, q *benchdb.Queries, draws []int32) ([]benchdb.Small, error) {
			return q.ScanAny(ctx, dataOf(draws))
		},
		each: func(ctx context.Context, q *benchdb.Queries, draws []int32, add func(int32, benchdb.Small)) error {
			rows, err := q.ScanEach(ctx, dataOf(draws))
			for _, r := range rows {
				add(r.Number, benchdb.Small{ID: r.ID, Data: r.Data})
			}
			return err
		},
	}
}

// lookUp is the work of a statement whose argument is the draw.
func lookUp(method func(*benchdb.Queries, context.Context, int32) ([]benchdb.Big, error), sql string) work[benchdb.Big] {
	return work[benchdb.Big]{
		query: func(_ int, draw int32) query[benchdb.Big] { return fanout.Many(method, draw) },
		text:  func(_ int, draw int32) (string, []any) { return sql, []any{draw} },
	}
}

func lookUpByIndex() work[benchdb.Big] {
	w := lookUp((*benchdb.Queries).LookUp, benchdb.LookUp)
	w.all = func(ctx context.Context, q *benchdb.Queries, draws []int32) ([]benchdb.Big, error) {
		return q.LookUpAny(ctx, draws)
	}
	w.each = func(ctx context.Context, q *benchdb.Queries, draws []int32, add func(int32, benchdb.Big)) error {
		rows, err := q.LookUpEach(ctx, draws)
		for _, r := range rows {
			add(r.Number, benchdb.Big{ID: r.ID, Data: r.Data})
		}
		return err
	}
	return w
}

// mixed is the work of look-ups among which a negative draw stands for a slow one.
func mixed() work[benchdb.Big] {
	fast := lookUp((*benchdb.Queries).LookUp, benchdb.LookUp)
	slow := lookUp((*benchdb.Queries).WaitLong, benchdb.WaitLong)
	return work[benchdb.Big]{
		query: func(i int, draw int32) query[benchdb.Big] {
			if draw < 0 {
				return slow.query(i, -draw)
			}
			return fast.query(i, draw)
		},
		text: func(i int, draw int32) (string, []any) {
			if draw < 0 {
				return slow.text(i, -draw)
			}
			return fast.text(i, draw)
		},
	}
}

// mixedDraw makes one draw in ten negative. Which ones is drawn as well: always in the same places, they would suit some
// ways of dealing queries out to connections better than others.
func mixedDraw(draw func(*rand.Rand, int) []int32) func(*rand.Rand, int) []int32 {
	return func(random *rand.Rand, n int) []int32 {
		draws := draw(random, n)
		for _, i := range random.Perm(n)[:n/10] {
			draws[i] *= -1
		}
		return draws
	}
}

// data is that of the row with this id.
func data(id int32) string { return "a_" + strconv.Itoa(int(id)) }

func dataOf(ids []int32) []string {
	datas := make([]string, len(ids))
	for i, id := range ids {
		datas[i] = data(id)
	}
	return datas
}

// each draws every argument by one.
func each(one func(*rand.Rand) int32) func(*rand.Rand, int) []int32 {
	return func(random *rand.Rand, n int) []int32 {
		draws := make([]int32, n)
		for i := range draws {
			draws[i] = one(random)
		}
		return draws
	}
}

var nearMethods = []func(*benchdb.Queries, context.Context, int32) ([]benchdb.Big, error){
	(*benchdb.Queries).Near01, (*benchdb.Queries).Near02, (*benchdb.Queries).Near03, (*benchdb.Queries).Near04, (*benchdb.Queries).Near05,
	(*benchdb.Queries).Near06, (*benchdb.Queries).Near07, (*benchdb.Queries).Near08, (*benchdb.Queries).Near09, (*benchdb.Queries).Near10,
	(*benchdb.Queries).Near11, (*benchdb.Queries).Near12, (*benchdb.Queries).Near13, (*benchdb.Queries).Near14, (*benchdb.Queries).Near15,
	(*benchdb.Queries).Near16, (*benchdb.Queries).Near17, (*benchdb.Queries).Near18, (*benchdb.Queries).Near19, (*benchdb.Queries).Near20,
	(*benchdb.Queries).Near21, (*benchdb.Queries).Near22, (*benchdb.Queries).Near23, (*benchdb.Queries).Near24, (*benchdb.Queries).Near25,
	(*benchdb.Queries).Near26, (*benchdb.Queries).Near27, (*benchdb.Queries).Near28, (*benchdb.Queries).Near29, (*benchdb.Queries).Near30,
}

var nearTexts = []string{
	benchdb.Near01, benchdb.Near02, benchdb.Near03, benchdb.Near04, benchdb.Near05,
	benchdb.Near06, benchdb.Near07, benchdb.Near08, benchdb.Near09, benchdb.Near10,
	benchdb.Near11, benchdb.Near12, benchdb.Near13, benchdb.Near14, benchdb.Near15,
	benchdb.Near16, benchdb.Near17, benchdb.Near18, benchdb.Near19, benchdb.Near20,
	benchdb.Near21, benchdb.Near22, benchdb.Near23, benchdb.Near24, benchdb.Near25,
	benchdb.Near26, benchdb.Near27, benchdb.Near28, benchdb.Near29, benchdb.Near30,
}

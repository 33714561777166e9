package pipelined

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A moody is a row that scans itself, by the type map, as pgx's documentation of RowScanner has it.
type moody struct {
	n     int
	moods []string
}

func (m *moody) ScanRow(rows pgx.Rows) error {
	fields, values, types := rows.FieldDescriptions(), rows.RawValues(), rows.TypeMap()
	if err := types.Scan(fields[0].DataTypeOID, fields[0].Format, values[0], &m.n); err != nil {
		return err
	}
	return types.Scan(fields[1].DataTypeOID, fields[1].Format, values[1], &m.moods)
}

// Destinations may decode what else is in their row: those of a whole row, by the connection's type map, which other functions
// use at the same time; and those of a value.
func TestDestinationsThatDecode(t *testing.T) {
	pool := pgtest.Pool(t, 1, withTypes)
	const sql = "select n, array['ok']::mood[] from generate_series(1, $1::int) n"
	whole := func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
		rows, err := tx.Query(ctx, sql, 30)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, func(row pgx.CollectableRow) (int, error) {
			var m moody
			err := row.Scan(&m)
			if err == nil && len(m.moods) != 1 {
				err = fmt.Errorf("moods %q", m.moods)
			}
			return m.n, err
		})
	}
	value := func(ctx context.Context, tx fanout.DBTX) (list []int, err error) {
		rows, err := tx.Query(ctx, sql, 30)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		for rows.Next() {
			var n int
			others := scanner(func(any) error {
				values, err := rows.Values()
				if err == nil && len(values) != 2 {
					err = fmt.Errorf("values %v", values)
				}
				return err
			})
			if err := rows.Scan(&n, others); err != nil {
				return nil, err
			}
			list = append(list, n)
		}
		return list, rows.Err()
	}
	alone := func(f fanout.Query[fanout.DBTX, int]) fanout.Query[fanout.DBTX, int] { // on a connection to itself
		return func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
			if _, err := tx.Exec(ctx, "set application_name = 'alone'"); err != nil {
				return nil, err
			}
			return f(ctx, tx)
		}
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy = s
		lists, err := fanout.Collect(fanouttest.InTime(t), src, whole, value, whole, value, alone(whole), alone(value), whole, value)
		if err != nil {
			t.Fatalf("%v: %v", s, err)
		}
		for i, list := range lists {
			if len(list) != 30 || list[29] != 30 {
				t.Errorf("%v, query %d: %v", s, i, list)
			}
		}
	}
	fanouttest.Serves(t, pool)
}

// Functions may scan while they hold a lock that others want between their rows, on a connection of their own or not.
func TestScanUnderALock(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	const sql = "select n from generate_series(1, 10) n"
	for _, s := range fanouttest.Strategies {
		var mu sync.Mutex
		sum := 0
		read := func(rows pgx.Rows, err error) ([]int, error) {
			if err != nil {
				return nil, err
			}
			defer rows.Close()
			for rows.Next() {
				time.Sleep(2 * time.Millisecond) // longer than others wait for it
				mu.Lock()
				var n int
				err := rows.Scan(&n)
				sum += n
				mu.Unlock()
				if err != nil {
					return nil, err
				}
			}
			return nil, rows.Err()
		}
		query := func(ctx context.Context, tx fanout.DBTX) ([]int, error) { return read(tx.Query(ctx, sql)) }
		batch := func(ctx context.Context, tx fanout.DBTX) (_ []int, err error) {
			var batch pgx.Batch
			batch.Queue(sql)
			results := tx.SendBatch(ctx, &batch)
			if _, err = read(results.Query()); err == nil {
				err = results.Close()
			}
			return nil, err
		}
		src := fanouttest.Raw(pool)
		src.Strategy = s
		if _, err := fanout.Collect(fanouttest.InTime(t), src, query, batch, query, batch); err != nil || sum != 4*55 {
			t.Errorf("%v: %d, %v", s, sum, err)
		}
	}
	fanouttest.Serves(t, pool)
}

// A deranged is a row that fails to scan itself.
type deranged struct{}

func (deranged) ScanRow(rows pgx.Rows) error {
	var n int
	return rows.Scan(&n) // of two columns
}

// A destination that fails in the middle of a long result does not keep the lane from sending what others have asked for.
func TestDestinationThatFails(t *testing.T) {
	pool := pgtest.Pool(t, 1)
	fails := func(ctx context.Context, tx fanout.DBTX) ([]int, error) {
		rows, err := tx.Query(ctx, "select n, repeat('x', 1000) from generate_series(1, $1::int) n", 20000)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, func(row pgx.CollectableRow) (int, error) { return 0, row.Scan(deranged{}) })
	}
	several := func(ctx context.Context, tx fanout.DBTX) (list []int, err error) {
		for range 50 {
			if list, err = fanouttest.Statement[int]("select $1::int", 7)(ctx, tx); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	for _, s := range fanouttest.Strategies {
		src := fanouttest.Raw(pool)
		src.Strategy, src.Partial = s, true
		lists, err := fanout.Collect(fanouttest.InTime(t), src, fails, several, several, fails, several)
		errs, _ := err.(fanout.Errors)
		if len(errs) != 2 || len(lists[1]) != 1 || len(lists[2]) != 1 || len(lists[4]) != 1 {
			t.Errorf("%v: %v, %v", s, lists, err)
		}
		fanouttest.Mention(t, err, "number of field descriptions must equal number of destinations, got 2 and 1")
	}
	fanouttest.Serves(t, pool)
}

// A pickyScanner is a RowScanner that refuses a row, perhaps after it has read the others.
type pickyScanner struct {
	n        int
	toItsEnd bool
}

func (s *pickyScanner) ScanRow(rows pgx.Rows) error {
	if err := rows.Scan(&s.n); err != nil {
		return err
	}
	for s.toItsEnd && rows.Next() {
	}
	if s.n == 3 || s.toItsEnd {
		return errors.New("three is refused")
	}
	return nil
}

// What a RowScanner says is the rows' error, as with pgx: who looks at that alone must not take the rows for complete.
func TestErrOfRowScanner(t *testing.T) {
	pool := pgtest.Pool(t, 2)
	for _, s := range fanouttest.Strategies {
		for i := range 4 {
			src := fanouttest.Raw(pool)
			src.Strategy, src.Snapshot = s, i&1 > 0
			lists, err := fanout.Collect(t.Context(), src, func(ctx context.Context, tx fanout.DBTX) (ns []int, err error) {
				rows, err := tx.Query(ctx, "select generate_series(1, 5)")
				if err != nil {
					return nil, err
				}
				for rows.Next() {
					picky := pickyScanner{toItsEnd: i&2 > 0}
					_ = rows.Scan(&picky)
					ns = append(ns, picky.n)
				}
				return ns, rows.Err()
			})
			if err == nil {
				t.Errorf("%v, snapshot %v, to its end %v: %v, and no error", s, src.Snapshot, i&2 > 0, lists)
			}
		}
	}
}

package fanout_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
	"github.com/sqlc-fanout/sqlc-fanout/internal/fanouttest"
	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// A poolTracer is a tracer of a pool's, which does act once when armed.
type poolTracer struct {
	where string
	armed atomic.Bool
	act   func()
}

func (p *poolTracer) at(where string) {
	if p.where == where && p.armed.CompareAndSwap(true, false) {
		p.act()
	}
}

func (p *poolTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (p *poolTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (p *poolTracer) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	p.at("start")
	return ctx
}
func (p *poolTracer) TraceAcquireEnd(context.Context, *pgxpool.Pool, pgxpool.TraceAcquireEndData) {
	p.at("end")
}
func (p *poolTracer) TraceRelease(*pgxpool.Pool, pgxpool.TraceReleaseData) { p.at("release") }

// Nor do the tracers and hooks of the pool end the process that panic, or end the goroutine, where pgxpool calls them in that
// of whoever acquires or releases. The pool loses a place by that, as it does elsewhere.
func TestPoolTracerThatUnwinds(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, where := range []string{"release", "start", "end", "prepare", "ping"} {
		for _, s := range fanouttest.Strategies {
			for i := range 16 {
				snapshot, exits, n, partial := i&1 > 0, i&2 > 0, 1+5*(i>>2&1), i&8 > 0
				if partial && (where != "release" || n == 1) {
					continue
				}
				config, err := pgxpool.ParseConfig(dsn)
				if err != nil {
					t.Fatal(err)
				}
				tracer := &poolTracer{where: where, act: func() { panic("traced") }}
				if exits {
					tracer.act = runtime.Goexit
				}
				config.MaxConns = 2
				opened := make(chan *pgx.Conn, 100)
				config.AfterConnect = func(_ context.Context, conn *pgx.Conn) error { opened <- conn; return nil }
				config.ConnConfig.Tracer = tracer
				config.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { tracer.at("prepare"); return true, nil }
				config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { tracer.at("ping"); return false }
				pool, err := pgxpool.NewWithConfig(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				if err := pool.Ping(t.Context()); err != nil {
					t.Fatal(err)
				}
				src := fanouttest.Raw(pool)
				src.Strategy, src.Snapshot, src.Partial = s, snapshot, partial
				tracer.armed.Store(true)
				done := make(chan error, 1)
				go func() {
					err := errors.New("the caller's goroutine has ended")
					defer func() { done <- err }()
					err = fanouttest.OrPanic(func() error {
						_, err := fanout.Collect(fanouttest.InTime(t), src, fanouttest.Repeated(n, fanouttest.PID)...)
						return err
					})
				}()
				name := fmt.Sprintf("%s, %v, snapshot=%v, exits=%v, partial=%v, %d queries", where, s, snapshot, exits, partial, n)
				select {
				case err := <-done:
					var p *fanout.PanicError
					if errors.As(err, &p) != !exits || exits && (err == nil || !strings.Contains(err.Error(), "Goexit")) || p != nil && p.Value != "traced" {
						t.Errorf("%s: %.300v", name, err)
					}
				case <-time.After(15 * time.Second):
					t.Fatalf("%s: hangs\n%s", name, fanouttest.Stacks())
				}
				for len(opened) > 0 { // the pool cannot be closed: it waits for the place that is lost
					_ = (<-opened).Close(context.Background())
				}
			}
		}
	}
}

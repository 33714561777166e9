package fanout

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

func (p *pipeline) startTrace(r *request) {
	if p.state.tracer == nil || r.traced != nil {
		return
	}
	r.tracing = &tracing{Context: r.ctx}
	r.traceCtx = p.state.tracer.TraceQueryStart(r.tracing, p.conn, pgx.TraceQueryStartData{SQL: r.text.sql, Args: r.args})
	r.traced = p // unless it has panicked
}

// trace tells pgx's tracer that r has ended. If it panics, that is the call's end, and the connection's, but not of what
// the lane has to do. By runtime.Goexit it ends the lane too: so it is told when all that it could keep from being done is.
func (p *pipeline) trace(r *request) {
	if r.traced == nil {
		return
	}
	r.traced = nil
	told := false
	defer func() {
		if !told {
			p.doomed = true
			p.call.fail(unwound(recover()))
		}
	}()
	if r.abandoned {
		r.tracing.afterwards.Store(&handle{call: r.handle.call, state: running})
	}
	p.state.tracer.TraceQueryEnd(r.traceCtx, p.conn, pgx.TraceQueryEndData{CommandTag: r.tag, Err: r.err})
	told = true
}

// A tracing is the ctx that a tracer is given at the start of a statement, and makes its own of, which is to be what it is given
// at the end. A call that it makes with that is refused also if the function does not wait for the statement any more, as it is
// while the function waits: it would be joined to the function's, and wait for the lane that tells the tracer.
type tracing struct {
	context.Context
	afterwards atomic.Pointer[handle] // in use, in place of the function's; nil while that waits
}

func (c *tracing) Value(key any) any {
	v := c.Context.Value(key)
	if h, ok := v.(*handle); ok {
		if inUse := c.afterwards.Load(); inUse != nil && inUse.call == h.call {
			return inUse
		}
	}
	return v
}

// tellDropped is trace for what has been dropped.
func (p *pipeline) tellDropped() {
	if len(p.dropped) == 0 {
		return
	}
	p.exchange.mu.Lock()
	defer p.exchange.mu.Unlock()
	for _, r := range p.dropped {
		p.trace(r)
	}
	p.dropped = nil
}

// untrace has the tracer told of the end of a request that a lane has sent which is lost, and that no other lane will send.
func (r *request) untrace() {
	if r.traced != nil {
		r.traced.trace(r)
	}
}

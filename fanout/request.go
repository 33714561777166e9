package fanout

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A request is what a query function of a Pipelined call waits for: a statement to be sent and its result, or a lane for
// itself. Its fields are guarded by the exchange's mu, but for those that belong to one party: what is asked for does not
// change, and the lane alone touches what it notes for itself.
type request struct {
	handle *handle
	ctx    context.Context // whose end ends the wait; for tracers, too

	// What is asked for: a statement, or with text nil a lane.
	text *text
	args []any

	abandoned bool        // nobody waits for it any more
	spared    bool        // but it is not to be cancelled
	answered  bool        // there will be nothing more
	writing   bool        // a lane is reading its arguments: until then the function must not go on, which may change them
	late      bool        // its own ctx has ended meanwhile
	watched   bool        // the exchange has been told of the end of a ctx, or may yet be
	waiting   bool        // the function waits, for the answer or for more rows
	chunks    []chunk     // rows that have come in
	taken     int         // of these, by the function
	sent      bool        // something of it may have reached the server
	sentAt    time.Time   // for the last time
	firstSent time.Time   // which its span tells
	values    [][]byte    // of the row that is being read: memory that the next request has use for
	err       error       // the answer, with fields and tag
	panicked  *PanicError // instead: an argument's encoder has panicked, or a tracer
	fields    []pgconn.FieldDescription
	tag       pgconn.CommandTag

	// The lane's own notes.
	binds       bool          // it is the first of its function
	cost        time.Duration // expected
	counted     int64         // executions by which that is known
	plain       bool          // nothing travels in front of it: what it takes tells what it costs
	held        time.Duration // waiting for its function to take rows
	described   bool          // sent to be described, not to be run
	schemas     string        // in which names were resolved then
	follows     *request      // under way before it, to prepare its statement
	prologue    *prologue     // that travels in front of it
	arrived     chan struct{} // closed when that has succeeded; nil without it
	pure        bool          // it may share a Sync with others
	apart       bool          // it has, and was skipped
	synced      bool          // a Sync follows it
	guarded     bool          // it relies on another connection's description, if the schemas are the same
	misread     bool          // a column has come in the format of the type that it had before
	distrust    bool          // it must be described on this connection first
	preparing   string        // the name under which it is being prepared
	anew        bool          // that it has had before
	description *pgconn.StatementDescription
	own         *pgconn.StatementDescription // got for this request
	redone      bool                         // after what was prepared had turned out to be out of date
	stale       int                          // names deallocated in front of it
	handedBack  int                          // by lanes that could not send it
	unsent      bool                         // by too many of them
	repeats     int                          // executions that a cancel request for another statement has ended
	traced      *pipeline                    // has told the tracer of it, and not yet of its end
	tracing     *tracing                     // the ctx that the tracer was given at its start
	traceCtx    context.Context              // which the tracer has made of that
	streamed    bool                         // its rows were handed over before the end
	unbounded   bool                         // its rows may pile up

	// Of a request that stands for several of one text, which then have no life of their own on the lane.
	members []*request
	joint   *joint

	group  *request // that this one is a member of
	solo   bool     // it is not to be a member any more
	shared int      // how many others it has shared a statement with
}

// A chunk is a part of a result: rows one after the other. It is in one piece of memory, however many values it has.
type chunk struct {
	rows    int
	data    []byte
	lengths []int32 // of the values; -1 for NULL
}

// chunkSize is how much of a result is collected before the function gets it. A smaller result comes in one piece.
const chunkSize = 64 << 10

// requests are those that nobody has to do with any more. There is one for each statement, and it is the largest thing that
// a statement costs.
var requests = sync.Pool{New: func() any { return new(request) }}

func newRequest(h *handle, ctx context.Context, t *text, args []any) *request {
	r := requests.Get().(*request)
	r.handle, r.ctx, r.text, r.args = h, ctx, t, args
	return r
}

// recycle is called by r's function when it has r's last rows, and knows how it ended. A request that has not gone the usual
// way is left to the garbage collector: others may refer to it.
func (r *request) recycle() {
	if r.abandoned || r.watched || r.streamed || !r.plain && r.group == nil {
		return
	}
	clear(r.values)
	*r = request{chunks: r.chunks[:0], values: r.values}
	requests.Put(r)
}

// untaken is how many chunks the function has not taken yet.
func (r *request) untaken() int { return len(r.chunks) - r.taken }

// take is the next chunk, of which there must be one.
func (r *request) take() chunk {
	c := r.chunks[r.taken]
	r.chunks[r.taken] = chunk{} // for the garbage collector
	if r.taken++; r.taken == len(r.chunks) {
		r.chunks, r.taken = r.chunks[:0], 0
	}
	return c
}

func (c *chunk) add(values [][]byte) {
	c.rows++
	for _, v := range values {
		if v == nil {
			c.lengths = append(c.lengths, -1)
			continue
		}
		c.lengths = append(c.lengths, int32(len(v)))
		c.data = append(c.data, v...)
	}
}

// exact is a copy without spare memory.
func (c *chunk) exact() chunk {
	return chunk{c.rows, append([]byte(nil), c.data...), append([]int32(nil), c.lengths...)}
}

func (c *chunk) reset() { c.rows, c.data, c.lengths = 0, c.data[:0], c.lengths[:0] }

// errUnsent marks an error before anything of a statement was sent, as pgx marks its own.
type errUnsent struct{ error }

func (errUnsent) SafeToRetry() bool { return true }
func (e errUnsent) Unwrap() error   { return e.error }

// ask hands a request to the exchange and waits for the answer, or the first rows.
func (h *handle) ask(r *request) error {
	if err := h.exchange.park(r); err != nil {
		r.answered, r.err = true, err
		return err
	}
	return h.await(r)
}

// nextChunk returns more rows of r, or if there are no more, how it ended.
func (h *handle) nextChunk(r *request) (c chunk, more bool, err error) {
	x := h.exchange
	for {
		x.mu.Lock()
		switch {
		case r.abandoned:
			x.mu.Unlock()
			return chunk{}, false, r.err
		case !r.answered && (x.closed || h.ctx.Err() != nil || r.ctx.Err() != nil):
			// Also where there are rows: a function that is slower than the server would never learn of it otherwise.
			x.forsake(r)
			if h.pipeline.feeding == r {
				h.pipeline.wakeUp()
			}
			x.mu.Unlock()
			return chunk{}, false, r.err
		case r.untaken() > 0:
			c = r.take()
			if h.pipeline.feeding == r {
				h.pipeline.wakeUp()
			}
			x.mu.Unlock()
			return c, true, nil
		case r.answered:
			x.mu.Unlock()
			return chunk{}, false, r.err
		}
		r.waiting = true
		x.mu.Unlock()
		_ = h.await(r)
	}
}

// await parks until the request is answered or has rows. When ctx ends, or the call's, the function goes on at once, and
// what becomes of the statement is the lane's business. The exchange watches only the ctx of its own call: a joined call's
// may end before that.
func (h *handle) await(r *request) error {
	x := h.exchange
	var stops [2]func() bool
	if r.ctx.Done() != h.ctx.Done() {
		stops[0], r.watched = x.abandonAfter(r.ctx, r), true
	}
	if h.call != x.call {
		stops[1], r.watched = x.abandonAfter(h.ctx.Context, r), true
	}
	h.runner.park()
	for _, stop := range stops {
		if stop != nil && stop() {
			x.callbacks.Done()
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if r.panicked != nil {
		panic(r.panicked)
	}
	if r.answered && r.untaken() == 0 || r.abandoned {
		return r.err
	}
	return nil
}

// cancelled is the error of a statement whose ctx has ended.
func cancelled(ctx context.Context, sent bool) error {
	if !sent {
		return errUnsent{fmt.Errorf("fanout: the statement was not sent: %w", ctx.Err())}
	}
	return fmt.Errorf("fanout: the statement was cancelled: %w", ctx.Err())
}

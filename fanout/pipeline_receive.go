package fanout

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// receive reads the result of the statement that is executing.
func (p *pipeline) receive() {
	x := p.exchange
	x.mu.Lock()
	if len(p.inflight) == 0 {
		x.mu.Unlock()
		return
	}
	r := p.inflight[0]
	p.interrupt(r) // if nobody wants it any more
	x.mu.Unlock()

	err, lost := p.read(r)
	now := time.Now()
	if lost {
		p.lost(err)
		return
	}
	if refused := refusalOf(err); refused != nil {
		p.refuse(refused)
		return
	}
	x.mu.Lock()
	if p.haunted {
		p.deadline = now.Add(cancelGrace) // the server answers; who knows how long this one has taken
	}
	p.inflight = p.inflight[1:] // from now on nobody sends a cancel request for it
	p.since = now.Sub(epoch)
	x.mu.Unlock()
	if p.stopCancelling() {
		p.haunted = true
	}
	aborted := p.spoiled // before r
	p.learn(r, err, now)
	p.last, p.busy = now, 0
	repeat := p.repeat(r, err, aborted)
	x.mu.Lock()
	if repeat && r.wanted() && !x.closed {
		p.again = append(p.again, r)
		x.mu.Unlock()
		p.clearResult()
		return
	}
	for m := range r.each {
		if repeat && m.waiting {
			x.forsake(m) // the call has ended meanwhile
		}
	}
	if r.members != nil && (err != nil || r.described || p.outdated(r)) && !x.closed {
		p.leaveAlone(r.members)
		x.mu.Unlock()
		p.clearResult()
		return
	}
	x.mu.Unlock()
	p.answer(r, err)
}

// refuse ends a lane whose transaction could not begin, or be brought back.
func (p *pipeline) refuse(e *prologueError) {
	for _, r := range p.inflight[1:] { // the first has been read
		if err, lost := p.read(r); lost {
			e.err = cmp.Or(e.err, err)
			break
		}
	}
	p.silence()
	p.ordinary()
	e.err = e.prologue.conclude(nil, e.err) // which may have to ask the server: the connection is free for that now
	p.fail(e.err)
}

// answer tells r's function how it went.
func (p *pipeline) answer(r *request, err error) {
	x := p.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case r.members != nil && err == nil && !r.described: // which it is, if the call has ended meanwhile
		p.distribute(r)
	case r.members == nil && !r.abandoned:
		r.tag = p.tag
		if p.rows.rows > 0 && r.sent {
			r.chunks = append(r.chunks, p.rows.exact())
		}
	}
	p.clearResult()
	for m := range r.each {
		m.answered, m.writing = true, false
		if !m.abandoned {
			m.err = err
		}
		p.driver.answer(m)
	}
	for m := range r.each {
		p.trace(m)
	}
}

// clearResult empties what a result is read into: the next one that is answered is to have nothing of it.
func (p *pipeline) clearResult() {
	p.rows.reset()
	p.tag = pgconn.CommandTag{}
}

// A prologueError is the failure of what precedes a statement: then nothing that follows on the connection counts.
type prologueError struct {
	prologue *prologue
	err      error
}

func (e *prologueError) Error() string { return e.err.Error() }
func (e *prologueError) Unwrap() error { return e.err }

// refusalOf is the prologueError that err is, or nil.
func refusalOf(err error) (refused *prologueError) {
	if err != nil {
		errors.As(err, &refused)
	}
	return refused
}

// read reads what the server says to r, up to its Sync if it has one. lost says that err is the end of the connection.
func (p *pipeline) read(r *request) (err error, lost bool) {
	if !p.probed.IsZero() {
		if err := p.readProbe(); err != nil {
			return err, true
		}
		// Functions that have run meanwhile may have kept the lane from seeing the answer.
		now, sure := time.Now(), p.busy < costNoise/4
		p.call.shared.trip.observe(now.Sub(p.probed), sure)
		p.probed = time.Time{}
		if sure {
			p.measured = now
		}
	}
	if p.aborted {
		p.aborted = !r.synced
		return errSkipped, false
	}
	err = p.readGroup(r)
	if !r.synced && (err == nil || errors.As(err, new(misread))) { // then the server goes on
		return err, false
	}
	p.aborted = !r.synced
	for {
		if err != nil && !isServerError(err) && p.conn.IsClosed() {
			return err, true
		}
		results, syncErr := p.pipe.GetResults()
		switch results.(type) {
		case *pgconn.PipelineSync:
			return err, false
		case nil:
			if syncErr == nil {
				return cmp.Or(err, errDesync), true
			}
			if !isServerError(syncErr) {
				return cmp.Or(err, syncErr), true
			}
			// A constraint that is checked at the end, or more words of a server that ends the connection.
			err = cmp.Or(err, syncErr)
		}
	}
}

// readProbe reads up to the Sync of the empty round trip that went ahead. What the server says there instead is not r's: if
// the connection goes on, so does the lane.
func (p *pipeline) readProbe() (err error) {
	for {
		results, syncErr := p.pipe.GetResults()
		if _, ok := results.(*pgconn.PipelineSync); ok {
			return nil
		}
		if syncErr == nil {
			return cmp.Or(err, errDesync)
		}
		if err = cmp.Or(err, syncErr); !isServerError(syncErr) || p.conn.IsClosed() {
			return err
		}
	}
}

// errSkipped is of a statement that the server has not run because one before it, with which it shares a Sync, has failed.
var errSkipped = errors.New("fanout: the statement was skipped")

// errNoRow is of a statement of the package's own that always has a row.
var errNoRow = errors.New("fanout: the server has answered without a row")

// errDesync cannot be: it would be a mistake in the package.
var errDesync = errors.New("fanout: results out of step with requests")

func isServerError(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr)
}

// readGroup reads r's results, in the order in which write has asked for them.
func (p *pipeline) readGroup(r *request) error {
	for range r.stale {
		if _, err := next[*pgconn.CloseComplete](p.pipe); err != nil {
			if r.prologue != nil { // which has not been read
				err = &prologueError{r.prologue, err}
			}
			return err
		}
	}
	if r.prologue != nil {
		ahead := r.prologue
		rows, err := ahead.read(p.pipe)
		if err == nil {
			err = ahead.conclude(rows, nil)
		}
		if err != nil {
			return &prologueError{ahead, err}
		}
		close(r.arrived)
	}
	if r.guarded || r.described {
		row, err := readFirst(p.pipe)
		if err != nil {
			return err
		}
		if r.described && len(row) == 0 {
			return errNoRow
		} else if r.described {
			r.schemas = row[0]
		} else if r.preparing == "" {
			r.guarded = false // what fails from here on is the statement itself
		}
	}
	if r.described || r.preparing != "" {
		description, err := next[*pgconn.StatementDescription](p.pipe)
		if err != nil {
			return err
		}
		r.guarded = false // what fails from here on is the statement itself
		if r.described {
			description.Name, description.SQL = r.preparing, r.text.sql
			r.description = description
			return nil
		}
	}
	reader, err := next[*pgconn.ResultReader](p.pipe)
	if err != nil {
		return err
	}
	return p.readRows(r, reader)
}

// readFirst reads a result to the end and returns the values of its first row.
func readFirst(from *pgconn.Pipeline) (row []string, err error) {
	reader, err := next[*pgconn.ResultReader](from)
	if err != nil {
		return nil, err
	}
	for reader.NextRow() {
		values, fields := reader.Values(), reader.FieldDescriptions()
		if len(values) != len(fields) {
			return nil, errValues(len(fields), len(values))
		}
		if row == nil {
			row = texts(values)
		}
	}
	_, err = reader.Close()
	return row, err
}

// readRows reads the rows of r's statement. A long result is handed over piece by piece; not yet, if it may turn out that
// a cancel request for another one has hit it: then it is to be sent again.
func (p *pipeline) readRows(r *request, reader *pgconn.ResultReader) (err error) {
	if r.members != nil {
		return p.readJoint(r, reader)
	}
	r.fields = kept(p.state.fields, r.text.sql, reader.FieldDescriptions())
	unreadable := p.confirm(r)
	var wrong error
	for reader.NextRow() {
		values := reader.Values()
		wrong = cmp.Or(wrong, unreadable)
		if len(values) != len(r.fields) {
			wrong = errValues(len(r.fields), len(values))
		}
		if wrong != nil {
			continue
		}
		p.rows.add(values)
		if size := len(p.rows.data) + 4*len(p.rows.lengths); size >= chunkSize && (!p.haunted || size >= hauntedSize) {
			p.hand(r)
		}
	}
	p.tag, err = reader.Close()
	return cmp.Or(err, wrong)
}

// A misread is why a result cannot be read, of which the server knows nothing.
type misread string

func (e misread) Error() string { return string(e) }

// errValues is of a row that is not what the server has said of the columns: it would shift those behind it. pgx, which
// words it so, refuses such a row, too.
func errValues(fields, values int) error {
	return misread(fmt.Sprintf("number of field descriptions must equal number of values, got %d and %d", fields, values))
}

// errFormat is of a column that has been asked for in the binary format of another type, which it had when another connection
// described the statement. Of its own type this connection knows nothing: it would take the bytes as they are.
const errFormat misread = "fanout: a column has another type than when the statement was described"

// kept is a copy of what describes a result of sql, its columns or their formats, that stays as it is beyond the next one. Mostly
// it is that of the execution before.
func kept[T comparable](before map[string][]T, sql string, now []T) []T {
	if kept := before[sql]; slices.Equal(kept, now) {
		return kept
	}
	kept := slices.Clone(now)
	if len(before) < maxDescriptions {
		before[sql] = kept
	}
	return kept
}

// confirm corrects what another connection has told of r's columns by what the server says: they may have been renamed, or
// have got other types, before this one prepared the statement. Later executions do not ask the server. It says so if this
// one's rows cannot be read, or those of one that was sent behind it, with formats as old.
func (p *pipeline) confirm(r *request) (unreadable error) {
	d := r.description
	if r.follows != nil && r.follows.misread {
		r.misread = true
		return errFormat
	}
	if r.plain || d == nil || slices.EqualFunc(r.fields, d.Fields, sameButFormat) {
		return nil
	}
	p.state.types.Lock()
	defer p.state.types.Unlock()
	for i, field := range r.fields {
		if i < len(d.Fields) && field.DataTypeOID == d.Fields[i].DataTypeOID || field.Format == pgx.TextFormatCode {
			continue
		}
		if _, known := p.conn.TypeMap().TypeForOID(field.DataTypeOID); !known {
			r.misread, unreadable = true, errFormat
		}
	}
	fields := slices.Clone(r.fields)
	for i := range fields {
		fields[i].Format = 0
	}
	if known := r.text.description.Load(); known != nil && slices.Equal(known.fields, d.Fields) {
		r.text.description.CompareAndSwap(known, &sourceDescription{known.params, fields, known.schemas, known.place, known.found})
	}
	d.Fields = fields
	return unreadable
}

func sameButFormat(a, b pgconn.FieldDescription) bool {
	a.Format = b.Format
	return a == b
}

// hand hands the rows read so far to r's function, and waits until it has taken those before: a function that is slower
// than the server does not pile up rows in memory. But others that have sent something behind r do not wait for it longer
// than stallBound; then its rows do pile up.
func (p *pipeline) hand(r *request) {
	x := p.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	r.streamed = true
	if r.abandoned {
		p.rows.reset()
		return
	}
	full := p.rows
	p.rows = chunk{data: make([]byte, 0, chunkSize+chunkSize/4), lengths: make([]int32, 0, len(full.lengths))}
	r.chunks = append(r.chunks, full)
	d := &driver{exchange: x} // not the lane's, which has the rest to read
	d.answer(r)
	x.goDrive(d)
	began := time.Now()
	defer func() { r.held += time.Since(began) }()
	var patience <-chan time.Time // from when there are others, whatever comes meanwhile
	for r.untaken() > 1 && !r.abandoned && !r.unbounded {
		p.feeding, p.idle = r, true
		others := len(p.inflight) > 1 || len(p.again)+len(p.own)+len(x.ready) > 0
		x.mu.Unlock()
		if others && patience == nil {
			patience = time.After(stallBound)
		}
		select {
		case <-p.wake:
		case <-patience:
			x.mu.Lock()
			r.unbounded = true
			x.mu.Unlock()
		case <-p.call.ctx.Done():
			x.mu.Lock()
			if !r.abandoned {
				x.forsake(r)
			}
			x.mu.Unlock()
		}
		x.mu.Lock()
		p.feeding = nil
		if !p.idle {
			select {
			case <-p.wake:
			default:
			}
		}
		p.idle = false
	}
}

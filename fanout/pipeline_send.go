package fanout

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	schemasSQL = "select pg_catalog.current_schemas(true)::pg_catalog.text"

	// guardSQL fails where names are resolved in other schemas than $1.
	guardSQL = "select 1 operator(pg_catalog./) (pg_catalog.current_schemas(true)::pg_catalog.text operator(pg_catalog.=) $1)::int"

	// guardCallSQL is guardSQL for a statement that may call a function with a parameter alone. It also fails where one of
	// the types $2, which the parameters have, has the name of a function of this type: if f is a type of strings, f($1) is
	// $1::f to a server that is not told the type of $1; if it is told that it is an f, it calls a function f.
	guardCallSQL = `select 1 operator(pg_catalog./) (pg_catalog.current_schemas(true)::pg_catalog.text operator(pg_catalog.=) $1 and not exists (
		select from pg_catalog.pg_proc p
		join pg_catalog.pg_type t on t.typname operator(pg_catalog.=) p.proname
			and t.oid operator(pg_catalog.=) any (array[p.proargtypes[0], p.provariadic])
		where t.oid operator(pg_catalog.=) any ($2::pg_catalog.oid[])
			and p.pronargs operator(pg_catalog.-) p.pronargdefaults operator(pg_catalog.<=) 1::pg_catalog.int2))::int`

	// worthSync is from how many statements on a Sync in between pays, which costs about as much as three of them.
	worthSync = 16
)

// send sends the batch in one go. What cannot be sent is answered at once.
func (p *pipeline) send(batch []*request) {
	if len(batch) == 0 {
		return
	}
	x := p.exchange
	var ahead *prologue
	if p.transaction != nil && len(p.inflight) == 0 {
		p.call.takes(p.transaction)
		var err error
		if ahead, err = p.transaction.prologue(p.call.ctx); err != nil {
			for _, r := range batch {
				p.answer(r, err)
			}
			return
		}
	}
	if p.pipe == nil {
		p.pipe = p.conn.PgConn().StartPipeline(context.Background())
	}
	now := time.Now()
	p.probing = len(p.inflight) == 0 && p.call.shared.trip.due()
	x.mu.Lock()
	batch = slices.DeleteFunc(batch, func(r *request) bool {
		wanted := p.drop(r)
		for m := range r.each {
			m.writing = wanted
		}
		return !wanted
	})
	x.mu.Unlock()
	p.sending, p.unsynced = p.sending[:0], nil
	p.most = mostTogether(batch)
	p.batch = batch
	defer func() {
		if p.batch != nil && ahead != nil { // an encoder or a tracer has ended the goroutine
			_ = ahead.conclude(nil, errNotSent)
		}
	}()
	for _, r := range batch {
		if err := p.write(r, ahead); err != nil {
			p.answer(r, err)
			continue
		}
		ahead = nil
		r.sentAt = now
		for m := range r.each {
			if m.firstSent.IsZero() {
				m.firstSent = now
			}
		}
		p.sending = append(p.sending, r)
	}
	p.batch = nil
	p.sync()
	if len(p.sending) == 0 && len(p.inflight) == 0 {
		p.ordinary() // before the exporter may join on this lane's behalf
	}
	if ahead != nil {
		_ = ahead.conclude(nil, errNotSent)
	}
	if len(p.sending) == 0 {
		return
	}
	x.mu.Lock()
	if len(p.inflight) == 0 {
		p.since = time.Since(epoch)
		p.trips++
	}
	p.inflight, p.picked = append(p.inflight, p.sending...), 0
	d := &driver{exchange: x} // not the lane's, which has results to wait for
	for _, sent := range p.sending {
		for r := range sent.each {
			r.sent, r.writing = true, false
			x.dismiss(r, d)
		}
	}
	x.goDrive(d)
	x.mu.Unlock()
	if err := p.pipe.Flush(); err != nil {
		p.unprologue(err)
		if pgconn.SafeToRetry(err) {
			p.handBack(len(p.inflight) - len(p.sending))
		}
		p.lost(err)
	}
	p.last, p.busy = time.Now(), 0 // what this has taken is not what the next result takes
}

// mostTogether is how much work of the batch may share a Sync, which is where the server sends what it has. With three
// quarters of a batch behind the first, functions go on with their rows while the server is at work on the rest; but it takes
// as long to send as for a few statements, which a short batch would not make up for.
func mostTogether(batch []*request) time.Duration {
	most := laneWork / 2
	if len(batch) < worthSync {
		return most
	}
	var work time.Duration
	for _, r := range batch {
		work += r.cost
	}
	return min(most, work*3/4)
}

// write puts one request's messages into the connection's buffer: what has to precede it, itself and,
// unless others of its text may share it, a Sync.
func (p *pipeline) write(r *request, ahead *prologue) (err error) {
	defer func() {
		if v := recover(); v != nil { // of an argument's encoder, or a tracer
			panicked := &PanicError{Value: v, Stack: debug.Stack()}
			for m := range r.each {
				m.panicked = panicked
			}
			err = errors.New("fanout: an argument's encoder or a tracer panicked")
		}
	}()
	s := p.state
	for m := range r.each {
		p.startTrace(m)
	}
	var description *pgconn.StatementDescription
	var guard string
	unnamed := false
	r.described, r.guarded, r.anew, r.synced, r.preparing, r.follows, r.held = false, false, false, false, "", nil, 0
	if s.mode == pgx.QueryExecModeDescribeExec {
		description, r.described = r.own, r.own == nil
	} else if s.mode != pgx.QueryExecModeExec {
		description = s.descriptions[r.text.sql]
		if description == nil && r.own != nil && r.own.SQL != "" {
			description = r.own // where the connection's memory is full
		}
		if description == nil {
			if known := p.toldOf(r, r.text); known == nil {
				r.described = true
			} else {
				guard, r.guarded = known.schemas, true
				description = &pgconn.StatementDescription{SQL: r.text.sql, ParamOIDs: known.params, Fields: known.fields}
			}
		} else {
			if p.call.tx != nil && p.call.shared.hooks && description.Name != "" {
				done, underWay := p.prepared[r.text.sql]
				r.anew, unnamed = !underWay, underWay && !done // whose preparation may fail
			}
			r.follows = p.preparing(r.text.sql)
			if known := r.text.description.Load(); r.follows != nil && description.Name == "" && known != nil {
				guard, r.guarded = known.schemas, true
			}
		}
	}
	b := &p.builder
	values, formats, results := [][]byte(nil), []int16(nil), []int16(nil)
	if r.members != nil {
		if !r.described && !p.buildJoint(r) {
			return errNobody
		}
		values, formats, results = p.arrays.values, p.arrays.formats, p.arrays.results
	} else if !r.described {
		err := p.build(description, r.args)
		if err != nil && (r.guarded || p.unfit(r, description)) {
			// They may fit the types that the statement has here, or by now.
			r.described, r.guarded, r.distrust, description = true, false, true, nil
		} else if err != nil {
			return err
		}
		values, formats, results = b.ParamValues, b.ParamFormats, b.ResultFormats
	}
	shares := r.pure && ahead == nil && !r.described && !r.guarded && len(s.stale) == 0 && p.preparing(r.text.sql) == nil
	if !shares || p.together > p.most || p.unsynced != nil && p.unsynced.text != r.text {
		p.sync()
	}
	if p.probing { // only now: what cannot be written must leave nothing in the buffer
		p.pipe.SendPipelineSync()
		p.probing, p.probed = false, time.Now()
	}
	// pgconn needs the formats until the result is read, the builder only until the next statement.
	results = kept(p.state.formats, r.text.sql, results)
	r.description = description
	r.prologue, r.arrived = ahead, nil
	if ahead != nil {
		r.arrived = make(chan struct{})
	}
	r.plain = ahead == nil && !r.described && !r.guarded && !r.anew && !unnamed
	if r.anew {
		// The pool's owner may have deallocated it since, by a hook; to be told so would abort the transaction. To deallocate
		// what is not there is no error.
		s.stale = append(s.stale, description.Name)
		r.preparing = description.Name
		p.isPrepared(r.text.sql, false)
	}
	r.stale = len(s.stale)
	for _, name := range s.stale {
		p.pipe.SendDeallocate(name)
	}
	s.stale = nil
	if ahead != nil {
		for _, sql := range ahead.statements {
			p.pipe.SendQueryParams(sql, nil, nil, nil, nil)
		}
		p.pipe.SendFlushRequest() // as in travel
	}
	var types []uint32 // of the parameters, as far as they are told the server
	switch {
	case r.guarded:
		types = description.ParamOIDs
	case r.joint != nil:
		types = r.joint.arrays
	}
	if r.described || r.guarded {
		r.preparing = s.newName(r.text.sql, types)
	}
	switch {
	case r.described:
		p.pipe.SendQueryParams(schemasSQL, nil, nil, nil, nil)
		p.pipe.SendPrepare(r.preparing, r.text.sql, types)
	case description == nil:
		p.pipe.SendQueryParams(r.text.sql, values, nil, formats, results)
	case r.guarded || r.anew:
		switch {
		case r.guarded && r.preparing != "" && callsWithParameter(r.text.sql):
			p.pipe.SendQueryParams(guardCallSQL, [][]byte{[]byte(guard), textArray(decimals(types))}, nil, nil, nil)
		case r.guarded:
			p.pipe.SendQueryParams(guardSQL, [][]byte{[]byte(guard)}, nil, nil, nil)
		}
		if r.preparing == "" {
			p.pipe.SendQueryParams(r.text.sql, values, description.ParamOIDs, formats, results)
			break
		}
		p.pipe.SendPrepare(r.preparing, r.text.sql, description.ParamOIDs)
		p.pipe.SendQueryPrepared(r.preparing, values, formats, results)
	case description.Name == "" || unnamed:
		p.pipe.SendQueryParams(r.text.sql, values, description.ParamOIDs, formats, results)
	case ahead != nil || r.stale > 0 || r.follows != nil || p.unsynced != nil:
		// Not SendQueryStatement, which leaves a description in pgconn's queue if what precedes it fails.
		p.pipe.SendQueryPrepared(description.Name, values, formats, results)
	default:
		p.pipe.SendQueryStatement(description, values, formats, results)
	}
	if r.guarded {
		description.Name = r.preparing
		s.keep(r.text.sql, description) // as it will be, if the guard does not object
	}
	p.unsynced = r
	p.together += r.cost
	if !shares {
		p.sync()
	}
	return nil
}

// errNobody is why a statement is not sent whose executions are all sent by themselves.
var errNobody = errors.New("fanout: nobody waits for the statement")

// sync ends the transaction of what has been written.
func (p *pipeline) sync() {
	if p.unsynced == nil {
		return
	}
	p.pipe.SendPipelineSync()
	p.unsynced.synced = true
	p.unsynced, p.together = nil, 0
}

// build encodes the arguments. It lets go of the type map also if an encoder panics.
func (p *pipeline) build(description *pgconn.StatementDescription, args []any) error {
	p.state.types.Lock()
	defer p.state.types.Unlock()
	return build(&p.builder, p.conn, description, args)
}

// unfit reports whether description, which r's arguments do not fit, is what the connection has remembered of the statement
// from before r: the tables may have changed since, and it is to be described anew. Not in a transaction of the caller's,
// which it would cost if that failed; there the next one describes it, if nobody else relies on it.
func (p *pipeline) unfit(r *request, description *pgconn.StatementDescription) bool {
	if description == nil || p.state.descriptions[r.text.sql] != description || r.redone {
		return false
	}
	if p.call.tx != nil {
		if len(p.inflight)+len(p.sending)+len(p.again) == 0 {
			p.state.drop(r.text.sql)
		}
		return false
	}
	p.state.drop(r.text.sql)
	r.text.description.Store(nil)
	r.redone = true
	return true
}

// isPrepared notes that this call, which is in a transaction of the caller's, has sql prepared, or is about to.
func (p *pipeline) isPrepared(sql string, done bool) {
	if p.prepared == nil {
		p.prepared = map[string]bool{}
	}
	p.prepared[sql] = done
}

// preparing is the request under way that prepares sql; nil if there is none.
func (p *pipeline) preparing(sql string) *request {
	for _, sent := range [][]*request{p.inflight, p.sending} {
		for _, r := range sent {
			if r.guarded && r.text.sql == sql {
				return r
			}
		}
	}
	return nil
}

package fanout

import (
	"time"

	"github.com/jackc/pgx/v5"
)

// learn keeps what the result tells of the statement, and of the way to the server.
func (p *pipeline) learn(r *request, err error, now time.Time) {
	x := p.exchange
	with := byItself
	switch {
	case !p.state.ran:
		with = fresh
	case !r.plain:
		with = withParse
	}
	p.state.ran = true
	p.forget(r, err)
	r.own = nil
	way := &x.call.shared.trip
	trip := way.time()
	measured := !p.measured.IsZero()
	total := now.Sub(r.sentAt)
	took := total - trip
	switch {
	case measured:
		took = now.Sub(p.measured)
		p.measured = time.Time{}
	case total < trip:
		way.observe(total, true) // it cannot take longer
		measured = true
	case p.last.After(r.sentAt): // others were under way before it, or it took some time to send it
		took = min(took, now.Sub(p.last))
	}
	took = max(0, took-r.held-p.busy)
	if err != nil {
		p.ran, p.runTook, p.measuring = 0, 0, false
		if queryCanceled(err) {
			p.miss()
			if expected, _ := r.text.expected(); r.members == nil && took > max(expected, time.Millisecond) {
				r.text.observe(took, 1) // it would have taken even longer
			}
		}
		if p.transaction != nil {
			p.spoiled = true
		}
		return
	}
	if r.described {
		p.miss()
		s := p.state
		r.own = r.description
		if s.mode == pgx.QueryExecModeDescribeExec {
			return // what is remembered is not to be used
		}
		s.keep(r.text.sql, r.description)
		if p.call.tx == nil { // what a transaction of the caller's has changed, others do not see
			r.text.description.Store(&sourceDescription{r.description.ParamOIDs, r.description.Fields, r.schemas, p.state.place, time.Now()})
		} else {
			p.isPrepared(r.text.sql, true)
		}
		return
	}
	if r.anew {
		p.isPrepared(r.text.sql, true)
	}
	r.learnBytes(len(p.rows.data))
	if r.unbounded {
		p.miss()
		return
	}
	base, executions := r.parts()
	noise := 2*time.Millisecond + 2*trip
	if with == fresh {
		noise += freshNoise
	}
	if with != byItself && took < noise {
		r.text.atMost(max(0, took-base)/time.Duration(executions), executions, with)
		p.miss()
		return
	}
	// The server answers those that share a Sync all at once.
	p.ran++
	p.runTook += took
	p.measuring = p.measuring || measured
	if !r.synced {
		return
	}
	n := p.ran
	took = p.runTook
	p.ran, p.runTook = 0, 0
	measured, p.measuring = p.measuring, false
	if r.members == nil {
		executions = n
	}
	each := max(0, took-base) / time.Duration(executions)
	if !measured && r.counted > 0 && farther(took/time.Duration(n), r.cost) {
		way.doubt(r.text, each, executions)
		p.miss()
		return
	}
	if p.call.auto {
		p.work += time.Duration(p.trips) * trip
		p.trips = 0
		p.call.shared.turns.learn(&p.call.turn, &p.work, r.text, base, took, executions)
	}
	if r.members != nil {
		r.learnJoint(took, each)
		return
	}
	r.text.observe(each, executions)
}

// miss notes, where turns are taken, that a part of the call's work is not known.
func (p *pipeline) miss() {
	if p.call.auto {
		p.call.shared.turns.miss(&p.call.turn)
	}
}

// parts is how many executions r's statement is of, and what it takes besides them.
func (r *request) parts() (base time.Duration, executions int) {
	if r.members != nil {
		return jointBase, len(r.members)
	}
	return 0, 1
}

// learnBytes keeps how long the result was, of n bytes unless it was handed over piece by piece.
func (r *request) learnBytes(n int) {
	switch {
	case r.members != nil:
		r.members[0].text.observeBytes(n / len(r.members))
	case r.streamed:
		r.text.observeBytes(2 * jointBytes)
	default:
		r.text.observeBytes(n)
	}
}

// forget drops descriptions that may be out of date by err, or are unfit for this connection.
func (p *pipeline) forget(r *request, err error) {
	if !isServerError(err) {
		return
	}
	s := p.state
	if r.anew {
		delete(p.prepared, r.text.sql)
		s.drop(r.text.sql) // what it has been prepared as may not be what is remembered
	}
	if r.guarded {
		if s.descriptions[r.text.sql] == r.description {
			delete(s.descriptions, r.text.sql)
		}
		return
	}
	if mayBeOutOfDate(err) {
		if s.descriptions[r.text.sql] == r.description {
			s.forget(r.text.sql, err)
		}
		r.text.description.Store(nil)
	}
}

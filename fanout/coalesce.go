package fanout

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// A joint is what a Source knows of coalescing the executions of a text: the statement that takes the place of several.
//
// It is known after two looks at it: by the text (see shape), and by the catalog (see proof). Catalogs change, so the second
// is taken again after a while.
type joint struct {
	pure       bool   // the text does nothing but read
	text       *text  // the rewritten statement; nil: the text is not to be coalesced
	prefix     string // of the columns that its parameters are
	ordered    bool   // by columns of the original that have the names of then
	parameters []parameter
	arrays     []uint32           // types of the rewritten statement's parameters
	original   *sourceDescription // for which this holds
	found      time.Time
}

const (
	// jointLasts is how long a proof is relied on: for so long a function that has been made volatile meanwhile, or a
	// policy or a view that calls one, may go unnoticed. The doc of Coalesced names it.
	jointLasts = time.Minute

	// proofPatience is how long a lane waits for a proof.
	proofPatience = cancelGrace

	// jointMost is how many executions one statement stands for, at most.
	jointMost = 4096

	// jointBytes is how long the result of an execution may be, on average, for it to be coalesced: the rows of all are in
	// memory at once.
	jointBytes = 64 << 10

	// jointArguments is how many bytes of arguments are enough for one statement: there is no more to be gained, everything
	// is in memory at once, and the server takes no message of a gigabyte. One execution may have no more than that.
	jointArguments = 16 << 20

	// maxRenamed is how often a text's columns may be found to be renamed, by all connections, before that is found to be
	// wrong.
	maxRenamed = 100

	// jointWork is the least work that is worth being divided among statements.
	jointWork = time.Millisecond

	// memberWork is about what a query function takes to go on with an answer, until it asks again or returns.
	memberWork = 4 * time.Microsecond

	// jointBase is what a statement costs the server besides its executions.
	jointBase = 50 * time.Microsecond
)

// jointFor returns how r can be coalesced; nil if it cannot, or if that is not known.
func (p *pipeline) jointFor(r *request) *joint {
	if !p.mayJoin(r) {
		return nil
	}
	j := r.text.provenJoint(p.state.place)
	if j == nil || j.text == nil || r.text.bulky() || r.text.onTrial() {
		return nil
	}
	// The proof holds for the types that the statement had when it was described. Where names are resolved in other
	// schemas it may have others.
	d := p.state.descriptions[r.text.sql]
	if d == nil || !slices.Equal(d.ParamOIDs, j.original.params) || !slices.EqualFunc(d.Fields, j.original.fields, sameType) {
		return nil
	}
	if j.ordered && !slices.EqualFunc(d.Fields, j.original.fields, sameName) {
		r.text.rename()
		return nil
	}
	return j
}

// mayJoin reports whether r is of a kind that can be coalesced.
func (p *pipeline) mayJoin(r *request) bool {
	return r.handle.call.coalesced && !r.solo && p.provable(r)
}

// provable reports whether it is of use to know whether r only reads. What a transaction of the caller's has changed in
// the catalog would be its affair alone.
func (p *pipeline) provable(r *request) bool {
	return p.call.tx == nil && len(r.args) > 0 && canTravel(p.conn, r.text.sql, r.args)
}

func sameType(a, b pgconn.FieldDescription) bool { return a.DataTypeOID == b.DataTypeOID }
func sameName(a, b pgconn.FieldDescription) bool { return a.Name == b.Name }

// join makes one request of r and of the others that wait for the same statement: of those that another lane could take, at
// most as many as may be expected to take no longer than d. It is called with mu held, and r still in its queue.
func (p *pipeline) join(r *request, j *joint, d time.Duration) *request {
	x := p.exchange
	cost, counted := j.expected(r.text)
	var members []*request
	taken := func(q *request) bool {
		if q.text != r.text || len(members) >= jointMost || q.abandoned || !p.mayJoin(q) {
			return false
		}
		members = append(members, q)
		return true
	}
	p.own = slices.DeleteFunc(p.own, taken)
	spent := jointBase + time.Duration(len(members))*cost
	x.ready = slices.DeleteFunc(x.ready, func(q *request) bool {
		// d is a part of all that waits, in which q has counted for what was expected when it was handed in.
		each := max(cost, q.cost)
		if len(members) > 0 && spent+each > d || !taken(q) {
			return false
		}
		spent += each
		x.unready(q)
		return true
	})
	for _, q := range members {
		p.bind(q)
	}
	if len(members) == 1 {
		return members[0]
	}
	g := &request{text: j.text, joint: j, members: members, counted: counted}
	g.cost = jointBase + time.Duration(len(members))*cost
	for _, m := range members {
		m.group = g
	}
	return g
}

// each yields the requests of query functions that r stands for: itself, mostly.
func (r *request) each(yield func(*request) bool) {
	if r.members == nil {
		yield(r)
		return
	}
	for _, m := range r.members {
		if !yield(m) {
			return
		}
	}
}

// wanted reports whether anybody still waits for r.
func (r *request) wanted() bool {
	for m := range r.each {
		if !m.abandoned {
			return true
		}
	}
	return false
}

// unproven returns the text of the request that is next, if the lane should find out now whether it can be coalesced. It
// is called with mu held.
func (p *pipeline) unproven() *text {
	x := p.exchange
	if len(p.inflight) > 0 || p.doomed || p.spoiled || p.unable || p.call.shared.catalogIsLate() {
		return nil
	}
	queue := p.own
	if len(queue) == 0 {
		queue = x.ready
	}
	if len(queue) < 2 || !p.provable(queue[0]) || p.transaction != nil && !queue[0].handle.call.coalesced {
		return nil
	}
	t := queue[0].text
	if p.state.descriptions[t.sql] == nil || t.joint.Load().fresh() {
		return nil
	}
	if !slices.ContainsFunc(queue[1:], func(r *request) bool { return r.text == t }) {
		return nil
	}
	if !p.link.beside.TryLock() {
		return nil // another lane begins the transaction
	}
	defer p.link.beside.Unlock()
	if p.link.status() == 'E' || t.proving.Swap(true) { // the next statement brings the transaction back
		return nil
	}
	return t
}

// prove finds out whether t can be coalesced: by its text, and in a round trip by the catalog. The connection is at rest.
func (p *pipeline) prove(t *text) {
	defer t.proving.Store(false)
	d := p.state.descriptions[t.sql]
	j := &joint{found: time.Now(), original: &sourceDescription{params: d.ParamOIDs, fields: d.Fields, place: p.state.place}}
	s := shapeOf(t.sql)
	if s == nil || s.highest != len(d.ParamOIDs) { // which would mean that the server reads it differently
		t.joint.Store(j)
		return
	}
	rows, late, err := p.askProof(s.proofArgs(j.original.params))
	var found proof
	if err == nil && len(rows) == 1 {
		found, err = readProof(texts(rows[0]))
	}
	switch {
	case late && isServerError(err) || queryCanceled(err) && !p.haunted && p.call.ctx.Err() == nil: // a statement_timeout is shorter
		// It would not answer the next one in time either, whatever that asks about.
		p.call.shared.catalogLate.Store(int64(time.Since(epoch) + jointLasts))
	case err != nil && !tells(err):
		p.unable = true // another lane may ask
		return
	case err != nil, !found.pure:
	case found.parameters == nil:
		j.pure = true
	default:
		j.pure = true
		j.parameters = found.parameters
		for _, parameter := range found.parameters {
			j.arrays = append(j.arrays, parameter.array)
		}
		j.prefix, j.ordered = s.prefix, s.ordering.positions(j.original.fields) != nil
		rewritten := s.rewrite(j.parameters, j.original.fields)
		if old := t.joint.Load(); old != nil && old.text != nil && old.text.sql == rewritten {
			j.text = old.text // with what is known of it
		} else {
			j.text = newText(rewritten)
		}
	}
	t.joint.Store(j)
}

const (
	proofSettings  = "select pg_catalog.set_config('jit', 'off', true), pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', true)"
	proofSavepoint = "savepoint fanout_proof"
	proofRollBack  = "rollback to savepoint fanout_proof"
	proofRelease   = "release savepoint fanout_proof"
)

// proofName is the name of proofSQL where that is prepared. It is not worth the work at the program's start.
func proofName() string { return nameFor(proofSQL, nil) }

// askProof asks the catalog, which somebody may have locked. Meanwhile functions wait for what they could have without: after
// proofPatience, or when the call ends, the server is to end it as any other statement. late says that it came to that.
//
// It is not to be compiled, which can take seconds that nothing can interrupt, where a setting makes the planner's guesses
// high: enable_nestloop, say. And it is planned once per connection, if it can be prepared there: to parse and to plan it takes
// the server about eight times as long as the rest, and 0.7 MB to keep the plan.
func (p *pipeline) askProof(args [][]byte) (rows [][][]byte, late bool, err error) {
	ctx, stop := context.WithTimeout(p.call.ctx, proofPatience)
	defer stop()
	ended, cancelled := make(chan struct{}), make(chan struct{})
	var deadline time.Time
	p.link.beside.Lock()
	unwatch := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		deadline = time.Now().Add(cancelGrace)
		p.link.cancel(ended, deadline)
	})
	// Until the transaction ends, or in that of a snapshot, until it is rolled back to here.
	before, after := []string{proofSettings}, []string(nil)
	if p.transaction != nil && p.link.status() == 'T' {
		before, after = []string{proofSavepoint, proofSettings}, []string{proofRollBack, proofRelease}
	}
	for again := true; again; {
		batch := new(pgconn.Batch)
		for _, sql := range before {
			batch.ExecParams(sql, nil, nil, nil, nil)
		}
		prepared := p.preparesProof()
		if prepared {
			batch.ExecPrepared(proofName(), args, nil, nil)
		} else {
			batch.ExecParams(proofSQL, args, nil, nil, nil)
		}
		for _, sql := range after {
			batch.ExecParams(sql, nil, nil, nil, nil)
		}
		var results []*pgconn.Result
		results, err = p.conn.PgConn().ExecBatch(context.Background(), batch).ReadAll()
		if err == nil {
			rows = results[len(before)].Rows
		} else if len(after) > 0 && p.link.status() == 'E' {
			_, _ = p.link.exec(time.Now().Add(cancelGrace), strings.Join(after, ";"))
		}
		again = prepared && hasCode(err, "26000") // somebody has deallocated it
		if again {
			p.state.proof = proofUnprepared
		}
	}
	close(ended)
	p.link.beside.Unlock()
	if unwatch() {
		return rows, false, err
	}
	<-cancelled
	p.link.absorb(deadline)
	return rows, p.call.ctx.Err() == nil, err
}

// preparesProof reports whether proofSQL is prepared on the connection, and prepares it if it can be: where statements are, and
// no hook may deallocate them; and not in a transaction, which would be aborted if it cannot.
func (p *pipeline) preparesProof() bool {
	s := p.state
	if s.mode != pgx.QueryExecModeCacheStatement || p.call.shared.hooks {
		return false
	}
	if s.proof == proofUnknown && p.link.status() == 'I' {
		switch _, err := p.conn.PgConn().Prepare(context.Background(), proofName(), proofSQL, nil); {
		case err == nil:
			s.proof = proofPrepared
		case tells(err):
			s.proof = proofUnprepared
		}
	}
	return s.proof == proofPrepared
}

// catalogIsLate reports whether the catalog has lately not answered in time.
func (s *shared) catalogIsLate() bool { return time.Since(epoch) < time.Duration(s.catalogLate.Load()) }

// tells reports whether err says something of what the server was asked for. Otherwise it has come of the connection, a
// cancel request, the end of the server, or a want of room there.
func tells(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && !slices.Contains([]string{"08", "25", "53", "57", "58"}, pgErr.Code[:min(2, len(pgErr.Code))])
}

// expected is what r is expected to cost, alone or together with others, and from how many executions that is known.
func (x *exchange) expected(r *request) (cost time.Duration, counted int64) {
	if r.handle.call.coalesced && !r.solo {
		if j := r.text.joint.Load(); j != nil && j.text != nil {
			return j.expected(r.text)
		}
	}
	return r.text.expected()
}

// expected is what one of several executions of t together is expected to cost, and from how many that is known: as far as
// they have been together lately.
func (j *joint) expected(t *text) (cost time.Duration, counted int64) {
	if cost, counted = j.text.expected(); counted > 0 && t.lately() {
		return cost, counted
	}
	return t.expected()
}

// fits reports whether the rewritten statement, now that it is described, has the columns of the original.
func (g *request) fits() bool {
	fields := g.description.Fields
	if len(fields) > 0 && slices.EqualFunc(fields[1:], g.joint.original.fields, sameType) {
		return true
	}
	g.members[0].text.refute()
	return false
}

// outdated reports whether the rewritten statement has returned columns of other names than the original has, as this
// connection knows it, or of other tables, places or modifiers: then they have been changed meanwhile, and the original is to
// be described again. Those named like one of the rewritten statement's parameters are columns of no table, and the text
// gives their names.
func (p *pipeline) outdated(g *request) bool {
	sql := g.members[0].text.sql
	d := p.state.descriptions[sql]
	if d != nil && slices.EqualFunc(g.fields[1:], d.Fields, func(now, then pgconn.FieldDescription) bool {
		if now.TableOID == 0 && g.joint.isParameter(now.Name) {
			now.Name = then.Name
		}
		return sameButFormat(now, then)
	}) {
		return false
	}
	p.state.drop(sql)
	t := g.members[0].text
	t.description.Store(nil)
	t.rename()
	return true
}

// isParameter reports whether the rewritten statement has a parameter of this name.
func (j *joint) isParameter(name string) bool {
	number, ok := strings.CutPrefix(name, j.prefix)
	if !ok {
		return false
	}
	n, err := strconv.Atoi(number)
	return err == nil && 1 <= n && n <= len(j.parameters)
}

// learnJoint keeps what g's statement has taken: each execution's part of it. If they would have taken far less by
// themselves, the text is not coalesced for some time. On a busy machine a small group seems to take many times what it
// does, because whatever delays it is shared by few: so it must be by much, and more than once. And what they take by
// themselves may be from before the data changed: so that is tried first.
func (g *request) learnJoint(took, each time.Duration) {
	n := time.Duration(len(g.members))
	t := g.members[0].text
	t.joined(g.text)
	g.text.observe(each, len(g.members))
	joint, _ := g.text.expected()
	alone, known := t.expected()
	switch most := 5*jointWork + 4*n*alone; {
	case known < 4 || n*joint <= most || took <= most:
		t.trust()
	case g.text.sureOf(8) && t.tried():
		t.refute()
	}
}

// refute notes that t is not to be coalesced after all, for as long as a proof would have lasted.
func (t *text) refute() {
	j := *t.joint.Load()
	j.text = nil
	t.joint.Store(&j)
}

// rename notes that the columns have other names than when it was found out that t can be coalesced. So that is found out
// anew.
func (t *text) rename() {
	if t.renamed.Add(1) > maxRenamed {
		t.refute()
		return
	}
	j := *t.joint.Load()
	j.found = time.Time{}
	t.joint.Store(&j)
}

// An arrays is the arguments of several executions as arrays, one for each parameter.
type arrays struct {
	values   [][]byte
	formats  []int16
	null     []bool  // holds a NULL
	elements []int16 // their formats
	known    []bool  // which of these are
	results  []int16
	bytes    int // of all values
}

// buildJoint encodes the arguments of g's members. Those that cannot be encoded as the others are, are left for being sent
// alone, and those that do not fit in for another statement. It reports whether there are others.
func (p *pipeline) buildJoint(g *request) bool {
	a, j := &p.arrays, g.joint
	var alone, rest []*request
	members := g.members
	for encoded := false; !encoded; {
		var left, many []*request
		members, left, many = p.encodeJoint(members, j)
		alone, rest = append(alone, left...), append(rest, many...)
		encoded = true
		if unlike := a.unlikeFirst(len(members)); unlike != nil {
			encoded = false
			var like []*request
			for i, m := range members {
				if unlike[i] {
					rest = append(rest, m)
				} else {
					like = append(like, m)
				}
			}
			members = like
		}
	}
	if len(alone)+len(rest) > 0 {
		p.exchange.mu.Lock()
		g.members = members
		p.leaveAlone(alone)
		p.putBack(rest)
		d := &driver{exchange: p.exchange} // not the lane's, which is about to send the others
		for _, m := range slices.Concat(alone, rest) {
			p.exchange.dismiss(m, d)
		}
		p.exchange.goDrive(d)
		p.exchange.mu.Unlock()
	}
	for k := range j.parameters {
		a.end(k, j, len(members))
	}
	return len(members) > 0
}

// encodeJoint encodes the arguments of members, and returns those whose are, those whose cannot be, and those that are more
// than enough.
func (p *pipeline) encodeJoint(members []*request, j *joint) (encoded, left, rest []*request) {
	a := &p.arrays
	n := len(j.parameters)
	*a = arrays{
		values:   resized(a.values, n),
		formats:  resized(a.formats, n),
		null:     resized(a.null, n),
		elements: resized(a.elements, n),
		known:    resized(a.known, n),
		results:  a.results[:0],
	}
	for k := range n {
		a.values[k] = append(a.values[k][:0], make([]byte, arrayHeader)...)
		a.null[k], a.known[k] = false, false
	}
	description := &pgconn.StatementDescription{ParamOIDs: j.original.params, Fields: j.original.fields}
	p.state.types.Lock()
	defer p.state.types.Unlock()
	for i, m := range members {
		switch {
		case a.bytes >= jointArguments:
			return encoded, left, members[i:]
		case p.addToArrays(a, j, description, m):
			encoded = append(encoded, m)
		default:
			left = append(left, m)
		}
	}
	return encoded, left, nil
}

// unlikeFirst tells, of n executions, those that have a NULL where the first has a value that travels as text, or the other
// way round; nil if there are none. Where array_nulls is off, the text form of an array has no word for NULL: so it must not
// hold any, but an array may of which nothing else is known.
func (a *arrays) unlikeFirst(n int) (unlike []bool) {
	for k, array := range a.values {
		if !a.known[k] || a.elements[k] == pgtype.BinaryFormatCode || !a.null[k] {
			continue
		}
		first := false
		rest := array[arrayHeader:]
		for i := range n {
			length := int32(binary.BigEndian.Uint32(rest))
			rest = rest[4+max(0, length):]
			if i == 0 {
				first = length < 0
			} else if (length < 0) != first {
				if unlike == nil {
					unlike = make([]bool, n)
				}
				unlike[i] = true
			}
		}
	}
	return unlike
}

// leaveAlone has requests sent by themselves. It is called with mu held.
func (p *pipeline) leaveAlone(members []*request) {
	for _, m := range p.ungroup(members) {
		m.solo = true
		p.again = append(p.again, m)
	}
}

// putBack has requests sent by the lane in further statements. It is called with mu held.
func (p *pipeline) putBack(members []*request) {
	p.own = slices.Concat(p.ungroup(members), p.own)
}

// ungroup makes members requests like any other, and returns those that somebody waits for. It is called with mu held.
func (p *pipeline) ungroup(members []*request) (wanted []*request) {
	for _, m := range members {
		m.group, m.writing = nil, false
		if m.abandoned || !m.waiting {
			m.answered = true
			p.dropped = append(p.dropped, m)
			continue
		}
		wanted = append(wanted, m)
	}
	return wanted
}

// addToArrays adds one execution's arguments, and reports whether it could.
func (p *pipeline) addToArrays(a *arrays, j *joint, description *pgconn.StatementDescription, m *request) (ok bool) {
	defer func() {
		if recover() != nil { // of an encoder: when it is sent alone it will do so again, and be reported
			ok = false
		}
	}()
	if err := build(&p.builder, p.conn, description, m.args); err != nil {
		return false
	}
	b := &p.builder
	bytes := 0
	for _, value := range b.ParamValues {
		bytes += len(value)
	}
	if bytes > jointArguments {
		return false
	}
	a.bytes += bytes
	if len(a.results) == 0 {
		a.results = append(append(a.results, pgtype.BinaryFormatCode), b.ResultFormats...)
	}
	for k, value := range b.ParamValues {
		if value == nil {
			continue
		}
		oid := j.original.params[k]
		cast := j.parameters[k].cast != ""
		if cast && b.ParamFormats[k] != pgtype.TextFormatCode {
			text, err := p.conn.TypeMap().Encode(oid, pgtype.TextFormatCode, m.args[k], nil)
			if err != nil || text == nil || !p.sameAsText(oid, m.args[k], text) && !p.canonical(oid, value, text) {
				return false
			}
			b.ParamValues[k] = text
		}
		if cast || oid == pgtype.TextOID || oid == pgtype.VarcharOID {
			b.ParamFormats[k] = pgtype.BinaryFormatCode // of a text, which is the same
		}
		if a.known[k] && b.ParamFormats[k] != a.elements[k] {
			return false
		}
	}
	for k, value := range b.ParamValues {
		if value == nil {
			a.null[k] = true
			a.values[k] = append(a.values[k], 0xff, 0xff, 0xff, 0xff)
			continue
		}
		if !a.known[k] {
			a.known[k], a.elements[k] = true, b.ParamFormats[k]
		}
		a.values[k] = binary.BigEndian.AppendUint32(a.values[k], uint32(len(value)))
		a.values[k] = append(a.values[k], value...)
	}
	return true
}

// arrayHeader is the length of what precedes the elements of a one-dimensional array in binary form.
const arrayHeader = 20

// end makes the k-th array of n elements complete: elements in binary form by their header, others by rewriting them
// as the array's text form.
func (a *arrays) end(k int, j *joint, n int) {
	array := a.values[k]
	if !a.known[k] || a.elements[k] == pgtype.BinaryFormatCode {
		element := j.original.params[k]
		if j.parameters[k].cast != "" {
			element = pgtype.TextOID
		}
		hasNull := uint32(0)
		if a.null[k] {
			hasNull = 1
		}
		binary.BigEndian.PutUint32(array, 1)
		binary.BigEndian.PutUint32(array[4:], hasNull)
		binary.BigEndian.PutUint32(array[8:], element)
		binary.BigEndian.PutUint32(array[12:], uint32(n))
		binary.BigEndian.PutUint32(array[16:], 1)
		a.formats[k] = pgtype.BinaryFormatCode
		return
	}
	text := []byte{'{'}
	for rest := array[arrayHeader:]; len(rest) > 0; {
		if len(text) > 1 {
			text = append(text, j.parameters[k].delimiter)
		}
		length := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		text = appendElement(text, string(rest[:length]))
		rest = rest[length:]
	}
	a.values[k] = append(text, '}')
	a.formats[k] = pgtype.TextFormatCode
}

// resized is s with n elements, and the memory of those that it has had.
func resized[T any](s []T, n int) []T {
	return slices.Grow(s[:0], n)[:n]
}

// A jointRun is a sequence of rows of one execution, up to those places in the chunk.
type jointRun struct{ member, rows, data, lengths int }

// readJoint reads the rows of g's statement, each of which begins with the number of the execution that it belongs to.
func (p *pipeline) readJoint(g *request, reader *pgconn.ResultReader) error {
	g.fields = kept(p.state.fields, g.text.sql, reader.FieldDescriptions())
	unreadable := p.confirm(g)
	p.runs = p.runs[:0]
	for reader.NextRow() {
		if unreadable != nil {
			continue
		}
		values := reader.Values()
		if len(values) != len(g.fields) {
			return errValues(len(g.fields), len(values))
		}
		if len(values) == 0 || len(values[0]) != 8 {
			return errDesync
		}
		n := int(binary.BigEndian.Uint64(values[0])) - 1
		if n < 0 || n >= len(g.members) {
			return errDesync
		}
		p.rows.add(values[1:])
		if len(p.runs) == 0 || p.runs[len(p.runs)-1].member != n {
			p.runs = append(p.runs, jointRun{member: n})
		}
		last := &p.runs[len(p.runs)-1]
		last.rows++
		last.data, last.lengths = len(p.rows.data), len(p.rows.lengths)
	}
	_, err := reader.Close()
	return cmp.Or(err, unreadable)
}

// distribute gives g's members their rows. It is called with mu held.
func (p *pipeline) distribute(g *request) {
	whole := p.rows.exact()
	counts := make([]int, len(g.members))
	data, lengths := 0, 0
	for _, run := range p.runs {
		if m := g.members[run.member]; !m.abandoned {
			m.chunks = append(m.chunks, chunk{run.rows, whole.data[data:run.data:run.data], whole.lengths[lengths:run.lengths:run.lengths]})
		}
		data, lengths = run.data, run.lengths
		counts[run.member] += run.rows
	}
	fields := p.memberFields(g)
	for i, m := range g.members {
		if !m.abandoned {
			m.shared = len(g.members) - 1
			m.fields = fields
			m.tag = selectTag(counts[i])
		}
	}
}

// memberFields are the descriptions of the columns that g's members have asked for, as this connection knows them: the
// rewritten statement may call them otherwise. They are mostly those of the execution before.
func (p *pipeline) memberFields(g *request) []pgconn.FieldDescription {
	sql := g.members[0].text.sql
	own := g.fields[1:]
	if d := p.state.descriptions[sql]; d != nil {
		own = d.Fields
	}
	kept := p.state.fields[sql]
	sameFormat := func(a, b pgconn.FieldDescription) bool { return a.Format == b.Format }
	if slices.EqualFunc(kept, own, sameButFormat) && slices.EqualFunc(kept, g.fields[1:], sameFormat) {
		return kept
	}
	kept = slices.Clone(own)
	for i := range kept {
		kept[i].Format = g.fields[i+1].Format
	}
	if len(p.state.fields) < maxDescriptions {
		p.state.fields[sql] = kept
	}
	return kept
}

// selectTag is the command tag of a statement that has returned n rows.
func selectTag(n int) pgconn.CommandTag {
	if n == 1 {
		return pgconn.NewCommandTag("SELECT 1")
	}
	return pgconn.NewCommandTag("SELECT " + strconv.Itoa(n))
}

// mayShareSync reports whether r may be followed by another statement in the same transaction: because it has one in any
// case, or because it is known to do nothing but read. Not before it is known to be quick: the server does not answer
// before the Sync.
func (p *pipeline) mayShareSync(r *request) bool {
	if r.apart || r.counted == 0 || r.members != nil {
		return false
	}
	if p.transaction != nil || p.call.tx != nil {
		return true
	}
	j := r.text.provenJoint(p.state.place)
	return j != nil && j.pure
}

package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A transaction is one lane's part in a Snapshot call: the DBTX that its handles send statements to. It begins with the
// first statement, in the same round trip, and ends with leave.
//
// A savepoint, set once, brings the transaction back after a failed statement: rolling back to it loses nothing, because
// the transaction is read only. So it costs nothing while nothing fails. What may have left something all the same, a
// setting, a cursor, a lock or a row in a temporary table, is followed by another savepoint.
type transaction struct {
	snapshot *snapshot
	link     *link
	conn     *pgx.Conn

	// Set once, with link.beside held, which is so during the round trip that joins, be it made by the lane or by the
	// exporter. Whoever sees it set need not wait for the lock, which the lane may hold for its commit.
	joined atomic.Bool
	failed error         // why it cannot join any more; guarded by link.beside
	dirty  bool          // later statements may depend on what has been sent since the savepoint; the lane's own
	left   chan struct{} // closed when it is over
}

const (
	beginSQL    = "begin isolation level repeatable read, read only"
	savepoint   = "savepoint fanout"
	rollBackTo  = "rollback to savepoint fanout"
	commitSQL   = "commit"
	exportSQL   = "select pg_catalog.pg_export_snapshot()"
	identifySQL = "select (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) operator(pg_catalog.*) 1000000::pg_catalog.float8)::pg_catalog.int8::pg_catalog.text, pg_catalog.pg_backend_pid()::pg_catalog.text, pg_catalog.pg_is_in_recovery()::pg_catalog.text"
	citusSQL    = "select 1 from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'citus'"
)

// A prologue is what travels in front of a statement: utility statements, and what to do with their results.
type prologue struct {
	statements []string
	// settle is called with the first column values of each statement's first row when all have succeeded, or with the
	// error of the one that failed; its own error is the statement's.
	settle func(rows [][]string, err error) error
}

// conclude calls settle, once. Without one, or for the second time, it returns err.
func (p *prologue) conclude(rows [][]string, err error) error {
	settle := p.settle
	p.settle = nil
	if settle == nil {
		return err
	}
	return settle(rows, err)
}

// errNotSent is what settle is given if the prologue was not sent, because the statement could not be.
var errNotSent = errors.New("not sent")

// prologue returns what has to precede the next statement, or nil. If that begins the transaction, link.beside stays locked
// until its settle function is called.
func (t *transaction) prologue(ctx context.Context) (*prologue, error) {
	t.link.beside.Lock()
	if !t.joined.Load() && t.failed == nil {
		return t.begin(ctx)
	}
	defer t.link.beside.Unlock()
	if t.failed != nil {
		return nil, t.failed
	}
	dirty := t.dirty
	t.dirty = false
	switch status := t.link.status(); {
	case status == 'E':
		return &prologue{statements: []string{rollBackTo}}, nil
	case status == 'I':
		return nil, errEndedTransaction
	case status == 'T' && dirty:
		return &prologue{[]string{savepoint}, func(_ [][]string, err error) error {
			t.dirty = t.dirty || err != nil // it is not set if the statement behind it cannot be sent
			return err
		}}, nil
	}
	return nil, nil // also of a closed connection: the driver has the right words
}

// precede is prologue for a statement of a query function's own. One that would end the transaction is refused: if it began
// another at once ("commit and chain"), nothing would tell that what follows is read in another snapshot.
func (t *transaction) precede(ctx context.Context, sql string, args []any, exec bool) (*prologue, error) {
	text := t.snapshot.shared.statements.get(sql)
	if text.ends {
		return nil, errEndsTransaction
	}
	p, err := t.prologue(ctx)
	if err == nil {
		t.dirty = t.dirty || text.leaves || t.snapshot.shared.several(sql, args, exec)
		if text.lasting {
			t.snapshot.lasting.Store(true)
		}
	}
	return p, err
}

// begin returns the prologue that begins the transaction. It is called with link.beside held, which the prologue's settle
// function unlocks.
func (t *transaction) begin(ctx context.Context) (*prologue, error) {
	id, server, exporter, err := t.snapshot.claim(ctx, t)
	switch {
	case err != nil:
		t.link.beside.Unlock()
		return nil, err
	case exporter:
		return t.export(), nil
	case strings.ContainsAny(id, `'\\`):
		// It goes into a statement as a literal: there is no other way. PostgreSQL makes ids of hexadecimal digits.
		t.link.beside.Unlock()
		return nil, fmt.Errorf("fanout: the server has exported a snapshot under the strange name %q", id)
	default:
		return t.imports(id, server), nil
	}
}

// beginning is how the prologue begins: behind another one that has failed, with the end of what it has left.
func (t *transaction) beginning() []string {
	if t.link.status() == 'E' {
		return []string{"rollback", beginSQL}
	}
	return []string{beginSQL}
}

// row is the first row of one of p's statements; nil if that is not among them.
func (p *prologue) row(rows [][]string, sql string) []string {
	if i := slices.Index(p.statements, sql); i >= 0 {
		return rows[i]
	}
	return nil
}

// export begins the transaction of the exporter.
func (t *transaction) export() *prologue {
	s, state := t.snapshot, stateOf(t.conn)
	p := &prologue{statements: t.beginning()}
	if !s.shared.notCitus.Load() {
		p.statements = append(p.statements, citusSQL)
	}
	if !s.alone {
		p.statements = append(p.statements, exportSQL)
		if state.server == "" {
			p.statements = append(p.statements, identifySQL)
		}
	}
	p.statements = append(p.statements, savepoint)
	p.settle = func(rows [][]string, err error) error {
		defer t.link.beside.Unlock()
		if err != nil {
			s.publish("", "", false)
			return err
		}
		if p.row(rows, citusSQL) != nil {
			t.failed = fmt.Errorf("%w: on Citus an imported snapshot is accepted but not honoured for distributed tables", ErrSnapshotUnsupported)
			s.publish("", "", false)
			return t.failed
		}
		s.shared.notCitus.Store(true)
		t.joined.Store(true)
		if s.alone {
			s.publish("alone", "", false)
			return nil
		}
		server, standby := state.server, state.standby
		if server == "" {
			server, standby = t.identify(p.row(rows, identifySQL))
		}
		exported := p.row(rows, exportSQL)
		if len(exported) == 0 || server == "" {
			s.publish("", "", false)
			t.failed = errNoRow
			return t.failed
		}
		s.publish(exported[0], server, standby)
		return nil
	}
	return p
}

// imports begins the transaction of another lane. An import that succeeds may still be of another server's snapshot,
// because ids are counted up by every server in the same way; so the servers are compared.
func (t *transaction) imports(id, server string) *prologue {
	state := stateOf(t.conn)
	p := &prologue{statements: append(t.beginning(), "set transaction snapshot '"+id+"'")}
	if state.server == "" {
		p.statements = append(p.statements, identifySQL)
	}
	p.statements = append(p.statements, savepoint)
	p.settle = func(rows [][]string, err error) error {
		defer t.link.beside.Unlock()
		if errors.Is(err, errNotSent) {
			return err
		}
		here := state.server
		if err == nil && here == "" {
			here, _ = t.identify(p.row(rows, identifySQL))
		}
		if err == nil && here == server {
			t.joined.Store(true)
			return nil
		}
		if queryCanceled(err) {
			return err // cancelled with the statement, or timed out: the next one can begin anew
		}
		if err != nil && here == "" {
			here = t.whereabouts()
		}
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			// That of joinBeside, which is not the caller's.
			t.failed = fmt.Errorf("%w: the server has not answered within %v", errSnapshotLost, cancelGrace)
		case here != "" && here != server:
			t.failed = ErrSnapshotServer
		default:
			t.failed = err
			if hasCode(err, "22023", "42704", "55000") {
				// In the words of older servers, of newer ones, and of one whose exporter is just ending.
				t.failed = fmt.Errorf("%w: %w", errSnapshotLost, err)
			}
		}
		return t.failed
	}
	return p
}

// identify reads the answer to identifySQL and returns which server it is from: they are told apart by the time at which
// they started. A connection leads to one server for as long as it lives, so the answer is kept; not behind a pooler,
// which shows by a process id that is not the backend's.
func (t *transaction) identify(row []string) (server string, standby bool) {
	if len(row) < 3 {
		return "", false
	}
	server, standby = row[0], row[2] == "true"
	if row[1] == strconv.FormatUint(uint64(t.conn.PgConn().PID()), 10) {
		state := stateOf(t.conn)
		state.server, state.standby = server, standby // which it may cease to be: then there is no harm in taking it for one
	}
	return server, standby
}

// whereabouts finds out which server has refused an import; "" if it does not say.
func (t *transaction) whereabouts() string {
	results, err := t.link.exec(time.Now().Add(cancelGrace), "rollback; "+identifySQL)
	if err != nil || len(results) != 2 || len(results[1].Rows) != 1 {
		return ""
	}
	server, _ := t.identify(texts(results[1].Rows[0]))
	return server
}

// ready sends what has to precede the next statement in a round trip of its own.
func (t *transaction) ready(ctx context.Context) error {
	p, err := t.prologue(ctx)
	if err != nil || p == nil {
		return err
	}
	return p.run(ctx, t.conn)
}

// joinBeside begins the transaction if it has not begun, on behalf of the lane, whose query function may be at anything
// but a statement meanwhile. If it cannot, the lane's statements will tell.
func (t *transaction) joinBeside() {
	if t.joined.Load() {
		return
	}
	t.link.beside.Lock()
	if t.joined.Load() || t.failed != nil {
		t.link.beside.Unlock()
		return
	}
	if p, err := t.begin(t.snapshot.ctx); err == nil {
		var rows [][]string
		err := t.link.within(time.Now().Add(cancelGrace), func() (err error) {
			rows, err = sendAlone(context.Background(), t.conn, p.statements)
			return err
		})
		if t.conn.IsClosed() { // before the lane may use it again
			t.link.sever()
		}
		_ = p.conclude(rows, err)
	}
}

// usable reports whether the lane can go on with its connection.
func (t *transaction) usable() bool {
	t.link.beside.Lock()
	defer t.link.beside.Unlock()
	if t.failed != nil || t.conn.IsClosed() || t.conn.PgConn().IsBusy() {
		return false
	}
	if !t.joined.Load() && t.link.status() == 'E' {
		return !t.snapshot.gone() // begin ends what a beginning that has failed has left
	}
	return t.joined.Load() != t.link.outside()
}

// ended reports whether a query function has ended the transaction.
func (t *transaction) ended() bool {
	t.link.beside.Lock()
	defer t.link.beside.Unlock()
	return t.joined.Load() && t.link.outside()
}

// leave ends the transaction, when no unit of the lane runs any more, and waits for the server to confirm. If it is the
// exporter's, the others, which may have sent nothing yet, import first: beside their query functions, not after them.
//
// On a hot standby the exporter stays until the others have left. Replay waits for a transaction that still needs the rows
// which it is about to remove, or cancels it; but it looks for such transactions once, and may have done so before the
// others imported. So they see the snapshot whole for as long as the exporter is there, and leave returns an error if it was
// not there until the end.
func (t *transaction) leave(others []*transaction) error {
	t.link.beside.Lock()
	defer t.link.beside.Unlock()
	defer close(t.left)
	t.failed = errReturned
	s := t.snapshot
	exporter, standby := s.exportedBy(t)
	if !exporter {
		_ = t.end()
		return nil
	}
	var joining sync.WaitGroup // all at once: a connection that is frozen takes its time
	for _, other := range others {
		if other != t && !other.joined.Load() && !t.conn.IsClosed() && s.ctx.Err() == nil {
			joining.Go(other.joinBeside)
		}
	}
	joining.Wait()
	s.withdraw()
	if standby {
		t.stay(others)
	}
	if err := t.end(); err != nil && standby {
		return err
	}
	return nil
}

// stay waits until the others have left. The transaction is idle meanwhile, by no fault of a query function's: the server is
// not to end it for that. It is called with link.beside held.
func (t *transaction) stay(others []*transaction) {
	prepared := false
	for _, other := range others {
		select {
		case <-other.left:
			continue
		default:
		}
		if other == t {
			continue
		}
		if !prepared && t.link.status() != 0 {
			sql := "set local idle_in_transaction_session_timeout = 0"
			if t.link.status() == 'E' {
				sql = rollBackTo + ";" + sql
			}
			_, _ = t.link.exec(time.Now().Add(cancelGrace), sql) // if it fails, so will end
		}
		prepared = true
		select {
		case <-other.left:
		case <-t.snapshot.ctx.Done():
		}
	}
}

// end commits, or rolls back what has failed, and returns an error if the transaction was not there until then. It is called
// with link.beside held.
func (t *transaction) end() error {
	sql := commitSQL
	switch t.link.status() {
	case 0:
		return errConnectionLost
	case 'I':
		return errEndedTransaction
	case 'E':
		if t.joined.Load() {
			sql = rollBackTo + ";" + commitSQL
		}
	}
	_, err := t.link.exec(time.Now().Add(cancelGrace), sql)
	return err
}

// read reads the first row of each of the statements, which have been sent.
func (p *prologue) read(from *pgconn.Pipeline) ([][]string, error) {
	rows := make([][]string, len(p.statements))
	for i := range rows {
		var err error
		if rows[i], err = readFirst(from); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// run sends the prologue alone.
func (p *prologue) run(ctx context.Context, conn *pgx.Conn) error {
	rows, err := sendAlone(ctx, conn, p.statements)
	return p.conclude(rows, err)
}

func sendAlone(ctx context.Context, conn *pgx.Conn, statements []string) ([][]string, error) {
	sql := ""
	for _, s := range statements {
		sql += s + ";"
	}
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	rows := make([][]string, len(statements))
	for i, r := range results {
		if i < len(rows) && len(r.Rows) > 0 {
			rows[i] = texts(r.Rows[0])
		}
	}
	return rows, err
}

func texts(row [][]byte) []string {
	values := make([]string, len(row))
	for i, v := range row {
		values[i] = string(v)
	}
	return values
}

func (t *transaction) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	p, err := t.precede(ctx, sql, args, true)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	if p == nil {
		return t.conn.Exec(ctx, sql, args...)
	}
	if len(args) == 0 || !canTravel(t.conn, sql, args) { // without arguments pgx allows several statements in one
		if err := p.run(ctx, t.conn); err != nil {
			return pgconn.CommandTag{}, err
		}
		return t.conn.Exec(ctx, sql, args...)
	}
	rows, err := travel(ctx, t.conn, p, sql, args)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	rows.Close()
	return rows.CommandTag(), rows.Err()
}

func (t *transaction) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	p, err := t.precede(ctx, sql, args, false)
	if err != nil {
		return failedRows{err}, err
	}
	if p == nil {
		return t.conn.Query(ctx, sql, args...)
	}
	if !canTravel(t.conn, sql, args) {
		if err := p.run(ctx, t.conn); err != nil {
			return failedRows{err}, err
		}
		return t.conn.Query(ctx, sql, args...)
	}
	return travel(ctx, t.conn, p, sql, args)
}

func (t *transaction) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, _ := t.Query(ctx, sql, args...) // which say what err would
	return firstRow{rows}
}

func (t *transaction) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, source pgx.CopyFromSource) (int64, error) {
	if err := t.ready(ctx); err != nil {
		return 0, err
	}
	t.dirty = true // what is copied goes into a temporary table
	return t.conn.CopyFrom(ctx, table, columns, source)
}

func (t *transaction) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	leaves, lasting := false, false
	for _, queued := range b.QueuedQueries {
		text := t.snapshot.shared.statements.get(queued.SQL)
		if text.ends {
			return pgx.FailedBatchResults(b, errEndsTransaction)
		}
		lasting = lasting || text.lasting
		leaves = leaves || text.leaves || t.snapshot.shared.severalQueued(queued)
	}
	if err := t.ready(ctx); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	t.dirty = t.dirty || leaves
	if lasting {
		t.snapshot.lasting.Store(true)
	}
	return t.conn.SendBatch(ctx, b)
}

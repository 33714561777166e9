package fanout

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// connState is what the package knows of a connection, kept with it for as long as it lives. It may be used by whoever may
// use the connection.
type connState struct {
	mode         pgx.QueryExecMode
	tracer       pgx.QueryTracer
	place        string                                  // the server and the database that it was meant to lead to
	ran          bool                                    // something, by a pipelined lane
	server       string                                  // the one it leads to; "" where that is not known, or may change
	standby      bool                                    // that is a hot standby
	most         int                                     // descriptions that are remembered
	descriptions map[string]*pgconn.StatementDescription // of statements, prepared unless their name is ""
	prepared     int                                     // statements ever prepared, for their names
	proof        proofState                              // of proofSQL
	stale        []string                                // names of prepared statements to be deallocated
	fields       map[string][]pgconn.FieldDescription    // of results, by statement, with their formats
	formats      map[string][]int16                      // of results, by statement, as asked for
	plans        map[string]*scanPlans                   // by statement; guarded by types
	types        sync.Mutex                              // of the type map, where several goroutines use it
}

const (
	connStateKey = "github.com/sqlc-fanout/sqlc-fanout/fanout"

	// maxDescriptions is how many statements are remembered per connection, unless pgx's cache is to have fewer. Of more, the
	// next user of the connection forgets every other; those that come up before cost a round trip each time.
	maxDescriptions = 512
)

func stateOf(conn *pgx.Conn) *connState {
	data := conn.PgConn().CustomData()
	if state, ok := data[connStateKey].(*connState); ok {
		return state
	}
	config := conn.Config() // a deep copy: once per connection
	state := &connState{
		mode:         config.DefaultQueryExecMode,
		tracer:       config.Tracer,
		place:        fmt.Sprintf("%s:%d/%s", config.Host, config.Port, config.Database),
		most:         maxDescriptions,
		descriptions: map[string]*pgconn.StatementDescription{},
		fields:       map[string][]pgconn.FieldDescription{},
		formats:      map[string][]int16{},
		plans:        map[string]*scanPlans{},
	}
	capacity := config.StatementCacheCapacity
	if state.mode == pgx.QueryExecModeCacheDescribe {
		capacity = config.DescriptionCacheCapacity
	}
	if capacity > 0 {
		state.most = min(state.most, capacity)
	}
	data[connStateKey] = state
	return state
}

// newName is the name under which sql is to be prepared, with parameters of these types if they are told the server; "" if it
// is not to be.
func (s *connState) newName(sql string, types []uint32) string {
	if s.mode != pgx.QueryExecModeCacheStatement || len(s.descriptions) >= s.most {
		return ""
	}
	s.prepared++
	return nameFor(sql, types) + "_" + strconv.Itoa(s.prepared)
}

// nameFor begins the name of a prepared statement; that of no other begins so. Behind a pooler that does not know of prepared
// statements, another connection may have prepared its own on the backend: by a mere number, that would be executed in place
// of this one, where pgx, whose names are made likewise, has an error. A name may have 63 bytes.
func nameFor(sql string, types []uint32) string {
	digest := sha256.Sum256(fmt.Append(nil, types, sql))
	return fmt.Sprintf("fanout_%x", digest[:16])
}

// drop forgets a statement's description, which is out of date. Whoever has been told it is to see that what was prepared
// is not there any more: its SQL is gone.
func (s *connState) drop(sql string) {
	if d := s.descriptions[sql]; d != nil && d.Name != "" {
		s.stale = append(s.stale, d.Name)
		d.SQL = ""
	}
	delete(s.descriptions, sql)
}

// keep remembers the description that a statement has now. Several may have been asked for at once, of one text or of more
// than there is room for: nothing stays prepared that is not remembered, since nobody would deallocate it.
func (s *connState) keep(sql string, d *pgconn.StatementDescription) {
	if s.descriptions[sql] == d {
		return
	}
	s.drop(sql)
	if len(s.descriptions) < s.most {
		s.descriptions[sql] = d
	} else if d.Name != "" {
		s.stale = append(s.stale, d.Name)
		d.Name = ""
	}
}

// makeRoom is called when nothing is under way on the connection. Which statements are forgotten is left to chance: those
// that are in use are soon known again.
func (s *connState) makeRoom() {
	if len(s.descriptions) < s.most {
		return
	}
	for sql := range s.descriptions {
		if s.drop(sql); len(s.descriptions) == s.most/2 {
			break
		}
	}
	clear(s.fields)
	clear(s.formats)
	if s.types.TryLock() { // not if it is for a function that has them to itself
		clear(s.plans)
		s.types.Unlock()
	}
}

// canTravel reports whether a statement with these arguments can be sent by travel: in a mode that has messages which can
// follow others, without pgx's options among the arguments, and if sql cannot be the name of a statement that the user has
// prepared: pgx does not tell which there are.
func canTravel(conn *pgx.Conn, sql string, args []any) bool {
	switch stateOf(conn).mode {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec:
	default:
		return false
	}
	if !strings.ContainsAny(sql, " \t\r\n(") {
		return false
	}
	return !hasOptions(args)
}

// hasOptions reports whether pgx's options are among the arguments.
func hasOptions(args []any) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0].(type) {
	case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID, pgx.QueryRewriter:
		return true
	}
	return false
}

// travel sends a statement behind its prologue, in one round trip; in two if the connection has not seen the statement
// before, as with pgx. In pgx's default mode it is prepared, under a name of the package's own, since pgx does not tell
// which statements it has prepared.
//
// An error in the prologue keeps the statement from being run. pgx's tracers see the statement, not the prologue.
func travel(ctx context.Context, conn *pgx.Conn, p *prologue, sql string, args []any) (pgx.Rows, error) {
	t := &traveller{conn: conn, state: stateOf(conn), sql: sql, ctx: ctx, prologue: p}
	t.state.makeRoom()
	returned := false
	defer func() {
		if !returned { // the panic of an argument's encoder, or of the tracer
			_ = t.fail(errNotSent)
		}
	}()
	if tracer := t.state.tracer; tracer != nil {
		t.ctx = tracer.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: sql, Args: args})
		t.traced = true
	}
	err := t.send(args)
	if t.settled && t.remembered && outOfDate(err) && !inside(err) && !conn.IsClosed() { // it has not been executed
		err = t.sendAgain(args, err)
	}
	if err != nil {
		err = t.fail(err)
	}
	returned = true
	if err != nil {
		return failedRows{err}, err
	}
	return t, nil
}

// send sends and reads up to the first row.
func (t *traveller) send(args []any) error {
	var builder pgx.ExtendedQueryBuilder
	typed := t.state.mode != pgx.QueryExecModeExec // by the server; otherwise the types are those of the Go values
	var description *pgconn.StatementDescription
	if typed {
		description = t.state.descriptions[t.sql]
	}
	described := description != nil || !typed
	if described {
		err := build(&builder, t.conn, description, args)
		if err != nil && !typed {
			return fmt.Errorf("%w: %w", errNotSent, err)
		}
		if err != nil {
			t.state.drop(t.sql) // they may fit the types that the statement has by now
			description, described = nil, false
		}
	}
	t.remembered = description != nil
	t.pipeline = t.conn.PgConn().StartPipeline(t.ctx)
	for _, name := range t.state.stale {
		t.pipeline.SendDeallocate(name)
	}
	for _, s := range t.prologue.statements {
		t.pipeline.SendQueryParams(s, nil, nil, nil, nil)
	}
	// The server is to answer the prologue before it starts on the statement, which may have to wait: for a lock that is
	// in the way of somebody who waits for the exporter, who would wait for this lane to have joined.
	t.pipeline.SendFlushRequest()
	if !described {
		name := t.state.newName(t.sql, nil)
		t.pipeline.SendPrepare(name, t.sql, nil)
		if err := t.pipeline.Sync(); err != nil {
			return err
		}
		if err := t.readPrologue(); err != nil {
			return err
		}
		var err error
		if description, err = t.readDescription(); err != nil {
			return err
		}
		description.Name, description.SQL = name, t.sql
		t.state.keep(t.sql, description)
		if err := build(&builder, t.conn, description, args); err != nil {
			return err
		}
	}
	switch {
	case description == nil:
		t.pipeline.SendQueryParams(t.sql, builder.ParamValues, nil, builder.ParamFormats, builder.ResultFormats)
	case description.Name == "":
		t.pipeline.SendQueryParams(t.sql, builder.ParamValues, description.ParamOIDs, builder.ParamFormats, builder.ResultFormats)
	default:
		t.pipeline.SendQueryStatement(description, builder.ParamValues, builder.ParamFormats, builder.ResultFormats)
	}
	if err := t.pipeline.Sync(); err != nil {
		return err
	}
	if described {
		if err := t.readPrologue(); err != nil {
			return err
		}
	}
	reader, err := next[*pgconn.ResultReader](t.pipeline)
	if err != nil {
		return err
	}
	t.Rows = pgx.RowsFromResultReader(t.conn.TypeMap(), reader)
	return nil
}

// build encodes the arguments, with pgx's words for a wrong number of them.
func build(builder *pgx.ExtendedQueryBuilder, conn *pgx.Conn, description *pgconn.StatementDescription, args []any) error {
	if description != nil && len(description.ParamOIDs) != len(args) {
		return fmt.Errorf("expected %d arguments, got %d", len(description.ParamOIDs), len(args))
	}
	if err := builder.Build(conn.TypeMap(), description, args); err != nil {
		return err
	}
	return fitsMessage(builder.ParamValues)
}

// fitsMessage is why values cannot be sent. A pipeline is told so by pgconn only when all is to be written, and then the
// connection is closed.
func fitsMessage(values [][]byte) error {
	if len(values) > maxParameters {
		return fmt.Errorf("extended protocol limited to %v parameters", maxParameters)
	}
	size := 0
	for _, v := range values {
		size += len(v) + 4
	}
	if size > 0x3fffffff-1<<20 { // the rest of the message has room in that
		return errors.New("message body too large")
	}
	return nil
}

// next is the pipeline's next result, which must be a T.
func next[T any](p *pgconn.Pipeline) (result T, err error) {
	results, err := p.GetResults()
	if err != nil {
		return result, err
	}
	result, ok := results.(T)
	if !ok {
		return result, fmt.Errorf("fanout: %T in a pipeline, want %T", results, result)
	}
	return result, nil
}

// traveller is a statement sent by travel, and its rows.
type traveller struct {
	pgx.Rows
	conn     *pgx.Conn
	state    *connState
	sql      string
	ctx      context.Context
	prologue *prologue
	settled  bool
	traced   bool
	pipeline *pgconn.Pipeline // nil before anything is sent
	closed   bool
	err      error // once closed

	remembered bool // it was sent by what the connection remembered of it
}

// readPrologue reads the results of the prologue, of each statement the first row, and settles it.
func (t *traveller) readPrologue() error {
	for range t.state.stale {
		if _, err := next[*pgconn.CloseComplete](t.pipeline); err != nil {
			return err
		}
	}
	t.state.stale = nil
	rows, err := t.prologue.read(t.pipeline)
	if err != nil {
		return err
	}
	return t.settle(rows, nil)
}

// settle tells the prologue's owner how it went, once.
func (t *traveller) settle(rows [][]string, err error) error {
	t.settled = true
	return t.prologue.conclude(rows, err)
}

func (t *traveller) readDescription() (*pgconn.StatementDescription, error) {
	description, err := next[*pgconn.StatementDescription](t.pipeline)
	if err != nil {
		return nil, err
	}
	_, err = next[*pgconn.PipelineSync](t.pipeline)
	return description, err
}

// fail ends a statement that has no rows to read.
func (t *traveller) fail(err error) error {
	t.end(pgconn.CommandTag{}, err)
	return t.settle(nil, t.err) // when the connection is free: the owner may have to ask the server
}

// end gives the connection back to pgx, and sets the statement's error.
func (t *traveller) end(tag pgconn.CommandTag, err error) {
	t.closed = true
	if t.pipeline != nil {
		err = cmp.Or(err, t.pipeline.Close()) // which reads what there is to read
	}
	if mayBeOutOfDate(err) {
		t.state.forget(t.sql, err)
	}
	if t.traced {
		t.traced = false // once, also if it panics
		t.state.tracer.TraceQueryEnd(t.ctx, t.conn, pgx.TraceQueryEndData{CommandTag: tag, Err: err})
	}
	t.err = err
}

// outOfDate reports whether err may come of what is remembered of a statement: the tables have changed since, or somebody has
// deallocated it. Then it has not been executed, unless err has come up inside.
func outOfDate(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	switch pgErr.Code {
	case "0A000", "08P01", "26000": // cached plan must not change result type; wrong number of formats; no such statement
		return true
	case "42804", "42846", "42883", "42725", "42P18": // parameters of types that the statement has no longer
		return true
	case "42704": // no such type: it has been dropped, and perhaps created anew
		return true
	case "XX000": // likewise, in words that are not translated
		return strings.HasPrefix(pgErr.Message, "cache lookup failed ")
	}
	return false
}

// mayBeOutOfDate is outOfDate, and reports whether err may come of the type that a parameter had when the statement was
// described: by an enumeration or a domain that the column had then, the server refuses what the column would take now; as a date
// the value has lost its time of day, and is there already; and triggers say what they like. Mostly it does not, so pgx, which
// describes a statement again after any error, is right to report it first.
func mayBeOutOfDate(err error) bool { return outOfDate(err) || tells(err) }

// aParameter is how the server calls a parameter.
var aParameter = regexp.MustCompile(`\$[0-9]`)

// inside reports whether err has come up inside of a function of the database, say, which may have written by then. Where it has,
// the server says line by line, in words that may be translated; lines that name a parameter are about the statement's own.
func inside(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Where == "" {
		return false
	}
	for line := range strings.SplitSeq(pgErr.Where, "\n") {
		if !aParameter.MatchString(line) {
			return true
		}
	}
	return false
}

// forget drops the description of the statement, which may be out of date by err.
func (s *connState) forget(sql string, err error) {
	if hasCode(err, "26000") {
		delete(s.descriptions, sql) // there is nothing to deallocate
		return
	}
	s.drop(sql)
}

// sendAgain sends the statement again, described anew. Nothing is lost by going back to the savepoint: the function would
// have had to, too.
func (t *traveller) sendAgain(args []any, cause error) error {
	err := t.pipeline.Close()
	t.pipeline = nil
	if err != nil && !isServerError(err) {
		return err
	}
	t.state.forget(t.sql, cause)
	t.prologue = &prologue{statements: []string{rollBackTo}}
	return t.send(args)
}

func (t *traveller) Close() { t.closeBy(nil) }

// closeBy closes the rows because of err, if it is not nil: they fail by it, as pgx's do, also for who does not look at what Scan says.
func (t *traveller) closeBy(err error) {
	if t.closed {
		t.err = cmp.Or(t.err, err) // a RowScanner may have read the rest before it says so
		return
	}
	t.Rows.Close()
	t.end(t.Rows.CommandTag(), cmp.Or(err, t.Rows.Err()))
}

func (t *traveller) Next() bool {
	if !t.closed && t.Rows.Next() {
		return true
	}
	t.Close()
	return false
}

func (t *traveller) Scan(dest ...any) (err error) {
	if scanner, ok := rowScanner(dest); ok {
		err = scanner.ScanRow(t) // not of pgx's rows, which have no connection
	} else {
		err = t.Rows.Scan(dest...)
	}
	if err != nil {
		t.closeBy(err)
	}
	return err
}

// rowScanner is the destination that is to scan the row itself, if it is that.
func rowScanner(dest []any) (scanner pgx.RowScanner, ok bool) {
	if len(dest) == 1 {
		scanner, ok = dest[0].(pgx.RowScanner)
	}
	return scanner, ok
}

func (t *traveller) Values() ([]any, error) {
	values, err := t.Rows.Values()
	if err != nil {
		t.Close()
	}
	return values, err
}

func (t *traveller) Err() error {
	if t.closed {
		return t.err
	}
	return t.Rows.Err()
}

func (t *traveller) Conn() *pgx.Conn { return t.conn }

// firstRow is the pgx.Row of rows: what pgx's QueryRow makes of its Query.
type firstRow struct{ rows pgx.Rows }

func (r firstRow) Scan(dest ...any) error {
	defer r.rows.Close()
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			return errors.New("cannot scan into *pgtype.DriverBytes from QueryRow")
		}
	}
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}

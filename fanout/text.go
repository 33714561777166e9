package fanout

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A text is what a Source knows of one statement text, from all calls on whatever connection: how long the server takes
// for it, and its description, which spares a connection that has not seen it a round trip.
type text struct {
	sql     string
	name    string
	utility bool // it may change the session, or have a transaction of its own
	leaves  bool // it may leave what is undone by going back to a savepoint before it
	ends    bool // it ends the transaction that it runs in
	lasting bool // it may leave what outlives even a read-only transaction

	mu       sync.Mutex
	mean     float64 // moving average of what executions took, in nanoseconds
	usual    float64 // what they take if nothing delays them: a low expectile
	count    int64   // executions in both
	observed int     // how often something was added to both
	with     company // of what was observed
	longer   int     // the latest in a row that took far longer than expected
	shorter  int     // the latest executions in a row that took far less
	bytes    float64 // moving average of the length of results

	// Of a text that can be coalesced.
	apart     int  // executions by themselves since the latest together
	suspected bool // it seems to take longer together
	trial     int  // executions that are to be by themselves, to see what that takes now

	alone average // of what executions took when a call was at work alone, in nanoseconds; guarded by the mu of turns

	description atomic.Pointer[sourceDescription]
	joint       atomic.Pointer[joint]
	proving     atomic.Bool // somebody is about to set joint
	renamed     atomic.Int32
}

// A company is what may have taken some of the time that a statement seems to have taken, from the least to the most.
type company int

const (
	byItself  company = iota
	withParse         // and what else went ahead of it
	fresh             // the server's process: it had catalogs to load
)

// A sourceDescription is what one connection has learned of a text. Another one may rely on it if it resolves names in the
// same schemas.
type sourceDescription struct {
	params  []uint32
	fields  []pgconn.FieldDescription
	schemas string
	place   string // of the connection: the pool's hooks may lead another one to another database
	found   time.Time
}

const (
	// descriptionLasts is how long a new connection relies on what another one has been told. The types of parameters may
	// change: by its old type an argument may lose what the new one would have kept, a timestamp its time of day, and no
	// error says so. A connection that has prepared the statement is not told either; a new one had better be.
	descriptionLasts = time.Minute

	// maxTexts is how many statement texts a Source remembers, and maxTextBytes how long they may be together. Of more, any
	// one makes way for the next: those that are in use are soon known again.
	maxTexts     = 4096
	maxTextBytes = 16 << 20

	// costNoise is how much longer a statement may seem to take than it does, on average.
	costNoise = 300 * time.Microsecond

	// freshNoise is how much longer the first statement may take on a connection: a backend has catalogs to load.
	freshNoise = 50 * time.Millisecond

	// costWeight is that of the newest execution in a text's moving average.
	costWeight = 1.0 / 16

	// longerMeans is how many in a row that took far longer than expected mean that it is so from now on, and shorterMeans
	// how many that took far less: more, because many statements are quick mostly.
	longerMeans  = 2
	shorterMeans = 32

	// trialLength is how many executions it takes to see what they take by themselves, or that what they have taken
	// together was long ago.
	trialLength = 16
)

// statements are the texts that a Source has seen.
type statements struct {
	mu    sync.RWMutex
	known map[string]*text
	bytes int // of their SQL
}

// get returns what is known of sql.
func (t *statements) get(sql string) *text {
	t.mu.RLock()
	found := t.known[sql]
	t.mu.RUnlock()
	if found != nil {
		return found
	}
	found = newText(sql)
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.known[sql]; other != nil {
		return other
	}
	if t.known == nil {
		t.known = map[string]*text{}
	}
	t.bytes += len(sql)
	for any := range t.known {
		if len(t.known) < maxTexts && t.bytes <= maxTextBytes {
			break
		}
		delete(t.known, any)
		t.bytes -= len(any)
	}
	t.known[sql] = found
	return found
}

func newText(sql string) *text {
	utility := changesSession(sql)
	return &text{
		sql:     sql,
		name:    statementName(sql),
		utility: utility,
		leaves:  utility && !movesCursor(sql) || lasts(sql),
		ends:    (utility || mayBeSeveral(sql)) && endsTransaction(sql),
		lasting: outlives(sql),
	}
}

// observe adds n executions that have taken d each, on average: one observation.
func (t *text) observe(d time.Duration, n int) { t.atMost(d, n, byItself) }

// atMost adds executions that have taken d each, with something else. What was in less company than all before replaces
// that; of what was in more only counts that it has not taken long, unless it has taken even less.
func (t *text) atMost(d time.Duration, n int, with company) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.apart, t.trial = t.apart+n, max(0, t.trial-n)
	switch {
	case t.observed == 0 || with < t.with:
		t.restart()
		t.with = with
	case (with > t.with || with == fresh) && d >= t.likely():
		t.count += int64(n)
		return
	}
	t.add(d, n)
}

// add adds one observation. It is called with mu held.
func (t *text) add(d time.Duration, n int) {
	if t.observed > 0 {
		switch known := t.likely(); {
		case farther(d, known):
			t.longer, t.shorter = t.longer+1, 0
		case farther(known, d):
			t.longer, t.shorter = 0, t.shorter+n
		default:
			t.longer, t.shorter = 0, 0
		}
		if t.longer >= longerMeans || t.shorter >= shorterMeans {
			t.restart()
		}
	}
	took := float64(d)
	t.count += int64(n)
	t.observed++
	weight := max(costWeight, 1/float64(t.observed)) // the first is all there is, and may be far from what follows
	t.mean += weight * (took - t.mean)
	if took < t.usual {
		t.usual += min(1, weight*4) * (took - t.usual)
	} else {
		t.usual += weight * (took - t.usual)
	}
}

// restart has what was observed before count no more. It is called with mu held.
func (t *text) restart() { t.observed, t.longer, t.shorter = 0, 0, 0 }

// farther reports whether d is so much longer than known that chance does not explain it.
func farther(d, known time.Duration) bool { return d > 2*known+costNoise }

// provenJoint is what is known of coalescing the text on a connection to place; nil if nothing is, or if it was found out
// too long ago.
func (t *text) provenJoint(place string) *joint {
	if j := t.joint.Load(); j.fresh() && j.original.place == place {
		return j
	}
	return nil
}

// fresh reports whether j, which may be nil, is relied on, at its place: where these change with each call, the catalog is not
// to be asked for each.
func (j *joint) fresh() bool { return j != nil && time.Since(j.found) < jointLasts }

// sureOf reports whether something was added that often.
func (t *text) sureOf(times int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.observed >= times
}

// observeBytes adds the length of one execution's result.
func (t *text) observeBytes(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes += costWeight * 4 * (float64(n) - t.bytes)
}

// bulky reports whether results are mostly so long that those of several executions had better not be in memory at once.
func (t *text) bulky() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes > jointBytes
}

// expected is how long the server is likely to take for the text, and from how many executions that is known. On a busy
// machine everything seems to take longer than it does, the more the more lanes take part; so what is measured beyond the
// usual counts only if it is more than that may explain.
func (t *text) expected() (cost time.Duration, count int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.likely(), t.count
}

// likely is expected with mu held.
func (t *text) likely() time.Duration {
	if t.mean-t.usual < float64(costNoise) {
		return time.Duration(t.usual)
	}
	return time.Duration(t.mean)
}

// joined notes that executions of t have been sent as one statement that j has. What was known of that counts no more if
// executions have been by themselves for a while.
func (t *text) joined(j *text) {
	t.mu.Lock()
	long := t.apart >= trialLength
	t.apart = 0
	t.mu.Unlock()
	if long {
		j.mu.Lock()
		j.restart()
		j.mu.Unlock()
	}
}

// lately reports whether t has been executed together with others more lately than for a while by itself.
func (t *text) lately() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.apart < trialLength
}

// tried reports whether t has been tried by itself since it has first seemed to take longer together. If it has not, it is
// about to be.
func (t *text) tried() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.suspected {
		t.suspected, t.trial = true, trialLength
		t.restart()
	}
	return t.trial == 0
}

// trust notes that t does not seem to take longer together.
func (t *text) trust() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.suspected = false
}

// onTrial reports whether executions of t are to be by themselves for now.
func (t *text) onTrial() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trial > 0
}

// changesSession reports whether later statements on the connection may depend on what sql does to the session, or to the
// transaction that it runs in.
func changesSession(sql string) bool { return !isQuery(sql) || namesSession(sql) }

// mayBeSeveral reports whether sql may be several statements, of which only the first is looked at otherwise.
func mayBeSeveral(sql string) bool { return strings.Contains(strings.TrimRight(sql, "; \t\r\n"), ";") }

// several reports whether sql, sent with these arguments, may be several statements in one that the server takes: by the simple
// protocol, or by Exec if no argument is left behind pgx's options, whatever mode is one of them. Or anything at all: nobody
// knows what a QueryRewriter of the user's own makes of it.
func (s *shared) several(sql string, args []any, exec bool) bool {
	takes, rewritten := s.simple, false
options:
	for ; len(args) > 0; args = args[1:] {
		switch option := args[0].(type) {
		case pgx.QueryExecMode:
			takes = option == pgx.QueryExecModeSimpleProtocol
		case pgx.NamedArgs, pgx.StrictNamedArgs:
			rewritten = true
		case pgx.QueryRewriter:
			return true
		case pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
		default:
			break options
		}
	}
	takes = takes || exec && (len(args) == 0 || rewritten)
	return takes && mayBeSeveral(sql)
}

// severalQueued is several for a statement of a batch, any of which may be sent by the simple protocol.
func (s *shared) severalQueued(q *pgx.QueuedQuery) bool {
	return mayBeSeveral(q.SQL) || s.several(q.SQL, q.Arguments, false)
}

// isQuery reports whether sql begins like a statement that mostly leaves the session and its transaction as they were.
func isQuery(sql string) bool {
	switch firstWord(sql) {
	case "select", "insert", "update", "delete", "with", "values", "merge", "table":
		return true
	}
	return false
}

// movesCursor reports whether sql does no more to the session than to move a cursor, which stays where it is whatever is
// rolled back. There may be as many of these as rows: a savepoint for each would take 8 kB of the server's memory.
func movesCursor(sql string) bool {
	word := firstWord(sql)
	return word == "fetch" || word == "move"
}

// lasts reports whether sql, though it is a query, may do what lasts until the end of a read-only transaction: take a lock, or
// write to a temporary table.
func lasts(sql string) bool {
	switch firstWord(sql) {
	case "insert", "update", "delete", "merge":
		return true
	case "with":
		if mentions(sql, "insert", "update", "delete", "merge") {
			return true
		}
	}
	return mentions(sql, "advisory_xact_lock", "lo_open") || outlives(sql)
}

// outlives reports whether sql may do what a read-only transaction that commits leaves behind: a notification or, up to PostgreSQL
// 15, a large object.
func outlives(sql string) bool {
	return firstWord(sql) == "notify" || mentions(sql, "pg_notify", "lowrite",
		"lo_creat", "lo_from_bytea", "lo_import", "lo_put", "lo_truncate", "lo_unlink") // lo_ alone is in hello_id, too
}

// firstWord is the word that sql begins with, in lower case, behind comments of a line; "" if it is not a word.
func firstWord(sql string) string {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n\f\v(")
		switch {
		case strings.HasPrefix(sql, "--"):
			_, sql, _ = strings.Cut(sql, "\n")
			continue
		case strings.HasPrefix(sql, "/*"):
			return "" // comments nest: whoever writes them gets a connection of his own
		}
		break
	}
	end := strings.IndexFunc(sql, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') })
	if end < 0 {
		end = len(sql)
	}
	return strings.ToLower(sql[:end])
}

// endsTransaction reports whether one of the statements in sql is a commit or a rollback of the whole, also if that, or the
// next statement, begins another transaction; or may be, where only the server can read sql.
func endsTransaction(sql string) bool {
	list, ok := tokens(sql)
	if !ok {
		return mentions(sql, "commit", "end", "abort", "prepare", "rollback")
	}
	first := true
	for i, t := range list {
		rest := list[i+1:]
		if first && t.kind == wordToken {
			switch t.name {
			case "commit", "end", "abort":
				return true
			case "prepare":
				if len(rest) > 0 && rest[0].is(sql, "transaction") {
					return true
				}
			case "rollback":
				if len(rest) > 0 && (rest[0].is(sql, "work") || rest[0].is(sql, "transaction")) {
					rest = rest[1:]
				}
				if len(rest) == 0 || !rest[0].is(sql, "to") { // a savepoint
					return true
				}
			}
		}
		first = t.is(sql, ";")
	}
	return false
}

// namesSession reports whether sql names one of the functions by which a query sets what later statements of the session
// depend on: a setting, the seed of random, a lock that lasts. There are others, such as a user's own.
func namesSession(sql string) bool {
	return mentions(sql, "set_config", "setseed", "advisory_lock", "advisory_unlock")
}

// mentions reports whether one of the words, which are in lower case, is anywhere in sql.
func mentions(sql string, words ...string) bool {
	sql = strings.ToLower(sql)
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(sql, word) })
}

// A trip is what a Source knows of the way to its server: how long a round trip takes in which the server has nothing to
// do. It is measured now and then, and as soon as something comes far later than expected: the network may have changed.
type trip struct {
	mu      sync.Mutex
	latest  []time.Duration // up to tripWindow of them
	passed  int             // occasions since the last
	doubted bool            // the next occasion is to be used
	longer  []time.Duration // the latest in a row that were far longer
	pending []pendingCost   // if the way has not changed
}

// A pendingCost is what a statement has taken: but perhaps it was the way.
type pendingCost struct {
	text *text
	took time.Duration
	n    int
}

const (
	tripWindow = 8
	tripEvery  = 8

	// tripSure is how many round trips in a row that are far longer than those before mean that the way is.
	tripSure = 3

	// maxPending is how many costs are kept until the way has been measured.
	maxPending = 16
)

// due reports whether this occasion is to be used for measuring.
func (t *trip) due() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.passed++; len(t.latest) == tripWindow && t.passed < tripEvery && !t.doubted {
		return false
	}
	t.passed = 0
	return true
}

// observe adds a round trip. sure says that nothing on this side has made it longer.
func (t *trip) observe(d time.Duration, sure bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.latest) > 0 && farther(d, slices.Min(t.latest)) {
		if !sure {
			return
		}
		t.doubted, t.pending = true, nil
		if t.longer = append(t.longer, d); len(t.longer) < tripSure {
			return
		}
		t.latest, d = nil, slices.Min(t.longer)
	}
	if len(t.latest) == tripWindow {
		t.latest = t.latest[1:]
	}
	t.latest = append(t.latest, d)
	t.doubted, t.longer = false, nil
	for _, cost := range t.pending {
		cost.text.observe(cost.took, cost.n)
	}
	t.pending = nil
}

// doubt notes that n executions of x seem to have taken far longer than expected, each took, when the way was not measured.
func (t *trip) doubt(x *text, took time.Duration, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doubted = true
	if len(t.pending) < maxPending {
		t.pending = append(t.pending, pendingCost{x, took, n})
	}
}

// time is the shortest round trip of the last few: whatever made the others longer was not the way. 0 if there was none.
func (t *trip) time() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.latest) == 0 {
		return 0
	}
	return slices.Min(t.latest)
}

package fanout

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A text is what a Source knows of one statement text, from all calls on whatever connection: how long the server takes
// for it, and its description, which spares a connection that has not seen it a round trip.
type text struct {
	sql     string
	name    string
	utility bool // it is not a query: it may change the session, or have a transaction of its own

	mu       sync.Mutex
	mean     float64 // moving average of what executions took, in nanoseconds
	usual    float64 // what they take if nothing delays them: a low expectile
	count    int64   // executions in both
	observed int     // how often something was added to both
	bytes    float64 // moving average of the length of results

	alone average // of what executions took when a call was at work alone, in nanoseconds; guarded by the mu of turns

	description atomic.Pointer[sourceDescription]
	joint       atomic.Pointer[joint]
	proving     atomic.Bool // somebody is about to set joint
	renamed     atomic.Int32
}

// A sourceDescription is what one connection has learned of a text. Another one may rely on it if it resolves names in the
// same schemas.
type sourceDescription struct {
	params  []uint32
	fields  []pgconn.FieldDescription
	schemas string
}

const (
	// maxTexts is how many statement texts a Source remembers. Any more are new each time.
	maxTexts = 4096

	// costNoise is how much longer a statement may seem to take than it does, on average.
	costNoise = 300 * time.Microsecond

	// costWeight is that of the newest execution in a text's moving average.
	costWeight = 1.0 / 16
)

// statements are the texts that a Source has seen.
type statements struct {
	mu    sync.RWMutex
	known map[string]*text
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
	if len(t.known) < maxTexts {
		if t.known == nil {
			t.known = map[string]*text{}
		}
		t.known[sql] = found
	}
	return found
}

func newText(sql string) *text {
	return &text{sql: sql, name: statementName(sql), utility: !isQuery(sql)}
}

// observe adds n executions that have taken d each, on average: one observation.
func (t *text) observe(d time.Duration, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
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

// provenJoint is what is known of coalescing the text; nil if nothing is, or if it was found out too long ago.
func (t *text) provenJoint() *joint {
	if j := t.joint.Load(); j != nil && time.Since(j.found) < jointLasts {
		return j
	}
	return nil
}

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
	if t.mean-t.usual < float64(costNoise) {
		return time.Duration(t.usual), t.count
	}
	return time.Duration(t.mean), t.count
}

// isQuery reports whether sql begins like a statement that leaves the session, and the transaction that it runs in, as
// they were.
func isQuery(sql string) bool {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n\f\v(")
		switch {
		case strings.HasPrefix(sql, "--"):
			_, sql, _ = strings.Cut(sql, "\n")
			continue
		case strings.HasPrefix(sql, "/*"):
			return false // comments nest: whoever writes them gets a connection of his own
		}
		break
	}
	end := strings.IndexFunc(sql, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') })
	if end < 0 {
		end = len(sql)
	}
	switch strings.ToLower(sql[:end]) {
	case "select", "insert", "update", "delete", "with", "values", "merge", "table":
		return true
	}
	return false
}

// A trip is what a Source knows of the way to its server: how long a round trip takes in which the server has nothing to
// do. It is measured now and then, so it follows a network that changes.
type trip struct {
	mu     sync.Mutex
	latest [tripWindow]time.Duration
	count  int // measured ever
	passed int // occasions since the last
}

const (
	tripWindow = 8
	tripEvery  = 8
)

// due reports whether this occasion is to be used for measuring.
func (t *trip) due() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.passed++; t.count >= tripWindow && t.passed < tripEvery {
		return false
	}
	t.passed = 0
	return true
}

func (t *trip) observe(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.latest[t.count%tripWindow] = d
	t.count++
}

// time is the shortest round trip of the last few: whatever made the others longer was not the way. 0 if there was none.
func (t *trip) time() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == 0 {
		return 0
	}
	return slices.Min(t.latest[:min(t.count, tripWindow)])
}

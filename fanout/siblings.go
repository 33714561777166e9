package fanout

import (
	"context"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// answerPatience is how long a lane that ends its siblings may wait for the server to answer, before each of them is also
// ended by cancel requests of its own. It is longer than most round trips, and short beside cancelGrace.
const answerPatience = 100 * time.Millisecond

// siblings are the statements of a call that one of its lanes ends, because its own unit has failed. It has the server end
// all of them by one statement, on its own connection, which has nothing else to do. A cancel request takes a connection
// of its own, for which the server forks a process: nine of them take longer than nine log-ins. They remain for whatever
// the one statement does not reach.
//
// A process id alone does not say whose it is: behind a pooler or on another server, it may be anybody's. So the server is
// to compare what it has at its end of a connection with what is at this end, and to leave alone what does not match.
type siblings struct {
	lane     *lane           // with beside of its link held
	ctx      context.Context // ends with the statements' grace
	deadline time.Time       // when that is
	running  []*sibling
}

// A sibling is one statement that is to end.
type sibling struct {
	handle *handle
	ended  chan struct{} // handle.ended of this statement
	alone  bool          // cancel requests are seeing to it
}

// claimSiblings finds the statements that l can end when its unit has failed, and keeps their own watches from doing it
// when the call's ctx ends. It returns nil if there is nothing to end, or l, which may be nil, is not fit to.
func (c *call) claimSiblings(l *lane) *siblings {
	if l == nil || c.exchange != nil || c.borrowed != nil || c.shared.behindPooler.Load() || c.ctx.Err() != nil {
		return nil
	}
	if !l.link.beside.TryLock() {
		return nil
	}
	s := &siblings{lane: l, deadline: time.Now().Add(cancelGrace)}
	if s.fit() {
		c.mu.Lock()
		for _, other := range c.lanes {
			if h := other.now.Load(); other != l && h != nil {
				// With their own watches kept from ending them, for the cause that the call's ctx will have.
				if ended := h.endsBy(s.deadline, context.Canceled); ended != nil {
					s.running = append(s.running, &sibling{handle: h, ended: ended})
				}
			}
		}
		c.mu.Unlock()
	}
	if len(s.running) == 0 {
		l.link.beside.Unlock()
		return nil
	}
	return s
}

// fit reports whether a statement can be sent on the lane's connection.
func (s *siblings) fit() bool {
	pg := s.lane.link.conn.PgConn()
	if !s.lane.link.pooled() || pg.IsClosed() || pg.IsBusy() {
		return false
	}
	t := s.lane.transaction
	return s.lane.link.status() != 'E' || t != nil && t.joined.Load()
}

// cancel ends the statements, and returns when they have ended or cancel requests see to them. It is called when the call's
// ctx has ended.
func (s *siblings) cancel() {
	if s == nil {
		return
	}
	defer s.lane.link.beside.Unlock()
	var stop context.CancelFunc
	s.ctx, stop = context.WithDeadline(context.Background(), s.deadline)
	defer stop()
	for wait := cancelRepeat; ; wait *= 2 {
		s.running = slices.DeleteFunc(s.running, func(v *sibling) bool { return v.alone || !v.hold() })
		if len(s.running) == 0 {
			return
		}
		s.round()
		if !s.await(wait) {
			return
		}
	}
}

// round makes one attempt at the statements, which are held: whatever comes of it, no signal is under way any more when
// they are released.
func (s *siblings) round() {
	reached, err := s.ask()
	unknown := err != nil && !isServerError(err) && !pgconn.SafeToRetry(err)
	for _, v := range s.running {
		switch {
		case unknown:
			// What the server has not confirmed it may yet do, at any time: the backend must serve nobody else.
			v.sever()
		case !reached[v.handle.link.conn.PgConn().PID()]:
			s.leaveAlone(v)
		}
		v.handle.watchers.Done()
	}
}

// ask has the server cancel what runs on the siblings' backends, and returns the ids of those that it has signalled.
func (s *siblings) ask() (reached map[uint32]bool, err error) {
	sql := s.statement()
	if sql == "" {
		return nil, nil
	}
	answered := make(chan struct{})
	var results []*pgconn.Result
	go func() {
		defer close(answered)
		results, err = s.lane.link.exec(s.deadline, sql)
	}()
	select {
	case <-answered:
	case <-time.After(answerPatience):
		for _, v := range s.running {
			s.leaveAlone(v)
		}
		<-answered
	}
	if err != nil {
		return nil, err
	}
	reached = map[uint32]bool{}
	for _, result := range results {
		for _, row := range result.Rows { // of the last one only
			if len(row) != 3 {
				continue
			}
			if string(row[0]) != "t" {
				s.lane.call.shared.behindPooler.Store(true)
			}
			if pid, err := strconv.ParseUint(string(row[1]), 10, 32); err == nil && string(row[2]) == "t" {
				reached[uint32(pid)] = true
			}
		}
	}
	return reached, nil
}

// statement is what ask sends; "" if there is no use in it. Every name in it is qualified, because a user's search_path may
// have others in front. Its rows say whether the server is at the other end of this connection, and, if so, whether it
// has signalled the backend.
func (s *siblings) statement() string {
	if !s.fit() {
		return ""
	}
	own, ok := whereIs(s.lane.link.conn)
	if !ok {
		return ""
	}
	var backends []string
	for _, v := range s.running {
		at, ok := whereIs(v.handle.link.conn)
		if ok && at.server == own.server && (at.port > 0 || !s.lane.call.shared.severalHosts) {
			backends = append(backends, fmt.Sprintf("(%d, %d)", at.pid, at.port))
		}
	}
	if len(backends) == 0 {
		return ""
	}
	sql := fmt.Sprintf(`select d.direct, v.pid, case when d.direct and exists (
	select from pg_catalog.pg_stat_get_activity(v.pid) a where a.client_port operator(pg_catalog.=) v.port
		and (v.port operator(pg_catalog.<) 0 or a.client_addr operator(pg_catalog.=) pg_catalog.inet_client_addr())
) then pg_catalog.pg_cancel_backend(v.pid) end
from (values %s) v (pid, port), (select pg_catalog.pg_backend_pid() operator(pg_catalog.=) %d
	and coalesce(pg_catalog.inet_client_port(), -1) operator(pg_catalog.=) %d) d (direct)`, strings.Join(backends, ", "), own.pid, own.port)
	if s.lane.link.status() == 'E' {
		sql = rollBackTo + ";" + sql
	}
	return sql
}

// A location is what the server must agree with, of a connection.
type location struct {
	pid    uint32
	server string // its address
	port   int    // the port at this end; -1 for a unix socket, as in pg_stat_activity
}

// whereIs returns where conn is; ok is false where PostgreSQL itself cannot be at the other end.
func whereIs(conn *pgx.Conn) (at location, ok bool) {
	pg := conn.PgConn()
	at = location{pid: pg.PID(), port: -1}
	if at.pid == 0 || at.pid > math.MaxInt32 {
		return at, false
	}
	local, remote := pg.Conn().LocalAddr(), pg.Conn().RemoteAddr()
	if local == nil || remote == nil {
		return at, false
	}
	at.server = remote.String()
	switch local := local.(type) {
	case *net.TCPAddr:
		at.port = local.Port
	case *net.UnixAddr:
	default:
		return at, false
	}
	return at, true
}

// await waits for statements that the server has signalled. A signal that came before its statement did, or between two
// messages of one, is lost. It reports whether there is to be another round.
func (s *siblings) await(wait time.Duration) bool {
	waited := time.After(wait)
	again := false
	for _, v := range s.running {
		if v.alone {
			continue
		}
		select {
		case <-v.ended:
			continue
		default:
		}
		if !again {
			select {
			case <-v.ended:
				continue
			case <-waited:
				again = true
			case <-s.ctx.Done():
				again = true
			}
		}
		if s.ctx.Err() != nil && v.hold() {
			v.sever()
			v.handle.watchers.Done()
		}
	}
	return again
}

// leaveAlone hands a statement to cancel requests of its own.
func (s *siblings) leaveAlone(v *sibling) {
	if v.alone || !v.hold() {
		return
	}
	v.alone = true
	v.handle.request()
	go func() {
		defer v.handle.watchers.Done()
		v.handle.link.cancel(v.ended, s.deadline)
	}()
}

// sever gives up the connection of a statement that the server does not end, or may be late in ending.
func (v *sibling) sever() {
	v.alone = true
	v.handle.request() // so that pgx takes note
	v.handle.link.sever()
}

// request notes that the statement has been interrupted in a way that one more round trip is to follow.
func (h *handle) request() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requested = true
}

// severalHosts reports whether connections of a pool may lead to servers on different machines, where process ids repeat.
func severalHosts(config *pgxpool.Config) bool {
	return config.BeforeConnect != nil || slices.ContainsFunc(config.ConnConfig.Fallbacks, func(f *pgconn.FallbackConfig) bool {
		return f.Host != config.ConnConfig.Host
	})
}

// hold keeps the end of the statement waiting until watchers.Done, if it has not come yet: a signal is about to be sent.
func (v *sibling) hold() bool {
	h := v.handle
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.watching || h.ended != v.ended {
		return false
	}
	h.watchers.Add(1)
	h.signals++
	return true
}

// usedUp reports whether no cancel can hit what comes after the statement, which has ended with err: none was sent; or one
// was, and the server has confirmed it, and it has had its effect.
func (h *handle) usedUp(err error) bool {
	return !h.requested && (h.signals == 0 || h.signals == 1 && queryCanceled(err))
}

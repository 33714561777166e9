package fanout

import (
	"slices"
	"time"
)

// Auto is Coalesced with an eye on the pool. What is sent together, and how much goes ahead on a connection, follows from
// measurement in both (see pick and join). How many connections a call takes follows, for Auto, also from what is left of
// the pool: see Strategy for the law.

// fair is how many of the pool's connections a call may take: its share among the calls of the Source that are in progress.
func (c *call) fair() int {
	return max(1, c.shared.maxConns/max(1, int(c.shared.calls.Load())))
}

// room reports whether the call may take one more connection: within its share, and only such as nobody waits for. While
// others use the pool, one is left for whoever comes next. It is called with mu held.
func (x *exchange) room() bool {
	c := x.call
	if !c.auto || c.borrowed != nil {
		return true
	}
	mine := len(x.lanes) + x.starting + x.leaving
	if mine == 0 {
		return true
	}
	if mine >= c.fair() {
		return false
	}
	stat := c.pool.Stat()
	acquired, free := int(stat.AcquiredConns()), int(stat.MaxConns()-stat.AcquiredConns())-x.starting
	if acquired > len(x.lanes)+x.leaving {
		free--
	}
	return free > 0
}

// shareCheck is how often a lane that has nothing to do looks whether its call's share has shrunk.
const shareCheck = 10 * time.Millisecond

// surplus reports whether the lane is one more than the call's share, which has shrunk since it was started. It is called
// with mu held.
func (p *pipeline) surplus() bool {
	x := p.exchange
	return x.call.auto && x.call.borrowed == nil && slices.Index(x.lanes, p) >= x.call.fair()
}

// rest waits until the lane is woken, or has become one too many: functions that are busy with something else may leave it
// idle for long, and nobody who needs its connection could wake it. first says that the lane never is one too many.
func (p *pipeline) rest(first bool) {
	x := p.exchange
	if first || !x.call.auto || x.call.borrowed != nil {
		<-p.wake
		return
	}
	tick := time.NewTicker(shareCheck)
	defer tick.Stop()
	for {
		select {
		case <-p.wake:
			return
		case <-tick.C:
		}
		x.mu.Lock()
		leave := p.idle && p.units == 0 && p.surplus()
		if leave {
			p.idle = false
		}
		x.mu.Unlock()
		if leave {
			return
		}
	}
}

// ran is the strategy by which h's function has run, for its span.
func (h *handle) ran() Strategy {
	c := h.call
	switch strategy := c.strategy(); {
	case strategy != Auto:
		return strategy
	case h.shared > 0:
		return Coalesced
	default:
		return Pipelined
	}
}

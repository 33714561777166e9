package fanout

import "time"

// hauntedSize is more of a result than is on its way from the server when it confirms a cancel request: a statement
// that has sent so much has not been hit.
const hauntedSize = 8 << 20

// cancelling is an attempt to have the server end the statement that is executing.
type cancelling struct {
	ended chan struct{} // closed when the statement has
	done  chan struct{} // closed when no cancel request is under way any more
	asked bool          // there was one; valid when done
}

// interrupt has the server end r's statement, which nobody wants any more, once it is executing: soon, or when its turn
// comes. It is called with mu held.
func (p *pipeline) interrupt(r *request) {
	if r.group != nil {
		r = r.group
	}
	if len(p.inflight) == 0 || p.inflight[0] != r || r.spared || p.cancel != nil || p.mute || r.wanted() {
		return
	}
	c := &cancelling{ended: make(chan struct{}), done: make(chan struct{})}
	p.cancel = c
	p.deadline = time.Now().Add(cancelGrace)
	link, deadline, arrived := p.link, p.deadline, r.arrived
	patience := p.call.shared.patience()
	if r.counted > 0 && r.cost > patience {
		patience = 0 // it is known to take longer
	}
	go func() {
		defer close(c.done)
		if arrived != nil {
			// What precedes it is not to be cancelled: others rely on that, too.
			select {
			case <-arrived:
			case <-c.ended:
				return
			case <-time.After(time.Until(deadline)):
			}
		}
		if endsWithin(patience, c.ended) {
			return
		}
		c.asked = true
		link.cancel(c.ended, deadline)
	}()
}

// stopCancelling is called when the statement that was executing has ended. It reports whether the server was asked to
// end it: then a cancel request may come to bear only now, on what is executing next.
func (p *pipeline) stopCancelling() bool {
	x := p.exchange
	x.mu.Lock()
	c := p.cancel
	p.cancel = nil
	x.mu.Unlock()
	if c == nil {
		return false
	}
	close(c.ended)
	<-c.done
	return c.asked
}

// silence is stopCancelling for good.
func (p *pipeline) silence() {
	p.exchange.mu.Lock()
	p.mute = true
	p.exchange.mu.Unlock()
	p.stopCancelling()
}

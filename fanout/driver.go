package fanout

import (
	"slices"
	"sync"
	"time"
)

// A driver runs parked query functions on, one after the other, in the goroutine that has got the answers for them. A
// lane is one, mostly. While a function runs nobody else does what its driver has to do; so if the function does not come
// back soon, because it is busy with something else, another goroutine takes the driver's place, and the first one is left
// with that function alone.
type driver struct {
	exchange *exchange
	lane     *pipeline // that the goroutine is of; nil if of none

	// Guarded by the exchange's mu.
	runnable []*runner // from next on
	next     int
	running  bool
	resumed  int // functions ever
	seen     int // resumed, when the timer last looked
	detached bool
}

// drive runs what is runnable. It reports whether the goroutine still has its place.
func (d *driver) drive() bool {
	x := d.exchange
	for {
		x.mu.Lock()
		d.running = false
		if d.detached {
			x.summon()
			x.mu.Unlock()
			return false
		}
		if d.next == len(d.runnable) {
			d.runnable, d.next = d.runnable[:0], 0
			x.mu.Unlock()
			return true
		}
		w := d.runnable[d.next]
		d.next++
		d.running = true
		d.resumed++
		w.driver = d
		x.watch()
		x.mu.Unlock()
		w.resume()
	}
}

// detach puts another goroutine in the place of d's. It is called with mu held.
func (d *driver) detach() {
	if d.detached {
		return
	}
	d.detached = true
	x := d.exchange
	successor := &driver{exchange: x, lane: d.lane, runnable: d.runnable[d.next:]}
	d.runnable, d.next = nil, 0
	if p := d.lane; p != nil {
		p.driver = successor
		if p.broken != nil {
			x.loose = append(x.loose, successor)
		}
		x.call.group.Go(func() error { return p.loop(successor) })
		return
	}
	x.goDrive(successor)
	x.summon() // for what has been asked for up to now
}

// runOn has d run runners on, or if it has lost its place, another driver. It is called with mu held.
func (x *exchange) runOn(d *driver, runners ...*runner) {
	if !d.detached {
		d.runnable = append(d.runnable, runners...)
		return
	}
	x.goDrive(&driver{exchange: x, runnable: runners})
}

// goDrive runs what d has in a goroutine of its own. It is called with mu held.
func (x *exchange) goDrive(d *driver) {
	if len(d.runnable) == 0 {
		return
	}
	x.loose = append(x.loose, d)
	x.call.group.Go(func() error {
		defer func() {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.loose = slices.DeleteFunc(x.loose, func(other *driver) bool { return other == d })
			d.detach() // if a function has ended the goroutine
			x.summon()
		}()
		d.drive()
		return nil
	})
}

// watch sees to it that drivers are looked after. It is called with mu held.
func (x *exchange) watch() {
	if !x.watched {
		x.watched = true
		x.call.shared.rounds.add(x)
	}
}

// look detaches the drivers whose function has been running since it looked before. It reports whether it should look
// again.
func (x *exchange) look() (again bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	look := func(d *driver) {
		switch {
		case !d.running || d.detached:
		case d.seen == d.resumed:
			d.detach()
		default:
			d.seen = d.resumed
			again = true
		}
	}
	for _, p := range x.lanes {
		look(p.driver)
	}
	for _, d := range slices.Clone(x.loose) {
		look(d)
	}
	x.watched = again
	return again
}

// The rounds of a watchman, who looks at all exchanges of a Source that have a function running. One timer for all of them
// goes on from call to call: to set one for each call, and stop it, wakes threads that had better be left to the server.
type rounds struct {
	mu   sync.Mutex
	list []*exchange
	due  bool // a timer is running
}

// add has x looked at until there is nothing to see.
func (r *rounds) add(x *exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, x)
	r.plan()
}

// plan sets the timer. It is called with mu held.
func (r *rounds) plan() {
	if !r.due {
		r.due = true
		time.AfterFunc(stallBound, r.make)
	}
}

// make makes a round. When a call has ended there is nothing to see of it.
func (r *rounds) make() {
	r.mu.Lock()
	list := r.list
	r.list, r.due = nil, false
	r.mu.Unlock()
	list = slices.DeleteFunc(list, func(x *exchange) bool { return !x.look() })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.list = append(r.list, list...); len(r.list) > 0 {
		r.plan()
	}
}

package fanout

import (
	"context"
	"sync"
)

// worthMerging is from how many rows on they are merged while queries still run. Fewer are merged when all is over: that
// costs no goroutine, and the lanes nothing to speak of.
const worthMerging = 8192

// A merging is the map of a Gather, or an IntoMap, in the making. Where rows are many, those of queries that have finished
// are merged while others run, in a goroutine beside the lanes: as far as their order allows it, since the later query's row
// wins. The lists are let go of, so that rows which other rows replace are not in memory to the end.
type merging[K comparable, T any] struct {
	key   func(T) K
	lists [][]T // by query

	mu       sync.Mutex
	complete []bool // by query: the list is what it will be
	rows     int    // of complete lists, not merged yet
	next     int    // list to be merged
	merged   map[K]T
	working  bool // in the goroutine; it stays true if key has not returned, which whoever calls Gather is to learn
}

func newMerging[K comparable, T any](key func(T) K, queries int) *merging[K, T] {
	return &merging[K, T]{key: key, lists: make([][]T, queries), complete: make([]bool, queries)}
}

// add notes that list i is complete. A snapshot call that may start again would have to forget what has been merged by
// then: there all are merged at the end.
func (m *merging[K, T]) add(i int, c *call) {
	if c.wantSnapshot && c.retries > 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.complete[i] = true
	m.rows += len(m.lists[i])
	if m.rows >= worthMerging && m.complete[m.next] && !m.working {
		m.working = true
		c.group.Go(func() error { m.work(c.ctx); return nil })
	}
}

// work merges what can be merged, unless ctx has ended: then nobody wants the map. A query that fails has no list: those
// behind it are merged at the end.
func (m *merging[K, T]) work(ctx context.Context) {
	defer func() { _ = recover() }() // of key: it will panic once more
	for {
		m.mu.Lock()
		i := m.next
		if i == len(m.lists) || !m.complete[i] || ctx.Err() != nil {
			m.working = false
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		list := m.lists[i]
		if m.merged == nil {
			m.merged = make(map[K]T, len(list))
		}
		mergeInto(m.merged, m.key, list)
		m.mu.Lock()
		m.rows -= len(list)
		m.lists[i] = nil
		m.next++
		m.mu.Unlock()
	}
}

// result is the map, when all lists are complete and nobody is at work.
func (m *merging[K, T]) result() map[K]T {
	if m.merged == nil {
		return Merge(m.key, m.lists...)
	}
	mergeInto(m.merged, m.key, m.lists[m.next:]...)
	return m.merged
}

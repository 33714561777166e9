package fanout

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A snapshot is what the lanes of a Snapshot call share: one snapshot of the database, which the lane that sends the first
// statement exports, and which the others import with theirs. Nobody imports before there is something to send: a lane
// whose query functions never ask for a statement costs the server nothing.
//
// An import needs the exporting transaction to be open still. So the exporter, before it leaves, sees to it that every
// lane that may yet send something has imported; it waits for the network only, never for a query function.
type snapshot struct {
	shared *shared
	ctx    context.Context // the call's
	alone  bool            // there is one lane only: nothing need be exported

	lasting atomic.Bool // a statement has been sent that may leave what outlives the transactions

	settled chan struct{} // closed when the first attempt to export has succeeded, or failed
	near    bool          // once settled: it has been a quick success

	mu        sync.Mutex
	exporter  *transaction  // the lane that has claimed the export
	begun     time.Time     // when it did
	published chan struct{} // closed when the exporter has exported, or failed to
	id        string        // what there is to import; "" before
	server    string        // where
	standby   bool          // it is a hot standby
	lost      bool          // there is nothing to import any more: the exporter has left, or its connection was lost
}

// errSnapshotLost is what queries get that cannot have the snapshot of their call any more.
var errSnapshotLost = errors.New("fanout: the snapshot was lost with the connection that had exported it")

// Mistakes in a query function, as those in error.go.
var (
	errEndsTransaction  = errors.New("fanout: a statement that ends the transaction of the snapshot call was not sent; the transaction is the call's")
	errEndedTransaction = errors.New("fanout: the query function ended the transaction of the snapshot call (commit or rollback); it is the call's")
)

// gone reports whether lanes that have not imported yet cannot any more.
func (s *snapshot) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// claim makes t the exporter, if there is none. Otherwise it waits for the one there is and returns what to import; not
// beyond the end of ctx, or the call's.
func (s *snapshot) claim(ctx context.Context, t *transaction) (id, server string, exporter bool, err error) {
	for {
		s.mu.Lock()
		switch {
		case s.lost:
			s.mu.Unlock()
			return "", "", false, errSnapshotLost
		case s.exporter == nil:
			s.exporter = t
			s.begun = time.Now()
			s.published = make(chan struct{})
			s.mu.Unlock()
			return "", "", true, nil
		case s.id != "":
			defer s.mu.Unlock()
			return s.id, s.server, false, nil
		}
		published := s.published
		s.mu.Unlock()
		if u, ok := ctx.(uncancelled); ok {
			ctx = u.ends
		}
		select {
		case <-published:
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.ctx.Done():
			err = s.ctx.Err()
		}
		if err != nil {
			return "", "", false, fmt.Errorf("fanout: the statement was not sent: %w", err)
		}
	}
}

// publish is called by the exporter with what it has exported. An id of "" gives the claim back: the export has failed.
func (s *snapshot) publish(id, server string, standby bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" {
		s.exporter = nil
	}
	s.id, s.server, s.standby = id, server, standby
	close(s.published)
	select {
	case <-s.settled:
	default:
		s.near = id != "" && time.Since(s.begun) < nearby
		close(s.settled)
	}
}

// exportedBy reports whether t is the exporter, and whether that is on a standby.
func (s *snapshot) exportedBy(t *transaction) (exporter, standby bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exporter == t, s.standby
}

// withdraw is called when the exporter's transaction is over, or about to be.
func (s *snapshot) withdraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = true
}

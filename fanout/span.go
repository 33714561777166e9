package fanout

import "time"

// Span is one finished query, for logs, metrics and timelines; Source.Observe receives it. A query that was never started
// has none, nor has one that panicked.
type Span struct {
	Index int    // position among the call's queries or tasks, as in [Error]
	Name  string // of the statement sent last, as in [Error]
	PID   uint32 // backend process id of the connection it ran on

	Queued   time.Time // when the call was made
	Started  time.Time // when its first statement was sent; zero if none was
	Finished time.Time // when its function had returned

	Statements int   // statements sent; each one of a batch counts
	Rows       int   // rows that its statements returned and its function read
	Err        error // what its function returned

	Strategy Strategy // how it ran: nested calls and calls inside a transaction run Serial, or Pipelined
	Shared   int      // statements of other queries that shared a coalesced statement with this one's
	Attempt  int      // 1, or more after Retries
}

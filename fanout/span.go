package fanout

import "time"

// Span is one finished query, for logs, metrics and timelines; Source.Observe receives it. A query that was never started
// has none, nor has one that panicked.
type Span struct {
	Index int    // position among the call's queries or tasks, as in [Error]
	Name  string // of a statement, as in [Error]
	PID   uint32 // backend process id of the connection it ran on; behind a pooler, what that says it is

	Queued   time.Time // when the call was made, or began its latest attempt
	Started  time.Time // when its first statement was sent, or failed to be; zero if it did not come to that
	Finished time.Time // when its function had returned

	Statements int   // statements asked for, whether or not they could be sent, but for misuse; each one of a batch counts
	Rows       int   // rows that its statements returned and its function read
	Err        error // as in [Error]; of a query that another one's failure has cancelled, it matches context.Canceled

	Strategy Strategy // how it ran: of Auto, what it chose; nested calls and calls inside a transaction may run Serial
	Shared   int      // statements of other queries that shared a coalesced statement with this one's
	Attempt  int      // 1, or more after Retries
}

package fanout

import (
	"context"
	"iter"
	"sync"
)

// Result is one finished query's rows in a [Stream].
type Result[T any] struct {
	Index int // position of the query in the call
	Rows  []T // what it returned
}

// Stream runs the queries at once and yields the rows of each as it finishes, with its index; under Serial, in the order
// of the queries. Each range over the sequence runs the queries anew.
//
// The queries never wait for the loop body: finished results are buffered, and connections go back to the pool as soon as
// no query is waiting for one, so the body may use the same pool; but in a Stream that is a nested call, not by the query
// function's ctx while queries run. When the loop ends, by itself, by break or by a panic, running statements are
// cancelled, and the loop is left only when no goroutine of the call runs and no connection of it is held.
//
// A failure ends the sequence: what had finished before it is yielded, then the zero Result and the error, which is as in
// [Collect]. With Source.Partial, each failed query is yielded as the zero Result and its [*Error] when it fails, and the
// sequence goes on. A panic in a query function is passed on from the loop as a [*PanicError]. Stream panics if a query is
// nil or src was not made by [New].
func Stream[Q, T any](ctx context.Context, src Source[Q], queries ...Query[Q, T]) iter.Seq2[Result[T], error] {
	mustHaveAll("Stream", queries)
	checked := src.check("Stream")
	return func(yield func(Result[T], error) bool) {
		if checked != nil {
			yield(Result[T]{}, checked)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		s := stream[T]{attempt: 1, wake: make(chan struct{}, 1)}
		lists := make([][]T, len(queries)) // of queries that have returned, and may yet turn out to have failed
		call := newCall(ctx, &src, len(queries), func(ctx context.Context, i int, q Q) (err error) {
			lists[i], err = queries[i](ctx, q)
			return err
		})
		call.done = func(i int) {
			s.put(call.attempt, Result[T]{i, lists[i]}, nil)
			lists[i] = nil
		}
		call.failed = func(e *Error) { s.put(call.attempt, Result[T]{}, e) }
		call.restart = s.forget
		ended := make(chan error, 1)
		go func() {
			var err error
			completed := false
			defer func() {
				if !completed { // the caller's own pgx.Tx has panicked, or called Goexit
					err = unwound(recover())
				}
				ended <- err
				close(ended)
				close(s.wake)
			}()
			err = call.executeRetrying()
			completed = true
		}()
		// However the loop ends, the call ends first. A panic of a query function is passed on even if the loop has ended
		// by break, but not in place of a panic of the loop body.
		defer func() {
			cancel()
			<-ended
		}()
		for range s.wake {
			for _, item := range s.get() {
				if !yield(item.result, item.err) {
					cancel()
					raise(<-ended)
					return
				}
			}
		}
		err := <-ended
		raise(err)
		if err != nil {
			yield(Result[T]{}, err)
		}
	}
}

// stream is the buffer between the lanes of a call and its consumer. It has no bound: rows that are to be returned are
// in memory in any case, and a bound would make connections wait for the loop body.
type stream[T any] struct {
	mu      sync.Mutex
	items   []streamItem[T]
	taken   bool          // the consumer has had some of them
	attempt int           // of the call, whose results these are
	wake    chan struct{} // holds a token while there are items, is closed at the end
}

type streamItem[T any] struct {
	result Result[T]
	err    error
}

// put adds what an attempt of the call has brought forth, unless that is forgotten already.
func (s *stream[T]) put(attempt int, result Result[T], err error) {
	s.mu.Lock()
	if attempt == s.attempt {
		s.items = append(s.items, streamItem[T]{result, err})
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// forget makes way for another attempt. It is too late for that once the consumer has had something of this one.
func (s *stream[T]) forget() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken {
		return false
	}
	s.items = nil
	s.attempt++
	return true
}

// get takes all that is there.
func (s *stream[T]) get() []streamItem[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := s.items
	s.items = nil
	s.taken = s.taken || len(items) > 0
	return items
}

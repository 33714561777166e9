package localpg_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
)

// The kernel ties the child to the thread that started it; the thread that called Start may end.
func TestCallingThreadEnds(t *testing.T) {
	scratch(t)
	var s *localpg.Server
	tid := make(chan int)
	ended := make(chan struct{})
	defer close(ended)
	var start func()
	start = func() {
		runtime.LockOSThread()
		if syscall.Gettid() == os.Getpid() {
			// The main thread never ends. While it is taken, another goroutine gets another one.
			defer runtime.UnlockOSThread()
			go start()
			<-ended
			return
		}
		// Never unlocked: the thread ends with the goroutine.
		var err error
		if s, err = localpg.Start(t.Context()); err != nil {
			t.Error(err)
		}
		tid <- syscall.Gettid()
	}
	go start()
	task := fmt.Sprintf("/proc/self/task/%d", <-tid)
	if s == nil {
		return
	}
	defer stop(t, s)
	eventually(t, 5*time.Second, "the calling thread has ended", func() bool {
		_, err := os.Stat(task)
		return errors.Is(err, os.ErrNotExist)
	})
	show(t, s.DSN(), "select '1'")
}

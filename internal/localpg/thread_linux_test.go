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
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var err error
		if s, err = localpg.Start(t.Context()); err != nil {
			t.Error(err)
		}
		tid <- syscall.Gettid()
	}()
	task := fmt.Sprintf("/proc/self/task/%d", <-tid)
	if s == nil {
		return
	}
	defer stop(t, s)
	if task == fmt.Sprintf("/proc/self/task/%d", os.Getpid()) {
		t.Skip("the goroutine ran on the main thread, which never ends")
	}
	eventually(t, 5*time.Second, "the calling thread has ended", func() bool {
		_, err := os.Stat(task)
		return errors.Is(err, os.ErrNotExist)
	})
	show(t, s.DSN(), "select '1'")
}

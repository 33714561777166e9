//go:build unix && !aix && !solaris

package localpg

import (
	"context"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// A process is a child that one goroutine starts and reaps.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has been reaped
	err  error         // how it ended; to be read after done
}

// startProcess starts cmd. Its goroutine keeps its operating-system thread until the child is gone: the kernel takes the
// end of the thread that started a child for the death of the parent (Pdeathsig), and Go ends threads as it likes.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// end sends the signals one after the other, each when the one before it has had the grace, and returns when the child is
// gone. It does nothing to one that is gone already.
func (p *process) end(grace time.Duration, signals ...syscall.Signal) {
	for _, sig := range signals {
		_ = p.cmd.Process.Signal(sig) // fails for a child that has been reaped, and never hits another process
		select {
		case <-p.done:
			return
		case <-time.After(grace):
		}
	}
	<-p.done
}

// run runs cmd to its end, and kills it when ctx ends first.
func run(ctx context.Context, cmd *exec.Cmd) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	p, err := startProcess(cmd)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.end(0, syscall.SIGKILL)
		return context.Cause(ctx)
	}
}

//go:build unix && !aix && !solaris

package localpg

import (
	"bufio"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestEndOfDeafProcess(t *testing.T) {
	defer goleak.VerifyNone(t)
	cmd := exec.Command("sh", "-c", `trap "" INT QUIT; echo deaf; exec sleep 3600`)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := startProcess(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Error(err)
	}
	p.end(time.Millisecond, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL)
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v, want SIGKILL", p.err)
	}
	p.end(time.Hour, syscall.SIGINT) // of no effect, and at once
}

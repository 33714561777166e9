package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// terminal returns a terminal of so many columns, and what is shown there.
func terminal(t *testing.T, columns uint16) (tty *os.File, screen io.Reader) {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	ioctl := func(request uintptr, arg unsafe.Pointer) {
		t.Helper()
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, control.Fd(), request, uintptr(arg)); errno != 0 {
			t.Fatal(errno)
		}
	}
	var lock, number int32
	size := [4]uint16{24, columns}
	ioctl(syscall.TIOCSPTLCK, unsafe.Pointer(&lock))
	ioctl(syscall.TIOCGPTN, unsafe.Pointer(&number))
	ioctl(syscall.TIOCSWINSZ, unsafe.Pointer(&size))
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tty.Close()
		control.Close()
	})
	return tty, control
}

func TestProgressOnTerminal(t *testing.T) {
	tty, screen := terminal(t, 70)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shown := make(chan string, 1)
	go func() {
		var b strings.Builder
		in := bufio.NewReader(screen)
		for { // the end is an error, as all processes have closed the terminal
			c, err := in.ReadByte()
			if err != nil {
				break
			}
			b.WriteByte(c)
			if c == ')' && strings.Contains(b.String(), "running queries: ") {
				cancel()
			}
		}
		shown <- b.String()
	}()
	status := run(ctx, append(long, "-dsn", pgtest.DSN(t)), io.Discard, tty, func(string) string { return "" })
	tty.Close()
	got := <-shown
	if status != failure || !strings.Contains(got, " of 200,000 (") || !strings.HasSuffix(got, "\r\x1b[Kdemo: interrupted\r\n") {
		t.Errorf("status %d, on the terminal: %q", status, got)
	}
}

// With -json the timeline is on standard error: the terminal that it has to fit is that one.
func TestTimelineFitsTerminal(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, json := range []bool{false, true} {
		tty, screen := terminal(t, 70)
		shown := make(chan string, 1)
		go func() {
			content, _ := io.ReadAll(screen)
			shown <- string(content)
		}()
		args, stdout, stderr := []string{"-dsn", dsn, "-timeline"}, io.Writer(tty), io.Discard
		if json {
			args, stdout, stderr = append(args, "-json"), stderr, stdout
		}
		status := run(t.Context(), args, stdout, stderr, func(string) string { return "" })
		tty.Close()
		_, chart, _ := strings.Cut(<-shown, "timeline")
		chart, _, _ = strings.Cut(chart, "\r\n\r\n")
		if status != success || strings.Count(chart, "  query ") != 30 {
			t.Errorf("json %v: status %d:\n%s", json, status, chart)
		}
		widest := 0
		for line := range strings.SplitSeq(chart, "\r\n") {
			widest = max(widest, len([]rune(line)))
		}
		if widest != 69 {
			t.Errorf("json %v: %d columns of 70:\n%s", json, widest, chart)
		}
	}
}

package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An alarm is a timer of the kernel's, which a goroutine waits for as for a connection. The timers of an idle Go program
// are no finer than a millisecond: which ones come late, and by how much, depends on what others a contender has set.
type alarm struct{ file *os.File }

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// sleep returns when d is over, or the alarm is closed.
func (a *alarm) sleep(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	raw, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
	})
	if err == nil && failed == nil {
		var times [8]byte
		_, err = a.file.Read(times[:])
	}
	if err != nil {
		return err
	}
	return os.NewSyscallError("timerfd_settime", failed)
}

func (a *alarm) close() { _ = a.file.Close() }

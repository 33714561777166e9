//go:build linux || darwin

package main

import (
	"os"
	"syscall"
	"unsafe"
)

// windowWidth asks the terminal, if file is one. Packages with a ready function for it were decided against: for this
// alone, they would be a requirement of the whole module.
func windowWidth(file *os.File) (columns int, ok bool) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, false
	}
	var size struct{ rows, columns, x, y uint16 }
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	}); err != nil || errno != 0 {
		return 0, false
	}
	return int(size.columns), true
}

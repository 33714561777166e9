//go:build !linux && !darwin

package main

import "os"

// windowWidth can only tell that file is a device, which hardly ever is something else than a terminal.
func windowWidth(file *os.File) (columns int, ok bool) {
	info, err := file.Stat()
	return 0, err == nil && info.Mode()&os.ModeCharDevice != 0
}

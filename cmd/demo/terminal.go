package main

import (
	"io"
	"os"
)

// defaultWidth is for a terminal that does not tell its width, and for what is no terminal.
const defaultWidth = 100

// terminalWidth returns how many columns w has, and whether it is a terminal.
func terminalWidth(w io.Writer) (columns int, terminal bool) {
	file, ok := w.(*os.File)
	if !ok {
		return defaultWidth, false
	}
	columns, terminal = windowWidth(file)
	if columns == 0 {
		columns = defaultWidth
	}
	return columns, terminal
}

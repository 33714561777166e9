//go:build unix && !aix && !solaris && !linux && !freebsd

package localpg

import "syscall"

const diesWithParent = false

// dieWithParent does nothing: these kernels do not tell a child of its parent's death. The next Start does the rest.
func dieWithParent(*syscall.SysProcAttr) {}

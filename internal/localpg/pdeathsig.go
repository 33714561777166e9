//go:build linux || freebsd

package localpg

import "syscall"

const diesWithParent = true

// dieWithParent makes the kernel send the child an immediate shutdown when its parent dies. Not a fast one (SIGINT): that
// one waits for the sessions to end and for walsenders to be done, and there is nobody left to lose patience.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }

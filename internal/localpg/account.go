//go:build unix && !aix && !solaris

package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// An account is the unprivileged user that the server runs as when root starts it. A nil account is the caller itself.
type account struct {
	name     string
	uid, gid uint32
}

// serverAccount returns nil unless the caller is root. "nobody" is preferred to "postgres", as it owns nothing: a
// superuser of the throwaway server can read and write all files of its account, and "postgres" may own a real cluster.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"nobody", "postgres"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		// Signed, as some systems give nobody the id -2.
		uid, uidErr := strconv.ParseInt(u.Uid, 10, 64)
		gid, gidErr := strconv.ParseInt(u.Gid, 10, 64)
		if err := errors.Join(uidErr, gidErr); err != nil || uid == 0 {
			continue
		}
		return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("localpg: PostgreSQL does not run as root, and there is neither a user \"nobody\" nor \"postgres\" " +
		"to run it as: call this as another user")
}

// procAttr makes a child a process group of its own, so that a terminal's Ctrl-C reaches this program only, which then
// decides what becomes of the server.
func (a *account) procAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	dieWithParent(attr)
	return attr
}

// own gives path to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	if err := os.Lchown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("giving the directory to user %s: %w", a.name, err)
	}
	return nil
}

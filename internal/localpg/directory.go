//go:build unix && !aix && !solaris

package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A directory holds all that a server has:
//
//	lock  locked (flock) by the process that made the directory, for as long as it lives
//	log   the server's output; locked by the server's processes, for as long as any of them lives
//	data  the cluster and its socket
//
// The locks are what tells a directory in use from one left behind. Locks end with their process, whatever ended it; the
// process ids in a file or name, decided against, can be given to another process.
type directory struct {
	path string
	lock *os.File
	log  *os.File // for the server's output; with the children's copies it is one open file, which has one lock
}

const (
	namePrefix = "sqlcfanout-pg-"

	// maxSocketPath is how long a socket's path may be on all systems: macOS has room for 104 bytes, Linux for 108, the
	// final zero included. Abstract sockets, which have no path, were decided against: only Linux has them, and they have no
	// permissions, so that any user of the machine could connect.
	maxSocketPath = 103
)

func (d *directory) data() string    { return filepath.Join(d.path, "data") }
func (d *directory) logPath() string { return filepath.Join(d.path, "log") }

// bases are the directories in which a server's directory may be made, the preferred one first.
func bases() []string {
	tmp := os.TempDir()
	if abs, err := filepath.Abs(tmp); err == nil {
		tmp = abs
	}
	return slices.Compact([]string{tmp, "/tmp"})
}

// chooseBase returns the temporary directory, or /tmp where a socket in the temporary directory could not be used: its
// path is too long or has a comma, which separates hosts in a DSN, or the server's account does not reach it. A temporary
// directory that does not work at all is an error instead, since somebody has set it and believes it to be used.
func chooseBase(ctx context.Context, bin binaries, as *account) (string, error) {
	var unreachable error
	for _, base := range bases() {
		if info, err := os.Stat(base); err != nil {
			return "", baseError(base, err)
		} else if !info.IsDir() {
			return "", baseError(base, syscall.ENOTDIR)
		}
		// Ten digits are the most that os.MkdirTemp appends, and a port has five.
		socket := filepath.Join(base, namePrefix+"0123456789", "data", ".s.PGSQL.65535")
		if len(socket) > maxSocketPath || strings.Contains(base, ",") {
			continue
		}
		if as == nil {
			return base, nil
		}
		if err := as.reaches(ctx, base, bin); err != nil {
			unreachable = err
			continue
		}
		return base, nil
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("localpg: %w", context.Cause(ctx))
	}
	return "", fmt.Errorf("localpg: the server cannot run as user %s (PostgreSQL does not run as root): %w", as.name, unreachable)
}

func baseError(base string, err error) error {
	return fmt.Errorf("localpg: no server directory can be made in %s: %w: set TMPDIR to a directory that exists and is writable", base, err)
}

// reaches reports why the account cannot run the server in base, by trying: mode bits are not all that decides.
func (a *account) reaches(ctx context.Context, base string, bin binaries) error {
	for _, path := range []string{bin.initdb, bin.postgres} {
		cmd := exec.Command(path, "--version")
		cmd.Dir = base
		cmd.SysProcAttr = a.procAttr()
		if err := run(ctx, cmd); err != nil {
			return fmt.Errorf("%s in %s: %w", path, base, err)
		}
	}
	return nil
}

// makeDirectory makes a directory in base and locks it. Its top belongs to the caller and the data to the account, which
// passes through the top but cannot touch the locks.
func makeDirectory(base string, as *account) (*directory, error) {
	for {
		path, err := os.MkdirTemp(base, namePrefix)
		if err != nil {
			return nil, baseError(base, err)
		}
		d := &directory{path: path}
		if err := d.fill(as); err != nil {
			d.remove()
			if errors.Is(err, errSwept) {
				continue
			}
			return nil, baseError(base, err)
		}
		return d, nil
	}
}

// errSwept says that another process's sweep took the directory for one left behind, before it was locked.
var errSwept = errors.New("directory swept")

func (d *directory) fill(as *account) error {
	lock, err := os.OpenFile(filepath.Join(d.path, "lock"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return errSwept
	} else if err != nil {
		return err
	}
	d.lock = lock
	if err := flock(lock); errors.Is(err, syscall.EWOULDBLOCK) {
		return errSwept
	} else if err != nil {
		return err
	}
	// The sweep may have had the lock before, and be done.
	if _, err := os.Stat(lock.Name()); errors.Is(err, fs.ErrNotExist) {
		return errSwept
	}
	if d.log, err = os.OpenFile(d.logPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if err := flock(d.log); err != nil {
		return err
	}
	if err := os.Mkdir(d.data(), 0o700); err != nil {
		return err
	}
	if as == nil {
		return nil
	}
	if err := as.own(d.data()); err != nil {
		return err
	}
	return os.Chmod(d.path, 0o711)
}

// remove removes the directory and gives up the lock. The lock file goes last, so that a directory half removed is still
// recognised as one to sweep.
func (d *directory) remove() error {
	err := errors.Join(os.RemoveAll(d.data()), os.RemoveAll(d.logPath()))
	if err == nil {
		err = os.RemoveAll(d.path)
	}
	d.lock.Close()
	d.log.Close()
	if err != nil {
		return fmt.Errorf("localpg: removing the server's directory: %w", err)
	}
	return nil
}

// waitGone reports whether the server's processes, all of them, are gone within the time.
func (d *directory) waitGone(within time.Duration) bool {
	log, err := os.OpenFile(d.logPath(), os.O_WRONLY, 0)
	if err != nil {
		return true
	}
	defer log.Close() // gives up the lock
	for deadline := time.Now().Add(within); flock(log) != nil; time.Sleep(pollInterval) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// withLog adds the end of the log to err, unless the caller has lost interest.
func (d *directory) withLog(err error) error {
	const most = 2000
	if errors.Is(err, context.Canceled) {
		return err
	}
	log, readErr := os.ReadFile(d.logPath())
	if readErr != nil {
		return err
	}
	log = bytes.TrimSpace(log)
	if len(log) > most {
		log = log[len(log)-most:]
		_, log, _ = bytes.Cut(log, []byte("\n"))
	}
	if len(log) == 0 {
		return err
	}
	return fmt.Errorf("%w; the log ends with:\n%s", err, log)
}

// sweep removes the directories in base that servers of this user have left behind. A server that still runs is killed
// if kill is set; otherwise it is taken to be on its way out, and waited for. It leaves alone what belongs to a living
// process, what another user owns and what it does not recognise, and what it cannot remove: an old directory in the way
// is not a reason to fail.
func sweep(ctx context.Context, base string, kill bool) {
	entries, _ := os.ReadDir(base)
	for _, entry := range entries {
		if ctx.Err() != nil {
			return
		}
		if !strings.HasPrefix(entry.Name(), namePrefix) || !entry.IsDir() {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			continue
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
			continue
		}
		sweepOne(filepath.Join(base, entry.Name()), kill)
	}
}

func sweepOne(path string, kill bool) {
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		os.Remove(path) // an empty directory only: its maker died, or will notice and make another
		return
	} else if err != nil {
		return
	}
	d := &directory{path: path, lock: lock}
	if flock(lock) != nil {
		lock.Close()
		return
	}
	const grace = 2 * time.Second
	gone := d.waitGone(0)
	if !gone && kill {
		d.signalServer(syscall.SIGQUIT)
	}
	gone = gone || d.waitGone(grace)
	if !gone && kill {
		d.signalServer(syscall.SIGKILL)
		gone = d.waitGone(grace)
	}
	if gone {
		d.remove()
	} else {
		lock.Close()
	}
}

// signalServer signals the server by the process id in its directory. That is only right while the log is locked: then a
// process of the server lives, and the file is its own. And it is only needed where a server can outlive its parent; a
// directory that is shared between containers holds ids of other processes.
func (d *directory) signalServer(sig syscall.Signal) {
	content, err := os.ReadFile(filepath.Join(d.data(), "postmaster.pid"))
	if err != nil {
		return
	}
	line, _, _ := bytes.Cut(content, []byte("\n"))
	if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && pid > 1 {
		_ = syscall.Kill(pid, sig)
	}
}

// flock takes the lock of an open file, or fails at once.
func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != syscall.EINTR {
			return err
		}
	}
}

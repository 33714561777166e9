package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sqlc-fanout/sqlc-fanout/internal/pgtest"
)

// scratch makes a directory that the throwaway server's account reaches, and sets TMPDIR to it. When the test ends, it
// reports files and processes that are left there.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "demo") // t.TempDir's path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pids := processesIn(t, dir); len(pids) > 0 {
			t.Errorf("processes left in %s: %v", dir, pids)
		}
		if left := list(t, dir); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	})
	t.Setenv("TMPDIR", dir)
	return dir
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// processesIn returns the processes that work in dir or below it: those of a server. Only Linux tells.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd+"/", dir+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

// command is the program as a process of its own, with a throwaway server unless args say otherwise.
func command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); name != "DATABASE_URL" && !slices.Contains(serverVariables, name) {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, childEnv+"=1")
	return cmd
}

// A process is the program while it runs.
type process struct {
	*exec.Cmd
	stderr *bufio.Reader
	socket string // the throwaway server's directory
}

// launch starts the program and waits for its line on the server.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: cmd, stderr: bufio.NewReader(r)}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			p.Process.Kill()
			p.Wait()
		}
		r.Close()
	})
	line, err := p.stderr.ReadString('\n')
	m := regexp.MustCompile(`^demo: using a throwaway server in (.*); -help says how to use another\n$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("on stderr: %q, %v", line, err)
	}
	p.socket = m[1]
	return p
}

func (p *process) connect(t *testing.T) *pgx.Conn {
	t.Helper()
	return pgtest.Connect(t, "host='"+p.socket+"' user=postgres dbname=postgres")
}

// listens reports whether the server does.
func (p *process) listens() bool {
	conn, err := net.Dial("unix", filepath.Join(p.socket, ".s.PGSQL.5432"))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// ends waits for the program, which must exit with the status, and returns the rest of what it says.
func (p *process) ends(t *testing.T, status int) string {
	t.Helper()
	rest, err := io.ReadAll(p.stderr)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Wait() // the status says it too
	if p.ProcessState.ExitCode() != status {
		t.Errorf("%v, want status %d; on stderr: %s", p.ProcessState, status, rest)
	}
	return string(rest)
}

func TestThrowawayServer(t *testing.T) {
	scratch(t)
	// Whoever uses PostgreSQL's port is not in the way. If this fails, somebody does.
	if l, err := net.Listen("tcp", "127.0.0.1:5432"); err == nil {
		defer l.Close()
	}
	cmd := command("-seed", "1", "-timeline", "-conns", "120") // more than a server's usual 100
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if rest := launch(t, cmd).ends(t, success); rest != "" {
		t.Errorf("on stderr: %s", rest)
	}
	if got := strings.Count(stdout.String(), "  ListAByData("); got != 30 {
		t.Errorf("%d queries:\n%s", got, stdout.String())
	}
}

// The same in this process, which tells about goroutines.
func TestThrowawayServerInProcess(t *testing.T) {
	scratch(t)
	r := succeeds(t)
	if strings.Count(r.stdout, "  ListAByData(") != 30 || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("%s\n%s", r.stderr, r.stdout)
	}
}

func TestNoBinaries(t *testing.T) {
	scratch(t)
	for name, value := range map[string]string{"PGBIN": t.TempDir(), "TMPDIR": "/proc"} {
		cmd := command()
		cmd.Env = append(cmd.Env, name+"="+value)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		_ = cmd.Run()
		result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}.failsWith(t, name, value)
	}
}

func TestSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			scratch(t)
			p := launch(t, command(long...))
			conn := p.connect(t)
			working(t, conn)
			if err := p.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if rest := p.ends(t, failure); rest != "demo: interrupted\n" {
				t.Errorf("on stderr: %s", rest)
			}
		})
	}
}

// The signal comes while the server is being made.
func TestSignalAtStart(t *testing.T) {
	dir := scratch(t)
	cmd := command(long...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "there is a directory", func() bool { return len(list(t, dir)) > 0 })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	r := result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	r.failsWith(t)
	if r.lastLine() != "demo: interrupted" {
		t.Errorf("on stderr: %s", r.stderr)
	}
}

// With nohup, SIGHUP does nothing.
func TestSignalIgnored(t *testing.T) {
	scratch(t)
	child := command(long...)
	cmd := exec.Command("sh", append([]string{"-c", `trap "" HUP; exec "$@"`, "sh"}, child.Args...)...)
	cmd.Env = child.Env
	p := launch(t, cmd)
	conn := p.connect(t)
	working(t, conn)
	for range 3 {
		if err := p.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		working(t, conn)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.ends(t, failure)
}

func TestKilled(t *testing.T) {
	dir := scratch(t)
	p := launch(t, command(long...))
	conn := p.connect(t)
	working(t, conn)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	if runtime.GOOS == "linux" || runtime.GOOS == "freebsd" { // where the kernel tells
		eventually(t, 10*time.Second, "the server is gone", func() bool { return !p.listens() && len(processesIn(t, dir)) == 0 })
	}
	// Its directory goes with the next start.
	if rest := launch(t, command()).ends(t, success); rest != "" {
		t.Errorf("on stderr: %s", rest)
	}
	if p.listens() {
		t.Error("the server still listens")
	}
}

func TestClosedOutput(t *testing.T) {
	for _, read := range []int{0, 100} {
		for _, format := range []string{"-json", "-json=false"} {
			scratch(t)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			// The output is more than a pipe holds.
			cmd := command("-queries", "3000", format, "-timeline="+filepath.Join(t.TempDir(), "timeline.svg"))
			cmd.Stdout = w
			if read == 0 {
				r.Close()
			}
			p := launch(t, cmd)
			w.Close()
			if read > 0 {
				if _, err := io.ReadFull(r, make([]byte, read)); err != nil {
					t.Error(err)
				}
				r.Close()
			}
			rest := p.ends(t, success)
			if format == "-json=false" && rest != "" || strings.Contains(rest, "demo:") {
				t.Errorf("on stderr: %s", rest)
			}
			file, _ := strings.CutPrefix(cmd.Args[len(cmd.Args)-1], "-timeline=")
			if svg, err := os.ReadFile(file); err != nil {
				t.Error(err)
			} else {
				elements(t, svg)
			}
		}
	}
}

// A reader who takes his time keeps no server, and can still interrupt the program.
func TestSlowReader(t *testing.T) {
	dir := scratch(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := command("-queries", "3000")
	cmd.Stdout = w
	p := launch(t, cmd)
	w.Close()
	eventually(t, time.Minute, "the server is gone", func() bool { return len(list(t, dir)) == 0 })
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil { // it prints
		t.Fatal(err)
	}
	if err := p.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if rest := p.ends(t, failure); rest != "demo: interrupted\n" {
		t.Errorf("on stderr: %s", rest)
	}
}

func TestOutputIsFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return // nothing like it on this system
	} else if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	scratch(t)
	cmd := command()
	cmd.Stdout = full
	if rest := launch(t, cmd).ends(t, failure); rest != "demo: write /dev/stdout: no space left on device\n" {
		t.Errorf("on stderr: %s", rest)
	}
}

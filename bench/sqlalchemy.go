package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

//go:embed gather.py
var gatherPy string

// notInstalled is the exit status of gather.py where its packages are missing.
const notInstalled = 3

// A python is the program gather.py at work, with a pool of its own. It is asked for one round after the other on its
// standard input, and so takes part in the same rounds as the rest; it measures each by itself.
type python struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	stderr bytes.Buffer
	relay  *relay          // nil: it is connected to the server itself
	knows  map[string]bool // the statements that its connections have run
}

type pythonRequest struct {
	Statement string  `json:"statement"`
	Draws     []int32 `json:"draws"`
	Digest    bool    `json:"digest"`
}

type pythonAnswer struct {
	Ready   bool    `json:"ready"`
	Seconds float64 `json:"seconds"`
	Digest  digest  `json:"digest"`
	Error   string  `json:"error"`
}

var errNoPython = errors.New("python3 with sqlalchemy and asyncpg (Debian: python3-sqlalchemy, python3-asyncpg) is not installed")

// interpreters are where Python may have the packages. The first in PATH need not be the one that the system's own package
// manager has given them to.
var interpreters = []string{"python3", "/usr/bin/python3"}

// startPython starts the program and returns once its pool is open. As in the example, the pool is what SQLAlchemy makes
// when it is not told otherwise: five connections, and up to ten more that are opened for each call anew.
func startPython(ctx context.Context, srv *server, asExample bool, latency time.Duration, burn int32) (p *python, err error) {
	for _, interpreter := range interpreters {
		p, err = startInterpreter(ctx, interpreter, srv, asExample, latency, burn)
		if !errors.Is(err, errNoPython) {
			return p, err
		}
	}
	return nil, err
}

func startInterpreter(ctx context.Context, interpreter string, srv *server, asExample bool, latency time.Duration, burn int32) (*python, error) {
	c := srv.config.ConnConfig
	host, port := c.Host, int(c.Port)
	p := &python{}
	if latency > 0 {
		var err error
		if p.relay, err = startRelay(c.Host, c.Port, latency); err != nil {
			return nil, err
		}
		host, port = p.relay.address()
	}
	p.cmd = exec.CommandContext(ctx, interpreter, "-c", gatherPy)
	p.cmd.Stderr = &p.stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		p.relay.close()
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.relay.close()
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return nil, errNoPython
		}
		return nil, err
	}
	p.out = bufio.NewScanner(out)
	_, err = p.ask(map[string]any{
		"host": host, "port": port, "user": c.User, "password": c.Password, "database": c.Database,
		"tls": c.TLSConfig != nil, "search_path": schemaName, "connections": gridConns, "as_example": asExample, "burn": burn,
	})
	if err != nil {
		p.close()
		if p.cmd.ProcessState.ExitCode() == notInstalled {
			return nil, errNoPython
		}
		return nil, err
	}
	return p, nil
}

// ask sends a request and waits for the answer.
func (p *python) ask(request any) (pythonAnswer, error) {
	line, err := json.Marshal(request)
	if err != nil {
		return pythonAnswer{}, err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return pythonAnswer{}, err
	}
	var answer pythonAnswer
	if !p.out.Scan() {
		p.in.Close()
		_ = p.cmd.Wait() // what it had to say is complete then
		last := strings.TrimSpace(p.stderr.String())
		return pythonAnswer{}, fmt.Errorf("gather.py has ended: %s", last[strings.LastIndex(last, "\n")+1:])
	}
	if err := json.Unmarshal(p.out.Bytes(), &answer); err != nil {
		return pythonAnswer{}, err
	}
	if answer.Error != "" {
		return pythonAnswer{}, errors.New(answer.Error)
	}
	return answer, nil
}

// acquaint has all connections of its pool run the statement, as those of the others have. Where that would take long, what
// a connection does the first time is small beside what it does each time.
func (p *python) acquaint(s statement) error {
	if p.knows[s.name] || s.name == ranging {
		return nil
	}
	if p.knows == nil {
		p.knows = map[string]bool{}
	}
	p.knows[s.name] = true
	_, err := p.ask(pythonRequest{s.name, s.draw(rand.New(rand.NewPCG(0, 0)), 3*gridConns), false})
	return err
}

// close ends the program, which goes when there is nothing more to read. Another wait for it is harmless.
func (p *python) close() {
	if p == nil {
		return
	}
	p.in.Close()
	_ = p.cmd.Wait()
	p.relay.close()
}

// pythonRunner is SQLAlchemy in a cell of the grid, or nil, with a note, if it cannot be had.
func (b *bench) pythonRunner(ctx context.Context, c contender, s statement, latency time.Duration) *runner {
	p, started := b.python[c.name]
	if !started {
		var err error
		p, err = startPython(ctx, b.srv, c.name == byPythonExample, latency, b.report.BurnCount)
		if err != nil && ctx.Err() == nil {
			b.note(c.label + ": " + program.OneLine(err))
		}
		b.python[c.name] = p
	}
	if p == nil {
		return nil
	}
	if err := p.acquaint(s); err != nil {
		return &runner{contender: c, out: true, note: failedNote + program.OneLine(err)}
	}
	return &runner{contender: c, run: func(_ context.Context, draws []int32, digested bool) (time.Duration, digest, error) {
		answer, err := p.ask(pythonRequest{s.name, draws, digested})
		return time.Duration(answer.Seconds * float64(time.Second)), answer.Digest, err
	}}
}

// A relay is a way to the server for those who cannot be given a DialFunc. It delays what goes to the server.
type relay struct {
	listener net.Listener
	wg       sync.WaitGroup
}

func startRelay(host string, port uint16, latency time.Duration) (*relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{listener: listener}
	network, address := pgconn.NetworkAddress(host, port)
	r.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, address)
			if err != nil {
				client.Close()
				continue
			}
			late, err := delayed(server, latency)
			if err != nil {
				client.Close()
				continue
			}
			r.wg.Go(func() {
				_, _ = io.Copy(late, onlyReader{client})
				late.Close()
			})
			r.wg.Go(func() {
				_, _ = io.Copy(client, server)
				client.Close()
			})
		}
	})
	return r, nil
}

// onlyReader hides that a connection can write itself to another, by which the delay would be passed by.
type onlyReader struct{ io.Reader }

func (r *relay) address() (host string, port int) {
	a := r.listener.Addr().(*net.TCPAddr)
	return a.IP.String(), a.Port
}

// close returns when the connections through it are closed, which their owner has done by then.
func (r *relay) close() {
	if r == nil {
		return
	}
	r.listener.Close()
	r.wg.Wait()
}

//go:build !unix || aix || solaris

package localpg

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// Server is a running PostgreSQL server; there is none on this operating system.
type Server struct{}

// Start fails: a throwaway server needs unix sockets, flock and process groups. The error matches errors.ErrUnsupported.
func Start(context.Context, ...string) (*Server, error) {
	return nil, fmt.Errorf("localpg: a throwaway server cannot be started on %s: use a server that runs already, "+
		"by its DSN or DATABASE_URL (%w)", runtime.GOOS, errors.ErrUnsupported)
}

// StartStandby fails as Start does.
func StartStandby(ctx context.Context, _ *Server, settings ...string) (*Server, error) {
	return Start(ctx, settings...)
}

// DSN is empty.
func (s *Server) DSN() string { return "" }

// PID is zero.
func (s *Server) PID() int { return 0 }

// Stop does nothing.
func (s *Server) Stop() error { return nil }

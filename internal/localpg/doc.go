// Package localpg runs a throwaway PostgreSQL server from the binaries that the machine already has.
//
// The server listens on a unix socket in a private directory and nowhere else, trusts whoever can reach that socket, and
// keeps nothing: durability is off, and Stop removes the directory. It is for tests, demonstrations and benchmarks.
//
// Nothing is downloaded. A package that fetches binaries was decided against: it has to be trusted, cached and updated,
// where a system's own package is all of that already.
package localpg

import "errors"

// ErrNotFound is what Start returns where the machine has no PostgreSQL server to start.
var ErrNotFound = errors.New("localpg: no PostgreSQL server found by PGBIN, pg_config, PATH or in the usual places: " +
	"install one with the system's package manager (such as: apt install postgresql, dnf install postgresql-server, " +
	"brew install postgresql), or use a server that runs already, by its DSN or DATABASE_URL")

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sqlc-fanout/sqlc-fanout/internal/localpg"
)

var (
	errNoRun  = errors.New("pgtest: the package's TestMain does not call pgtest.Run")
	errClosed = errors.New("pgtest: database asked for after the end of the tests")
)

// A server is the one on which databases are made: a throwaway one, or the user's.
type server struct {
	schema []string

	mu        sync.Mutex
	started   bool  // start has been tried
	err       error // what came of it
	local     *localpg.Server
	admin     string // DSN of the database to connect to for making others
	copying   string // how CREATE DATABASE copies the template: an option of it, or nothing
	prefix    string // of the databases' names
	serial    int
	databases map[string]bool           // that exist and are ours, the template included
	recycling bool                      // whether a database that is as good as new after a test goes to the next
	spare     []string                  // such databases
	filled    string                    // array of the template's tables that have rows
	cleaners  map[string]*pgconn.PgConn // by which spare databases have been looked at, for the next time: by name

	connecting sync.Mutex     // guards what is below, and is held while it is used
	conn       *pgconn.PgConn // to admin: a connection for each database would take as long as making it
}

// start starts the server on its first call, and returns that call's result ever after.
func (s *server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.started = true
		s.err = s.open()
	}
	return s.err
}

func (s *server) open() error {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	s.admin = os.Getenv("TEST_DATABASE_URL")
	if s.admin == "" {
		local, err := localpg.Start(ctx)
		if err != nil {
			return fmt.Errorf("pgtest: %w (tests run on any server by TEST_DATABASE_URL)", err)
		}
		s.local, s.admin = local, local.DSN()
	}
	// The process id helps whoever finds a database left behind; it alone would not tell machines apart.
	s.prefix = fmt.Sprintf("fanout_test_%d_%08x_", os.Getpid(), rand.Uint32())
	s.databases = make(map[string]bool)
	s.cleaners = make(map[string]*pgconn.PgConn)

	// template0 and the C locale are the same on every server, whatever its administrator has made of template1.
	template := s.template()
	s.databases[template] = true
	if err := s.exec(ctx, "create database "+template+" template template0 encoding 'UTF8' locale 'C'"); err != nil {
		return fmt.Errorf("pgtest: making the template: %w", err)
	}
	if err := s.applySchema(ctx, s.dsn(template)); err != nil {
		return fmt.Errorf("pgtest: applying the schema: %w", err)
	}
	if s.local == nil {
		return nil
	}
	version, err := s.conn.Exec(ctx, "show server_version_num").ReadAll()
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	if string(version[0].Rows[0][0]) >= "150000" {
		// Half the time; before PostgreSQL 15 there was no other way. It makes two checkpoints, which cost next to nothing
		// where durability is off, but would not be kind to somebody else's server.
		s.copying = " strategy file_copy"
		s.recycling = true // before, the server's statistics could come late, or get lost
	}
	return nil
}

// applySchema runs the schema's parts on a connection of their own, and looks which tables have rows then.
func (s *server) applySchema(ctx context.Context, dsn string) error {
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	const filledSQL = "select array(select oid from pg_class where relkind in ('r', 'm') and oid >= 16384 and pg_relation_size(oid) > 0)"
	var result []*pgconn.Result
	for _, sql := range append(slices.Clone(s.schema), filledSQL) {
		if result, err = conn.Exec(ctx, sql).ReadAll(); err != nil {
			return errors.Join(err, conn.Close(ctx))
		}
	}
	s.filled = string(result[0].Rows[0][0])
	return conn.Close(ctx)
}

func (s *server) template() string { return s.prefix + "template" }

// clone makes a database from the template and returns its name. One that nobody could tell from a new one does as well.
func (s *server) clone() (string, error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return "", s.err
	}
	if n := len(s.spare); n > 0 {
		name := s.spare[n-1]
		s.spare = s.spare[:n-1]
		s.mu.Unlock()
		return name, nil
	}
	s.serial++
	name := fmt.Sprintf("%s%d", s.prefix, s.serial)
	s.databases[name] = true
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	for {
		// Nobody may be connected to the template. Nobody goes there but the server's own workers; and the backend that
		// applied the schema may not have ended yet. The server waits for them, for a few seconds.
		err := s.exec(ctx, "create database "+name+" template "+s.template()+s.copying)
		const objectInUse = "55006"
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code == objectInUse {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("pgtest: cloning the template: %w", err)
		}
		return name, nil
	}
}

// release ends a test's use of a database: it is dropped, unless it is as good as new, or can be made so. Most are, and to
// look takes a tenth of the time of dropping one and making another.
func (s *server) release(name string) error {
	if !s.recycling || !s.renewed(name) {
		return s.drop(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spare = append(s.spare, name)
	return nil
}

// aloneSQL has a row if nobody but the server itself is connected to the database any more. The statistics of a session are
// complete as soon as pg_stat_activity does not have it any more: they are read after this, and not in the same statement,
// which might see the one from before a session has ended and the other from after it.
const aloneSQL = `select where not exists (select from pg_stat_activity
	where datname = current_database() and pid <> pg_backend_pid() and backend_type <> 'autovacuum worker')`

// untouchedSQL has a row if nobody has ever inserted, updated or deleted a row in the database, in a table or in the catalog,
// not even in a transaction that was rolled back; nor taken a value of a sequence, which an insert that fails can do and
// write nothing; nor changed the database as a whole, of which its own statistics know nothing.
const untouchedSQL = `select from pg_stat_database s join pg_database d on d.oid = s.datid
	where d.datname = current_database() and tup_inserted + tup_updated + tup_deleted = 0
		and not exists (select from pg_sequences where last_value is not null)
		and not exists (select from pg_db_role_setting where setdatabase = d.oid)
		and datallowconn and datconnlimit = -1 and not datistemplate and datacl is null
		and datdba = current_user::regrole and shobj_description(d.oid, 'pg_database') is null`

// emptySQL empties the tables of a database in which nothing else has ever been changed, and fails in any other; or if they
// are among those, %s, that were not empty at first. To the planner too an emptied table is as good as a new one.
const emptySQL = `do $$
	begin
		if exists (select from pg_stat_sys_tables t join pg_class c on c.oid = t.relid
				where t.schemaname !~ '^pg_toast' and not c.relisshared and n_tup_ins + n_tup_upd + n_tup_del > 0)
			or exists (select from pg_stat_user_tables where n_tup_ins + n_tup_upd + n_tup_del > 0 and relid = any ('%s')) then
			raise 'more than rows of tables that were empty';
		end if;
		execute (select 'truncate ' || string_agg(relid::regclass::text, ', ') || ' restart identity' from pg_stat_user_tables
			where n_tup_ins + n_tup_upd + n_tup_del > 0);
		perform pg_stat_force_next_flush();
	end
	$$`

// lastWords is how long a session that the test has closed may take to end: shorter than a new database takes.
const lastWords = 20 * time.Millisecond

// renewed reports whether a database is as good as new, once the rows are gone that there were in its tables.
func (s *server) renewed(name string) (ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	conn, err := s.cleaner(ctx, name)
	if err != nil {
		return false
	}
	defer func() {
		if !ok {
			_ = conn.Close(ctx)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cleaners[name] = conn
	}()
	is := func(sql string) bool {
		result, err := conn.Exec(ctx, sql).ReadAll()
		return err == nil && len(result[0].Rows) == 1
	}
	for began := time.Now(); !is(aloneSQL); {
		if time.Since(began) > lastWords {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	if is(untouchedSQL) {
		return true
	}
	for _, sql := range []string{fmt.Sprintf(emptySQL, s.filled), "select pg_stat_reset()"} { // to empty them is a change, too
		if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
			return false
		}
	}
	return is(untouchedSQL)
}

// cleanerName is what a cleaner's session calls itself: 'pgtest', for tests that look at the others.
const cleanerName = "pgtest"

// cleaner returns the connection by which a database is looked at. It stays open from one test to the next, since to open one
// takes longer than all that it is for, unless a test has ended it, as any other.
func (s *server) cleaner(ctx context.Context, name string) (*pgconn.PgConn, error) {
	s.mu.Lock()
	conn := s.cleaners[name]
	delete(s.cleaners, name)
	s.mu.Unlock()
	if conn != nil {
		if conn.Ping(ctx) == nil {
			return conn, nil
		}
		_ = conn.Close(ctx)
	}
	config, err := pgconn.ParseConfig(s.dsn(name))
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = cleanerName
	return pgconn.ConnectConfig(ctx, config)
}

// drop drops a database, and ends the sessions in it.
func (s *server) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	if err := s.exec(ctx, "drop database if exists "+name+" with (force)"); err != nil {
		return fmt.Errorf("pgtest: dropping %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.databases, name)
	return nil
}

// close drops what is left and stops the server, if it is ours to stop.
func (s *server) close() error {
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.databases))
	local := s.local
	s.started, s.err = true, errClosed
	for _, conn := range s.cleaners {
		_ = conn.Close(context.Background())
	}
	s.mu.Unlock()
	if local != nil {
		return errors.Join(s.disconnect(), local.Stop()) // and all databases with it
	}
	var err error
	for _, name := range names {
		err = errors.Join(err, s.drop(name))
	}
	return errors.Join(err, s.disconnect())
}

// dsn returns the connection string of another database on the server.
func (s *server) dsn(database string) string { return withDatabase(s.admin, database) }

// withDatabase returns the connection string with the database replaced; the name needs no quoting. It reads a URL as
// pgx does: package net/url refuses some that are good, such as those with several hosts.
func withDatabase(dsn, database string) string {
	scheme, rest, ok := strings.Cut(dsn, "://")
	if !ok || scheme != "postgres" && scheme != "postgresql" {
		return dsn + " dbname=" + database // keywords and values, of which the last one counts
	}
	user := ""
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		user, rest = rest[:i+1], rest[i+1:]
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, _, _ := strings.Cut(rest, "/")
	// A parameter would override the path.
	params := slices.DeleteFunc(strings.Split(query, "&"), func(param string) bool {
		return param == "" || strings.HasPrefix(param, "dbname=") || strings.HasPrefix(param, "database=")
	})
	dsn = scheme + "://" + user + hosts + "/" + database
	if len(params) > 0 {
		dsn += "?" + strings.Join(params, "&")
	}
	return dsn
}

// exec runs a command in the database that others are made from.
func (s *server) exec(ctx context.Context, sql string) error {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	if s.conn == nil || s.conn.IsClosed() {
		conn, err := pgconn.Connect(ctx, s.admin)
		if err != nil {
			return err
		}
		s.conn = conn
	}
	_, err := s.conn.Exec(ctx, sql).ReadAll()
	return err
}

// ping has the server send something on each connection that stays open.
func (s *server) ping() {
	s.pingCleaners()
	s.connecting.Lock()
	defer s.connecting.Unlock()
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	_, _ = s.conn.Exec(ctx, ";").ReadAll() // if it fails, exec will too
}

// pingCleaners pings the cleaners, of which none is in use.
func (s *server) pingCleaners() {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.cleaners {
		_ = conn.Ping(ctx) // if it fails, it will be noticed when it is needed
	}
}

// disconnect closes the connection of exec.
func (s *server) disconnect() error {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	if s.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	return s.conn.Close(ctx)
}

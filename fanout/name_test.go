package fanout

import (
	"strings"
	"testing"
)

func TestStatementName(t *testing.T) {
	for sql, want := range map[string]string{
		"-- name: ListAByData :many\nselect 1":      "ListAByData",
		"-- name: GetA :one\r\nselect 1":            "GetA",
		"--name: GetA :one\nselect 1":               "GetA",
		"  \n\t-- name: GetA :one\nselect 1":        "GetA",
		"-- app: web\n-- name: GetA :one\nselect 1": "GetA",
		"-- name: GetA":                             "GetA",
		"-- name:":                                  "",
		"-- name GetA :one\nselect 1":               "",
		"select 1 -- name: Late :one":               "",
		"select 1\n-- name: Late :one\n":            "",
		"/* name: Block :one */ select 1":           "",
		"":                                          "",
		"--":                                        "",
		"-- a comment\nselect 1":                    "",
		"-- name: Größe :one\nselect 1":             "Größe",
		strings.Repeat("-- x\n", 1000) + "-- name: Far :one\nfoo": "Far",
	} {
		if got := statementName(sql); got != want {
			t.Errorf("statementName(%.60q) = %q, want %q", sql, got, want)
		}
	}
}

func TestStatementNameDoesNotAllocate(t *testing.T) {
	const sql = "-- name: ListAByData :many\nselect id, data from a where data = $1"
	if n := testing.AllocsPerRun(100, func() { _ = statementName(sql) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzStatementName(f *testing.F) {
	f.Add("-- name: ListA :many\nselect 1")
	f.Add("--\n--name:x\n")
	f.Add("\x00-- name: \xff")
	f.Fuzz(func(t *testing.T, sql string) {
		name := statementName(sql)
		if strings.ContainsAny(name, " \t\r\n\f") {
			t.Errorf("statementName(%q) = %q, which has white space", sql, name)
		}
		if !strings.Contains(sql, name) {
			t.Errorf("statementName(%q) = %q, which is not a part of it", sql, name)
		}
		// The name does not depend on what follows its line.
		head, _, found := strings.Cut(sql, "\n")
		if first := statementName(head); found && first != "" && first != name {
			t.Errorf("statementName(%q) = %q, but its first line has %q", sql, name, first)
		}
	})
}

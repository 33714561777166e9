// Package sqlcfanout is the root of the module. It holds the example's schema; the library is package fanout.
package sqlcfanout

import _ "embed"

// Schema is the DDL of the example: the text of schema.sql, from which sqlc generates package db. Its names are
// unqualified, so it applies to the first schema of the search_path.
//
//go:embed schema.sql
var Schema string

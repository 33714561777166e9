// Package shop is the schema of a small web shop, for tests: package fanout must work for schemas that are not the
// example's. sqlc generates two packages of different shape from the same queries, shopdb and shoparg.
package shop

import _ "embed"

// Schema is the DDL of the shop. Its names are unqualified, so it applies to the first schema of the search_path.
//
//go:embed schema.sql
var Schema string

//go:generate go -C ../../tools tool sqlc generate -f ../internal/shop/sqlc.yaml

// Package shoparg is the shop's data-access layer as sqlc generates it with emit_methods_with_db_argument: a query set
// holds no connection, and every method takes one. All of it but this file is generated; package shop says how.
package shoparg

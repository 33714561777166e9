// Package shopdb is the shop's data-access layer as sqlc generates it with emit_result_struct_pointers: rows are pointers
// to structs. All of it but this file is generated; package shop says how.
package shopdb

package fanout

import "strings"

// statementName reads the query name that sqlc puts at the head of each statement it generates, "-- name: ListA :many".
// It returns "" for a statement without one. Line comments before it, as tools that tag statements add them, are passed
// over. It does not allocate: the name is a part of sql.
func statementName(sql string) string {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n\f")
		comment, ok := strings.CutPrefix(sql, "--")
		if !ok {
			return ""
		}
		comment, sql, _ = strings.Cut(comment, "\n")
		comment = strings.TrimLeft(comment, " \t")
		if rest, ok := strings.CutPrefix(comment, "name:"); ok {
			rest = strings.TrimLeft(rest, " \t")
			if end := strings.IndexAny(rest, " \t\r\f"); end >= 0 {
				rest = rest[:end]
			}
			return rest
		}
	}
}

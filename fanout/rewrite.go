package fanout

import (
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5/pgconn"
)

// A shape is what can be said of a statement's text alone: that many executions of it may become one statement, if the
// catalog agrees (see proof), and what to ask the catalog.
type shape struct {
	names     []string // every identifier and key word in it, as the catalog would have it; each once
	operators []string // each once

	called     []string // those of the names that may be of functions with any arguments
	attributes []string // those that may be of functions of a row
	casts      []typeCast

	body       string // the statement without its final semicolon
	parameters []token
	highest    int    // the greatest parameter number; every other up to it occurs too
	prefix     string // of names that do not occur in the statement
	ordering   *ordering
}

// A parameter is how a statement's parameter travels when executions are coalesced: as one array of all their arguments.
type parameter struct {
	array     uint32 // OID of the array's type
	cast      string // what its elements are cast to, if it is not their type: a qualified, quoted name
	delimiter byte   // between elements in the array's text form
}

// A typeCast is a cast in a statement's text.
type typeCast struct {
	operand castOperand
	number  int      // a parameter's
	target  []string // the names that the type may have
}

type castOperand int

const (
	anyOperand castOperand = iota
	literalOperand
	parameterOperand
)

// maxPlaces is in how many places a text may have a parameter. All of it is looked at for each of them, by a lane that others
// wait for: with thousands that would take seconds.
const maxPlaces = 500

// shapeOf returns what is known of a statement from its text, or nil if its executions cannot be coalesced whatever the
// catalog says. They cannot if it writes, locks rows or samples tables, if it has no parameter or too many, and if a column
// somewhere inside it may be named after one: parameters become columns, and these have other names.
func shapeOf(sql string) *shape {
	list, ok := tokens(sql)
	if !ok {
		return nil
	}
	if n := len(list); n > 0 && list[n-1].is(sql, ";") {
		sql, list = sql[:list[n-1].start]+sql[list[n-1].end:], list[:n-1]
	}
	if len(list) == 0 || !slices.ContainsFunc([]string{"select", "with", "values", "table", "("},
		func(begin string) bool { return list[0].is(sql, begin) }) {
		return nil
	}

	s := &shape{body: sql}
	seen := map[string]bool{}
	add := func(to *[]string, kind, name string) {
		if !seen[kind+name] {
			seen[kind+name] = true
			*to = append(*to, name)
		}
	}
	numbers := map[int]bool{}
	scalars := scalarAliases(sql, list)
	for i, t := range list {
		switch t.kind {
		case wordToken, quotedToken:
			if t.kind == wordToken && refused(sql, list[i:]) {
				return nil
			}
			called, attribute := calls(sql, list, i, scalars)
			for _, name := range t.names() {
				add(&s.names, "name ", name)
				if called {
					add(&s.called, "called ", name)
				}
				if attribute {
					add(&s.attributes, "attribute ", name)
				}
			}
		case operatorToken:
			add(&s.operators, "operator ", t.name)
		case parameterToken:
			s.parameters = append(s.parameters, t)
			numbers[t.number] = true
			s.highest = max(s.highest, t.number)
		case otherToken:
			if t.is(sql, ";") {
				return nil
			}
		}
	}
	if s.highest == 0 || len(s.parameters) > maxPlaces || len(numbers) < s.highest || !balanced(sql, list) {
		return nil
	}
	for i := range list {
		if c := castAt(sql, list, i); len(c.target) > 0 {
			s.casts = append(s.casts, c)
		}
	}
	topMatters := false
	for i, t := range list {
		topMatters = topMatters || t.is(sql, "order") || t.is(sql, "group") || i > 0 && t.is(sql, "on") && list[i-1].is(sql, "distinct")
	}
	for i, t := range list {
		if t.kind == parameterToken && namesColumn(sql, list, i, topMatters) {
			return nil
		}
	}

	s.ordering = orderingOf(sql, list)
	s.prefix = "p_"
	for i := 0; slices.ContainsFunc(s.names, func(name string) bool { return strings.Contains(name, s.prefix) }); i++ {
		s.prefix = "p" + strconv.Itoa(i) + "_"
	}
	return s
}

// refused reports whether a statement with this word is not to be coalesced, whichever way it is used there. list begins
// with the word. Grouping sets are refused because it depends on the version whether they make a parameter null, and
// whether they make a column null that a parameter has become.
func refused(sql string, list []token) bool {
	switch list[0].name {
	case "insert", "update", "delete", "merge", "into", "tablesample", "rollup", "cube", "sets":
		return true
	case "treat": // is not a cast, but calls a function that is named by the type
		return len(list) > 1 && list[1].is(sql, "(")
	case "for":
		return len(list) > 1 && (list[1].is(sql, "no") || list[1].is(sql, "share") || list[1].is(sql, "key"))
	}
	return false
}

// names are what the catalog may have the identifier as: in single-byte encodings the server lowers letters beyond ASCII, as
// its locale has them.
func (t token) names() []string {
	if lower := strings.Map(unicode.ToLower, t.name); t.kind == wordToken && lower != t.name {
		return []string{t.name, lower}
	}
	return []string{t.name}
}

func (t token) isName() bool { return t.kind == wordToken || t.kind == quotedToken }

// calls reports whether the name list[i] may be of a function that is called: of any, by name (…), (value).name and, where
// the value is a function's in FROM, alias.name; or of one whose only argument is a row, by alias.name.
func calls(sql string, list []token, i int, scalars map[string]bool) (any, attribute bool) {
	switch {
	case i+1 < len(list) && list[i+1].is(sql, "("):
		return true, false
	case i < 2 || !list[i-1].is(sql, "."):
		return false, false
	case !list[i-2].isName():
		return true, false
	}
	any = slices.ContainsFunc(list[i-2].names(), func(name string) bool { return scalars[name] })
	return any, !any
}

// scalarAliases are the names by which the statement may refer to the single value that a function in FROM returns: the
// function's own, or an alias of it. Some functions are written without parentheses.
func scalarAliases(sql string, list []token) map[string]bool {
	aliases := map[string]bool{}
	for i, t := range list {
		if !t.isName() {
			continue
		}
		before := i - 1
		if before > 0 && list[before].is(sql, "as") {
			before--
		}
		scalar := slices.Contains(bareFunctions, t.name)
		switch {
		case before >= 0 && list[before].is(sql, ")"):
			scalar = scalar || endsCall(sql, list, before)
		case before >= 0 && list[before].isName() && slices.Contains(bareFunctions, list[before].name):
			scalar = true
		case i+1 < len(list) && list[i+1].is(sql, "("):
			scalar = scalar || !namesQuery(sql, list, i)
			for _, name := range otherNames(sql, list, i) {
				aliases[name] = true
			}
		}
		if scalar {
			for _, name := range t.names() {
				aliases[name] = true
			}
		}
	}
	return aliases
}

// otherNames are those of the call list[i] if it is written with words that are not its name: a cast's is that of the type,
// or of the column that is cast.
func otherNames(sql string, list []token, i int) (names []string) {
	switch {
	case list[i].is(sql, "cast"):
		for k := i + 2; k < closing(sql, list, i+1); k++ {
			if list[k].isName() {
				names = append(append(names, list[k].names()...), standardTypes[list[k].name]...)
			}
		}
	case list[i].is(sql, "trim"):
		names = []string{"btrim", "ltrim", "rtrim"}
	case list[i].is(sql, "extract"):
		names = []string{"date_part"}
	case list[i].is(sql, "for"):
		names = []string{"pg_collation_for"}
	}
	return names
}

// endsCall reports whether the parenthesis list[i] may be the last of a function in FROM, rather than of a sub-select or a
// join.
func endsCall(sql string, list []token, i int) bool {
	open := enclosing(sql, list, i)
	if open < 1 || !list[open-1].isName() || list[open-1].is(sql, "join") || list[open-1].is(sql, "lateral") {
		return false
	}
	return !list[open-1].is(sql, "from") || open > 1 && list[open-2].is(sql, "rows")
}

// namesQuery reports whether list[i], which a parenthesis follows, is x of with x(a, b) as (…).
func namesQuery(sql string, list []token, i int) bool {
	if i > 0 && (list[i-1].is(sql, "with") || list[i-1].is(sql, "recursive")) {
		return true
	}
	end := closing(sql, list, i+1)
	if end < 0 || end+1 >= len(list) || !list[end+1].is(sql, "as") {
		return false
	}
	k := end + 2
	for k < len(list) && (list[k].is(sql, "not") || list[k].is(sql, "materialized")) {
		k++
	}
	return k < len(list) && list[k].is(sql, "(")
}

var bareFunctions = []string{
	"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_role", "current_user",
	"session_user", "system_user", "user", "current_catalog", "current_schema",
}

// castAt returns the cast at list[i]; without a target if there is none. That something is cast to an array, the name of
// its elements' type says.
func castAt(sql string, list []token, i int) (c typeCast) {
	switch t := list[i]; {
	case t.is(sql, "::"):
		if i > 0 {
			c.operand, c.number = operandAt(sql, list, i-1)
		}
		c.target = typeNames(sql, list, i+1)
	case t.is(sql, "cast") && i+1 < len(list) && list[i+1].is(sql, "("):
		end := closing(sql, list, i+1)
		for k := i + 2; k < end; k++ {
			if !list[k].is(sql, "as") || enclosing(sql, list, k) != i+1 {
				continue
			}
			if k == i+3 {
				c.operand, c.number = operandAt(sql, list, i+2)
			}
			c.target = typeNames(sql, list, k+1)
			break
		}
	case t.is(sql, "returning"): // of functions that read and make JSON
		c.target = typeNames(sql, list, i+1)
	case t.is(sql, "default"): // of such functions, which return one of these if nothing else is said
		c.target = []string{"text", "json", "jsonb"}
	case t.is(sql, "json_table"): // whose columns have types
		for _, t := range list {
			if t.isName() {
				c.target = append(append(c.target, t.names()...), standardTypes[t.name]...)
			}
		}
	}
	return c
}

// callsWithParameter reports whether sql may call something with a parameter as its only argument.
func callsWithParameter(sql string) bool {
	list, ok := tokens(sql)
	for i := 1; i+1 < len(list); i++ {
		if list[i].kind == parameterToken && (list[i-1].is(sql, "(") || list[i-1].is(sql, "variadic")) && list[i+1].is(sql, ")") {
			return true
		}
	}
	return !ok
}

// typeNames are the names that the type written at list[i] may have.
func typeNames(sql string, list []token, i int) (names []string) {
	if i < len(list) && list[i].is(sql, "setof") {
		i++
	}
	for ; i < len(list) && list[i].isName(); i += 2 {
		names = append(names, list[i].names()...)
		if list[i].kind == wordToken {
			names = append(names, standardTypes[list[i].name]...)
		}
		if i+1 == len(list) || !list[i+1].is(sql, ".") {
			break
		}
	}
	return names
}

// standardTypes are the types that standard SQL has other names for, by the first word of these.
var standardTypes = map[string][]string{
	"bigint": {"int8"}, "bit": {"varbit"}, "boolean": {"bool"}, "char": {"bpchar", "varchar"},
	"character": {"bpchar", "varchar"}, "dec": {"numeric"}, "decimal": {"numeric"}, "double": {"float8"},
	"float": {"float4", "float8"}, "int": {"int4"}, "integer": {"int4"}, "national": {"bpchar", "varchar"},
	"nchar": {"bpchar", "varchar"}, "real": {"float4"}, "smallint": {"int2"}, "time": {"timetz"},
	"timestamp": {"timestamptz"},
}

// operandAt returns what list[i] is as all of an operand of a cast. It is a literal only if no type of its own is written in
// front of it.
func operandAt(sql string, list []token, i int) (operand castOperand, number int) {
	switch t := list[i]; t.kind {
	case parameterToken:
		return parameterOperand, t.number
	case numberToken:
		return literalOperand, 0
	case wordToken:
		if (t.name == "null" || t.name == "true" || t.name == "false") && (i == 0 || !list[i-1].is(sql, ".")) {
			return literalOperand, 0
		}
	case stringToken:
		before := list[max(i-1, 0)]
		switch {
		case before.kind == operatorToken, before.is(sql, "("), before.is(sql, ","), before.is(sql, "["):
			return literalOperand, 0
		case before.kind == wordToken: // that no type can be called
			if slices.Contains([]string{"select", "and", "or", "not", "in", "between", "when", "then", "else", "where", "as"}, before.name) {
				return literalOperand, 0
			}
		}
	}
	return anyOperand, 0
}

// balanced reports whether every parenthesis that opens closes, and the other way round: what follows the statement must
// not become a part of it.
func balanced(sql string, list []token) bool {
	depth := 0
	for _, t := range list {
		switch {
		case t.is(sql, "("):
			depth++
		case t.is(sql, ")"):
			if depth--; depth < 0 {
				return false
			}
		}
	}
	return depth == 0
}

// namesColumn reports whether a column may have its name from the parameter list[i]. That of $1 is ?column?, of $1::int it
// is int4, while a column's is its own: an inner select's columns would change their names, and with them what natural
// joins, row_to_json and outer references mean. It errs on the side of true. Of the outermost select list only the clauses
// that know its names take notice (topMatters); the result's description is the unchanged statement's.
func namesColumn(sql string, list []token, i int, topMatters bool) bool {
	// Is it what a select list's item is made of, but for parentheses, casts and cases around it?
	opened := 0
	k := i - 1
before:
	for ; ; k-- {
		if k < 0 {
			return false
		}
		switch t := list[k]; {
		case t.is(sql, "select"), t.is(sql, "distinct"):
			break before
		case t.is(sql, "all"):
			if !list[k-1].is(sql, "select") {
				return false // … <> all ($1)
			}
			break before
		case t.is(sql, ")"):
			open := enclosing(sql, list, k)
			if open < 1 || !list[open-1].is(sql, "on") {
				return false // operator (…) $1
			}
			break before // distinct on (…) $1
		case t.is(sql, "else"):
			for depth := 1; depth > 0; {
				if k--; k < 0 {
					return true
				}
				if list[k].is(sql, "end") {
					depth++
				} else if list[k].is(sql, "case") {
					depth--
				}
			}
		case t.is(sql, "cast") && opened > 0:
			if isTableFunction(sql, list, k) {
				return true // its name is a column's, and a table's
			}
		case t.is(sql, "("):
			opened++
			if k > 0 && list[k-1].kind == quotedToken {
				return false
			}
			if k > 0 && list[k-1].kind == wordToken {
				switch list[k-1].name {
				case "select", "distinct", "all", "else", "cast":
				default:
					return false // arguments of a function, in (…), values (…), over (…)
				}
			}
		case t.is(sql, ","):
			if open := enclosing(sql, list, k); open >= 0 && !holdsSelect(sql, list, open) {
				return false // arguments of a function, in (…), values (…), a row, an array
			}
			break before
		default:
			return false // an operand
		}
	}
	if !topMatters && enclosing(sql, list, k) < 0 || isRenamed(sql, list, k) {
		return false
	}

	// Does it have a name of its own, or is it an operand after all?
	for k := i + 1; k < len(list); k++ {
		switch t := list[k]; {
		case t.is(sql, "("), t.is(sql, "["):
			if k = closing(sql, list, k); k < 0 {
				return true
			}
		case t.is(sql, ")"):
			if opened--; opened < 0 {
				return true
			}
		case opened > 0:
		case t.kind == operatorToken, t.is(sql, "as"):
			return false
		case t.is(sql, ","), t.kind == wordToken && slices.Contains(afterSelectList, t.name):
			return true
		}
	}
	return true
}

// isTableFunction reports whether the call list[k] may be a function in FROM, whose name a column and a table get.
func isTableFunction(sql string, list []token, k int) bool {
	before := k - 1
	for before >= 0 && list[before].is(sql, "(") { // of joins
		before--
	}
	switch {
	case before < 0:
		return false
	case list[before].is(sql, ","):
		return inFromList(sql, list, before)
	case list[before].is(sql, "from"):
		return !isComparison(sql, list, before)
	}
	return list[before].is(sql, "join") || list[before].is(sql, "lateral")
}

// inFromList reports whether the comma list[i] may be between tables, or the functions of rows from (…).
func inFromList(sql string, list []token, i int) bool {
	depth := 0
	for i--; i >= 0; i-- {
		switch t := list[i]; {
		case t.is(sql, ")"), t.is(sql, "]"):
			depth++
		case t.is(sql, "("), t.is(sql, "["):
			if depth == 0 {
				return i > 1 && list[i-1].is(sql, "from") && list[i-2].is(sql, "rows")
			}
			depth--
		case depth > 0, i > 0 && (list[i-1].is(sql, ".") || list[i-1].is(sql, "as")): // which anything may be called
		case t.is(sql, "from") && !isComparison(sql, list, i):
			return true
		case t.kind == wordToken && slices.Contains([]string{"select", "where", "group", "having", "window", "order", "limit", "offset", "fetch"}, t.name):
			return false
		}
	}
	return false
}

// isComparison reports whether the from list[i] is that of is [not] distinct from.
func isComparison(sql string, list []token, i int) bool {
	return i > 1 && list[i-1].is(sql, "distinct") && (list[i-2].is(sql, "is") || list[i-2].is(sql, "not"))
}

// isRenamed reports whether what follows the select or the comma list[k] is a column that gets another name: with x(a, b) as
// (select … , … ), or (select … , … ) x(a, b). In the select itself nothing may take notice of the name it had.
func isRenamed(sql string, list []token, k int) bool {
	open := enclosing(sql, list, k)
	if open < 0 || !list[open].is(sql, "(") || !list[open+1].is(sql, "select") {
		return false
	}
	end, column := closing(sql, list, open), 0
	for i := open + 1; i < end; i++ {
		switch t := list[i]; {
		case t.is(sql, "order"), t.is(sql, "group"), t.is(sql, "distinct"):
			return false
		case t.is(sql, "select") && i > open+1 && i <= k && enclosing(sql, list, i) == open:
			return false // a part of a union other than the first
		case t.is(sql, "*") && i <= k:
			return false // any number of columns
		case t.is(sql, ",") && i <= k && enclosing(sql, list, i) == open:
			column++
		}
	}
	names := end + 2 // where the names may begin
	if names < len(list) && list[names-1].is(sql, "as") {
		names++
	}
	if end < 0 || names >= len(list) || !list[names-1].isName() || !list[names].is(sql, "(") {
		// Is it x(a, b) as [not] [materialized] (select …)?
		before := open - 1
		for before > 0 && (list[before].is(sql, "materialized") || list[before].is(sql, "not")) {
			before--
		}
		if before < 4 || !list[before].is(sql, "as") || !list[before-1].is(sql, ")") {
			return false
		}
		names = enclosing(sql, list, before-1)
		if names < 2 || !list[names-1].isName() ||
			!list[names-2].is(sql, "with") && !list[names-2].is(sql, "recursive") && !list[names-2].is(sql, ",") {
			return false
		}
	} else if before := list[max(open-1, 0)]; !before.is(sql, "from") && !before.is(sql, "join") && !before.is(sql, "lateral") ||
		list[names-1].kind == wordToken && slices.Contains(afterTables, list[names-1].name) {
		return false
	}
	for i := names + 1; i+1 < len(list) && list[i].isName() && column > 0 && list[i+1].is(sql, ","); i += 2 {
		column--
	}
	return column == 0
}

// afterTables are the key words that may stand between a sub-select without an alias and a parenthesis.
var afterTables = []string{
	"where", "union", "except", "intersect", "all", "having", "limit", "offset", "fetch", "join", "on", "using", "tablesample",
	"window", "for", "from", "group", "order", "left", "right", "full", "inner", "cross", "natural", "as",
}

// afterSelectList are the key words that may follow a select list.
var afterSelectList = []string{"from", "where", "group", "having", "window", "union", "intersect", "except", "order", "limit",
	"offset", "fetch", "for"}

// holdsSelect reports whether the parenthesis list[open] may be around a select, rather than around a list of expressions.
func holdsSelect(sql string, list []token, open int) bool {
	switch first := list[open+1]; {
	case !list[open].is(sql, "("):
		return false
	case first.is(sql, "select"), first.is(sql, "with"):
		return true
	case !first.is(sql, "("):
		return false
	}
	return open == 0 || !slices.Contains([]string{"coalesce", "greatest", "least", "nullif", "row"}, list[open-1].name)
}

// enclosing returns the index of the parenthesis or bracket around list[i], or -1.
func enclosing(sql string, list []token, i int) int {
	depth := 0
	for i--; i >= 0; i-- {
		switch t := list[i]; {
		case t.is(sql, ")"), t.is(sql, "]"):
			depth++
		case t.is(sql, "("), t.is(sql, "["):
			if depth == 0 {
				return i
			}
			depth--
		}
	}
	return -1
}

// closing returns the index of what closes the parenthesis or bracket list[i], or -1.
func closing(sql string, list []token, i int) int {
	depth := 0
	for ; i < len(list); i++ {
		switch t := list[i]; {
		case t.is(sql, "("), t.is(sql, "["):
			depth++
		case t.is(sql, ")"), t.is(sql, "]"):
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// rewrite returns the statement that does what any number of executions of the original do, which returns these fields. Its
// parameters are one array for each of the original's, their types given when it is prepared; all are as long as there are
// executions. Each row of its result is a row of one execution's, behind the number of that execution, from 1.
//
// Each array is asked for by a sub-select: thereby the planner does not see it, not even in a custom plan, and takes ten
// for its length. So a plan does not depend on how many executions there happen to be. A small table gets a hash join and
// a large one a look-up in its index per execution, for two executions and for ten thousand. What the statement's rows are
// ordered by, all rows are, where that is possible: see ordering.
//
// Elements that need a cast are cast once for each execution, and all of them, although no row may need one: what the type
// refuses is an error, as it is in the original. So both the casts and the statement are sub-selects that the planner does
// not dissolve; for else it might begin with the statement's tables, and not cast anything if they have no rows. Only where
// it sees that there can be none, whatever the arguments, nothing is cast.
func (s *shape) rewrite(parameters []parameter, fields []pgconn.FieldDescription) string {
	var arrays, columns, casts strings.Builder
	cast := false
	for i, p := range parameters {
		number := strconv.Itoa(i + 1)
		if i > 0 {
			arrays.WriteString(", ")
			columns.WriteString(", ")
			casts.WriteString(", ")
		}
		arrays.WriteString("pg_catalog.unnest((select $" + number + "))")
		columns.WriteString(s.prefix + number)
		casts.WriteString(s.prefix + number)
		if p.cast != "" {
			cast = true
			casts.WriteString("::" + p.cast + " as " + s.prefix + number)
		}
	}
	ord, args, rows := s.prefix+"ord", s.prefix+"args", s.prefix+"rows"

	var b strings.Builder
	b.WriteString("select " + args + "." + ord + ", " + rows + ".* from ")
	// More than one argument in parentheses of unnest are a special form of the unqualified name only.
	source := "rows from (" + arrays.String() + ") with ordinality " + args + "(" + columns.String() + ", " + ord + ")"
	opening, closing := ", lateral (\n", "\n) "+rows
	body := s.body
	if order := s.ordering.outside(fields); order != "" && !cast {
		body = body[:s.ordering.start]
		closing += order
	}
	if cast {
		source = "(select " + ord + ", " + casts.String() + " from " + source + " offset 0) " + args
		opening, closing = ", lateral (select * from (\n", closing+" offset 0) "+rows
	}
	b.WriteString(source + opening)
	end := 0
	for _, t := range s.parameters {
		b.WriteString(body[end:t.start])
		b.WriteString("(" + args + "." + s.prefix + strconv.Itoa(t.number) + ")")
		end = t.end
	}
	b.WriteString(body[end:])
	b.WriteString(closing)
	return b.String()
}

package fanout

import (
	"strings"
	"unicode/utf8"
)

// A token is a lexical element of a statement. White space and comments are none.
type token struct {
	kind       tokenKind
	start, end int    // of its text in the statement
	name       string // a word in lower case, a quoted identifier without its quotes, an operator
	number     int    // a parameter's
}

type tokenKind int

const (
	wordToken      tokenKind = iota // an unquoted identifier or a key word
	quotedToken                     // a quoted identifier
	parameterToken                  // $1
	stringToken                     // of any notation
	numberToken
	operatorToken
	otherToken // one character of punctuation, or ::
)

// is reports whether the token is this key word, operator or punctuation. sql is the statement.
func (t token) is(sql, text string) bool {
	switch t.kind {
	case wordToken, operatorToken:
		return t.name == text
	case otherToken:
		return sql[t.start:t.end] == text
	}
	return false
}

const (
	// operatorCharacters are those that PostgreSQL makes operators of.
	operatorCharacters = "+-*/<>=~!@#%^&|`?"

	// notInStandardOperators are those of them that let an operator's name end in a plus or a minus.
	notInStandardOperators = "~!@#%^&|`?"

	// maxIdentifier is the length, in bytes, beyond which the server cuts names off.
	maxIdentifier = 63

	// maxParameters is how many the protocol allows.
	maxParameters = 65535
)

// tokens splits a statement as PostgreSQL's lexer does. It is false for whatever the server would refuse, would read
// differently depending on its version or settings, or would make another name of than the one written: the caller can do
// without an answer, but not with a wrong one. Settings matter to a backslash in front of a quote
// (standard_conforming_strings), the version to letters that directly follow a number.
func tokens(sql string) ([]token, bool) {
	if strings.IndexByte(sql, 0) >= 0 || !utf8.ValidString(sql) {
		return nil, false
	}
	var list []token
	for i := 0; i < len(sql); {
		t := token{kind: otherToken, start: i}
		c := sql[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f':
			i++
			continue
		case strings.HasPrefix(sql[i:], "--"):
			i = endOfLine(sql, i)
			continue
		case strings.HasPrefix(sql[i:], "/*"):
			if i = endOfComment(sql, i); i < 0 {
				return nil, false
			}
			continue
		case c == '\'':
			t.kind, t.end = stringToken, endOfString(sql, i)
		case c == '"':
			t.kind = quotedToken
			t.name, t.end = quotedIdentifier(sql, i)
		case startsIdentifier(c):
			t.end = i + 1
			for t.end < len(sql) && (startsIdentifier(sql[t.end]) || isDigit(sql[t.end]) || sql[t.end] == '$') {
				t.end++
			}
			t.kind, t.name = wordToken, lowerASCII(sql[i:t.end])
			if len(t.name) > maxIdentifier {
				return nil, false
			}
			rest := sql[t.end:]
			switch quoted := strings.HasPrefix(rest, "'"); {
			case quoted && t.name == "e":
				t.kind, t.end = stringToken, endOfEscapeString(sql, t.end)
			case quoted && (t.name == "b" || t.name == "x" || t.name == "n"):
				// The server takes B'1''0' for two strings. Where they end is the same.
				t.kind, t.end = stringToken, endOfString(sql, t.end)
			case t.name == "u" && strings.HasPrefix(rest, `&'`):
				t.kind, t.end = stringToken, endOfString(sql, t.end+1)
			case t.name == "u" && strings.HasPrefix(rest, `&"`):
				return nil, false // a name behind escapes
			}
		case c == '$' && i+1 < len(sql) && isDigit(sql[i+1]):
			t.kind = parameterToken
			t.number, t.end = parameterNumber(sql, i+1)
		case c == '$':
			t.kind, t.end = stringToken, endOfDollarString(sql, i)
		case isDigit(c):
			t.kind, t.end = numberToken, endOfNumber(sql, i)
		case strings.HasPrefix(sql[i:], "::"):
			t.end = i + 2
		case strings.IndexByte(",()[].;:", c) >= 0:
			t.end = i + 1
		case strings.IndexByte(operatorCharacters, c) >= 0:
			t.kind, t.end = operatorToken, endOfOperator(sql, i)
			if t.name = sql[i:t.end]; t.name == "!=" {
				t.name = "<>"
			}
		}
		if t.end <= i {
			return nil, false
		}
		list = append(list, t)
		i = t.end
	}
	return list, true
}

func startsIdentifier(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= utf8.RuneSelf
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// lowerASCII is what the server makes of unquoted names, but for other letters in single-byte encodings.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// The functions below return where the element that begins at start ends, and a negative number if it is not well formed.

// endOfLine is also where a line comment ends.
func endOfLine(sql string, start int) int {
	if n := strings.IndexAny(sql[start:], "\r\n"); n >= 0 {
		return start + n
	}
	return len(sql)
}

// endOfComment knows that block comments nest.
func endOfComment(sql string, start int) int {
	depth := 0
	for i := start; i+1 < len(sql); {
		switch sql[i : i+2] {
		case "/*":
			depth++
			i += 2
		case "*/":
			depth--
			i += 2
			if depth == 0 {
				return i
			}
		default:
			i++
		}
	}
	return -1
}

// endOfString is for strings in which two quotes stand for one and a backslash for itself. With standard_conforming_strings
// off the server takes a backslash for an escape, and then a string with one in front of a quote does not end there.
func endOfString(sql string, quote int) int {
	for i := quote + 1; i < len(sql); i++ {
		if sql[i] != '\'' {
			continue
		}
		if sql[i-1] == '\\' {
			return -1
		}
		if i+1 == len(sql) || sql[i+1] != '\'' {
			return i + 1
		}
		i++
	}
	return -1
}

// endOfEscapeString is for strings with backslash escapes. Another string on a following line would be a part of it, with
// escapes too, so it refuses that.
func endOfEscapeString(sql string, quote int) int {
	for i := quote + 1; i < len(sql); i++ {
		switch {
		case sql[i] == '\\':
			i++
		case sql[i] != '\'':
		case i+1 < len(sql) && sql[i+1] == '\'':
			i++
		default:
			end := i + 1
			for i = end; i < len(sql); {
				switch {
				case strings.IndexByte(" \t\n\r\f\v", sql[i]) >= 0:
					i++
				case strings.HasPrefix(sql[i:], "--"):
					i = endOfLine(sql, i)
				case sql[i] == '\'':
					return -1
				default:
					return end
				}
			}
			return end
		}
	}
	return -1
}

func endOfDollarString(sql string, start int) int {
	i := start + 1
	for i < len(sql) && (startsIdentifier(sql[i]) || i > start+1 && isDigit(sql[i])) {
		i++
	}
	if i == len(sql) || sql[i] != '$' {
		return -1
	}
	tag := sql[start : i+1]
	n := strings.Index(sql[i+1:], tag)
	if n < 0 {
		return -1
	}
	return i + 1 + n + len(tag)
}

// quotedIdentifier also returns the name.
func quotedIdentifier(sql string, start int) (string, int) {
	for i := start + 1; i < len(sql); i++ {
		if sql[i] != '"' {
			continue
		}
		if i+1 < len(sql) && sql[i+1] == '"' {
			i++
			continue
		}
		name := strings.ReplaceAll(sql[start+1:i], `""`, `"`)
		if name == "" || len(name) > maxIdentifier {
			return "", -1
		}
		return name, i + 1
	}
	return "", -1
}

// parameterNumber also returns the number.
func parameterNumber(sql string, digits int) (int, int) {
	n, i := 0, digits
	for ; i < len(sql) && isDigit(sql[i]); i++ {
		if n = n*10 + int(sql[i]-'0'); n == 0 || n > maxParameters {
			return 0, -1
		}
	}
	if i < len(sql) && startsIdentifier(sql[i]) {
		return 0, -1
	}
	return n, i
}

// endOfNumber refuses numbers that are directly followed by letters, which are none in some versions.
func endOfNumber(sql string, start int) int {
	skip := func(i int) int {
		for i < len(sql) && isDigit(sql[i]) {
			i++
		}
		return i
	}
	i := skip(start)
	if i < len(sql) && sql[i] == '.' {
		i = skip(i + 1)
	}
	if i < len(sql) && (sql[i] == 'e' || sql[i] == 'E') {
		exponent := i + 1
		if exponent < len(sql) && (sql[exponent] == '+' || sql[exponent] == '-') {
			exponent++
		}
		if i = skip(exponent); i == exponent {
			return -1
		}
	}
	if i < len(sql) && (startsIdentifier(sql[i]) || sql[i] == '$') {
		return -1
	}
	return i
}

// endOfOperator takes as many characters as there are, up to a comment, and leaves a plus or minus at the end to what
// follows, unless the operator has a character that standard SQL does not make operators of.
func endOfOperator(sql string, start int) int {
	end := start
	for end < len(sql) && strings.IndexByte(operatorCharacters, sql[end]) >= 0 &&
		!strings.HasPrefix(sql[end:], "--") && !strings.HasPrefix(sql[end:], "/*") {
		end++
	}
	if !strings.ContainsAny(sql[start:end], notInStandardOperators) {
		for end > start+1 && (sql[end-1] == '+' || sql[end-1] == '-') {
			end--
		}
	}
	return end
}

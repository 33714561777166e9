package fanout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// placed returns the statement with each parameter that the lexer found in brackets.
func placed(sql string) string {
	list, ok := tokens(sql)
	if !ok {
		return "refused"
	}
	var b strings.Builder
	end := 0
	for _, t := range list {
		if t.kind == parameterToken {
			fmt.Fprintf(&b, "%s<%d>", sql[end:t.start], t.number)
			end = t.end
		}
	}
	return b.String() + sql[end:]
}

func TestTokensPlaceParameters(t *testing.T) {
	for sql, want := range map[string]string{
		"select $1":                         "select <1>",
		"select $1::int,$12":                "select <1>::int,<12>",
		"select '$1', $1":                   "select '$1', <1>",
		"select 'it''s $1', $1":             "select 'it''s $1', <1>",
		`select '\d $1', $1`:                `select '\d $1', <1>`,
		`select 'a\', $1`:                   "refused", // with standard_conforming_strings off the string goes on
		`select 'a\'' $1 ', $1`:             "refused",
		`select E'a\' $1', $1`:              `select E'a\' $1', <1>`,
		`select e'a\\', $1`:                 `select e'a\\', <1>`,
		`select e'a'' $1', $1`:              `select e'a'' $1', <1>`,
		"select e'a'\n'\\' $1', $1":         "refused", // one string, with escapes in both parts
		"select e'a' -- x\n'\\' $1', $1":    "refused",
		"select B'1', x'1F', N'$1', $1":     "select B'1', x'1F', N'$1', <1>",
		"select U&'$1', $1":                 "select U&'$1', <1>",
		"select u&$1 from t":                "select u&<1> from t",
		`select U&"d\0061t" = $1`:           "refused",
		"select $$ $1 '$$, $1":              "select $$ $1 '$$, <1>",
		"select $a$ $$ $1 $b$ $a$, $1":      "select $a$ $$ $1 $b$ $a$, <1>",
		"select $ä1$ $1 $ä1$, $1":           "select $ä1$ $1 $ä1$, <1>",
		"select $a$ $1":                     "refused",
		"select $a":                         "refused",
		"select a$1, $1 from t":             "select a$1, <1> from t",
		"select ä$1, $1":                    "select ä$1, <1>",
		"select limit$1":                    "select limit$1",
		"select a$b$ $1":                    "select a$b$ <1>", // a$b$ is a name
		"select 1 -- $2\n, $1":              "select 1 -- $2\n, <1>",
		"select 1 -- $2\r, $1":              "select 1 -- $2\r, <1>",
		"select 1 --$1":                     "select 1 --$1",
		"select /* $1 /* $2 */ $3 */ $1":    "select /* $1 /* $2 */ $3 */ <1>",
		"select /* $1 /* */ $1":             "refused",
		"select /*/ $1 */ $1":               "select /*/ $1 */ <1>",
		`select "$1", "a""$2" , $1`:         `select "$1", "a""$2" , <1>`,
		`select "a`:                         "refused",
		`select "" , $1`:                    "refused",
		"select 'a":                         "refused",
		"select a+/* $1 */$2":               "select a+/* $1 */<2>",
		"select a+--$1\n$2":                 "select a+--$1\n<2>",
		"select a-$1, @$2, -$3":             "select a-<1>, @<2>, -<3>",
		"select $1[1], $2.f, ($3).*":        "select <1>[1], <2>.f, (<3>).*",
		"select 1.5e-3+$1, .5, 1..$2":       "select 1.5e-3+<1>, .5, 1..<2>",
		"select $1a":                        "refused", // two tokens before PostgreSQL 15
		"select 1a, $1":                     "refused",
		"select 1_000, $1":                  "refused",
		"select 1$1":                        "refused",
		"select 1e, $1":                     "refused",
		"select $0":                         "refused",
		"select $01":                        "refused",
		"select $65535":                     "select <65535>",
		"select $65536":                     "refused",
		"select $99999999999999999999":      "refused",
		"select $":                          "refused",
		"select {$1}":                       "refused",
		`select \a $1`:                      "refused",
		"select $1\x00":                     "refused",
		"select '\xff', $1":                 "refused",
		"select \v $1":                      "refused",
		"select $1 ::text":                  "select <1> ::text",
		"select a.b$2c, $1":                 "select a.b$2c, <1>",
		"select 'a' '$1' $1":                "select 'a' '$1' <1>",
		"select 'a'\n'$1' $1":               "select 'a'\n'$1' <1>",
		"select fe'$1', $1":                 "select fe'$1', <1>", // a type's name and a string
		"select " + strings.Repeat("x", 63): "select " + strings.Repeat("x", 63),
		"select " + strings.Repeat("x", 64): "refused",
	} {
		if got := placed(sql); got != want {
			t.Errorf("%q:\n got %q\nwant %q", sql, got, want)
		}
	}
}

func TestTokensNames(t *testing.T) {
	list, ok := tokens(`SELECT "A ""b""", Größe, e'x', E, "select" from T_1$`)
	if !ok {
		t.Fatal("refused")
	}
	var got []string
	for _, t := range list {
		if t.kind == wordToken || t.kind == quotedToken {
			got = append(got, t.name)
		}
	}
	want := []string{"select", `A "b"`, "größe", "e", "select", "from", "t_1$"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTokensOperators(t *testing.T) {
	for sql, want := range map[string]string{
		"a=b":                 "=",
		"a=-1":                "= -",
		"a*-+1":               "* - +",
		"a@-1":                "@-",
		"a?-b":                "?-",
		"a!=b":                "<>",
		"a<>b":                "<>",
		"a::b:=c":             "=",
		"a->>b":               "->>",
		"a-->>b":              "",
		"a?|b":                "?|",
		"a||/**/|b":           "|| |",
		"a <=> b":             "<=>",
		"a ~~* b":             "~~*",
		"-a":                  "-",
		"a /+- b":             "/ + -",
		"a.b, (c)[1]":         "",
		"a operator(s.===) b": "===",
	} {
		list, _ := tokens(sql)
		var got []string
		for _, t := range list {
			if t.kind == operatorToken {
				got = append(got, t.name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, want %q", sql, got, want)
		}
	}
}

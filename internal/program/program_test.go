package program_test

import (
	"errors"
	"testing"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"one":                   "one",
		"connecting:\n\ta\n\tb": "connecting: a; b",
		"connecting:\n\ta\n\ta": "connecting: a",
		"x: a\n\na\n":           "x: a",
	} {
		if got := program.OneLine(errors.New(text)); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := program.Thousands(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

func TestEscapeXML(t *testing.T) {
	const text, want = `<a b="c">&'`, "&lt;a b=&#34;c&#34;&gt;&amp;&#39;"
	if got := program.EscapeXML(text); got != want {
		t.Errorf("%s is %s, want %s", text, got, want)
	}
}

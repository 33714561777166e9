package fanout_test

import (
	"os"
	"strings"
	"testing"
)

// The first code that README.md shows is a part of the package's example, which runs.
func TestREADMEShowsTheExample(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```go\n")
	snippet, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no code in README.md")
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for line := range strings.Lines(snippet) {
		line = strings.TrimSpace(line)
		next := strings.Index(string(example[at:]), line)
		if next < 0 {
			t.Fatalf("%q is not in example_test.go, or not in this order", line)
		}
		at += next
	}
}

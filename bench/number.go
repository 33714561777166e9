package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// counted is "1 query" or "30 queries".
func counted(n int, noun string) string {
	if n != 1 {
		if stem, ok := strings.CutSuffix(noun, "y"); ok {
			noun = stem + "ies"
		} else {
			noun += "s"
		}
	}
	return thousands(n) + " " + noun
}

// thousands is n with commas.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// figure is a value of the unit with three digits that mean something.
func figure(v float64, unit string) string {
	if unit == perSecond {
		return thousands(int(math.Round(v)))
	}
	return significant(v)
}

// significant is v with three digits that mean something, and none behind the point that mean nothing.
func significant(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func inMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

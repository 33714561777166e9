package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
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
	return program.Thousands(n) + " " + noun
}

// figure is a value of the unit with three digits that mean something.
func figure(v float64, unit string) string {
	if unit == perSecond {
		return program.Thousands(int(math.Round(v)))
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

package main

import (
	"math"
	"strconv"

	"github.com/sqlc-fanout/sqlc-fanout/internal/program"
)

// A logAxis lays values out by their logarithm, from one power of ten to another.
type logAxis struct {
	low, high  float64 // exponents
	start, end float64 // where they lie
}

// newLogAxis returns an axis on which all the values lie, between start and end.
func newLogAxis(values []float64, start, end float64) logAxis {
	low, high := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if v > 0 {
			low, high = min(low, math.Log10(v)), max(high, math.Log10(v))
		}
	}
	if low > high {
		low, high = 0, 1
	}
	a := logAxis{math.Floor(low), math.Ceil(high), start, end}
	// A decade with next to nothing in it is not worth its width.
	if low-a.low > 0.68 {
		a.low = math.Floor(low) + 0.68
	}
	if a.high-high > 0.68 {
		a.high = math.Ceil(high) - 0.68
	}
	if a.high-a.low < 0.1 {
		a.high = a.low + 1
	}
	return a
}

// at is where the value lies.
func (a logAxis) at(v float64) float64 {
	if v <= 0 {
		return a.start
	}
	return a.start + (math.Log10(v)-a.low)/(a.high-a.low)*(a.end-a.start)
}

// ticks are the powers of ten on the axis, and the values between them where there is room.
func (a logAxis) ticks() []float64 {
	factors := []float64{1}
	if a.high-a.low <= 2 {
		factors = []float64{1, 2, 5}
	}
	var all []float64
	for exponent := math.Floor(a.low); exponent <= a.high; exponent++ {
		for _, factor := range factors {
			v := factor * math.Pow(10, exponent)
			if l := math.Log10(v); l >= a.low-1e-9 && l <= a.high+1e-9 {
				all = append(all, v)
			}
		}
	}
	return all
}

// linearTicks are round numbers from zero up, at least to high, of which there are five or so.
func linearTicks(high float64) []float64 {
	if high <= 0 {
		return []float64{0, 1}
	}
	step := math.Pow(10, math.Floor(math.Log10(high)))
	for _, factor := range []float64{0.2, 0.5, 1, 2} {
		if high/(step*factor) <= 6 {
			step *= factor
			break
		}
	}
	ticks := []float64{0}
	for n := 1.0; ticks[len(ticks)-1] < high; n++ {
		ticks = append(ticks, n*step)
	}
	return ticks
}

// tickLabel is a round number in few letters.
func tickLabel(v float64) string {
	switch {
	case v >= 1e6:
		return strconv.FormatFloat(v/1e6, 'g', 3, 64) + " M"
	case v >= 1e5:
		return strconv.FormatFloat(v/1e3, 'g', 3, 64) + " k"
	case v >= 1e3:
		return program.Thousands(int(v))
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

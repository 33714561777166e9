package main

import (
	"math"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		values []float64
		part   float64
		want   float64
	}{
		{[]float64{7}, 0.9, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{10, 0}, 0.1, 1},
		{[]float64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.9, 9},
		{[]float64{5, 1}, 0, 1},
		{[]float64{5, 1}, 1, 5},
	} {
		if got := quantile(test.values, test.part); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("quantile(%v, %v) = %v, want %v", test.values, test.part, got, test.want)
		}
	}
	if !math.IsNaN(quantile(nil, 0.5)) {
		t.Error("no values have a median")
	}
}

func TestGeometricMean(t *testing.T) {
	if got := geometricMean([]float64{2, 0.5, 1}); math.Abs(got-1) > 1e-9 {
		t.Error(got)
	}
	if got := geometricMean([]float64{8, 2}); math.Abs(got-4) > 1e-9 {
		t.Error(got)
	}
}

func TestLogAxis(t *testing.T) {
	a := newLogAxis([]float64{0.2, 4, 900}, 100, 500)
	for _, v := range []float64{0.2, 4, 900} {
		if x := a.at(v); x < 100 || x > 500 {
			t.Errorf("%v lies at %v", v, x)
		}
	}
	if one, ten, hundred := a.at(1), a.at(10), a.at(100); math.Abs((ten-one)-(hundred-ten)) > 1e-9 {
		t.Error("decades differ in width")
	}
	for _, values := range [][]float64{nil, {5}, {1}, {0}, {0.001, 100_000}} {
		if a := newLogAxis(values, 0, 100); !(a.high > a.low) || len(a.ticks()) == 0 {
			t.Errorf("%v: %+v, ticks %v", values, a, a.ticks())
		}
	}
}

func TestLinearTicks(t *testing.T) {
	for _, high := range []float64{0, 0.3, 1, 7, 99, 270_000} {
		ticks := linearTicks(high)
		if last := ticks[len(ticks)-1]; last < high || len(ticks) > 8 {
			t.Errorf("up to %v: %v", high, ticks)
		}
	}
}

func TestFigures(t *testing.T) {
	for v, want := range map[float64]string{0.1234: "0.123", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 4321: "4321"} {
		if got := significant(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	if got := figure(12345.6, perSecond); got != "12,346" {
		t.Error(got)
	}
	for n, want := range map[int]string{1: "1 query", 30: "30 queries", 0: "0 queries", 1200: "1,200 queries"} {
		if got := counted(n, "query"); got != want {
			t.Error(got)
		}
	}
	if got := counted(2, "CPU"); got != "2 CPUs" {
		t.Error(got)
	}
}

func TestTransactionsPerSecond(t *testing.T) {
	for out, want := range map[string]float64{
		"latency average = 0.1 ms\ntps = 12345.678901 (without initial connection time)\n":                      12345.678901,
		"tps = 100.5 (including connections establishing)\ntps = 120.25 (excluding connections establishing)\n": 120.25,
	} {
		if got, err := transactionsPerSecond(out); err != nil || got != want {
			t.Errorf("%v, %v", got, err)
		}
	}
	if _, err := transactionsPerSecond("pgbench: error"); err == nil {
		t.Error("no tps, no error")
	}
}

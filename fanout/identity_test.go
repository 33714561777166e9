package fanout_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sqlc-fanout/sqlc-fanout/fanout"
)

type point struct{ key, value int }

func (p point) Key() int { return p.key }

func TestIdentity(t *testing.T) {
	m := fanout.NewIdentity(point.Key)
	if _, ok := m.Get(1); ok || m.Len() != 0 {
		t.Error("not empty at first")
	}
	first, err := m.Merge([]point{{1, 10}, {2, 20}, {1, 11}})
	if err != nil || len(first) != 3 || first[0] != first[2] || *first[0] != (point{1, 11}) {
		t.Fatalf("%v, %v", first, err)
	}
	var many []point
	for i := range 1000 {
		many = append(many, point{i, i})
	}
	second, err := m.Merge(many)
	if err != nil || second[1] != first[0] || second[2] != first[1] || *first[0] != (point{1, 1}) {
		t.Errorf("pointers moved, or the value was not refreshed: %v, %v", *first[0], err)
	}
	if p, ok := m.Get(2); !ok || p != first[1] {
		t.Error("Get returns another pointer")
	}
	var keys []int
	for k, p := range m.All() {
		if p.key != k {
			t.Errorf("key %d has %v", k, *p)
		}
		keys = append(keys, k)
		if len(keys) == 3 {
			break
		}
	}
	if !slices.Equal(keys, []int{1, 2, 0}) || m.Len() != 1000 {
		t.Errorf("order of first merge: %v, %d keys", keys, m.Len())
	}
	if none, err := m.Merge(nil); len(none) != 0 || err != nil {
		t.Errorf("%v, %v", none, err)
	}
}

func TestIdentityOnRepeat(t *testing.T) {
	m := fanout.NewIdentity(point.Key)
	var asked []string
	refuse := errors.New("differs")
	m.OnRepeat = func(key int, old, new point) error {
		asked = append(asked, fmt.Sprint(key, old.value, new.value))
		if old != new {
			return refuse
		}
		return nil
	}
	if _, err := m.Merge([]point{{1, 10}, {2, 20}, {1, 10}}); err != nil {
		t.Error(err)
	}
	// Row 3 repeats within the merge what row 0 has left there; row 4 is refused, and with it all.
	p, err := m.Merge([]point{{3, 30}, {1, 10}, {4, 40}, {3, 30}, {2, 99}})
	if p != nil || err != refuse {
		t.Errorf("%v, %v", p, err)
	}
	if want := []string{"1 10 10", "1 10 10", "3 30 30", "2 20 99"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	if _, ok := m.Get(3); ok || m.Len() != 2 {
		t.Error("a refused merge has left rows behind")
	}
}

// Identity equals a map with the last row of each key, and its pointers stay.
func TestIdentityModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := fanout.NewIdentity(point.Key)
		model := map[int]point{}
		pointers := map[int]*point{}
		merges := rapid.SliceOf(rapid.SliceOf(rapid.Custom(func(t *rapid.T) point {
			return point{rapid.IntRange(0, 9).Draw(t, "key"), rapid.Int().Draw(t, "value")}
		}))).Draw(t, "merges")
		for _, rows := range merges {
			got, err := m.Merge(rows)
			if err != nil {
				t.Fatal(err)
			}
			for i, row := range rows {
				model[row.key] = row
				if p, ok := pointers[row.key]; ok && p != got[i] {
					t.Fatalf("the pointer of %d moved", row.key)
				}
				pointers[row.key] = got[i]
			}
		}
		all := map[int]point{}
		for k, p := range m.All() {
			all[k] = *p
		}
		if !maps.Equal(all, model) || m.Len() != len(model) {
			t.Fatalf("%v, want %v", all, model)
		}
		if merged := fanout.Merge(point.Key, merges...); !maps.Equal(merged, model) {
			t.Fatalf("Merge: %v, want %v", merged, model)
		}
	})
}

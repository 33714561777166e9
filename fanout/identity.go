package fanout

import "iter"

// Identity holds one value per primary key over any number of gathers: the counterpart of a session's identity map in an
// object-relational mapper (P of EAA, Identity Map). Where [Gather]'s map holds copies, Identity hands out pointers, which
// stay valid and stay the same for the same key while later merges refresh the values behind them.
//
// T is the row's struct type. Of a package generated with emit_result_struct_pointers, whose rows are pointers already,
// merge the structs that they point to.
//
// The zero value is not ready for use: call [NewIdentity]. Not safe for concurrent use.
type Identity[K comparable, T any] struct {
	// OnRepeat, if set, is asked whenever a merge brings a row whose key is already there, be it from an earlier merge or
	// from an earlier row of the same one. old and new may be equal: comparing them is OnRepeat's business. With nil the
	// new row takes the old one's place. An error refuses the merge, and no row of it is applied.
	OnRepeat func(key K, old, new T) error

	key    func(T) K
	index  map[K]int // position in keys and values
	keys   []K       // in order of first merge
	values []*T
}

// NewIdentity returns an empty Identity whose keys are read from the rows by key.
func NewIdentity[K comparable, T any](key func(T) K) *Identity[K, T] {
	mustBeSet(key != nil, "NewIdentity", "key")
	return &Identity[K, T]{key: key, index: make(map[K]int)}
}

// Merge adds rows and returns, in their order, a pointer to the value of each one's key. A key that is already there
// keeps its pointer; the value behind it is overwritten in place, the last row of a key winning. An error is OnRepeat's,
// as it is; then nothing has changed.
func (m *Identity[K, T]) Merge(rows []T) ([]*T, error) {
	// All keys are read, and OnRepeat is asked about all rows, before the first value changes: whatever returns an error
	// or panics there leaves the values as they were.
	keys := make([]K, len(rows))
	staged := make(map[K]T, len(rows)) // what this merge will leave behind each key
	for i, row := range rows {
		k := m.key(row)
		keys[i] = k
		if m.OnRepeat != nil {
			old, repeated := staged[k]
			if at, ok := m.index[k]; ok && !repeated {
				old, repeated = *m.values[at], true
			}
			if repeated {
				if err := m.OnRepeat(k, old, row); err != nil {
					return nil, err
				}
			}
		}
		staged[k] = row
	}
	pointers := make([]*T, len(rows))
	for i, k := range keys {
		at, ok := m.index[k]
		if !ok {
			at = len(m.values)
			m.index[k] = at
			m.keys = append(m.keys, k)
			m.values = append(m.values, new(T))
		}
		*m.values[at] = rows[i]
		pointers[i] = m.values[at]
	}
	return pointers, nil
}

// Get returns the pointer for key, and whether there is one.
func (m *Identity[K, T]) Get(key K) (*T, bool) {
	at, ok := m.index[key]
	if !ok {
		return nil, false
	}
	return m.values[at], true
}

// Len returns the number of keys.
func (m *Identity[K, T]) Len() int { return len(m.keys) }

// All ranges over keys and pointers in order of first merge. A merge during the range adds to it.
func (m *Identity[K, T]) All() iter.Seq2[K, *T] {
	return func(yield func(K, *T) bool) {
		for i := 0; i < len(m.keys); i++ {
			if !yield(m.keys[i], m.values[i]) {
				return
			}
		}
	}
}

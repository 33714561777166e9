package fanout

// Merge indexes the rows of the lists by key. Where a key repeats, the later row wins, later lists counting as later than
// earlier ones. No rows give an empty map, never nil. It is what [Gather] does with the lists of [Collect].
func Merge[K comparable, T any](key func(T) K, lists ...[]T) map[K]T {
	mustBeSet(key != nil, "Merge", "key")
	// The longest list is what the map surely has to hold, unless keys repeat in it. The sum of all was decided against where
	// it is much: lists that overlap, which is what Merge is for, would allocate many times what they need.
	const little = 1024
	longest, sum := 0, 0
	for _, list := range lists {
		longest = max(longest, len(list))
		sum += len(list)
	}
	merged := make(map[K]T, max(longest, min(sum, little)))
	mergeInto(merged, key, lists...)
	return merged
}

func mergeInto[K comparable, T any](merged map[K]T, key func(T) K, lists ...[]T) {
	for _, list := range lists {
		for _, row := range list {
			merged[key(row)] = row
		}
	}
}

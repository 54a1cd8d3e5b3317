package past

import (
	"cmp"
	"slices"
	"sync"
)

// recent keeps the values that were used last, up to a number.
type recent[K cmp.Ordered, V any] struct {
	mu   sync.Mutex
	most int
	used []K // the oldest use first
	all  map[K]V
}

func newRecent[K cmp.Ordered, V any](most int) *recent[K, V] {
	return &recent[K, V]{most: most, all: map[K]V{}}
}

func (r *recent[K, V]) get(key K) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.all[key]
	if ok {
		r.touch(key)
	}
	return v, ok
}

// floor is the value with the highest key that is at most key.
func (r *recent[K, V]) floor(key K) (best V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var at K
	for k := range r.all {
		if k <= key && (!ok || k > at) {
			at, ok = k, true
		}
	}
	if !ok {
		return best, false
	}
	r.touch(at)
	return r.all[at], true
}

func (r *recent[K, V]) put(key K, value V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[key] = value
	r.touch(key)
	if len(r.used) > r.most {
		delete(r.all, r.used[0])
		r.used = r.used[1:]
	}
}

func (r *recent[K, V]) touch(key K) {
	if i := slices.Index(r.used, key); i >= 0 {
		r.used = slices.Delete(r.used, i, i+1)
	}
	r.used = append(r.used, key)
}

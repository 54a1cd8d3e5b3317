// Package fsm has every shape of loop that is proven, and in fail.go its nearest
// neighbour that is not.
package fsm

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"unicode"
)

type ref struct{ namespace, name string }

type pair struct {
	ref ref
	n   int
}

type endpoint struct {
	id    uint64
	name  string
	addr  netip.Addr
	count int
	seen  bool
	peers map[ref]int
	names []string
}

type state struct {
	byRef  map[ref]*endpoint
	byName map[string]*endpoint
	counts map[string]int
	total  int
	keys   []string
}

var errBad = errors.New("bad")

func deletes(m map[ref]*endpoint) {
	for k, e := range m {
		if e.count == 0 {
			delete(m, k)
		}
	}
}

func deletesElsewhere(s *state, gone map[string]int) {
	for name := range gone {
		delete(s.byName, name)
	}
}

func copies(src map[ref]*endpoint) map[ref]string {
	dst := make(map[ref]string, len(src))
	for k, e := range src {
		name := strings.ToLower(e.name)
		if name == "" {
			continue
		}
		dst[k] = name + k.namespace
	}
	return dst
}

func copiesUnderPart(src map[ref]*endpoint) map[pair]uint64 {
	dst := map[pair]uint64{}
	for k, e := range src {
		p := pair{ref: k, n: 1}
		dst[p] = e.id
	}
	return dst
}

func copiesConverted(src map[uint32]string) map[uint64]string {
	dst := map[uint64]string{}
	for k, v := range src {
		dst[uint64(k)] = v
	}
	return dst
}

func mergesInto(s *state, add map[string]int) {
	for k, n := range add {
		if _, ok := s.counts[k]; !ok {
			s.counts[k] = n
		} else {
			s.counts[k] += n * 2
		}
	}
}

func addsTo(dst, src map[string]int, other *state) {
	for k := range src {
		dst[k] = src[k] + other.counts[k]
	}
}

func trims(m map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k] = strings.TrimFunc(v, unicode.IsSpace)
		for part := range strings.SplitSeq(v, ",") {
			out[k] += part
		}
	}
	return out
}

func editsRanged(m map[string]int) {
	for k, v := range m {
		m[k] = v + 1
	}
}

func groups(src map[string][]int) map[string][]int {
	dst := map[string][]int{}
	for k, list := range src {
		for _, v := range list {
			if v > 0 {
				dst[k] = append(dst[k], v)
			}
		}
	}
	return dst
}

func sums(m map[string]uint64) (n int, total, all, common, odd uint64) {
	product := uint64(1)
	for _, v := range m {
		n++
		total += v
		total -= 1
		all |= v
		common &^= ^v
		odd ^= v
		product = product * v
	}
	return n, total, all, common, odd * product
}

func histogram(m map[ref]*endpoint) map[string]int {
	out := map[string]int{}
	for _, e := range m {
		out[e.name]++
	}
	return out
}

func totals(s *state) {
	for _, e := range s.byRef {
		s.total += e.count
	}
}

func bools(m map[string]bool) (any, all bool) {
	all = true
	for _, v := range m {
		any = any || v
		all = all && v
	}
	return any, all
}

func flag(m map[string]int) bool {
	found := false
	for _, v := range m {
		if v > 3 {
			found = true
		}
	}
	return found
}

func flagAndBreak(m map[string]int) bool {
	found := false
	for _, v := range m {
		if v > 3 {
			found = true
			break
		}
	}
	return found
}

func members(m map[ref]*endpoint) map[string]bool {
	set := map[string]bool{}
	for _, e := range m {
		set[e.name] = true
	}
	return set
}

func union(sets map[string]map[string]struct{}) map[string]struct{} {
	all := map[string]struct{}{}
	for _, set := range sets {
		for k := range set {
			all[k] = struct{}{}
		}
	}
	return all
}

func marks(m map[string]*endpoint) {
	for _, e := range m {
		e.seen = true
		e.count++
	}
}

func subset(a, b map[string]struct{}) bool {
	for k := range a {
		if _, ok := b[k]; !ok {
			return false
		}
	}
	return true
}

func converts(m map[string]string) (map[string]netip.Addr, error) {
	out := map[string]netip.Addr{}
	for k, v := range m {
		a, err := netip.ParseAddr(v)
		if err != nil {
			return nil, errBad
		}
		out[k] = a.Unmap()
	}
	return out, nil
}

func mustNotBeNegative(m map[string]int) {
	for _, v := range m {
		if v < 0 {
			panic("negative")
		}
	}
}

func extremes(m map[string]int) (greatest, least int, name string) {
	shortest := 1 << 30
	for k, v := range m {
		greatest = max(greatest, v)
		least = min(v, least)
		if k > name {
			name = k
		}
		if v > 0 && shortest > len(k) {
			shortest = len(k)
		}
	}
	return greatest, least + shortest, name
}

func guardedExtreme(m map[string]int) int {
	best := 0
	for _, v := range m {
		if v%2 == 0 && v > best {
			best = v
		}
	}
	return best
}

func collected(m map[string]int) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func collectedOnStack(m map[string]int) (out string) {
	var stack [16]string
	keys := stack[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		out += k
	}
	return out
}

func collectedFromSeveral(a, b map[string]int, more []string) []string {
	out := make([]string, 0, len(a)+len(b)+1)
	for k := range a {
		if k == "" {
			continue
		}
		out = append(out, "a/"+k)
	}
	for k, n := range b {
		out = append(out, fmt.Sprintf("b/%s=%d", k, n))
	}
	out = append(out, more...)
	sort.Strings(out)
	return out
}

func collectedNested(m map[string]map[string]int) []string {
	var out []string
	for _, inner := range m {
		for k := range inner {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func collectedInBranch(m map[string]int, add bool) []string {
	out := []string{"first"}
	if add {
		for k := range m {
			out = append(out, k)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}

func collectedRows(s *state) []*endpoint {
	rows := make([]*endpoint, 0, len(s.byRef))
	for _, e := range s.byRef {
		rows = append(rows, e)
	}
	slices.SortFunc(rows, func(a, b *endpoint) int { return cmp.Compare(a.id, b.id) })
	return rows
}

func collectedReversed(m map[string]int) []int {
	var out []int
outer:
	for _, v := range m {
		for i := range 3 {
			if v == i {
				continue outer
			}
		}
		out = append(out, v)
	}
	sort.Sort(sort.Reverse(sort.IntSlice(out)))
	return out
}

func collectedInField(s *state) {
	for k := range s.byName {
		s.keys = append(s.keys, k)
	}
	slices.Sort(s.keys)
}

func collectedOrRefused(m map[string]int) ([]string, error) {
	var out []string
	for k, v := range m {
		if v < 0 {
			return nil, errBad
		}
		out = append(out, k)
	}
	slices.Sort(out)
	return out, nil
}

func insideOneIteration(m map[string][]int) map[string]*endpoint {
	out := map[string]*endpoint{}
	for k, list := range m {
		e := &endpoint{name: k}
		var doubled []int
		for i, v := range list {
			if i == 3 {
				break
			}
			doubled = append(doubled, 2*v)
			e.count += v
		}
		switch {
		case len(doubled) > 1:
			e.seen = true
		default:
			e.id = uint64(len(doubled))
		}
		out[k] = e
	}
	return out
}

func iterators(m map[string]int, old map[string]int) ([]string, []int, []string, map[string]int) {
	keys := slices.Sorted(maps.Keys(m))
	byLength := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	values := slices.Collect(maps.Values(m))
	slices.Sort(values)
	clone := maps.Collect(maps.All(m))
	maps.Insert(clone, maps.All(old))
	maps.DeleteFunc(clone, func(k string, v int) bool { return k == "" || v > len(old) })
	for k := range maps.Keys(old) {
		delete(clone, k)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		keys = append(keys, k+byLength[0])
	}
	return keys, values, byLength, clone
}

func single(c <-chan int) int {
	select {
	case v := <-c:
		return v
	}
}

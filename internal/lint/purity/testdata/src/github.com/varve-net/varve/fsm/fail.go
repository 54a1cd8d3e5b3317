package fsm

import (
	"fmt"
	"slices"
	"strings"
	"time" // want `pure package fsm imports time`
)

var (
	global  int
	started = time.Now()
)

func deletesOthers(m map[string]string) {
	for _, v := range m { // want `whether it is still visited is left to the map`
		delete(m, v)
	}
}

func insertsWhileRanging(m map[string]int) {
	for k, v := range m { // want `whether it is still visited is left to the map`
		m[k+"'"] = v
	}
}

func bringsBack(m map[string]int) {
	for k := range m { // want `whether it is visited again is left to the map`
		delete(m, k)
		m[k] = 1
	}
}

func mayAlias(a, b map[string]bool) {
	for k := range a { // want `may be an element of the map that is ranged over`
		b["x"+k] = true
	}
}

func inverts(m map[string]uint64) map[uint64]string {
	out := map[uint64]string{}
	for k, v := range m { // want `out\[v\] keeps what the last iteration left`
		out[v] = k
	}
	return out
}

func narrows(m map[uint64]string) map[uint8]string {
	out := map[uint8]string{}
	for k, v := range m { // want `out\[uint8\(k\)\] keeps what the last iteration left`
		out[uint8(k)] = v
	}
	return out
}

func keyChanged(m map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range m { // want `out\[k\] keeps what the last iteration left`
		k = strings.ToLower(k)
		out[k] = v
	}
	return out
}

func keyMerged(m map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range m { // want `out\[lower\] keeps what the last iteration left`
		lower := strings.ToLower(k)
		out[lower] = v
	}
	return out
}

func twoKeys(m map[string]string) map[[2]string]string {
	out := map[[2]string]string{}
	for k, v := range m { // want `keeps what the last iteration left`
		out[[2]string{k, v}] = "a" + v
		out[[2]string{v, k}] = "b" + v
	}
	return out
}

func numbered(m map[string]int) map[string]int {
	out := map[string]int{}
	for k := range m { // want `out\[k\] is read here while it is being written`
		out[k] = len(out)
	}
	return out
}

func readsOther(s *state, add map[string]int) {
	for k := range add { // want `s\.counts may be the map of s\.counts\[k\], which is being written`
		s.counts[k] = s.counts["total"] + 1
	}
}

func groupsUnsorted(m map[string]int) map[int][]string {
	out := map[int][]string{}
	for k, v := range m { // want `out\[v\] grows in the order of the iterations`
		out[v] = append(out[v], k)
	}
	return out
}

func concatenates(m map[string]string) (s string) {
	for _, v := range m { // want `s is a string, for which the result depends on order`
		s += v
	}
	return s
}

func mixed(m map[string]int) int {
	n := 1
	for _, v := range m { // want `n is written in several ways that do not commute`
		n += v
		n *= 2
	}
	return n
}

func shifts(m map[string]uint) uint {
	n := uint(1)
	for _, v := range m { // want `n is written in a way that does not commute`
		n <<= v
	}
	return n
}

func subtractsFrom(m map[string]int) int {
	n := 0
	for _, v := range m { // want `n keeps what the last iteration left`
		n = v - n
	}
	return n
}

func twoFlags(m map[string]int) string {
	kind := ""
	for _, v := range m { // want `kind is set to different values`
		if v < 0 {
			kind = "negative"
		} else {
			kind = "positive"
		}
	}
	return kind
}

func countsUntil(m map[string]int) int {
	n := 0
	for _, v := range m { // want `n is written by as many iterations as ran before the loop was left`
		n++
		if v < 0 {
			break
		}
	}
	return n
}

func countsUntilReturn(s *state) error {
	for _, e := range s.byRef { // want `s\.total is written by as many iterations as ran before the loop was left`
		if e.count < 0 {
			return errBad
		}
		s.total += e.count
	}
	return nil
}

func returnsPartial(m map[string]int) (n int, err error) {
	for _, v := range m { // want `n is written by as many iterations as ran before the loop was left`
		if v < 0 {
			return
		}
		n += v
	}
	return n, nil
}

func limits(m map[string]int) bool {
	n := 0
	for _, v := range m { // want `n is read here while it is being written`
		n += v
		if n > 100 {
			return true
		}
	}
	return false
}

func greatestOf(m map[string]int) string {
	best, name := 0, ""
	for k, v := range m { // want `best keeps what the last iteration left`
		if v > best {
			best = v
			name = k
		}
	}
	return name
}

func greatestFloat(m map[string]float64) float64 {
	best := 0.0
	for _, v := range m { // want `best keeps what the last iteration left`
		if v > best {
			best = v
		}
	}
	return best
}

func greatestAndLeast(m map[string]int) int {
	n := 0
	for _, v := range m { // want `n is written in several ways that do not commute`
		n = max(n, v)
		n = min(n, 10)
	}
	return n
}

func leavesKey(m map[string]int) string {
	var k string
	for k = range m { // want `k keeps what the last iteration left`
	}
	return k
}

func writesGlobal(m map[string]int) {
	for _, v := range m { // want `global is seen from everywhere`
		global += v
	}
}

func writesThroughPointer(m map[string]int, last *int) {
	for _, v := range m { // want `\*last is not followed`
		*last = v
	}
}

func writesThroughValue(m map[string]*endpoint) {
	for k, e := range m { // want `e\.name keeps what the last iteration left`
		e.name = k
	}
}

func readsWrittenField(m map[string]*endpoint) []int {
	var out []int
	for _, e := range m { // want `e\.count is read here while it is being written`
		e.count++
		out = append(out, e.count)
	}
	slices.Sort(out)
	return out
}

func readsWholeStruct(m map[string]*endpoint) map[string]endpoint {
	out := map[string]endpoint{}
	for k, e := range m { // want `\*e holds e\.count, which is being written`
		e.count++
		out[k] = *e
	}
	return out
}

func addressKnown(m map[string]int) (seen map[string]int) {
	n, seen := 0, map[string]int{}
	p := &n
	for k, v := range m { // want `n has its address taken`
		n += v
		seen[k] = *p
	}
	return seen
}

func fillsSlice(m map[string]int) []string {
	out := make([]string, len(m))
	i := 0
	for k := range m { // want `out\[i\] is an element of a slice`
		out[i] = k
		i++
	}
	return out
}

func sharedCapacity(m map[string]int, base []string) map[string][]string {
	out := map[string][]string{}
	for k := range m { // want `append may write into what base shares with others`
		out[k] = append(base, k)
	}
	return out
}

func writesAlias(m map[string]int, base []string) {
	for k := range m { // want `list\[0\] is an element of a slice`
		list := base
		list[0] = k
	}
}

func calls(m map[string]int, f func(string)) {
	for k := range m { // want `it calls f, which is not shown to have no effects`
		f(k)
	}
}

func callsMethod(m map[string]int) string {
	var b strings.Builder
	for k := range m { // want `it calls b\.WriteString, which is not shown to have no effects`
		b.WriteString(k)
	}
	return b.String()
}

func prints(m map[string]int) {
	for k := range m { // want `it calls fmt\.Println, which is not shown to have no effects`
		fmt.Println(k)
	}
}

func printsDeep(m map[string]*endpoint, s *state) map[string]string {
	out := map[string]string{}
	for k := range m { // want `fmt looks into s, which may lead to what is being written`
		out[k] = fmt.Sprint(s)
	}
	return out
}

func sends(m map[string]int, c chan<- string) {
	for k := range m { // want `what it starts, defers or sends follows the order of the iterations`
		c <- k
	}
}

func defers(m map[string]func()) {
	for _, f := range m { // want `what it starts, defers or sends follows the order of the iterations`
		defer f()
	}
}

func fieldSortedLater(s *state) int {
	for k := range s.byName { // want `s\.keys grows in map order and is not sorted by the next statement`
		s.keys = append(s.keys, k)
	}
	n := len(s.keys[0])
	slices.Sort(s.keys)
	return n
}

func innerOrder(m map[string]map[string]string) map[string]string {
	out := map[string]string{}
	for k, inner := range m {
		joined := ""
		for _, v := range inner { // want `joined is a string, for which the result depends on order`
			joined += v
		}
		out[k] = joined
	}
	return out
}

func outerContinue(lists [][]int, m map[int]int) (n int) {
outer:
	for range lists {
		for k := range m { // want `n is written by as many iterations as ran before the loop was left`
			n++
			if k > 3 {
				continue outer
			}
		}
	}
	return n
}

type wrapper struct {
	*endpoint
	n int
}

func writesThroughEmbedded(m map[string]int, last *endpoint) {
	for k := range m { // want `w\.name keeps what the last iteration left`
		w := &wrapper{endpoint: last}
		w.name = k
	}
}

func callsIterator(m map[string]int, names func(func(string) bool)) map[string][]string {
	out := map[string][]string{}
	for k := range m { // want `names is a function that is not shown to have no effects`
		out[k] = slices.Collect(names)
	}
	return out
}

func rangesFunction(m map[string]int, names func(func(string) bool)) (n int) {
	for range m { // want `names is a function that is not shown to have no effects`
		for range names {
			n++
		}
	}
	return n
}

func mapsCharacters(m map[string]int, f func(rune) rune) map[string]string {
	out := map[string]string{}
	for k := range m { // want `f is a function that is not shown to have no effects`
		out[k] = strings.Map(f, k)
	}
	return out
}

func startsAnew(m map[string]int) map[string]int {
	out := map[string]int{}
	for k, v := range m { // want `out is read here while it is being written`
		if v == 0 {
			out = map[string]int{}
		}
		out[k] = v
	}
	return out
}

func startsFieldAnew(s *state, m map[string]int) {
	for k, v := range m { // want `s\.counts is read here while it is being written`
		if v == 0 {
			s.counts = nil
		}
		s.counts[k] = v
	}
}

func twoKeysOfOneName(m map[string]string) map[[2]string]string {
	out := map[[2]string]string{}
	for k, v := range m { // want `out\[p\] keeps what the last iteration left`
		{
			p := [2]string{k, v}
			out[p] = "a" + v
		}
		{
			p := [2]string{v, k}
			out[p] = "b" + v
		}
	}
	return out
}

func twoLists(a, b *state) {
	for k := range a.byName { // want `b\.keys and a\.keys may be one`
		a.keys = append(a.keys, k)
		b.keys = append(b.keys, "b"+k)
	}
	slices.Sort(a.keys)
}

// Package projections breaks the rules with iterators.
package projections

import (
	"maps"
	"os" // want `pure package projections imports os`
	"reflect"
	"slices"
	"sync"
)

func keys(m map[string]int) []string {
	return slices.Collect(maps.Keys(m)) // want `maps\.Keys gives map order: collect the keys and sort them, or iterate slices\.Sorted\(maps\.Keys\(m\)\)`
}

func values(m map[string]float64) []float64 {
	return slices.Sorted(maps.Values(m)) // want `maps\.Values gives map order`
}

func overKeys(m map[string]int) (out string) {
	for k := range maps.Keys(m) { // want `out keeps what the last iteration left`
		out = k
	}
	return out
}

func overValues(m map[string]int, set map[int]string) {
	for v := range maps.Values(m) { // want `set\[v\] keeps what the last iteration left`
		set[v] = string(rune(v))
	}
}

func overAll(m map[string]float64) (sum float64) {
	for _, v := range maps.All(m) { // want `sum is a float64, for which the result depends on order`
		sum += v
	}
	return sum
}

func iterators(m map[string]int) int {
	it := maps.Values(m) // want `maps\.Values gives map order`
	for v := range it {
		return v
	}
	return 0
}

func asValue(m map[string]int) []string {
	keys := maps.Keys[map[string]int] // want `maps\.Keys is used as a value, and whoever calls it gets map order`
	return slices.Collect(keys(m))
}

func usedUnsorted(m map[string]int) []string {
	if ks := slices.Collect(maps.Keys(m)); len(ks) > 0 { // want `maps\.Keys gives map order`
		return ks
	}
	return nil
}

func deleteInOrder(m map[string]int, gone *[]string) {
	maps.DeleteFunc(m, func(k string, _ int) bool { // want `maps\.DeleteFunc calls a function in map order`
		*gone = append(*gone, k)
		return true
	})
}

func deleteBy(m map[string]int, pick func(string, int) bool) {
	maps.DeleteFunc(m, pick) // want `maps\.DeleteFunc calls a function in map order`
}

func concurrent(m *sync.Map) {
	m.Range(func(k, _ any) bool { // want `\(\*sync\.Map\)\.Range has no fixed order`
		os.Stdout.WriteString(k.(string))
		return true
	})
}

func reflected(m any) []reflect.Value {
	return reflect.ValueOf(m).MapKeys() // want `\(reflect\.Value\)\.MapKeys has no fixed order`
}

func generic[M ~map[K]V, K comparable, V any](m M) (out []K) {
	for k := range m { // want `out grows in map order and may be returned before it is sorted`
		out = append(out, k)
	}
	return
}

func race(a, b <-chan int) int {
	select { // want `a select of several cases in a pure package`
	case x := <-a:
		return x
	case x := <-b:
		return x
	}
}

func poll(a <-chan int) int {
	select { // want `a select of several cases in a pure package`
	case x := <-a:
		return x
	default:
		return 0
	}
}

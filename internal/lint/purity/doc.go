// Package purity reports what would make a pure package give two answers to one
// question. Every replica folds the same log and must come to the same digest, so
// a pure package depends on its arguments alone: not on a clock, not on a
// scheduler, not on where an object happens to lie, not on the order of a map.
//
// # Which rule stands where
//
// internal/archtest states the arrows between the packages of the module, which
// packages are pure (archtest.Pure), and which effects they may not import (a
// clock, files, sockets, randomness). It reads the import lines of every file,
// whatever its build constraints, and knows no types.
//
// This analyser takes both lists from there and states neither again: it reports
// the same imports where they are written, in the editor and under `make lint`.
// It adds what needs types and bodies: imports whose results differ between two
// runs of one process (runtimeImports), goroutines, select, printed addresses, and
// map order.
//
// Test files and *.pb.go are exempt. A folder below a pure one is not pure unless
// archtest.Pure names it.
//
// # Map order
//
// A range over a map, or over maps.Keys, maps.Values or maps.All, is reported
// unless its body is proven to come to the same end in any order. Proven are:
//
//   - an element of a map under the range key itself, or under something that
//     contains it (dst[k] = f(v), dst[pair{k, x}]++), and delete(m, k)
//   - one constant stored, however often (found = true, set[v.Name] = true)
//   - sums, products, |, &, &^ and ^ of integers, || and && of bools, each alone
//   - the greatest or least of ordered values (best = max(best, v); if v > best { best = v })
//   - s = append(s, ...) where the next use of s is to sort it
//   - leaving early with a result that does not depend on the iteration
//
// and whatever stays inside one iteration. Only builtin functions, those of
// values.go, the methods of net/netip and the getters of generated messages may be
// called: what others do is not looked into. A place that is written may not be
// read elsewhere in the body, through whatever name: places are told apart by
// variable, by field and by type of map, never by guesses about aliases.
//
// Three things are taken on trust. A comparison given to a sort is total over what
// it sorts; the String and Error methods that fmt calls have no effects; two
// values of a map do not share one slice's spare capacity.
//
// # The way out
//
// Where the order is shown to be harmless by an argument that the analyser does not
// know, the line before says so:
//
//	//purity:ordered NewLabels sorts
//	for k, v := range labels {
//
// The reason is not optional. A comment that silences nothing is reported as well.
// Nothing but map order can be silenced.
package purity

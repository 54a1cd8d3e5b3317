// Package policy breaks the rules as a clumsy parser might.
package policy

import (
	"errors"
	"fmt"
	"math/rand"       // want `pure package policy imports math/rand: `
	v2 "math/rand/v2" // want `pure package policy imports math/rand/v2: `
	"net"             // want `pure package policy imports net: sockets are an effect`
	"net/netip"
	"sort"
)

var errInvalid = errors.New("invalid")

var _, _ = rand.Int, v2.Int

var unspecified = netip.IPv4Unspecified()

func firstOffender(labels map[string]string) error {
	for k, v := range labels { // want `which iteration leaves the loop first decides that the result is fmt\.Errorf`
		if v == "" {
			return fmt.Errorf("label %q: %w", k, errInvalid)
		}
	}
	return nil
}

func anyOf(m map[string]int) string {
	for k := range m { // want `which iteration leaves the loop first decides that the result is k`
		return k
	}
	return ""
}

func severalWays(m map[string]int) error {
	for _, n := range m { // want `it leaves the loop in several ways`
		if n < 0 {
			return errInvalid
		}
		if n > 10 {
			return nil
		}
	}
	return nil
}

type verdict struct{ code int }

func severalLiterals(m map[string]int) verdict {
	for _, n := range m { // want `it leaves the loop in several ways`
		if n < 0 {
			return verdict{1}
		}
		if n > 10 {
			return verdict{2}
		}
	}
	return verdict{}
}

func addresses(ips map[string]net.IP) []string {
	var out []string
	for _, ip := range ips { // want `it calls ip\.String`
		out = append(out, ip.String())
	}
	sort.Strings(out)
	return out
}

func sortedTooLate(m map[string]int) (string, []string) {
	var out []string
	for k := range m { // want `out grows in map order and is used before it is sorted`
		out = append(out, k)
	}
	first := out[0]
	sort.Strings(out)
	return first, out
}

func sortJumpedOver(ms []map[string]int) []string {
	var out []string
	for _, m := range ms {
		for k := range m { // want `out grows in map order and may be jumped past the sort by a continue`
			out = append(out, k)
		}
		if len(m) > 3 {
			continue
		}
		sort.Strings(out)
	}
	return out
}

func sortsAnother(m map[string]int, other []string) []string {
	var out []string
	for k := range m { // want `out grows in map order and is used before it is sorted`
		out = append(out, k)
	}
	sort.Strings(other)
	return out
}

func sortsFloats(m map[string]float64) []float64 {
	var out []float64
	for _, v := range m { // want `out grows in map order and is used before it is sorted`
		out = append(out, v)
	}
	sort.Float64s(out) // leaves 0 and -0 as they come
	return out
}

func closureSees(m map[string]int) []string {
	var out []string
	last := func() string { return out[len(out)-1] }
	for k := range m { // want `out grows in map order and is named in a function literal`
		out = append(out, k)
	}
	println(last())
	sort.Strings(out)
	return out
}

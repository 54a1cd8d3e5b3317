package dataplane

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// prefix is a row key of the ipcache as a whole: full-length prefixes stand in
// the exact map, which the programs ask first, the others in the trie.
type prefix = projections.Prefix

const fullLength = 128

// allIPv4 is 0.0.0.0/0.
var allIPv4 = prefix{PrefixLen: 96, Addr: abi.Addr{10: 0xff, 11: 0xff}}

// longestFirst sorts so that every prefix comes before those that contain it.
func longestFirst(ps []prefix) {
	slices.SortFunc(ps, func(a, b prefix) int {
		if c := cmp.Compare(b.PrefixLen, a.PrefixLen); c != 0 {
			return c
		}
		return bytes.Compare(a.Addr[:], b.Addr[:])
	})
}

// shortestFirst is the reverse.
func shortestFirst(ps []prefix) {
	longestFirst(ps)
	slices.Reverse(ps)
}

// resolver finds the longest prefix that contains another.
type resolver struct {
	get     func(prefix) (abi.IPCacheValue, bool)
	lengths []uint32 // that may occur, longest first
}

func newResolver(rows map[prefix]abi.IPCacheValue) resolver {
	return resolver{get: lookupIn(rows), lengths: lengthsOf(new([fullLength + 1]int), rows)}
}

func lookupIn(rows map[prefix]abi.IPCacheValue) func(prefix) (abi.IPCacheValue, bool) {
	return func(p prefix) (abi.IPCacheValue, bool) { v, ok := rows[p]; return v, ok }
}

// lengthsOf is the lengths that are counted or occur in rows.
func lengthsOf(counted *[fullLength + 1]int, rows map[prefix]abi.IPCacheValue) []uint32 {
	seen := *counted
	for p := range rows {
		seen[min(p.PrefixLen, fullLength)]++
	}
	var out []uint32
	for n := fullLength; n >= 0; n-- {
		if seen[n] > 0 {
			out = append(out, uint32(n))
		}
	}
	return out
}

// peer is what the programs resolve p to, an address or, for a shorter prefix,
// those addresses in it that no longer prefix takes. What no row covers is the
// world, by family; a prefix that holds both families counts as IPv6, since
// allIPv4 is resolved on its own.
func (r resolver) peer(p prefix) uint64 {
	for _, n := range r.lengths {
		if n > p.PrefixLen {
			continue
		}
		if v, ok := r.get(prefix{PrefixLen: n, Addr: mask(p.Addr, n)}); ok {
			return v.Peer
		}
	}
	if isIPv4(p) {
		return uint64(abi.IdentityWorldIPv4)
	}
	return uint64(abi.IdentityWorldIPv6)
}

// contains tells whether all of q is in p.
func contains(p, q prefix) bool {
	return p.PrefixLen <= q.PrefixLen && mask(q.Addr, p.PrefixLen) == p.Addr
}

func isIPv4(p prefix) bool { return contains(allIPv4, p) }

func mask(a abi.Addr, bits uint32) abi.Addr {
	for i := range a {
		switch keep := int(bits) - 8*i; {
		case keep >= 8:
		case keep <= 0:
			a[i] = 0
		default:
			a[i] &= 0xff << (8 - keep)
		}
	}
	return a
}

package dataplane

import (
	"context"
	"maps"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/projections"
)

// rows are the rows of all maps, as the kernel has or should have them.
type rows struct {
	prefixes  map[prefix]abi.IPCacheValue
	endpoints map[abi.EndpointKey]abi.EndpointValue
	classes   map[abi.ClassKey]abi.ClassValue
	policy    map[abi.PolicyKey]abi.PolicyValue
}

// readRows reads the maps.
func readRows(ctx context.Context, m Maps) (*rows, error) {
	exact, err := m.IPCache.Rows(ctx)
	if err != nil {
		return nil, err
	}
	trie, err := m.IPCacheLPM.Rows(ctx)
	if err != nil {
		return nil, err
	}
	r := &rows{prefixes: make(map[prefix]abi.IPCacheValue, len(exact)+len(trie))}
	maps.Copy(r.prefixes, trie)
	for k, v := range exact {
		r.prefixes[prefix{PrefixLen: fullLength, Addr: k.Addr}] = v
	}
	if r.endpoints, err = m.Endpoints.Rows(ctx); err != nil {
		return nil, err
	}
	if r.classes, err = m.Classes.Rows(ctx); err != nil {
		return nil, err
	}
	r.policy, err = m.Policy.Rows(ctx)
	return r, err
}

// bindRows puts the interfaces' numbers into desired rows. Endpoints without an
// interface have no row; their addresses keep theirs, but lead to no interface.
// unbound lists their ids, ascending.
func bindRows(t *projections.Tables, bind map[uint32]int) (r *rows, unbound []uint32) {
	r = &rows{
		prefixes:  make(map[prefix]abi.IPCacheValue, t.IPCache.Len()),
		endpoints: make(map[abi.EndpointKey]abi.EndpointValue, t.Endpoints.Len()),
		classes:   make(map[abi.ClassKey]abi.ClassValue, t.Classes.Len()),
		policy:    make(map[abi.PolicyKey]abi.PolicyValue, t.Policy.Len()),
	}
	at := make(map[abi.Addr]uint32)
	for row := range t.Endpoints.All() {
		ifindex := uint32(bind[row.Key.ID])
		if ifindex == 0 {
			unbound = append(unbound, row.Key.ID)
			continue
		}
		r.endpoints[abi.EndpointKey{Ifindex: ifindex}] = row.Value
		for _, a := range addresses(row.Value) {
			at[a] = ifindex
		}
	}
	for row := range t.IPCache.All() {
		v := row.Value
		v.Ifindex = 0
		if row.Key.PrefixLen == fullLength {
			v.Ifindex = at[row.Key.Addr]
		}
		r.prefixes[row.Key] = v
	}
	for row := range t.Classes.All() {
		r.classes[row.Key] = row.Value
	}
	for row := range t.Policy.All() {
		r.policy[row.Key] = row.Value
	}
	return r, unbound
}

// unboundOf lists the endpoints without an interface, by id.
func unboundOf(t *projections.Tables, bind map[uint32]int) []uint32 {
	var out []uint32
	for row := range t.Endpoints.All() {
		if bind[row.Key.ID] == 0 {
			out = append(out, row.Key.ID)
		}
	}
	slices.Sort(out)
	return out
}

// addresses are those an endpoint has, IPv4 mapped.
func addresses(v abi.EndpointValue) []abi.Addr {
	var as []abi.Addr
	if v.IPv4 != [4]byte{} {
		a := allIPv4.Addr
		copy(a[12:], v.IPv4[:])
		as = append(as, a)
	}
	if v.IPv6 != [16]byte{} {
		as = append(as, abi.Addr(v.IPv6))
	}
	return as
}

// baseClass is the class of a peer without a row: what its number says.
func baseClass(peer uint64) uint64 {
	switch identity := uint32(peer); {
	case peer&abi.PeerCIDR != 0 && peer&abi.PeerCIDRv6 != 0:
		return uint64(abi.IdentityWorldIPv6)
	case peer&abi.PeerCIDR != 0:
		return uint64(abi.IdentityWorldIPv4)
	case identity >= abi.IdentityFirstDynamic:
		return abi.ClassPod
	case uint64(identity) < abi.ClassPod:
		return uint64(identity)
	}
	return abi.ClassAny
}

// classOf is the class of a peer within a scope of one direction. Ingress does
// not know the named ports of its peers.
func (r *rows) classOf(scope, peer uint64, d abi.Direction) uint64 {
	if d == abi.Ingress && peer&abi.PeerCIDR == 0 {
		peer = uint64(uint32(peer))
	}
	if v, ok := r.classes[abi.ClassKey{Scope: scope, Peer: peer}]; ok {
		return v.Class
	}
	return baseClass(peer)
}

// refs are the two directions of an endpoint's policy.
func refs(v *abi.EndpointValue) [2]*abi.PolicyRef {
	return [2]*abi.PolicyRef{abi.Egress: &v.Egress, abi.Ingress: &v.Ingress}
}

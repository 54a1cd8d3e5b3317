package projections

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// endpointRows is a row for each endpoint of the node.
func (b *builder) endpointRows() []*Row[EndpointKey, abi.EndpointValue] {
	var rows []*Row[EndpointKey, abi.EndpointValue]
	for _, e := range b.endpoints {
		if e.subjects[policy.Egress] == nil {
			continue
		}
		rows = append(rows, b.env.endpointRow(e.Endpoint, e.subjects[policy.Egress], e.subjects[policy.Ingress]))
	}
	return rows
}

func (e env) endpointRow(ep *fsm.Endpoint, egress, ingress *subject) *Row[EndpointKey, abi.EndpointValue] {
	v := abi.EndpointValue{
		ID: ep.ID, Identity: ep.Identity, MAC: ep.MAC,
		Egress: egress.ref(), Ingress: ingress.ref(),
	}
	if e.auditMode || ep.AuditMode {
		v.Egress.Flags |= abi.PolicyAudit
		v.Ingress.Flags |= abi.PolicyAudit
	}
	if ep.IPv4.IsValid() {
		v.IPv4 = ep.IPv4.As4()
	}
	if ep.IPv6.IsValid() {
		v.IPv6 = ep.IPv6.As16()
	}
	return &Row[EndpointKey, abi.EndpointValue]{
		Key: EndpointKey{ID: ep.ID}, Value: v,
		Cause: Cause{Events: ascending(slices.Concat(endpointEvents(ep), egress.revisions, ingress.revisions))},
	}
}

func endpointEvents(e *fsm.Endpoint) []log.Revision {
	return ascending([]log.Revision{e.Created, e.Revision, e.IdentityRevision})
}

func (s *subject) ref() abi.PolicyRef {
	r := abi.PolicyRef{
		Table: s.table.id, Scope: s.table.scope.id,
		ClassLens: s.table.classLens, BaseLens: s.table.baseLens, AnyLens: s.table.anyLens,
	}
	if s.enforced {
		r.Flags |= abi.PolicyEnforced
	}
	if s.audited {
		r.Flags |= abi.PolicyAuditDefault
	}
	if s.table.byName {
		r.Flags |= abi.PolicyFQDN
	}
	if s.table.asksDNS {
		r.Flags |= abi.PolicyAsks
	}
	return r
}

type ipcacheRow = Row[Prefix, abi.IPCacheValue]

// ipcacheRows is who owns each address. Of several owners the first of these has
// it: an endpoint of this node, another endpoint, a node, a CIDR.
func (b *builder) ipcacheRows(nodes []*fsm.Node) []*ipcacheRow {
	var rows []*ipcacheRow
	seen := make(map[Prefix]bool)
	add := func(p netip.Prefix, peer uint64, cause Cause) {
		key := PrefixFrom(p)
		if !seen[key] {
			seen[key] = true
			rows = append(rows, &ipcacheRow{Key: key, Value: abi.IPCacheValue{Peer: peer}, Cause: cause})
		}
	}
	for _, local := range []bool{true, false} {
		for _, e := range b.endpoints {
			for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
				if a.IsValid() && local == (e.Node == b.node) {
					add(netip.PrefixFrom(a, a.BitLen()), e.peer, Cause{Events: endpointEvents(e.Endpoint)})
				}
			}
		}
	}
	for _, local := range []bool{true, false} {
		for _, n := range nodes {
			if n.Left || local != (n.Name == b.node) {
				continue
			}
			for _, a := range n.Addresses {
				add(netip.PrefixFrom(a, a.BitLen()), nodePeer(n, local), Cause{Events: []log.Revision{n.Revision}})
			}
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(b.cidrs), comparePrefixes) {
		peer := b.ids.cidrPeer(p)
		b.names[peer] = p.String()
		add(p, peer, b.cidrs[p])
	}
	// An IPv6 prefix may hold ::ffff:0:0/96, where the map has IPv4: these keep
	// an IPv4 address from ever resolving to it.
	add(netip.PrefixFrom(netip.IPv4Unspecified(), 0), baseWorldIPv4, Cause{})
	add(netip.PrefixFrom(netip.IPv6Unspecified(), 0), baseWorldIPv6, Cause{})
	return rows
}

func nodePeer(n *fsm.Node, local bool) uint64 {
	switch {
	case local:
		return baseHost
	case n.KubeAPIServer:
		return uint64(abi.IdentityKubeAPIServer)
	}
	return uint64(abi.IdentityRemoteNode)
}

// PrefixFrom is the key of a prefix, host bits cleared.
func PrefixFrom(p netip.Prefix) Prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return Prefix{PrefixLen: uint32(bits), Addr: maskAddr(abi.AddrFrom(p.Addr()), bits)}
}

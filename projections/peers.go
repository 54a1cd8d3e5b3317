package projections

import (
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// Base classes are numbered so that each is a bit of a baseSet.
const (
	baseHost      = uint64(abi.IdentityHost)
	baseWorldIPv4 = uint64(abi.IdentityWorldIPv4)
	baseWorldIPv6 = uint64(abi.IdentityWorldIPv6)
	basePod       = abi.ClassPod
)

// bases is every base class that a peer of this cluster can have.
var bases = []uint64{
	baseHost, uint64(abi.IdentityUnmanaged), uint64(abi.IdentityHealth), uint64(abi.IdentityInit),
	uint64(abi.IdentityRemoteNode), uint64(abi.IdentityKubeAPIServer), uint64(abi.IdentityIngress),
	baseWorldIPv4, baseWorldIPv6, basePod,
}

type baseSet uint32

func (s baseSet) has(base uint64) bool { return s&(1<<base) != 0 }

// env is what rules and peers are read against.
type env struct {
	policies []*fsm.Policy
	// hostServesAPI: this node runs a Kubernetes API server, so its host is that
	// entity as well.
	hostServesAPI bool
	auditMode     bool // of this node
}

// entityBases is the base classes that an entity other than all covers.
func (e env) entityBases(entity policy.Entity) baseSet {
	var s baseSet
	for _, base := range bases {
		id := uint32(base)
		if base == basePod {
			id = abi.IdentityFirstDynamic
		}
		if entity.MatchesIdentity(id) {
			s |= 1 << base
		}
	}
	if e.hostServesAPI && entity == policy.EntityKubeAPIServer {
		s |= 1 << baseHost
	}
	return s
}

// reservedLabels is the labels of a base class other than basePod.
func (e env) reservedLabels(base uint64) policy.Labels {
	labels := policy.ReservedLabels(uint32(base))
	if base == baseHost && e.hostServesAPI {
		both := append(slices.Clone(labels), policy.ReservedLabels(abi.IdentityKubeAPIServer)...)
		return policy.NewLabels(slices.DeleteFunc(both, func(l policy.Label) bool { return l.Key == string(policy.EntityRemoteNode) })...)
	}
	return labels
}

// peer is a row to be had in the class map of some scope.
type peer struct {
	number uint64
	ports  []fsm.NamedPort // that the number tells; of no use for ingress
	events []log.Revision
}

// group is peers that no selector can tell apart: those of one identity, or the
// world of one address family.
type group struct {
	labels policy.Labels
	base   uint64
	first  int // of peers[first:last]
	last   int
}

// universe is every peer that rules of one direction can meet, with the numbers
// by which the programs know them in that direction.
type universe struct {
	peers  []peer
	groups []group
	cidrs  []netip.Prefix       // in order
	index  map[netip.Prefix]int // of a prefix in peers
}

// variant is an identity with a set of named ports that one of its endpoints has.
type variant struct {
	identity *fsm.Identity
	number   uint64
	ports    []fsm.NamedPort
}

// newUniverse gathers the peers of a direction: variants (ordered by identity and
// number, without repeats) and CIDR prefixes (in order, without repeats).
func (e env) newUniverse(d policy.Direction, variants []variant, cidrs []netip.Prefix, ids *ids) *universe {
	u := &universe{cidrs: cidrs, index: make(map[netip.Prefix]int, len(cidrs))}
	for _, base := range bases {
		if base == basePod {
			continue
		}
		g := group{labels: e.reservedLabels(base), base: base, first: len(u.peers)}
		u.peers = append(u.peers, peer{number: base})
		for _, p := range cidrs {
			if base == worldOf(p) {
				u.index[p] = len(u.peers)
				u.peers = append(u.peers, peer{number: ids.cidrPeer(p)})
			}
		}
		g.last = len(u.peers)
		u.groups = append(u.groups, g)
	}
	for i := 0; i < len(variants); {
		id := variants[i].identity
		g := group{labels: id.Labels, base: basePod, first: len(u.peers)}
		for ; i < len(variants) && variants[i].identity.ID == id.ID; i++ {
			p := peer{number: variants[i].number, ports: variants[i].ports, events: []log.Revision{id.Revision}}
			if d == policy.Ingress {
				p.number = ingressPeer(p.number)
			}
			if n := len(u.peers); n == g.first || u.peers[n-1].number != p.number {
				u.peers = append(u.peers, p)
			}
		}
		g.last = len(u.peers)
		u.groups = append(u.groups, g)
	}
	return u
}

// worldOf is the base class of a prefix.
func worldOf(p netip.Prefix) uint64 {
	if p.Addr().Is4() {
		return baseWorldIPv4
	}
	return baseWorldIPv6
}

// comparePrefixes orders by address, then wider before narrower.
func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

package projections

import (
	"net/netip"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// party is one end of a connection as the naive evaluator sees it: an endpoint, a
// reserved identity, or an address that belongs to neither.
type party struct {
	endpoint *fsm.Endpoint
	labels   policy.Labels
	reserved uint32
	addr     netip.Addr
}

// naive decides one direction of a connection straight from the policies, with
// nothing but loops: the second opinion on the tables.
func naive(policies []*fsm.Policy, d policy.Direction, subject, other party, protocol uint8, port uint16) bool {
	isolated, allowed, denied := false, false, false
	for _, p := range policies {
		for _, spec := range p.Policy.Specs {
			if !spec.Subject.Matches(subject.labels) {
				continue
			}
			if spec.DefaultDeny[d] {
				isolated = true
			}
			destination := other
			if d == policy.Ingress {
				destination = subject
			}
			for _, r := range spec.Rules {
				if r.Section.Direction() != d || !naivePeer(r, other) || !naivePort(r, destination, protocol, port) {
					continue
				}
				if r.Section.Denies() {
					denied = true
				} else {
					allowed = true
				}
			}
		}
	}
	if d == policy.Ingress && other.reserved == abi.IdentityHost {
		allowed = true
	}
	return !denied && (allowed || !isolated)
}

func naivePeer(r policy.Rule, other party) bool {
	if r.AnyPeer {
		return true
	}
	for _, p := range r.Peers {
		switch {
		case p.Selector != nil:
			if p.Selector.Matches(other.labels) {
				return true
			}
		case p.CIDR.IsValid():
			if other.addr.IsValid() && p.CIDR.Contains(other.addr) && !inAny(p.Except, other.addr) {
				return true
			}
		case other.endpoint != nil:
			if p.Entity.MatchesPods() {
				return true
			}
		case other.addr.IsValid():
			if p.Entity.MatchesCIDR(netip.PrefixFrom(other.addr, other.addr.BitLen())) {
				return true
			}
		default:
			if p.Entity.MatchesIdentity(other.reserved) {
				return true
			}
		}
	}
	return false
}

func inAny(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func naivePort(r policy.Rule, destination party, protocol uint8, port uint16) bool {
	if r.AllPorts {
		return true
	}
	for _, p := range r.Ports {
		if p.Protocol != protocol {
			continue
		}
		if p.Name == "" {
			if p.First <= port && port <= p.Last {
				return true
			}
			continue
		}
		if destination.endpoint == nil {
			continue
		}
		for _, n := range destination.endpoint.NamedPorts {
			if n.Name == p.Name && n.Protocol == protocol && n.Port == port {
				return true
			}
		}
	}
	return false
}

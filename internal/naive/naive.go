// Package naive is a second opinion on policy: it decides a connection straight from
// the policies with nothing but loops, as the semantics are written down, so that
// tables and programs can be held to it. It knows no classes, prefixes or rows.
package naive

import (
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// Party is one end of a connection: an endpoint, an address that belongs to none, or
// a reserved identity.
type Party struct {
	Endpoint *fsm.Endpoint
	Addr     netip.Addr
	Reserved uint32
	Labels   policy.Labels // of the identity; of an address those of its world
}

// Allows decides one direction of a connection: what subject's policies say of other.
// protocol is an IP protocol number; port is the destination's, the type for ICMP.
func Allows(policies []*fsm.Policy, d policy.Direction, subject, other Party, protocol uint8, port uint16) bool {
	isolated, allowed, denied := false, false, false
	for _, p := range policies {
		for _, spec := range p.Policy.Specs {
			if !spec.Subject.Matches(subject.Labels) {
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
				if r.Section.Direction() != d || !takesPeer(r, other) || !takesPort(r, destination, protocol, port) {
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
	if d == policy.Ingress && other.Reserved == abi.IdentityHost {
		allowed = true // the local host may always enter
	}
	return !denied && (allowed || !isolated)
}

func takesPeer(r policy.Rule, other Party) bool {
	if r.AnyPeer {
		return true
	}
	for _, p := range r.Peers {
		switch {
		case p.Selector != nil:
			if p.Selector.Matches(other.Labels) {
				return true
			}
		case p.CIDR.IsValid():
			if other.Addr.IsValid() && p.CIDR.Contains(other.Addr) &&
				!slices.ContainsFunc(p.Except, func(e netip.Prefix) bool { return e.Contains(other.Addr) }) {
				return true
			}
		case p.Entity == "": // names and groups admit nobody that is not learned
		case other.Endpoint != nil:
			if p.Entity.MatchesPods() {
				return true
			}
		case other.Addr.IsValid():
			if p.Entity.MatchesCIDR(netip.PrefixFrom(other.Addr, other.Addr.BitLen())) {
				return true
			}
		default:
			if p.Entity.MatchesIdentity(other.Reserved) {
				return true
			}
		}
	}
	return false
}

func takesPort(r policy.Rule, destination Party, protocol uint8, port uint16) bool {
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
		if destination.Endpoint == nil {
			continue
		}
		for _, n := range destination.Endpoint.NamedPorts {
			if n.Name == p.Name && n.Protocol == protocol && n.Port == port {
				return true
			}
		}
	}
	return false
}

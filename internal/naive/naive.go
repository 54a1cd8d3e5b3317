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
	passes, _ := Audits(policies, d, subject, other, protocol, port)
	return passes
}

// Audits is Allows, and whether the connection passes only for the audit mode of the
// subject or of policies, of which the rules that allow count as those of any other.
func Audits(policies []*fsm.Policy, d policy.Direction, subject, other Party, protocol uint8, port uint16) (passes, audited bool) {
	would := verdict(policies, d, subject, other, protocol, port, true)
	passes = subject.Endpoint != nil && subject.Endpoint.AuditMode || verdict(policies, d, subject, other, protocol, port, false)
	return passes, passes && !would
}

// verdict lets policies in audit mode drop something if all is set only.
func verdict(policies []*fsm.Policy, d policy.Direction, subject, other Party, protocol uint8, port uint16, all bool) bool {
	isolated, allowed, denied := false, false, false
	for _, p := range policies {
		for _, spec := range p.Policy.Specs {
			if !spec.Subject.Matches(subject.Labels) {
				continue
			}
			drops := all || !spec.Audit
			if spec.DefaultDeny[d] && drops {
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
				if !r.Section.Denies() {
					allowed = true
				} else if drops {
					denied = true
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
		case p.FQDN != policy.FQDNSelector{}, p.Group != nil: // no name was asked for, no group is resolved
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

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

func compilePeer(pb *eventpb.Peer) (Peer, error) {
	if pb == nil {
		return Peer{}, fmt.Errorf("%w: missing", ErrInvalid)
	}
	switch p := pb.Peer.(type) {
	case *eventpb.Peer_Endpoints:
		if p == nil {
			break
		}
		s, err := CompileSelector(p.Endpoints)
		if err != nil {
			return Peer{}, fmt.Errorf("endpoints: %w", err)
		}
		if s.IsEmpty() {
			return Peer{}, fmt.Errorf("endpoints: %w: a selector of peers needs a requirement; everyone is the entity all", ErrInvalid)
		}
		return Peer{Selector: &s}, nil
	case *eventpb.Peer_Cidr:
		if p == nil {
			break
		}
		return compileCIDR(p.Cidr)
	case *eventpb.Peer_Entity:
		if p == nil {
			break
		}
		e := Entity(p.Entity)
		if !e.Valid() {
			return Peer{}, fmt.Errorf("%w: unknown entity %q", ErrInvalid, p.Entity)
		}
		return Peer{Entity: e}, nil
	case *eventpb.Peer_Fqdn:
		if p == nil {
			break
		}
		s, err := FQDNFromPB(p.Fqdn)
		if err != nil {
			return Peer{}, fmt.Errorf("fqdn: %w", err)
		}
		return Peer{FQDN: s}, nil
	case *eventpb.Peer_AwsGroup:
		if p == nil {
			break
		}
		g, err := compileGroup(p.AwsGroup)
		if err != nil {
			return Peer{}, fmt.Errorf("aws_group: %w", err)
		}
		return Peer{Group: g}, nil
	}
	return Peer{}, fmt.Errorf("%w: neither endpoints, cidr, entity, fqdn nor aws_group", ErrInvalid)
}

func compileCIDR(pb *eventpb.Cidr) (Peer, error) {
	if pb == nil {
		return Peer{}, fmt.Errorf("cidr: %w: missing", ErrInvalid)
	}
	if n := len(pb.Except); n > maxExcept {
		return Peer{}, fmt.Errorf("cidr.except: %w: %d of them, the most is %d", ErrInvalid, n, maxExcept)
	}
	prefix, problem := parseCanonicalCIDR(pb.Prefix)
	if problem != "" {
		return Peer{}, fmt.Errorf("cidr.prefix %q: %w: %s", pb.Prefix, ErrInvalid, problem)
	}
	p := Peer{CIDR: prefix}
	for _, s := range pb.Except {
		except, problem := parseCanonicalCIDR(s)
		if problem == "" && !within(except, prefix) {
			problem = "not inside " + prefix.String()
		}
		if problem != "" {
			return Peer{}, fmt.Errorf("cidr.except %q: %w: %s", s, ErrInvalid, problem)
		}
		p.Except = append(p.Except, except)
	}
	slices.SortFunc(p.Except, comparePrefix)
	p.Except = slices.Clip(outermost(p.Except))
	return p, nil
}

// parseCIDR reads "address/bits" and clears the host bits. It refuses a bare
// address and IPv4 written as IPv6.
func parseCIDR(s string) (_ netip.Prefix, problem string) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if _, err := netip.ParseAddr(s); err == nil {
			return netip.Prefix{}, "an address without a prefix length"
		}
		return netip.Prefix{}, "not of the form address/bits"
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, "an IPv4 range written as IPv6"
	}
	return p.Masked(), ""
}

func parseCanonicalCIDR(s string) (netip.Prefix, string) {
	p, problem := parseCIDR(s)
	if problem == "" && p.String() != s {
		problem = "not in canonical form, which is " + p.String()
	}
	return p, problem
}

// within tells whether every address of inner is in outer.
func within(inner, outer netip.Prefix) bool {
	return inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

// outermost drops, from sorted prefixes, those within another.
func outermost(sorted []netip.Prefix) []netip.Prefix {
	n := 0
	for _, p := range sorted {
		if n > 0 && within(p, sorted[n-1]) {
			continue
		}
		sorted[n] = p
		n++
	}
	return sorted[:n]
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// Key is canonical: two peers of the same selector, range and exceptions, entity,
// name or group, in whatever order they were written, have the same Key; others
// have not.
func (p Peer) Key() string {
	switch {
	case p.Selector != nil:
		return "endpoints:" + p.Selector.String()
	case p.CIDR.IsValid():
		var b strings.Builder
		b.WriteString("cidr:" + p.CIDR.String())
		for i, e := range p.Except {
			if i == 0 {
				b.WriteString(" except ")
			} else {
				b.WriteByte(',')
			}
			b.WriteString(e.String())
		}
		return b.String()
	case p.FQDN != FQDNSelector{}:
		return "fqdn:" + p.FQDN.String()
	case p.Group != nil:
		return "aws:" + p.Group.String()
	}
	return "entity:" + string(p.Entity)
}

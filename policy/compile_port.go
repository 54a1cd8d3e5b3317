package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

// IP protocol numbers that a port may have.
const (
	ProtoICMP   uint8 = 1
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoICMPv6 uint8 = 58
	ProtoSCTP   uint8 = 132
)

func compilePort(pb *eventpb.Port) (Port, error) {
	if pb == nil {
		return Port{}, fmt.Errorf("%w: missing", ErrInvalid)
	}
	icmp := pb.Protocol == uint32(ProtoICMP) || pb.Protocol == uint32(ProtoICMPv6)
	if !icmp && pb.Protocol != uint32(ProtoTCP) && pb.Protocol != uint32(ProtoUDP) && pb.Protocol != uint32(ProtoSCTP) {
		return Port{}, fmt.Errorf("protocol: %w: %d is not 1, 6, 17, 58 or 132", ErrInvalid, pb.Protocol)
	}
	dns, err := compileDNS(pb, icmp)
	if err != nil {
		return Port{}, fmt.Errorf("dns: %w", err)
	}
	if pb.Name != "" {
		if icmp {
			return Port{}, fmt.Errorf("name: %w: ICMP has no named ports", ErrInvalid)
		}
		if !checkPortName(pb.Name) || strings.ToLower(pb.Name) != pb.Name {
			return Port{}, fmt.Errorf("name: %w: %q is not a lower-case port name", ErrInvalid, pb.Name)
		}
		if pb.First != 0 || pb.Last != 0 {
			return Port{}, fmt.Errorf("name: %w: a named port has no number", ErrInvalid)
		}
		return Port{Protocol: uint8(pb.Protocol), Name: pb.Name, DNS: dns}, nil
	}
	if pb.First > pb.Last || pb.Last > 65535 {
		return Port{}, fmt.Errorf("first, last: %w: %d to %d is no range of ports", ErrInvalid, pb.First, pb.Last)
	}
	if icmp && pb.Last > 255 && (pb.First != 0 || pb.Last != 65535) {
		return Port{}, fmt.Errorf("first, last: %w: an ICMP type is 0 to 255", ErrInvalid)
	}
	return Port{Protocol: uint8(pb.Protocol), First: uint16(pb.First), Last: uint16(pb.Last), DNS: dns}, nil
}

// compileDNS reads the DNS rules of a port, nil if it has none.
func compileDNS(port *eventpb.Port, icmp bool) (*DNSRules, error) {
	pb := port.Dns
	switch {
	case pb == nil:
		return nil, nil
	case icmp:
		return nil, fmt.Errorf("%w: ICMP carries no DNS questions", ErrInvalid)
	case port.Name == "" && (port.First != port.Last || port.First == 0):
		return nil, fmt.Errorf("%w: only a single port has DNS rules", ErrInvalid)
	case len(pb.Names) > maxNames:
		return nil, fmt.Errorf("names: %w: %d of them, the most is %d", ErrInvalid, len(pb.Names), maxNames)
	}
	out := &DNSRules{Names: make([]FQDNSelector, 0, len(pb.Names))}
	for i, n := range pb.Names {
		s, err := FQDNFromPB(n)
		if err != nil {
			return nil, fmt.Errorf("names[%d]: %w", i, err)
		}
		out.Names = append(out.Names, s)
	}
	slices.SortFunc(out.Names, FQDNSelector.Compare)
	out.Names = slices.Clip(slices.Compact(out.Names))
	return out, nil
}

// Matches tells whether the name may be asked for.
func (r *DNSRules) Matches(name string) bool {
	name = NormalizeFQDN(name)
	return slices.ContainsFunc(r.Names, func(s FQDNSelector) bool { return s.Matches(name) })
}

// String is canonical: "dns(*.example.com.,api.example.org.)".
func (r *DNSRules) String() string {
	var b strings.Builder
	b.WriteString("dns(")
	for i, n := range r.Names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(n.String())
	}
	b.WriteByte(')')
	return b.String()
}

// String is the port as people write it: "80/TCP", "8000-8080/UDP", "http/TCP",
// "any/SCTP", "8/ICMP", "53/UDP dns(*.example.com.)".
func (p Port) String() string {
	if p.DNS != nil {
		rules := p.DNS
		p.DNS = nil
		return p.String() + " " + rules.String()
	}
	proto := ProtocolName(p.Protocol)
	switch {
	case p.Name != "":
		return p.Name + "/" + proto
	case p.First == 0 && p.Last == 65535:
		return "any/" + proto
	case p.First == p.Last:
		return fmt.Sprintf("%d/%s", p.First, proto)
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, proto)
}

// ProtocolName is the name of an IP protocol as policies write it, or its number.
func ProtocolName(p uint8) string {
	switch p {
	case ProtoICMP:
		return "ICMP"
	case ProtoTCP:
		return "TCP"
	case ProtoUDP:
		return "UDP"
	case ProtoICMPv6:
		return "ICMPV6"
	case ProtoSCTP:
		return "SCTP"
	}
	return fmt.Sprint(p)
}

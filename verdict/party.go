package verdict

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// Party is one end of a connection. Endpoint, Identity and Name exclude each
// other; Addr may stand beside Endpoint or alone.
type Party struct {
	Endpoint *fsm.Endpoint
	// Addr is the address by which the party is known: of the endpoint, if there is
	// one, else of a node or of the world.
	Addr netip.Addr
	// Identity is a reserved one, of a party without address.
	Identity uint32
	// Name is a DNS name, lower case and with a dot at its end.
	Name string
}

// defaultNamespace is where a pod stands that names none.
const defaultNamespace = "default"

// reservedPrefix begins a party that is known by its identity alone.
const reservedPrefix = policy.SourceReserved + ":"

// ParseParty finds who is meant by NAMESPACE/NAME or NAME of an endpoint, by an
// address, by reserved:IDENTITY, or by a DNS name, which has a dot in it.
// ErrParty if there is none.
func ParseParty(view fsm.View, s string) (Party, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return addressed(view, addr.Unmap().WithZone("")), nil
	}
	if key, ok := strings.CutPrefix(s, reservedPrefix); ok {
		return reserved(key)
	}
	namespace, name, ok := strings.Cut(s, "/")
	if !ok {
		if strings.Contains(s, ".") {
			return dnsName(s)
		}
		namespace, name = defaultNamespace, s
	}
	ref := fsm.EndpointRef{Namespace: namespace, Name: name}
	e, ok := view.Endpoint(ref)
	if !ok {
		return Party{}, fmt.Errorf("endpoint %s: %w at revision %d", ref, ErrParty, view.Revision())
	}
	return Party{Endpoint: e}, nil
}

// addressed is the owner of an address.
func addressed(view fsm.View, addr netip.Addr) Party {
	for e := range view.Endpoints() {
		if e.IPv4 == addr || e.IPv6 == addr {
			return Party{Endpoint: e, Addr: addr}
		}
	}
	return Party{Addr: addr}
}

func reserved(key string) (Party, error) {
	for id := uint32(1); policy.ReservedLabels(id) != nil; id++ {
		if policy.ReservedLabels(id)[0].Key == key {
			return Party{Identity: id}, nil
		}
	}
	var known []string
	for id := uint32(1); policy.ReservedLabels(id) != nil; id++ {
		known = append(known, policy.ReservedLabels(id)[0].Key)
	}
	return Party{}, fmt.Errorf("identity %s%s: %w; it is none of %s", reservedPrefix, key, ErrParty, strings.Join(known, ", "))
}

// String is the party as people write it.
func (p Party) String() string {
	switch {
	case p.Endpoint != nil:
		return p.Endpoint.Ref.String()
	case p.Addr.IsValid():
		return p.Addr.String()
	case p.Name != "":
		return strings.TrimSuffix(p.Name, ".")
	}
	if labels := policy.ReservedLabels(p.Identity); labels != nil {
		return reservedPrefix + labels[0].Key
	}
	return fmt.Sprintf("identity %d", p.Identity)
}

// address is the party's address in a family. A party that is known by its
// identity alone takes part in either, without one.
func (p Party) address(v6 bool) (addr netip.Addr, ok bool) {
	switch {
	case p.Addr.IsValid():
		addr = p.Addr
	case p.Endpoint == nil:
		return addr, true
	case v6:
		addr = p.Endpoint.IPv6
	default:
		addr = p.Endpoint.IPv4
	}
	return addr, addr.IsValid() && addr.Is6() == v6
}

// ParsePort reads "NUMBER/PROTOCOL", e.g. "80/tcp"; the number of ICMP and ICMPv6
// is a type.
func ParsePort(s string) (protocol uint8, port uint16, err error) {
	digits, name, _ := strings.Cut(s, "/")
	for _, p := range protocols {
		if strings.EqualFold(name, policy.ProtocolName(p)) {
			protocol = p
		}
	}
	least, most := uint64(1), uint64(65535)
	if protocol == policy.ProtoICMP || protocol == policy.ProtoICMPv6 {
		least, most = 0, 255
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if protocol == 0 || err != nil || n < least || n > most {
		return 0, 0, fmt.Errorf("port %q: give NUMBER/PROTOCOL: 1 to 65535 of tcp, udp or sctp, or a type of icmp or icmpv6", s)
	}
	return protocol, uint16(n), nil
}

var protocols = []uint8{policy.ProtoTCP, policy.ProtoUDP, policy.ProtoSCTP, policy.ProtoICMP, policy.ProtoICMPv6}

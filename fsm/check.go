package fsm

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// Bounds that keep a hostile event from making rows that cost others dearly. All
// lie far above what people use.
const (
	maxLabels        = 256 // of an endpoint, and of a namespace
	maxNamedPorts    = 256
	maxNodeAddresses = 64
	maxNodeCIDRs     = 64
	maxInterface     = 15   // IFNAMSIZ - 1
	maxPath          = 4096 // PATH_MAX
	maxNetnsID       = 64
)

// Labels of namespaces and endpoints follow Kubernetes' rules to the letter: a
// selector cannot name any other, so a laxer label could never be selected.
func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("labels: %d of them, the most is %d", len(labels), maxLabels)
	}
	if err := policy.CheckLabels(labels); err != nil {
		return fmt.Errorf("labels: %w", err)
	}
	return nil
}

func checkRef(ref EndpointRef) error {
	if err := policy.CheckNamespace(ref.Namespace); err != nil {
		return fmt.Errorf("ref.namespace: %w", err)
	}
	if err := policy.CheckName(ref.Name); err != nil {
		return fmt.Errorf("ref.name: %w", err)
	}
	return nil
}

// endpointFacts checks an EndpointCreated and makes the row of it, without what
// the state adds: ID, Identity and revisions.
func endpointFacts(c *eventpb.EndpointCreated) (Endpoint, error) {
	if c == nil {
		return Endpoint{}, errors.New("created: missing")
	}
	e := Endpoint{
		Ref:                EndpointRef{c.GetRef().GetNamespace(), c.GetRef().GetName()},
		Incarnation:        c.Incarnation,
		Node:               c.Node,
		Labels:             c.Labels,
		HostInterface:      c.HostInterface,
		ContainerInterface: c.ContainerInterface,
		Netns:              c.Netns,
		NetnsID:            c.NetnsId,
		AuditMode:          c.PolicyAuditMode,
		BigTCP:             c.BigTcp,
	}
	if err := checkRef(e.Ref); err != nil {
		return Endpoint{}, err
	}
	if e.Incarnation == 0 {
		return Endpoint{}, errors.New("incarnation: must be at least 1")
	}
	if err := policy.CheckName(e.Node); err != nil {
		return Endpoint{}, fmt.Errorf("node: %w", err)
	}
	if err := checkLabels(e.Labels); err != nil {
		return Endpoint{}, err
	}
	var err error
	if e.MTU, err = interfaceMTU(c.Mtu); err != nil {
		return Endpoint{}, err
	}
	if e.ServiceAccount, err = serviceAccount(c.ServiceAccount); err != nil {
		return Endpoint{}, err
	}
	for i, b := range c.Addresses {
		a, err := address(b)
		if err != nil {
			return Endpoint{}, fmt.Errorf("addresses[%d]: %w", i, err)
		}
		of := &e.IPv4
		if a.Is6() {
			of = &e.IPv6
		}
		if of.IsValid() {
			return Endpoint{}, fmt.Errorf("addresses[%d]: %s: at most one address a family, %s is there already", i, a, *of)
		}
		*of = a
	}
	if e.MAC, err = unicastMAC(c.Mac); err != nil {
		return Endpoint{}, err
	}
	if e.NamedPorts, err = namedPorts(c.NamedPorts); err != nil {
		return Endpoint{}, err
	}
	for _, f := range []struct {
		name, value string
		most        int
		slash       bool
	}{
		{"host_interface", e.HostInterface, maxInterface, false},
		{"container_interface", e.ContainerInterface, maxInterface, false},
		{"netns", e.Netns, maxPath, true},
		{"netns_id", e.NetnsID, maxNetnsID, false},
	} {
		if err := checkText(f.value, f.most, f.slash); err != nil {
			return Endpoint{}, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return e, nil
}

// endpointChanges checks an EndpointUpdated and makes what the row of its endpoint
// shall have of it: Labels, ServiceAccount, NamedPorts, MTU, AuditMode and BigTCP.
func endpointChanges(u *eventpb.EndpointUpdated) (Endpoint, error) {
	e := Endpoint{Labels: u.GetLabels(), AuditMode: u.GetPolicyAuditMode(), BigTCP: u.GetBigTcp()}
	err := checkLabels(e.Labels)
	if err == nil {
		e.MTU, err = interfaceMTU(u.GetMtu())
	}
	if err == nil {
		e.ServiceAccount, err = serviceAccount(u.GetServiceAccount())
	}
	if err == nil {
		e.NamedPorts, err = namedPorts(u.GetNamedPorts())
	}
	return e, err
}

// interfaceMTU takes 0 or what IPv6 can live with (RFC 8200, section 5) and IPv4 can say.
func interfaceMTU(mtu uint32) (uint16, error) {
	if mtu != 0 && mtu < 1280 || mtu > 65535 {
		return 0, fmt.Errorf("mtu: %d: must be 0 or 1280 to 65535", mtu)
	}
	return uint16(mtu), nil
}

func serviceAccount(name string) (string, error) {
	if name == "" {
		return policy.DefaultNamed, nil
	}
	if err := policy.CheckName(name); err != nil {
		return "", fmt.Errorf("service_account: %w", err)
	}
	return name, nil
}

// address takes the 4 or 16 bytes of an address that one interface can have.
func address(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	switch {
	case !ok:
		return netip.Addr{}, fmt.Errorf("%d bytes, want 4 or 16", len(b))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s: write an IPv4 address as 4 bytes", a)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}),
		a.Is6() && a.IsLinkLocalUnicast():
		return netip.Addr{}, fmt.Errorf("%s: want a unicast address that other hosts can reach", a)
	}
	return a, nil
}

func unicastMAC(b []byte) (mac [6]byte, err error) {
	if len(b) != len(mac) {
		return mac, fmt.Errorf("mac: %d bytes, want %d", len(b), len(mac))
	}
	copy(mac[:], b)
	if mac == [6]byte{} || mac[0]&1 != 0 {
		return mac, fmt.Errorf("mac: %x: want a unicast address", mac)
	}
	return mac, nil
}

// namedPorts returns the ports sorted, names in lower case. They are for keeps.
func namedPorts(ports []*eventpb.NamedPort) ([]NamedPort, error) {
	if len(ports) == 0 {
		return nil, nil
	}
	if len(ports) > maxNamedPorts {
		return nil, fmt.Errorf("named_ports: %d of them, the most is %d", len(ports), maxNamedPorts)
	}
	out := make([]NamedPort, len(ports))
	for i, p := range ports {
		if err := policy.CheckPortName(p.GetName()); err != nil {
			return nil, fmt.Errorf("named_ports[%d].name: %w", i, err)
		}
		switch p.GetProtocol() {
		case uint32(policy.ProtoTCP), uint32(policy.ProtoUDP), uint32(policy.ProtoSCTP):
		default:
			return nil, fmt.Errorf("named_ports[%d].protocol: %d: want 6 (TCP), 17 (UDP) or 132 (SCTP)", i, p.GetProtocol())
		}
		if p.GetPort() == 0 || p.GetPort() > 65535 {
			return nil, fmt.Errorf("named_ports[%d].port: %d: want 1 to 65535", i, p.GetPort())
		}
		out[i] = NamedPort{strings.Clone(strings.ToLower(p.Name)), uint8(p.Protocol), uint16(p.Port)}
	}
	slices.SortFunc(out, func(a, b NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
	})
	for i := 1; i < len(out); i++ {
		if out[i].Name == out[i-1].Name && out[i].Protocol == out[i-1].Protocol {
			return nil, fmt.Errorf("named_ports: %q is given twice for protocol %d", out[i].Name, out[i].Protocol)
		}
	}
	return out, nil
}

func checkText(s string, most int, slash bool) error {
	if len(s) > most {
		return fmt.Errorf("%d bytes, the most is %d", len(s), most)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || r == ' ' || r == '/' && !slash {
			return fmt.Errorf("%q: the character %q is not allowed", s, r)
		}
	}
	return nil
}

// nodeFacts checks what NodeJoined and NodeUpdated say.
func nodeFacts(name string, addresses [][]byte, cidrs []string, kubeAPIServer, auditMode bool) (Node, error) {
	n := Node{Name: name, KubeAPIServer: kubeAPIServer, AuditMode: auditMode}
	if err := policy.CheckName(name); err != nil {
		return Node{}, err
	}
	if len(addresses) > maxNodeAddresses {
		return Node{}, fmt.Errorf("addresses: %d of them, the most is %d", len(addresses), maxNodeAddresses)
	}
	if len(cidrs) > maxNodeCIDRs {
		return Node{}, fmt.Errorf("endpoint_cidrs: %d of them, the most is %d", len(cidrs), maxNodeCIDRs)
	}
	for i, b := range addresses {
		a, err := address(b)
		if err != nil {
			return Node{}, fmt.Errorf("addresses[%d]: %w", i, err)
		}
		if slices.Contains(n.Addresses, a) {
			return Node{}, fmt.Errorf("addresses[%d]: %s is given twice", i, a)
		}
		n.Addresses = append(n.Addresses, a)
	}
	for i, s := range cidrs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return Node{}, fmt.Errorf("endpoint_cidrs[%d]: %w", i, err)
		}
		if p != p.Masked() || p.Addr().Is4In6() {
			return Node{}, fmt.Errorf("endpoint_cidrs[%d]: %s: want host bits zero, as in %s", i, p, p.Masked())
		}
		if slices.ContainsFunc(n.EndpointCIDRs, p.Overlaps) {
			return Node{}, fmt.Errorf("endpoint_cidrs[%d]: %s overlaps one before it", i, p)
		}
		n.EndpointCIDRs = append(n.EndpointCIDRs, p)
	}
	return n, nil
}

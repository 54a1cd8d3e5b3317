package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// wanted is a checked AddEndpointRequest.
type wanted struct {
	ref        fsm.EndpointRef
	labels     map[string]string
	sa         string
	netns      string
	netnsID    string
	iface      string
	ipv4, ipv6 netip.Addr // the zero Addr: any
	ports      []*eventpb.NamedPort
	mtu        uint32 // 0: the agent's
	bigTCP     bool
	audit      bool
}

func (m *endpoints) parseAdd(req *varvev1.AddEndpointRequest) (wanted, error) {
	w := wanted{
		ref:    fsm.EndpointRef{Namespace: req.Namespace, Name: req.Name},
		labels: req.Labels, sa: req.ServiceAccount, netns: req.Netns,
		iface: req.ContainerInterface, mtu: req.Mtu, bigTCP: req.BigTcp, audit: req.PolicyAuditMode,
	}
	if w.ref.Namespace == "" {
		w.ref.Namespace = defaultNamespace
	}
	if w.iface == "" {
		w.iface = defaultInterface
	}
	if w.sa == "" {
		w.sa = policy.DefaultNamed
	}
	if w.ref.Name == "" {
		return w, errors.New("name: empty; name the endpoint")
	}
	if w.netns == "" {
		return w, errors.New("netns: empty; give the path of the container's network namespace, e.g. /run/netns/web or /proc/PID/ns/net")
	}
	if w.mtu != 0 && w.mtu < 1280 || w.mtu > 65535 {
		return w, fmt.Errorf("mtu: %d; give 1280 to 65535, or 0 for the agent's", w.mtu)
	}
	var err error
	if w.netnsID, err = dataplane.NetnsID(w.netns); err != nil {
		return w, fmt.Errorf("netns: %w", err)
	}
	for i, s := range req.Addresses {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return w, fmt.Errorf("addresses[%d]: %q is no address", i, s)
		}
		if err := m.takeAddress(&w, addr.Unmap()); err != nil {
			return w, fmt.Errorf("addresses[%d]: %w", i, err)
		}
	}
	w.ports, err = namedPorts(req.NamedPorts)
	return w, err
}

func (m *endpoints) takeAddress(w *wanted, addr netip.Addr) error {
	slot, on, flag := &w.ipv6, m.cfg.IPv6Range.IsValid(), "enable-ipv6"
	if addr.Is4() {
		slot, on, flag = &w.ipv4, m.cfg.IPv4Range.IsValid(), "enable-ipv4"
	}
	switch {
	case !on:
		return fmt.Errorf("%s: the agent runs with --%s=false", addr, flag)
	case slot.IsValid():
		return fmt.Errorf("%s: the family has one already (%s); give at most one of each", addr, slot)
	case addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.Zone() != "" || isReserved(addr):
		return fmt.Errorf("%s: is no unicast address that a container can have", addr)
	}
	*slot = addr
	return nil
}

// isReserved tells whether addr is of 0.0.0.0/8 or 240.0.0.0/4, which IPv4 hosts
// neither send to nor take from.
func isReserved(addr netip.Addr) bool {
	return addr.Is4() && (addr.As4()[0] == 0 || addr.As4()[0] >= 240)
}

// protocols are the ones that ports are named for.
var protocols = map[string]uint32{"TCP": 6, "UDP": 17, "SCTP": 132}

func namedPorts(in []*varvev1.NamedPort) ([]*eventpb.NamedPort, error) {
	var out []*eventpb.NamedPort
	for i, p := range in {
		proto, ok := protocols[strings.ToUpper(p.Protocol)]
		if p.Protocol == "" {
			proto, ok = protocols["TCP"], true
		}
		switch {
		case !ok:
			return nil, fmt.Errorf("named_ports[%d].protocol: %q; give TCP, UDP or SCTP", i, p.Protocol)
		case p.Port == 0 || p.Port > 65535:
			return nil, fmt.Errorf("named_ports[%d].port: %d; give 1 to 65535", i, p.Port)
		case p.Name == "":
			return nil, fmt.Errorf("named_ports[%d].name: empty", i)
		}
		out = append(out, &eventpb.NamedPort{Name: strings.ToLower(p.Name), Protocol: proto, Port: p.Port})
	}
	return out, nil
}

func samePorts(have []fsm.NamedPort, want []*eventpb.NamedPort) bool {
	if len(have) != len(want) {
		return false
	}
	set := map[fsm.NamedPort]bool{}
	for _, p := range have {
		set[p] = true
	}
	for _, p := range want {
		if !set[fsm.NamedPort{Name: p.Name, Protocol: uint8(p.Protocol), Port: uint16(p.Port)}] {
			return false
		}
	}
	return true
}

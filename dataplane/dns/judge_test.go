package dns

import (
	"net/netip"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane/dns/relay"
)

// dnsRow puts a policy row of the pod's table for port 53 (bits 16) or for all ports
// of a protocol (bits 0).
func (n *node) dnsRow(class uint64, bits uint8, verdict abi.Verdict, row uint64, flags uint8) {
	n.t.Helper()
	key := abi.PolicyKey{Table: podTable, Class: class, Protocol: relay.UDP, PortBits: bits}
	if bits == 16 {
		key.PortBE = [2]byte{0, 53}
	}
	n.put(n.maps.Policy.Put(&key, &abi.PolicyValue{Row: row, Verdict: verdict, Flags: flags}))
	var ep abi.EndpointValue
	n.put(n.maps.Endpoints.Lookup(&abi.EndpointKey{Ifindex: 3}, &ep))
	switch {
	case class == abi.ClassAny:
		ep.Egress.AnyLens |= 1 << bits
	case abi.IsOwnClass(class):
		ep.Egress.ClassLens |= 1 << bits
	default:
		ep.Egress.BaseLens |= 1 << bits
	}
	n.put(n.maps.Endpoints.Put(&abi.EndpointKey{Ifindex: 3}, &ep))
	n.maps.BumpGenerations(abi.AddrFrom(podAddr))
}

func TestJudge(t *testing.T) {
	server := netip.MustParseAddrPort("198.51.100.53:53")
	for _, c := range []struct {
		what string
		make func(n *node)
		// what the pod may ask the server for: of *.domain.com, and of everything
		domain, every bool
		row           uint64
	}{
		{"no row", func(*node) {}, false, false, 0},
		{"a row for names", func(n *node) { n.dnsRow(abi.ClassAny, 16, abi.VerdictAllow, 1000, abi.PolicyDNS) }, true, false, 1000},
		{"a row for every name", func(n *node) { n.dnsRow(abi.ClassAny, 16, abi.VerdictAllow, 1001, abi.PolicyDNS) }, true, true, 1001},
		{"a plain row", func(n *node) { n.dnsRow(abi.ClassAny, 16, abi.VerdictAllow, 5, 0) }, true, true, 5},
		{"a row that the rules do not know", func(n *node) { n.dnsRow(abi.ClassAny, 16, abi.VerdictAllow, 5, abi.PolicyDNS) }, false, false, 0},
		{"of the server's base class", func(n *node) {
			n.dnsRow(uint64(abi.IdentityWorldIPv4), 16, abi.VerdictAllow, 1000, abi.PolicyDNS)
		}, true, false, 1000},
		{"of another base class", func(n *node) { n.dnsRow(abi.ClassPod, 16, abi.VerdictAllow, 1000, abi.PolicyDNS) }, false, false, 0},
		{"names beside a plain row for more", func(n *node) {
			n.dnsRow(uint64(abi.IdentityWorldIPv4), 0, abi.VerdictAllow, 5, 0)
			n.dnsRow(abi.ClassAny, 16, abi.VerdictAllow, 1000, abi.PolicyDNS)
		}, true, false, 1000},
		{"names of the base class first", func(n *node) {
			n.dnsRow(uint64(abi.IdentityWorldIPv4), 16, abi.VerdictAllow, 1000, abi.PolicyDNS)
			n.dnsRow(abi.ClassAny, 16, abi.VerdictAllow, 1001, abi.PolicyDNS)
		}, true, false, 1000},
		{"a deny beside names", func(n *node) {
			n.dnsRow(uint64(abi.IdentityWorldIPv4), 16, abi.VerdictAllow, 1000, abi.PolicyDNS)
			n.dnsRow(abi.ClassAny, 0, abi.VerdictDeny, 6, 0)
		}, false, false, 0},
		{"a server that was itself learned by name", func(n *node) {
			n.dnsRow(classA, 16, abi.VerdictAllow, 1000, abi.PolicyDNS)
			n.learn(observation(podID, "ns.domain.com.", 60, server.Addr()))
		}, true, false, 1000},
		{"nothing is enforced", func(n *node) {
			n.put(n.maps.Endpoints.Put(&abi.EndpointKey{Ifindex: 3}, &abi.EndpointValue{ID: podID, Identity: 300, IPv4: podAddr.As4()}))
			n.maps.BumpGenerations(abi.AddrFrom(podAddr))
		}, true, true, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			n := newNode(t, nil)
			j := newJudge(n.maps, &n.Proxy.rules, &n.keeper.opened)
			j.Rule(podAddr, server, relay.UDP) // what it remembers must not outlive the change
			c.make(n)
			for range 2 {
				r := j.Rule(podAddr, server, relay.UDP)
				if r == nil || r.Endpoint != podID || r.Namespace != "default" || r.Name != "pod" {
					t.Fatalf("ruling %+v", r)
				}
				row, _, ok := r.Admits([]byte("www.domain.com."))
				if ok != c.domain || row != c.row {
					t.Errorf("www.domain.com. is admitted: %t, by row %d", ok, row)
				}
				if _, _, ok := r.Admits([]byte("www.other.com.")); ok != c.every {
					t.Errorf("www.other.com. is admitted: %t", ok)
				}
			}
		})
	}
}

func TestJudgeKnowsWhoAsks(t *testing.T) {
	n := newNode(t, nil)
	j := newJudge(n.maps, &n.Proxy.rules, &n.keeper.opened)
	for _, a := range []string{"10.1.0.9", "192.0.2.1", "fd00::1"} {
		if r := j.Rule(netip.MustParseAddr(a), netip.MustParseAddrPort("198.51.100.53:53"), relay.UDP); r != nil {
			t.Errorf("%s is %+v", a, r)
		}
	}
}

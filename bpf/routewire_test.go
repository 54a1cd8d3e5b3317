package bpf

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

// wire joins two namespaces by a veth pair of this MTU, its ends named after where
// they lead, with these addresses.
func wire(t *testing.T, a, b *testns.NS, toB, toA string, mtu int, addrA, addrB [2]netip.Addr) {
	t.Helper()
	do(t, a, func() error {
		f, err := os.Open(b.Path())
		if err != nil {
			return err
		}
		defer f.Close()
		attrs := netlink.LinkAttrs{Name: toB, MTU: mtu}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: toA, PeerNamespace: netlink.NsFd(int(f.Fd())), PeerMTU: uint32(mtu)}); err != nil {
			return err
		}
		return address(toB, addrA, addrB)
	})
	do(t, b, func() error { return address(toA, addrB, addrA) })
}

// address brings a link up, with own addresses and routes to the other side's.
func address(name string, own, other [2]netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := errors.Join(testns.SkipDAD(name), netlink.LinkSetUp(l)); err != nil {
		return err
	}
	for i := range own {
		if err := addAddr(l, own[i]); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: whole(other[i]), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(route); err != nil {
			return err
		}
	}
	return nil
}

// via adds routes to addresses through gateways of the same family. mss is what TCP
// announces, 0: what the interface says.
func via(to, gateways [2]netip.Addr, mss int) error {
	for i := range to {
		if err := netlink.RouteAdd(&netlink.Route{Dst: whole(to[i]), Gw: gateways[i].AsSlice(), AdvMSS: mss}); err != nil {
			return err
		}
	}
	return nil
}

func forwarding() error {
	return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
		os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
}

// TestWirePathMTU: a router beyond the host has a link that is too small for the
// container's packets, and says so. Nothing else may come in.
func TestWirePathMTU(t *testing.T) {
	n := newNode(t)
	pair := func(v4, v6 string) [2]netip.Addr {
		return [2]netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
	}
	pod, server := [2]netip.Addr{n.a.v4, n.a.v6}, [2]netip.Addr{outside4, outside6}
	host, near := pair("172.16.0.1", "fd01::1"), pair("172.16.0.2", "fd01::2")
	far := pair("172.16.1.1", "fd02::1")
	router, outside := newNS(t, "router"), newNS(t, "outside")
	wire(t, n.ns, router, "router", "host", 1500, host, near)
	wire(t, router, outside, "outside", "router", 1280, far, server)
	do(t, n.ns, func() error { return errors.Join(forwarding(), via(server, near, 0)) })
	do(t, router, func() error { return errors.Join(forwarding(), via(pod, host, 0)) })
	// Or the server would say itself how small its packets must be.
	do(t, outside, func() error { return via(pod, far, 1420) })
	n.enforce(&n.a, abi.Ingress)
	n.enforce(&n.a, abi.Egress, allow(uint64(abi.IdentityWorldIPv4), tcp, 7), allow(uint64(abi.IdentityWorldIPv6), tcp, 7))
	families(t, func(t *testing.T, v family) {
		e, err := outside.EchoTCP(netip.AddrPortFrom(v.outside, 7))
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		c, err := dial(n.pods[0], e.Addr())
		if err != nil {
			t.Fatal(err, n.counters())
		}
		defer c.Close()
		if err := exchange(c, 1<<20); err != nil {
			t.Fatal(err, n.counters())
		}
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		level, option := syscall.IPPROTO_IP, unix.IP_MTU
		if v.outside.Is6() {
			level, option = syscall.IPPROTO_IPV6, unix.IPV6_MTU
		}
		var mtu int
		var inner error
		if err := errors.Join(raw.Control(func(fd uintptr) { mtu, inner = unix.GetsockoptInt(int(fd), level, option) }), inner); err != nil {
			t.Fatal(err)
		}
		if mtu != 1280 {
			t.Errorf("the connection's path MTU is %d, want the router's 1280", mtu)
		}
	})
}

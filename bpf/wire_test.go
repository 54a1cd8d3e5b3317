package bpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/testns"
)

// node is a host namespace with two pods behind veth pairs, the programs attached.
type node struct {
	*world
	pods [2]*testns.NS
}

// newNode builds on a world, whose veth pairs it completes. Pods have their
// addresses, a default route through an address nobody has, and no neighbour
// entries; the host has routes to them.
func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{world: newWorld(t, smallSizes())}
	for i, p := range []*pod{&n.a, &n.b} {
		name := []string{"a", "b"}[i]
		n.pods[i] = newNS(t, "pod-"+name)
		do(t, n.pods[i], func() error { return up("lo") })
		do(t, n.ns, func() error { return n.hostSide(name, p, n.pods[i]) })
		do(t, n.pods[i], func() error { return podSide(name+"-pod", *p) })
		do(t, n.ns, func() error { return n.o.Attach(int(p.ifindex)) })
	}
	return n
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func (n *node) hostSide(name string, p *pod, ns *testns.NS) error {
	f, err := os.Open(ns.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	peer, err := netlink.LinkByName(name + "-pod")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(peer, p.mac[:]); err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(peer, int(f.Fd())); err != nil {
		return err
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := errors.Join(testns.SkipDAD(name), netlink.LinkSetHardwareAddr(l, gateway[:]), netlink.LinkSetUp(l)); err != nil {
		return err
	}
	for _, addr := range []netip.Addr{host4, host6} {
		if err := addAddr(l, addr); err != nil {
			return err
		}
	}
	for _, addr := range []netip.Addr{p.v4, p.v6} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: p.index(), Dst: whole(addr), Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
	}
	return nil
}

func (p pod) index() int { return int(p.ifindex) }

func whole(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func addAddr(l netlink.Link, a netip.Addr) error {
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: whole(a), Flags: unix.IFA_F_NODAD})
}

func podSide(name string, p pod) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := errors.Join(testns.SkipDAD(name), netlink.LinkSetUp(l)); err != nil {
		return err
	}
	for addr, via := range map[netip.Addr]string{p.v4: "169.254.1.1", p.v6: "fe80::1"} {
		if err := addAddr(l, addr); err != nil {
			return err
		}
		gw := netip.MustParseAddr(via)
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := netlink.RouteAdd(route); err != nil {
			return err
		}
	}
	return nil
}

// offloadOff makes the interface compute transport checksums in software, so that
// a packet with a wrong one is not mended by chance (SIOCETHTOOL, ETHTOOL_STXCSUM).
func offloadOff(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{0x17, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("checksum offload of %s: %w", name, errno)
	}
	return nil
}

const (
	patience = 2 * time.Minute        // for what must come
	silence  = 200 * time.Millisecond // for what must not
)

// dial connects from inside ns.
func dial(ns *testns.NS, to netip.AddrPort) (c net.Conn, err error) {
	err = ns.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err = new(net.Dialer).DialContext(ctx, "tcp", to.String())
		return err
	})
	return c, err
}

// exchange sends size bytes over an echo connection and wants them back.
func exchange(c net.Conn, size int) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	out, in := make([]byte, size), make([]byte, size)
	for i := range out {
		out[i] = byte(i * 7)
	}
	sent := make(chan error, 1)
	go func() { _, err := c.Write(out); sent <- err }()
	if _, err := io.ReadFull(c, in); err != nil {
		return err
	}
	if string(in) != string(out) {
		return errors.New("other bytes came back")
	}
	return <-sent
}

// TestWire sends real packets between the pods and the host, both ways, in both
// families, with and without checksum offload.
func TestWire(t *testing.T) {
	n := newNode(t)
	for _, offload := range []bool{true, false} {
		if !offload {
			do(t, n.pods[0], func() error { return offloadOff("a-pod") })
			do(t, n.pods[1], func() error { return offloadOff("b-pod") })
			n.forget()
		}
		families(t, func(t *testing.T, v family) {
			for _, tt := range []struct {
				name     string
				from, to *testns.NS
				addr     netip.Addr
			}{
				{"a to b", n.pods[0], n.pods[1], v.of(n.b)},
				{"b to a", n.pods[1], n.pods[0], v.of(n.a)},
				{"host to a", n.ns, n.pods[0], v.of(n.a)},
				{"a to host", n.pods[0], n.ns, v.host},
			} {
				name := fmt.Sprintf("%s, offload %v", tt.name, offload)
				server, err := tt.to.EchoTCP(netip.AddrPortFrom(tt.addr, 0))
				if err != nil {
					t.Fatal(name, err)
				}
				c, err := dial(tt.from, server.Addr())
				if err != nil {
					t.Fatal(name, err, n.counters())
				}
				if err := exchange(c, 1<<20); err != nil {
					t.Error(name, err)
				}
				if err := errors.Join(c.Close(), server.Close()); err != nil {
					t.Error(name, err)
				}
				if err := tt.from.Ping(tt.addr, patience); err != nil {
					t.Error(name, err)
				}
			}
		})
	}
	for counter, packets := range n.counters() {
		switch counter {
		case "forwarded egress", "forwarded ingress", "multicast egress", "multicast ingress",
			"neighbour request egress", "neighbour request ingress":
		case "lost events":
			if packets != 0 {
				t.Errorf("%d events lost", packets)
			}
		default:
			t.Errorf("%d packets dropped: %s", packets, counter)
		}
	}
}

// TestWireRefused: nothing listens, and the refusal gets back at once.
func TestWireRefused(t *testing.T) {
	n := newNode(t)
	families(t, func(t *testing.T, v family) {
		if _, err := dial(n.pods[0], netip.AddrPortFrom(v.of(n.b), 9)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("TCP: %v, want %v", err, unix.ECONNREFUSED)
		}
		var c net.Conn
		do(t, n.pods[0], func() (err error) { c, err = net.Dial("udp", netip.AddrPortFrom(v.of(n.b), 9).String()); return err })
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		// The port unreachable is an ICMP error about this flow.
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("UDP: %v, want %v", err, unix.ECONNREFUSED)
		}
	})
}

// TestWireRevoked: a live connection is cut by a change of policy, and goes on
// when it is allowed again.
func TestWireRevoked(t *testing.T) {
	n := newNode(t)
	families(t, func(t *testing.T, v family) {
		server, err := n.pods[1].EchoTCP(netip.AddrPortFrom(v.of(n.b), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		c, err := dial(n.pods[0], server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := exchange(c, 100); err != nil {
			t.Fatal(err)
		}
		n.enforce(&n.b, abi.Ingress)
		n.o.BumpGenerations(abi.AddrFrom(v.of(n.b)))
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(silence)); err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := c.Read(b[:]); !os.IsTimeout(err) {
			t.Errorf("read %q (%v) through a revoked flow", b, err)
		}
		n.policy(&n.b, abi.Ingress, false)
		n.o.BumpGenerations(abi.AddrFrom(v.of(n.b)))
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != 'x' {
			t.Errorf("read %q (%v) after the flow was allowed again", b, err)
		}
	})
}

// TestWireReplaced: programs are replaced, again and again, under a connection.
func TestWireReplaced(t *testing.T) {
	n := newNode(t)
	server, err := n.pods[1].EchoTCP(netip.AddrPortFrom(n.b.v4, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c, err := dial(n.pods[0], server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		next, err := Load(Options{PinDir: filepath.Dir(n.o.dir)})
		if err != nil {
			t.Fatal(err)
		}
		traffic := make(chan error, 1)
		go func() { traffic <- exchange(c, 1<<22) }()
		do(t, n.ns, func() error { return errors.Join(next.Attach(n.a.index()), next.Attach(n.b.index())) })
		if err := errors.Join(<-traffic, next.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.counters(); got["no endpoint egress"]+got["no endpoint ingress"]+got["policy revoked egress"] != 0 {
		t.Errorf("counters %v", got)
	}
}

// TestWireRaw sends frames that BPF_PROG_RUN refuses to make, or whose tag the
// kernel takes off the bytes before the program runs.
func TestWireRaw(t *testing.T) {
	n := newNode(t)
	v4 := frame{srcMAC: n.a.mac, dstMAC: gateway, src: n.a.v4, dst: n.b.v4, proto: udp}
	v6 := frame{srcMAC: n.a.mac, dstMAC: gateway, src: n.a.v6, dst: n.b.v6, proto: udp}
	tagged := v4.bytes()
	tagged = append(append(append([]byte{}, tagged[:12]...), 0x81, 0, 0, 5), tagged[12:]...)
	for _, tt := range []struct {
		name    string
		data    []byte
		counter string
	}{
		{"VLAN", tagged, counterName(abi.UnknownEtherType, abi.Egress)},
		{"IPv4 header cut", v4.bytes()[:30], counterName(abi.Malformed, abi.Egress)},
		{"IPv6 header cut", v6.bytes()[:50], counterName(abi.Malformed, abi.Egress)},
		{"good", v4.bytes(), counterName(abi.Forwarded, abi.Egress)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := n.counters()[tt.counter]
			do(t, n.pods[0], func() error {
				l, err := netlink.LinkByName("a-pod")
				if err != nil {
					return err
				}
				fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				return unix.Sendto(fd, tt.data, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6})
			})
			// veth hands frames over in a softirq, as a rule before sendto returns.
			deadline := time.Now().Add(patience)
			for n.counters()[tt.counter] == before {
				if time.Now().After(deadline) {
					t.Fatalf("not counted as %q: %v", tt.counter, n.counters())
				}
			}
		})
	}
}

package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/testns"
)

// send puts frames onto an interface of ns as they are.
func send(t *testing.T, ns *testns.NS, name string, frames ...frame) {
	t.Helper()
	do(t, ns, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range frames {
			// The sender learns that the egress hook took the frame, be it to hold it.
			err := unix.Sendto(fd, f.bytes(), 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6})
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
		return nil
	})
}

// TestWireFragments sends datagrams in fragments, in every order, from pod to pod
// and from the host's side: the receiver gets each of them whole.
func TestWireFragments(t *testing.T) {
	n := newNode(t)
	families(t, func(t *testing.T, v family) {
		at := netip.AddrPortFrom(v.of(n.b), 9000)
		var c *net.UDPConn
		do(t, n.pods[1], func() (err error) { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err })
		defer c.Close()
		id := uint16(1)
		whole := func(name string, from *testns.NS, link string, f frame, order []int, size int) {
			t.Helper()
			f.payload = make([]byte, 1448*len(order)-8-1448+size)
			for i := range f.payload {
				f.payload[i] = byte(i*7 + int(id))
			}
			offsets := make([]int, len(order))
			for i := range offsets {
				offsets[i] = 1448 * i
			}
			parts := f.split(id, offsets...)
			id++
			var shuffled []frame
			for _, i := range order {
				shuffled = append(shuffled, parts[i])
			}
			send(t, from, link, shuffled...)
			if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 1<<16)
			k, err := c.Read(got)
			if err != nil {
				t.Fatalf("%s %v: %v (%v)", name, order, err, n.counters())
			}
			if !slices.Equal(got[:k], f.payload) {
				t.Errorf("%s %v: other bytes arrived", name, order)
			}
		}
		reverse := make([]int, 45)
		for i := range reverse {
			reverse[i] = len(reverse) - 1 - i
		}
		for _, tt := range []struct {
			name string
			from *testns.NS
			link string
			f    frame
		}{
			{"pod to pod", n.pods[0], "a-pod", v.out(n.a, v.of(n.b), udp, 1, 9000, 0)},
			{"outside to pod", n.ns, "b", v.in(v.outside, n.b, udp, 1, 9000, 0)},
		} {
			for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}, {1, 0}, reverse} {
				whole(tt.name, tt.from, tt.link, tt.f, order, 100)
			}
		}
		// As the kernel makes them.
		var out net.Conn
		do(t, n.pods[0], func() (err error) { out, err = net.Dial("udp", at.String()); return err })
		defer out.Close()
		want := make([]byte, 60000)
		if _, err := out.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<16)
		if k, err := c.Read(got); err != nil || k != len(want) {
			t.Errorf("read %d bytes (%v), want %d", k, err, len(want))
		}
		for _, size := range []int{3000, 60000} {
			do(t, n.pods[0], func() error { return bigPing(v.of(n.b), size) })
		}
	})
	for counter, packets := range n.counters() {
		switch counter {
		case "forwarded egress", "forwarded ingress", "multicast egress", "multicast ingress",
			"neighbour request egress", "neighbour request ingress", "fragment held egress", "fragment held ingress", "lost events":
		default:
			t.Errorf("%d packets dropped: %s", packets, counter)
		}
	}
}

// bigPing sends an echo request of size bytes and waits for the answer.
func bigPing(to netip.Addr, size int) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := net.Dial(network, to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	m := make([]byte, size)
	m[0], m[5] = request, 77
	if to.Is4() {
		copy(m[2:], be16(^sum(m, 0)))
	}
	if _, err := c.Write(m); err != nil {
		return err
	}
	in := make([]byte, 1<<16)
	for {
		k, _, err := c.(*net.IPConn).ReadFromIP(in)
		if err != nil {
			return fmt.Errorf("ping of %d bytes to %s: %w", size, to, err)
		}
		if k == size && in[0] == reply && in[5] == 77 {
			return nil
		}
	}
}

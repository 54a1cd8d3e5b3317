package bpf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/varve-net/varve/bpf/abi"
)

// forwarded returns packets and bytes that were forwarded into containers.
func (n *node) forwarded() (packets, bytes uint64) {
	n.t.Helper()
	counters, _, err := n.o.ReadCounters()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, c := range counters {
		if c.Reason == abi.Forwarded && c.Direction == abi.Ingress {
			return c.Packets, c.Bytes
		}
	}
	return 0, 0
}

// big gives both ends of both pairs this MTU and lets packets grow to size bytes. It
// returns what IPv4 packets may grow to: before Linux 6.3, and so where the interface
// has no such attribute, that is no more than fits IPv4's length field.
func (n *node) big(mtu, size int) (ipv4 int) {
	n.t.Helper()
	set := func(name string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMTU(l, mtu),
			netlink.LinkSetGSOMaxSize(l, size), netlink.LinkSetGROMaxSize(l, size),
			netlink.LinkSetGSOIPv4MaxSize(l, size), netlink.LinkSetGROIPv4MaxSize(l, size))
	}
	for i, name := range []string{"a", "b"} {
		for _, err := range []error{n.ns.Do(func() error { return set(name) }), n.pods[i].Do(func() error { return set(name + "-pod") })} {
			if err != nil {
				n.t.Fatal(name, err)
			}
		}
	}
	err := n.ns.Do(func() error {
		l, err := netlink.LinkByName("a")
		if err == nil {
			ipv4 = int(l.Attrs().GSOIPv4MaxSize)
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if ipv4 == 0 {
		return min(size, 65536)
	}
	return ipv4
}

// TestWireBig: jumbo frames, GSO and BIG TCP packets (in IPv6 with a jumbo payload
// option, on the kernels that put one) arrive as they were sent.
func TestWireBig(t *testing.T) {
	n := newNode(t)
	const size = 8 << 20
	data := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{1})
	if _, err := rnd.Read(data); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ mtu, gso int }{{1500, 65536}, {9000, 65536}, {1500, 196608}, {9000, 196608}} {
		ipv4 := n.big(tt.mtu, tt.gso)
		families(t, func(t *testing.T, v family) {
			gso := tt.gso
			if v.of(n.b).Is4() {
				gso = ipv4
			}
			// A sender that is slow fills its packets less; one of some transfers does.
			for attempt := 1; ; attempt++ {
				packets, bytes := n.forwarded()
				n.transfer(t, v, data)
				p, b := n.forwarded()
				mean := (b - bytes) / (p - packets) // acknowledgements included
				t.Logf("MTU %d, GSO %d: %d packets of %d bytes in the mean", tt.mtu, gso, p-packets, mean)
				if mean >= uint64(gso)/8 {
					return
				}
				if attempt == 5 {
					t.Fatalf("packets have %d bytes in the mean: these were no big ones", mean)
				}
			}
		})
	}
	for counter, packets := range n.counters() {
		switch counter {
		case "forwarded egress", "forwarded ingress", "multicast egress", "multicast ingress",
			"neighbour request egress", "neighbour request ingress", "lost events":
		default:
			t.Errorf("%d packets dropped: %s", packets, counter)
		}
	}
}

// transfer sends data from the first pod to the second, where it must come out the
// same.
func (n *node) transfer(t *testing.T, v family, data []byte) {
	t.Helper()
	want := sha256.Sum256(data)
	var l net.Listener
	do(t, n.pods[1], func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(v.of(n.b), 0).String())
		return err
	})
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- err
			return
		}
		defer c.Close()
		h := sha256.New()
		k, err := io.Copy(h, c)
		if err == nil && [32]byte(h.Sum(nil)) != want {
			err = fmt.Errorf("%d bytes of other content", k)
		}
		got <- err
	}()
	c, err := dial(n.pods[0], l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(data); err != nil {
		t.Error(err)
	}
	if err := errors.Join(c.Close(), <-got); err != nil {
		t.Error(err)
	}
}

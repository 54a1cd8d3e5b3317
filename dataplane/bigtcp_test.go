package dataplane

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/varve-net/varve/internal/testns"
)

// sizes are the packet sizes of an interface: GSO and GRO, IPv6 and IPv4.
func (w *world) sizes(ns *testns.NS, name string) (got [4]uint32) {
	w.t.Helper()
	w.check(ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			a := l.Attrs()
			got = [4]uint32{a.GSOMaxSize, a.GROMaxSize, a.GSOIPv4MaxSize, a.GROIPv4MaxSize}
		}
		return err
	}))
	return got
}

// TestBigTCP: what is asked for is on both sides, and off again when it is not asked for.
func TestBigTCP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.spec("a")
	hasIPv4 := w.sizes(w.node, "lo")[2] != 0 // since Linux 6.3
	if err := w.CheckBigTCP(true); errors.Is(err, ErrNoBigTCP) == hasIPv4 {
		t.Errorf("CheckBigTCP: %v", err)
	}
	for _, big := range [][2]bool{{true, true}, {true, false}, {false, true}, {false, false}, {true, true}} { // IPv6, IPv4
		p.spec.BigTCP6, p.spec.BigTCP4 = big[0], big[1]
		_, err := w.EnsureInterface(t.Context(), p.spec)
		if big[1] && !hasIPv4 {
			if !errors.Is(err, ErrNoBigTCP) {
				t.Errorf("%v: %v, want %v", big, err, ErrNoBigTCP)
			}
			continue
		}
		w.check(err)
		want := [4]uint32{legacyPacket, legacyPacket, legacyPacket, legacyPacket}
		if big[0] {
			want[0], want[1] = bigPacket, bigPacket
		}
		if big[1] {
			want[2], want[3] = bigPacket, bigPacket
		}
		if !hasIPv4 {
			want[2], want[3] = 0, 0
		}
		for side, got := range map[string][4]uint32{"host": w.sizes(w.node, p.spec.HostName), "container": w.sizes(p.ns, "eth0")} {
			if got != want {
				t.Errorf("%v, %s side: %v, want %v", big, side, got, want)
			}
		}
	}
	w.check(w.RemoveInterface(t.Context(), p.spec.HostName))
}

package dns

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/log/eventpb"
)

// set sets the wall clock of a proxy ahead, or behind, of what it is.
func (n *node) set(by time.Duration) {
	n.keeper.clock = func() clock {
		c := readClock()
		c.unixNS += int64(by)
		return c
	}
}

// reboot is a restart after which the map is empty.
func (n *node) reboot(addrs ...netip.Addr) {
	n.t.Helper()
	n.close()
	for _, a := range addrs {
		n.put(n.maps.FQDN.Delete(&abi.FQDNKey{Endpoint: podID, Addr: abi.AddrFrom(a)}))
	}
	n.open()
}

// Whichever way the wall clock is set, what names have opened stays open as long as it
// was to be, can be renewed, and is open no longer after a reboot.
func TestClockSet(t *testing.T) {
	for _, by := range []time.Duration{3 * time.Hour, -3 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) {
			n := newNode(t, nil)
			gone := netip.MustParseAddr("192.0.2.7")
			n.learn(observation(podID, "api.domain.com.", 600, far, gone))
			n.expire("api.domain.com.", gone, time.Second)
			n.set(by)
			n.keeper.followClock()
			n.put(n.keeper.collect(context.Background()))
			n.around(n.row(podID, far), map[uint64]int{classA: 600, classB: 600})
			if n.row(podID, gone) != nil {
				t.Error("what had expired is not collected")
			}
			if n.learn(observation(podID, "api.domain.com.", 900, far)) {
				t.Error("a name was forgotten")
			}
			n.around(n.row(podID, far), map[uint64]int{classA: 900, classB: 900})
			n.keeper.batch(true)
			// The clock is set right again, and the map is lost.
			n.set(0)
			n.keeper.followClock()
			n.reboot(far)
			n.around(n.row(podID, far), map[uint64]int{classA: 900, classB: 900})
		})
	}
}

// The clock was ahead when facts were written, and is right when the next process
// starts: the kernel knows better than the journal.
func TestClockSetWhileAway(t *testing.T) {
	n := newNode(t, nil)
	n.set(3 * time.Hour)
	n.keeper.followClock()
	n.learn(observation(podID, "api.domain.com.", 600, far))
	n.restart()
	n.around(n.row(podID, far), map[uint64]int{classA: 600, classB: 600})
}

// A clock that is corrected all the time writes nothing.
func TestClockDrifts(t *testing.T) {
	n := newNode(t, nil)
	n.learn(observation(podID, "api.domain.com.", 600, far))
	before := n.journal.Last()
	n.set(clockTolerance / 2)
	n.keeper.followClock()
	if n.journal.Last() != before {
		t.Errorf("facts %q", n.facts(0))
	}
}

// The log takes the addresses of an event in ascending order, IPv4 before IPv6.
func TestBothFamiliesInOrder(t *testing.T) {
	n := newNode(t, nil)
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	n.learn(observation(podID, "api.domain.com.", 60, v4))
	n.learn(observation(podID, "api.domain.com.", 60, v6))
	n.learn(observation(podID, "api.domain.com.", 600, v4))
	n.learn(observation(podID, "api.domain.com.", 600, v6))
	n.keeper.batch(true)
	for _, a := range []netip.Addr{v4, v6} {
		n.expire("api.domain.com.", a, time.Second)
	}
	n.put(n.keeper.collect(context.Background()))
	records, err := n.journal.Read(0, 100)
	n.put(err)
	both := 0
	for _, r := range records {
		e := new(eventpb.Event)
		n.put(proto.Unmarshal(r.Data, e))
		var addrs []netip.Addr
		for _, a := range e.GetDnsObserved().GetAddresses() {
			addrs = append(addrs, addrsOf([][]byte{a.Address})...)
		}
		addrs = append(addrs, addrsOf(e.GetDnsCollected().GetAddresses())...)
		if len(addrs) == 2 {
			both++
		}
		if !slices.IsSortedFunc(addrs, netip.Addr.Compare) {
			t.Errorf("record %d: %v", r.Seq, addrs)
		}
	}
	if both != 2 {
		t.Errorf("%d events have both, want a refresh and a collection: %q", both, n.facts(0))
	}
}

package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/varve-net/varve/fsm"
)

func emptyView() fsm.View { return fsm.New("test").View() }

func TestTakeGoesThroughTheWholeRangeOnce(t *testing.T) {
	r := netip.MustParsePrefix("10.1.2.0/29")
	a := newIPAM(emptyView, r)
	seen := map[netip.Addr]bool{}
	// 8 addresses, less the network's, the gateway's and the broadcast one.
	for i := range 5 {
		addr, err := a.take(r)
		if err != nil {
			t.Fatalf("address %d: %v", i, err)
		}
		if seen[addr] || !r.Contains(addr) || addr == gateway(r) || addr == netip.MustParseAddr("10.1.2.7") || addr == r.Addr() {
			t.Fatalf("address %d: got %s", i, addr)
		}
		seen[addr] = true
	}
	if addr, err := a.take(r); err == nil {
		t.Fatalf("took %s from a full range", addr)
	} else if !strings.Contains(err.Error(), "10.1.2.0/29") {
		t.Errorf("error does not name the range: %v", err)
	}
	a.release(netip.MustParseAddr("10.1.2.3"))
	if addr, err := a.take(r); err != nil || addr != netip.MustParseAddr("10.1.2.3") {
		t.Fatalf("after a release: %s, %v", addr, err)
	}
}

func TestTakeLetsAddressesRest(t *testing.T) {
	r := netip.MustParsePrefix("fd00::/64")
	a := newIPAM(emptyView, r)
	first, err := a.take(r)
	if err != nil {
		t.Fatal(err)
	}
	a.release(first)
	second, err := a.take(r)
	if err != nil {
		t.Fatal(err)
	}
	if first == second {
		t.Errorf("%s was given out again at once", first)
	}
}

func TestClaim(t *testing.T) {
	r := netip.MustParsePrefix("10.1.2.0/24")
	a := newIPAM(emptyView, r)
	for _, tt := range []struct {
		addr string
		want string // in the error; empty: success
	}{
		{"10.1.2.1", "gateway"},
		{"10.1.2.9", ""},
		{"10.1.2.9", "in use"},
		{"192.0.2.1", ""},
		{"10.1.2.0", "first or last"},
		{"10.1.2.255", "first or last"},
		{"10.9.2.255", ""},
	} {
		err := a.claim(netip.MustParseAddr(tt.addr))
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.addr, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want an error about %q", tt.addr, err, tt.want)
		}
	}
}

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/varve-net/varve/fsm"
)

// maxProbes bounds the search for a free address in a range; no node has more
// endpoints.
const maxProbes = 1 << 20

// errTaken: the address that was asked for is not free.
var errTaken = errors.New("address is taken")

// ipam hands out addresses of the node's ranges. What is in use is read from the
// View, so nothing is lost by a restart; the set held covers only the time
// between an address's choice and its event.
type ipam struct {
	mu    sync.Mutex
	view  func() fsm.View
	held  map[netip.Addr]bool
	last  map[netip.Prefix]netip.Addr // where the last search of a range ended
	gates map[netip.Addr]bool
	// ranges are the node's, as far as their families are on.
	ranges []netip.Prefix
}

func newIPAM(view func() fsm.View, ranges ...netip.Prefix) *ipam {
	a := &ipam{view: view, held: map[netip.Addr]bool{}, last: map[netip.Prefix]netip.Addr{}, gates: map[netip.Addr]bool{}}
	for _, r := range ranges {
		if r.IsValid() {
			a.gates[gateway(r)] = true
			a.ranges = append(a.ranges, r)
		}
	}
	return a
}

// take reserves a free address of r. It goes on from where it last stopped, so
// that an address rests as long as can be before another endpoint gets it.
func (a *ipam) take(r netip.Prefix) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	used := a.used()
	addr, ok := a.last[r]
	if !ok {
		addr = gateway(r)
	}
	broadcast := lastOf(r)
	for range min(maxProbes, sizeOf(r)) {
		addr = addr.Next()
		if !r.Contains(addr) || (addr.Is4() && addr == broadcast) {
			addr = gateway(r).Next()
		}
		if used[addr] || a.held[addr] || a.gates[addr] {
			continue
		}
		a.held[addr], a.last[r] = true, addr
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("range %s: every address is in use; delete endpoints or give the agent a larger range", r)
}

// claim reserves an address that a user asked for.
func (a *ipam) claim(addr netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gates[addr] {
		return fmt.Errorf("address %s: %w: it is the gateway; choose another", addr, errTaken)
	}
	for _, r := range a.ranges {
		if addr == r.Addr() || addr.Is4() && addr == lastOf(r) {
			return fmt.Errorf("address %s: %w: it is the first or last of range %s; choose another", addr, errTaken, r)
		}
	}
	if a.held[addr] || a.used()[addr] {
		return fmt.Errorf("address %s: %w: it is in use; choose another, or none to be given a free one", addr, errTaken)
	}
	a.held[addr] = true
	return nil
}

// release ends a reservation: its event is in the log, or never will be.
func (a *ipam) release(addrs ...netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, addr := range addrs {
		delete(a.held, addr)
	}
}

func (a *ipam) used() map[netip.Addr]bool {
	used := map[netip.Addr]bool{}
	view := a.view()
	for ep := range view.Endpoints() {
		used[ep.IPv4], used[ep.IPv6] = true, true
	}
	for n := range view.Nodes() {
		for _, addr := range n.Addresses {
			used[addr] = true
		}
	}
	return used
}

// sizeOf is the number of addresses of r, or maxProbes if there are more.
func sizeOf(r netip.Prefix) int {
	if host := r.Addr().BitLen() - r.Bits(); host < 20 {
		return 1 << host
	}
	return maxProbes
}

// lastOf is the highest address of an IPv4 prefix, its broadcast address.
func lastOf(r netip.Prefix) netip.Addr {
	if !r.Addr().Is4() {
		return netip.Addr{}
	}
	b := r.Addr().As4()
	host := uint32(1)<<(32-r.Bits()) - 1
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|host)
	return netip.AddrFrom4(b)
}

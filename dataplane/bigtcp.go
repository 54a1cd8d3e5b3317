package dataplane

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Sizes that a TCP packet may grow to before it is cut for a wire: GSO_LEGACY_MAX_SIZE
// of the kernel, and what is usual for BIG TCP, which was measured.
const (
	legacyPacket = 65536
	bigPacket    = 196608
)

// sizePair sets both sides' sizes, for sending and for merging. Programs and
// redirect_peer pass packets of any size, so both sides of a pair get the same.
func sizePair(node, pod *namespace, host, peer netlink.Link, s InterfaceSpec) error {
	for _, side := range []struct {
		ns *namespace
		l  netlink.Link
	}{{node, host}, {pod, peer}} {
		if err := sizeLink(side.ns.handle, side.l, s.BigTCP4, s.BigTCP6); err != nil {
			return fmt.Errorf("interface %s in %s: %w", side.l.Attrs().Name, side.ns.path, err)
		}
	}
	return nil
}

// sizeLink writes only what differs.
func sizeLink(h *netlink.Handle, l netlink.Link, ipv4, ipv6 bool) error {
	want := func(big bool) uint32 {
		if big {
			return bigPacket
		}
		return legacyPacket
	}
	a := l.Attrs()
	if ipv4 && a.GSOIPv4MaxSize == 0 {
		return ErrNoBigTCP
	}
	// IPv6's first: where that is no big one, the kernel takes it for IPv4 too.
	written := false
	for _, f := range []struct {
		name string
		have uint32
		want uint32
		set  func(netlink.Link, int) error
	}{
		{"gso_max_size", a.GSOMaxSize, want(ipv6), h.LinkSetGSOMaxSize},
		{"gro_max_size", a.GROMaxSize, want(ipv6), h.LinkSetGROMaxSize},
		{"gso_ipv4_max_size", a.GSOIPv4MaxSize, want(ipv4), h.LinkSetGSOIPv4MaxSize},
		{"gro_ipv4_max_size", a.GROIPv4MaxSize, want(ipv4), h.LinkSetGROIPv4MaxSize},
	} {
		if f.have == f.want && !written || f.have == 0 { // 0: the kernel has none
			continue
		}
		written = true
		if err := f.set(l, int(f.want)); err != nil {
			return fmt.Errorf("%s %d: %w", f.name, f.want, err)
		}
	}
	return nil
}

// CheckBigTCP tells whether endpoints may be given BIG TCP. Errors: ErrNoBigTCP.
func (d *Dataplane) CheckBigTCP(ipv4 bool) error {
	lo, err := d.node.link("lo")
	if err != nil || lo == nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	if ipv4 && lo.Attrs().GSOIPv4MaxSize == 0 {
		return ErrNoBigTCP
	}
	return nil
}

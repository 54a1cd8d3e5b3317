package dataplane

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InterfaceSpec is an endpoint's interface as it should be. A zero address means
// that the endpoint has none of that family.
type InterfaceSpec struct {
	HostName      string // at most 15 bytes
	ContainerName string // "eth0" if empty
	NetnsPath     string // of the container
	MAC           [6]byte
	IPv4, IPv6    netip.Addr
	// Gateways are what the container sends to, and the source of what the host
	// sends to it.
	Gateway4, Gateway6 netip.Addr
	MTU                int // 0: the kernel's default
	// BIG TCP: packets of up to 192 KiB, both ways, by family. It is of use where the
	// other side of a connection has it too.
	BigTCP4, BigTCP6 bool
}

// withDefaults checks s.
func (s InterfaceSpec) withDefaults() (InterfaceSpec, error) {
	if s.ContainerName == "" {
		s.ContainerName = "eth0"
	}
	for field, name := range map[string]string{"HostName": s.HostName, "ContainerName": s.ContainerName} {
		if name == "" || len(name) >= unix.IFNAMSIZ {
			return s, fmt.Errorf("interface %q: %s must have 1 to %d bytes", name, field, unix.IFNAMSIZ-1)
		}
	}
	if s.MAC == [6]byte{} || s.MAC[0]&1 != 0 {
		return s, fmt.Errorf("interface %s: MAC %x must be a unicast address", s.HostName, s.MAC)
	}
	for _, f := range s.families() {
		if !f.gateway.IsValid() {
			return s, fmt.Errorf("interface %s: address %s has no gateway of its family", s.HostName, f.addr)
		}
	}
	if s.IPv4.IsValid() && !s.IPv4.Is4() || s.IPv6.IsValid() && !s.IPv6.Is6() || s.Gateway4.IsValid() && !s.Gateway4.Is4() || s.Gateway6.IsValid() && !s.Gateway6.Is6() {
		return s, fmt.Errorf("interface %s: an address is of the wrong family", s.HostName)
	}
	return s, nil
}

// family is one address family of an interface.
type family struct {
	addr, gateway netip.Addr
	netlink       int
	all           *net.IPNet // the default route's destination
}

func (s InterfaceSpec) families() []family {
	var fs []family
	if s.IPv4.IsValid() {
		fs = append(fs, family{s.IPv4, s.Gateway4, netlink.FAMILY_V4, &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}})
	}
	if s.IPv6.IsValid() {
		fs = append(fs, family{s.IPv6, s.Gateway6, netlink.FAMILY_V6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}})
	}
	return fs
}

// ensureInterface makes the veth pair with everything but the container's side
// up. It takes over what a crashed predecessor left. attach is called with the
// host side's index while both sides are down, if the pair is new, and in any
// case before it returns.
func ensureInterface(ctx context.Context, node *namespace, by owner, s InterfaceSpec, attach func(ifindex int) error) (int, error) {
	s, err := s.withDefaults()
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	pod, err := openNamespace(s.NetnsPath)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", s.HostName, err)
	}
	defer pod.close()
	if err := checkContainer(ctx, node, pod, s); err != nil {
		return 0, fmt.Errorf("interface %s: %w", s.HostName, err)
	}

	host, err := ensurePair(node, pod, by, s)
	if err != nil {
		return 0, err
	}
	ifindex := host.Attrs().Index
	if err := node.setSysctls(hostSysctls(node, s)); err != nil {
		return 0, err
	}
	if err := attach(ifindex); err != nil {
		return 0, fmt.Errorf("interface %s: attach programs: %w", s.HostName, err)
	}
	if err := prepareContainer(ctx, pod, s); err != nil {
		return 0, fmt.Errorf("interface %s: container side %s: %w", s.HostName, s.ContainerName, err)
	}
	if err := node.handle.LinkSetUp(host); err != nil {
		return 0, fmt.Errorf("interface %s: up: %w", s.HostName, err)
	}
	if err := hostRoutes(ctx, node, host, s); err != nil {
		return 0, fmt.Errorf("interface %s: %w", s.HostName, err)
	}
	return ifindex, nil
}

// ensurePair finds the pair or makes it anew. A host side with our name and the
// gateway's MAC is ours; without its other side in place it is a ruin.
func ensurePair(node, pod *namespace, by owner, s InterfaceSpec) (netlink.Link, error) {
	host, err := node.link(s.HostName)
	if err != nil {
		return nil, err
	}
	peer, err := pod.link(s.ContainerName)
	if err != nil {
		return nil, err
	}
	if host != nil && !isOurs(host, by.gatewayMAC) {
		return nil, fmt.Errorf("interface %s: %w: remove or rename it", s.HostName, ErrForeignInterface)
	}
	if host != nil && !arePair(host, peer) {
		if err := node.handle.LinkDel(host); err != nil {
			return nil, fmt.Errorf("interface %s: remove what is left of an earlier one: %w", s.HostName, err)
		}
		host = nil
	}
	if host == nil && peer != nil {
		return nil, fmt.Errorf("interface %s in network namespace %s: %w: remove it or choose another name for the container's interface",
			s.ContainerName, s.NetnsPath, ErrForeignInterface)
	}
	if host == nil {
		return createPair(node, pod, by, s)
	}
	if err := repairPair(node, pod, host, peer, s); err != nil {
		return nil, err
	}
	return host, nil
}

// owner is how the host sides that one agent makes are told from all others. Both
// are on an interface from the moment it exists, so a crash cannot come between.
type owner struct {
	gatewayMAC [6]byte // says: made by an agent
	group      uint32  // says by which one; not 0, the kernel's default
}

// ownerOf is the owner that a directory of pins stands for: two agents of one
// network namespace have two of them.
func ownerOf(c Config) owner {
	sum := sha256.Sum256([]byte(filepath.Clean(c.PinDir)))
	return owner{gatewayMAC: c.GatewayMAC, group: binary.BigEndian.Uint32(sum[:])>>1 | 1<<30}
}

// made tells whether l is a host side that this agent made.
func (o owner) made(l netlink.Link) bool {
	return isOurs(l, o.gatewayMAC) && l.Attrs().Group == o.group
}

func isOurs(l netlink.Link, gatewayMAC [6]byte) bool {
	return l.Type() == "veth" && bytes.Equal(l.Attrs().HardwareAddr, gatewayMAC[:])
}

func arePair(host, peer netlink.Link) bool {
	return peer != nil && peer.Type() == "veth" &&
		host.Attrs().ParentIndex == peer.Attrs().Index && peer.Attrs().ParentIndex == host.Attrs().Index
}

// createPair makes both sides in one request, each in its namespace with its
// name and MAC, and down.
func createPair(node, pod *namespace, by owner, s InterfaceSpec) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Group = s.HostName, s.MTU, by.gatewayMAC[:], by.group
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = s.ContainerName, s.MAC[:], uint32(s.MTU)
	veth.PeerNamespace = netlink.NsFd(pod.file.Fd())
	if err := node.handle.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("interface %s: create with %s in %s: %w", s.HostName, s.ContainerName, s.NetnsPath, err)
	}
	host, err := node.link(s.HostName)
	if err == nil && host == nil {
		err = fmt.Errorf("interface %s: %w: something removed it just after it was made", s.HostName, ErrNoInterface)
	}
	if err != nil {
		return nil, err
	}
	peer, err := pod.link(s.ContainerName)
	if err == nil && peer == nil {
		err = fmt.Errorf("interface %s in %s: %w: something removed it just after it was made", s.ContainerName, s.NetnsPath, ErrNoInterface)
	}
	if err != nil {
		return nil, err
	}
	return host, sizePair(node, pod, host, peer, s)
}

// repairPair gives an existing pair the MAC, MTU and packet sizes it should have.
func repairPair(node, pod *namespace, host, peer netlink.Link, s InterfaceSpec) error {
	if !bytes.Equal(peer.Attrs().HardwareAddr, s.MAC[:]) {
		if err := pod.handle.LinkSetHardwareAddr(peer, s.MAC[:]); err != nil {
			return fmt.Errorf("interface %s in %s: MAC: %w", s.ContainerName, s.NetnsPath, err)
		}
	}
	if err := sizePair(node, pod, host, peer, s); err != nil {
		return err
	}
	if s.MTU == 0 {
		return nil
	}
	for _, side := range []struct {
		ns *namespace
		l  netlink.Link
	}{{node, host}, {pod, peer}} {
		if side.l.Attrs().MTU != s.MTU {
			if err := side.ns.handle.LinkSetMTU(side.l, s.MTU); err != nil {
				return fmt.Errorf("interface %s in %s: MTU %d: %w", side.l.Attrs().Name, side.ns.path, s.MTU, err)
			}
		}
	}
	return nil
}

// hostSysctls: source addresses are checked by the programs, so not again by
// rp_filter; the host neither answers for others nor learns routes there.
func hostSysctls(node *namespace, s InterfaceSpec) []sysctl {
	var out []sysctl
	if s.IPv4.IsValid() {
		dir := "ipv4/conf/" + s.HostName + "/"
		out = append(out, sysctl{dir + "rp_filter", "0"}, sysctl{dir + "forwarding", "1"}, sysctl{dir + "proxy_arp", "0"},
			sysctl{dir + "accept_redirects", "0"}, sysctl{dir + "send_redirects", "0"})
	}
	return append(out, ipv6Sysctls(node, s.HostName, s.IPv6.IsValid(), true)...)
}

// ipv6Sysctls keeps an interface from making addresses of its own and from
// learning any: all that it has is what it is given here.
func ipv6Sysctls(n *namespace, name string, enabled, forwarding bool) []sysctl {
	dir := "ipv6/conf/" + name + "/"
	if !n.hasSysctl(dir + "disable_ipv6") {
		return nil // the kernel has no IPv6; if it is wanted, the address will say so
	}
	if !enabled {
		return []sysctl{{dir + "disable_ipv6", "1"}}
	}
	f := "0"
	if forwarding {
		f = "1"
	}
	return []sysctl{
		{dir + "disable_ipv6", "0"},
		{dir + "addr_gen_mode", "1"}, // IN6_ADDR_GEN_MODE_NONE
		{dir + "accept_dad", "0"}, {dir + "dad_transmits", "0"},
		{dir + "accept_ra", "0"}, {dir + "autoconf", "0"},
		{dir + "accept_redirects", "0"}, {dir + "proxy_ndp", "0"}, {dir + "forwarding", f},
	}
}

// prepareContainer does all that can be done before the container's side is up.
func prepareContainer(ctx context.Context, pod *namespace, s InterfaceSpec) error {
	peer, err := pod.link(s.ContainerName)
	if err != nil {
		return err
	}
	if peer == nil {
		return ErrNoInterface
	}
	if err := pod.setSysctls(ipv6Sysctls(pod, s.ContainerName, s.IPv6.IsValid(), false)); err != nil {
		return err
	}
	lo, err := pod.link("lo")
	if err != nil {
		return err
	}
	if lo != nil {
		if err := pod.handle.LinkSetUp(lo); err != nil {
			return fmt.Errorf("loopback up: %w", err)
		}
	}
	return setAddresses(ctx, pod, peer, s)
}

// setAddresses makes the addresses of peer those of s.
func setAddresses(ctx context.Context, pod *namespace, peer netlink.Link, s InterfaceSpec) error {
	want := make(map[netip.Addr]bool)
	for _, f := range s.families() {
		want[f.addr] = true
	}
	addrs, err := dump(ctx, func() ([]netlink.Addr, error) { return pod.handle.AddrList(peer, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !want[ip.Unmap()] {
			if err := pod.handle.AddrDel(peer, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove address %s: %w", a.IPNet, err)
			}
		}
	}
	for _, f := range s.families() {
		a := &netlink.Addr{IPNet: single(f.addr)}
		if f.addr.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := pod.handle.AddrReplace(peer, a); err != nil {
			return fmt.Errorf("address %s: %w", f.addr, err)
		}
	}
	return nil
}

// hostRoutes leads the host to the container, with the gateway's address as
// source and without asking for the container's MAC. Routes and neighbours of
// earlier addresses go.
func hostRoutes(ctx context.Context, node *namespace, host netlink.Link, s InterfaceSpec) error {
	if err := removeOldRoutes(ctx, node, host, s); err != nil {
		return err
	}
	ifindex := host.Attrs().Index
	for _, f := range s.families() {
		route := &netlink.Route{LinkIndex: ifindex, Dst: single(f.addr), Src: f.gateway.AsSlice(), Scope: netlink.SCOPE_LINK}
		if err := node.handle.RouteReplace(route); err != nil {
			return fmt.Errorf("route to %s from %s: %w: is the gateway's address on the node?", f.addr, f.gateway, err)
		}
		neigh := &netlink.Neigh{LinkIndex: ifindex, Family: f.netlink, State: netlink.NUD_PERMANENT, IP: f.addr.AsSlice(), HardwareAddr: s.MAC[:]}
		if err := node.handle.NeighSet(neigh); err != nil {
			return fmt.Errorf("neighbour %s: %w", f.addr, err)
		}
	}
	return nil
}

func removeOldRoutes(ctx context.Context, node *namespace, host netlink.Link, s InterfaceSpec) error {
	wanted := func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && (a.Unmap() == s.IPv4 || a == s.IPv6)
	}
	routes, err := dump(ctx, func() ([]netlink.Route, error) { return node.handle.RouteList(host, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_KERNEL || r.Dst != nil && wanted(r.Dst.IP) {
			continue
		}
		if err := node.handle.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", r.Dst, err)
		}
	}
	neighbours, err := dump(ctx, func() ([]netlink.Neigh, error) {
		return node.handle.NeighList(host.Attrs().Index, netlink.FAMILY_ALL)
	})
	if err != nil {
		return fmt.Errorf("neighbours: %w", err)
	}
	for _, n := range neighbours {
		if n.State != netlink.NUD_PERMANENT || wanted(n.IP) {
			continue
		}
		if err := node.handle.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove neighbour %s: %w", n.IP, err)
		}
	}
	return nil
}

// activateInterface brings the container's side up, with its routes.
func activateInterface(ctx context.Context, s InterfaceSpec) error {
	s, err := s.withDefaults()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	pod, err := openNamespace(s.NetnsPath)
	if err != nil {
		return fmt.Errorf("interface %s: %w", s.HostName, err)
	}
	defer pod.close()
	peer, err := pod.link(s.ContainerName)
	if err == nil && peer == nil {
		err = fmt.Errorf("interface %s in network namespace %s: %w: call EnsureInterface first", s.ContainerName, s.NetnsPath, ErrNoInterface)
	}
	if err != nil {
		return err
	}
	if err := pod.handle.LinkSetUp(peer); err != nil {
		return fmt.Errorf("interface %s in %s: up: %w", s.ContainerName, s.NetnsPath, err)
	}
	if err := noOtherDefault(ctx, pod, s); err != nil {
		return fmt.Errorf("interface %s: %w", s.HostName, err)
	}
	index := peer.Attrs().Index
	for _, f := range s.families() {
		onLink := &netlink.Route{LinkIndex: index, Dst: single(f.gateway), Src: f.addr.AsSlice(), Scope: netlink.SCOPE_LINK}
		if err := pod.handle.RouteReplace(onLink); err != nil {
			return fmt.Errorf("interface %s in %s: route to gateway %s: %w", s.ContainerName, s.NetnsPath, f.gateway, err)
		}
		byGateway := &netlink.Route{LinkIndex: index, Dst: f.all, Gw: f.gateway.AsSlice(), Src: f.addr.AsSlice()}
		if err := pod.handle.RouteReplace(byGateway); err != nil {
			return fmt.Errorf("interface %s in %s: default route by %s: %w", s.ContainerName, s.NetnsPath, f.gateway, err)
		}
	}
	return nil
}

// removeInterface removes the pair, and with it its routes and neighbours, and
// returns the host side's index; 0 if there was none. The container's namespace
// need not exist any more.
func removeInterface(node *namespace, gatewayMAC [6]byte, hostName string) (int, error) {
	host, err := node.link(hostName)
	if err != nil || host == nil {
		return 0, err
	}
	if !isOurs(host, gatewayMAC) {
		return 0, fmt.Errorf("interface %s: %w: it is left alone", hostName, ErrForeignInterface)
	}
	if err := node.handle.LinkDel(host); err != nil && !errors.Is(err, unix.ENODEV) {
		return 0, fmt.Errorf("interface %s: remove: %w", hostName, err)
	}
	return host.Attrs().Index, nil
}

// single is the prefix that holds a alone.
func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

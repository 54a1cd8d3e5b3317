package dataplane

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NodeSpec is what the node itself needs. A zero address: none of that family.
type NodeSpec struct {
	// Gateways are the node's own addresses towards its containers. They are put
	// on the loopback interface, since every host side needs them and none owns
	// them.
	Gateway4, Gateway6 netip.Addr
	// Ranges are what endpoints get their addresses from. An address of a range
	// that no endpoint has is unreachable, not routed out of the node.
	Ranges []netip.Prefix
	// DNSProxy lets the programs hand packets to the DNS proxy.
	DNSProxy bool
}

func (s NodeSpec) gateways() []netip.Addr {
	var out []netip.Addr
	for _, g := range []netip.Addr{s.Gateway4, s.Gateway6} {
		if g.IsValid() {
			out = append(out, g)
		}
	}
	return out
}

func setupNode(ctx context.Context, node *namespace, s NodeSpec) error {
	if s.Gateway4.IsValid() && !s.Gateway4.Is4() || s.Gateway6.IsValid() && !s.Gateway6.Is6() {
		return fmt.Errorf("node: gateways %s and %s: must be IPv4 and IPv6, in this order", s.Gateway4, s.Gateway6)
	}
	lo, err := node.link("lo")
	if err == nil && lo == nil {
		err = ErrNoInterface
	}
	if err != nil {
		return fmt.Errorf("node: loopback: %w", err)
	}
	if err := node.handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("node: loopback up: %w", err)
	}
	for _, g := range s.gateways() {
		a := &netlink.Addr{IPNet: single(g)}
		if g.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := node.handle.AddrReplace(lo, a); err != nil {
			return fmt.Errorf("node: gateway %s on loopback: %w", g, err)
		}
	}
	for _, r := range s.Ranges {
		if err := node.handle.RouteReplace(unreachable(r)); err != nil {
			return fmt.Errorf("node: range %s: %w", r, err)
		}
	}
	if s.DNSProxy {
		if err := setupProxy(node, lo, s); err != nil {
			return err
		}
	}
	return forward(ctx, node, s)
}

// unreachable is the route for the addresses of a range that nobody has. It loses
// against every other route for the same range.
func unreachable(r netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:  &net.IPNet{IP: r.Addr().AsSlice(), Mask: net.CIDRMask(r.Bits(), r.Addr().BitLen())},
		Type: unix.RTN_UNREACHABLE, Priority: math.MaxInt32, Protocol: unix.RTPROT_STATIC,
	}
}

// forward makes the node a router. Linux stops taking router advertisements on
// an interface that forwards unless accept_ra is 2, so those that had it at 1 are
// raised: otherwise the node would lose its own default route.
func forward(ctx context.Context, node *namespace, s NodeSpec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var settings []sysctl
	if s.Gateway4.IsValid() {
		settings = append(settings, sysctl{"ipv4/ip_forward", "1"})
	}
	if s.Gateway6.IsValid() {
		learning, err := node.sysctlsWith("ipv6/conf/*/accept_ra", "1")
		if err != nil {
			return err
		}
		forwarding, err := node.sysctlsWith("ipv6/conf/all/forwarding", "1")
		if err != nil {
			return err
		}
		if len(forwarding) == 0 {
			for _, file := range learning {
				if name := filepath.Base(filepath.Dir(file)); name != "all" && name != "default" && name != "lo" {
					settings = append(settings, sysctl{file, "2"})
				}
			}
			settings = append(settings, sysctl{"ipv6/conf/all/forwarding", "1"})
		}
	}
	return node.setSysctls(settings)
}

// teardownNode takes the gateways off the loopback. Forwarding stays on: others
// may have come to rely on it.
func teardownNode(node *namespace, s NodeSpec) error {
	lo, err := node.link("lo")
	if err != nil || lo == nil {
		return err
	}
	for _, g := range s.gateways() {
		err := node.handle.AddrDel(lo, &netlink.Addr{IPNet: single(g)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("node: gateway %s: %w", g, err)
		}
	}
	if s.DNSProxy {
		if err := teardownProxy(node, lo, s); err != nil {
			return err
		}
	}
	for _, r := range s.Ranges {
		if err := node.handle.RouteDel(unreachable(r)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("node: range %s: %w", r, err)
		}
	}
	return nil
}

// hasSysctl tells whether the file exists in the namespace.
func (n *namespace) hasSysctl(file string) bool {
	return n.do(func() error {
		_, err := os.Stat(filepath.Join("/proc/sys/net", file))
		return err
	}) == nil
}

// sysctlsWith lists the files that match a pattern and hold a value.
func (n *namespace) sysctlsWith(pattern, value string) (files []string, err error) {
	const root = "/proc/sys/net/"
	err = n.do(func() error {
		paths, err := filepath.Glob(root + pattern)
		if err != nil {
			return err
		}
		for _, p := range paths {
			if now, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(now)) == value {
				files = append(files, strings.TrimPrefix(p, root))
			}
		}
		return nil
	})
	return files, err
}

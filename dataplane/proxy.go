package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// proxyRulePriority is where the rule for packets to the proxy stands among all
// others, as Cilium's does: after that of the local table.
const proxyRulePriority = 10

// proxySysctls let the node take for itself what is addressed to a container but
// meant for the proxy. An early lookup of sockets would find the proxy's while the
// answer is only on its way to the container, and forwarding refuses a packet that
// has a socket already (net/ipv4/ip_forward.c). The answer of a server on the node
// itself comes back in by the loopback, from an address of the node's own.
var proxySysctls = []sysctl{{"ipv4/ip_early_demux", "0"}, {"ipv4/conf/lo/accept_local", "1"}}

// proxyFamilies are those that the node has.
func proxyFamilies(s NodeSpec) (families []int) {
	if s.Gateway4.IsValid() {
		families = append(families, netlink.FAMILY_V4)
	}
	if s.Gateway6.IsValid() {
		families = append(families, netlink.FAMILY_V6)
	}
	return families
}

// proxyRule takes what is marked for the proxy to the table that proxyRoute fills.
func proxyRule(family int) *netlink.Rule {
	mask := uint32(abi.MarkMask)
	r := netlink.NewRule()
	r.Family, r.Mark, r.Mask, r.Table, r.Priority = family, abi.MarkToProxy, &mask, abi.ProxyTable, proxyRulePriority
	return r
}

// proxyRoute makes every address the node's own.
func proxyRoute(lo netlink.Link, family int) *netlink.Route {
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == netlink.FAMILY_V6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: abi.ProxyTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: all, Protocol: unix.RTPROT_STATIC,
	}
}

// setupProxy makes the node deliver to the proxy what the programs mark for it.
func setupProxy(node *namespace, lo netlink.Link, s NodeSpec) error {
	for _, family := range proxyFamilies(s) {
		if err := node.handle.RouteReplace(proxyRoute(lo, family)); err != nil {
			return fmt.Errorf("node: route to the DNS proxy: %w", err)
		}
		if err := node.handle.RuleAdd(proxyRule(family)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("node: rule for the DNS proxy: %w", err)
		}
	}
	return node.setSysctls(proxySysctls)
}

// teardownProxy is the inverse, but for the settings, which others may rely on.
func teardownProxy(node *namespace, lo netlink.Link, s NodeSpec) error {
	for _, family := range proxyFamilies(s) {
		if err := node.handle.RuleDel(proxyRule(family)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("node: rule for the DNS proxy: %w", err)
		}
		if err := node.handle.RouteDel(proxyRoute(lo, family)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("node: route to the DNS proxy: %w", err)
		}
	}
	return nil
}

// proxyDrift finds what setupProxy made and is not there.
func proxyDrift(ctx context.Context, node *namespace, lo netlink.Link, s NodeSpec) (out []Drift, err error) {
	for _, family := range proxyFamilies(s) {
		rules, err := dump(ctx, func() ([]netlink.Rule, error) { return node.handle.RuleList(family) })
		if err != nil {
			return nil, fmt.Errorf("node: rules: %w", err)
		}
		want := proxyRule(family)
		if !slices.ContainsFunc(rules, func(r netlink.Rule) bool {
			return r.Priority == want.Priority && r.Mark == want.Mark && r.Mask != nil && *r.Mask == *want.Mask && r.Table == want.Table
		}) {
			out = append(out, Drift{Kind: DriftRoute, Object: "rule for the DNS proxy", What: "is gone"})
		}
		routes, err := dump(ctx, func() ([]netlink.Route, error) {
			return node.handle.RouteListFiltered(family, proxyRoute(lo, family), netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_OIF)
		})
		if err != nil {
			return nil, fmt.Errorf("node: routes to the DNS proxy: %w", err)
		}
		if len(routes) == 0 {
			out = append(out, Drift{Kind: DriftRoute, Object: "route to the DNS proxy", What: "is gone"})
		}
	}
	sysctls, err := node.sysctlDrift(proxySysctls)
	return append(out, sysctls...), err
}

// refreshDevices writes the addresses of the node's interfaces, bar its ends of the
// containers' pairs, into the map devices.
func (d *Dataplane) refreshDevices(ctx context.Context) error {
	links, err := dump(ctx, d.node.handle.LinkList)
	if err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	want := make(map[uint32]abi.Device, len(links))
	for _, l := range links {
		a := l.Attrs()
		if len(a.HardwareAddr) == 6 && !isOurs(l, d.config.GatewayMAC) {
			want[uint32(a.Index)] = abi.Device{MAC: [6]byte(a.HardwareAddr)}
		}
	}
	m := NewKernelMap[uint32, abi.Device]("devices", d.objs.Devices)
	have, err := m.Rows(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for index, dev := range want {
		if have[index] != dev {
			_, err := m.Put([]uint32{index}, []abi.Device{dev})
			errs = append(errs, err)
		}
	}
	for index := range have {
		if _, ok := want[index]; !ok {
			if err := d.objs.Devices.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, fmt.Errorf("map devices: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

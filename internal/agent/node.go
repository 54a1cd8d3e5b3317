package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/log/eventpb"
)

// addressSettle is how long addresses must be unchanged before they are recorded:
// who sets up an interface sets several.
const addressSettle = 200 * time.Millisecond

// announce records the node's facts if they are new.
func announce(ctx context.Context, cfg *Config, f *facts) error {
	addrs := cfg.NodeAddresses
	if len(addrs) == 0 {
		var err error
		if addrs, err = hostAddresses(); err != nil {
			return err
		}
	}
	for _, r := range []netip.Prefix{cfg.IPv4Range, cfg.IPv6Range} {
		if gw := gateway(r); gw.IsValid() && !slices.Contains(addrs, gw) {
			addrs = append(addrs, gw)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	joined := &eventpb.NodeJoined{Name: cfg.Node, KubeApiserver: cfg.KubeAPIServer, PolicyAuditMode: cfg.PolicyAuditMode}
	var cidrs []netip.Prefix
	for _, r := range []netip.Prefix{cfg.IPv4Range, cfg.IPv6Range} {
		if r.IsValid() {
			cidrs = append(cidrs, r)
			joined.EndpointCidrs = append(joined.EndpointCidrs, r.String())
		}
	}
	for _, a := range addrs {
		joined.Addresses = append(joined.Addresses, a.AsSlice())
	}
	if n, ok := f.view().Node(cfg.Node); ok && !n.Left && n.KubeAPIServer == cfg.KubeAPIServer && n.AuditMode == cfg.PolicyAuditMode &&
		slices.Equal(n.Addresses, addrs) && slices.Equal(n.EndpointCIDRs, cidrs) {
		return nil
	}
	_, err := f.append(ctx, apiserver.Actor{Name: "agent:" + cfg.Node}, &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: joined}})
	return err
}

// hostAddresses are the global addresses of the host's interfaces.
func hostAddresses() ([]netip.Addr, error) {
	ifaces, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("node-ip: not given, and the interfaces' addresses cannot be read: %w", err)
	}
	var out []netip.Addr
	for _, a := range ifaces {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if addr, ok := netip.AddrFromSlice(n.IP); ok && addr.Unmap().IsGlobalUnicast() {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}

// nodeSpec is what the host itself needs.
func nodeSpec(cfg *Config) dataplane.NodeSpec {
	s := dataplane.NodeSpec{Gateway4: gateway(cfg.IPv4Range), Gateway6: gateway(cfg.IPv6Range), DNSProxy: cfg.DNSProxy != DNSProxyOff}
	for _, r := range []netip.Prefix{cfg.IPv4Range, cfg.IPv6Range} {
		if r.IsValid() {
			s.Ranges = append(s.Ranges, r)
		}
	}
	return s
}

// watchAddresses keeps the node's facts true while the host gets and loses
// addresses: what the host sends from one that is not recorded would be judged as
// coming from the world.
func watchAddresses(ctx context.Context, cfg *Config, f *facts) error {
	if len(cfg.NodeAddresses) > 0 {
		return nil
	}
	updates := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribeWithOptions(updates, ctx.Done(), netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) {
			if ctx.Err() == nil {
				cfg.Logger.Warn("addresses of the host are not followed any more; restart the agent", "error", err)
			}
		},
	}); err != nil {
		return fmt.Errorf("follow the host's addresses: %w", err)
	}
	settled := time.NewTimer(0)
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-updates:
			if !ok {
				<-ctx.Done()
				return nil
			}
			settled.Reset(addressSettle)
		case <-settled.C:
			if err := announce(ctx, cfg, f); err != nil && ctx.Err() == nil {
				cfg.Logger.Warn("addresses of the host are not recorded; tried again at the next change", "error", err)
			}
		}
	}
}

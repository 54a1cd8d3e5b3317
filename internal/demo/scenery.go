package demo

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testns"
)

// Family indexes what there is once for IPv4 and once for IPv6.
type family int

const (
	v4 family = 0
	v6 family = 1
)

var families = [...]family{v4, v6}

func (f family) String() string { return [...]string{"IPv4", "IPv6"}[f] }

// actor is somebody who sends and receives packets.
type actor struct {
	name  string // "frontend"
	ref   string // what the API calls it: "shop/frontend"; empty: no endpoint
	space *testns.NS
	addr  [2]netip.Addr // where it is reached
	// source is where its packets come from, if not addr: the node takes the
	// gateway's address towards its pods.
	source [2]netip.Addr
}

func (a *actor) from(f family) netip.Addr {
	if a.source[f].IsValid() {
		return a.source[f]
	}
	return a.addr[f]
}

// Addresses of what is not a pod: documentation ranges (RFC 5737, RFC 3849), all of
// them inside the demo's own namespaces.
var (
	podRange    = [2]netip.Prefix{netip.MustParsePrefix("10.10.0.0/24"), netip.MustParsePrefix("fd00:10:10::/64")}
	nodeAddr    = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("2001:db8:100::1/64")}
	outsideAddr = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.2/24"), netip.MustParsePrefix("2001:db8:100::2/64")}
	supplier    = [2]netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:113::10")}
	stranger    = [2]netip.Addr{netip.MustParseAddr("203.0.113.66"), netip.MustParseAddr("2001:db8:113::66")}
)

// workload is a pod of the demo.
type workload struct {
	namespace, name string
	tcp, udp        []uint16
	namedPorts      []*varvev1.NamedPort
}

// servers lists what the workload serves, for people.
func (w workload) servers() string {
	var all []string
	for _, p := range w.tcp {
		all = append(all, fmt.Sprintf("tcp %d", p))
	}
	for _, p := range w.udp {
		all = append(all, fmt.Sprintf("udp %d", p))
	}
	return cmp.Or(strings.Join(all, ", "), "nothing")
}

var workloads = []workload{
	{namespace: "shop", name: "frontend", tcp: []uint16{80}},
	{namespace: "shop", name: "backend", tcp: []uint16{8080}, udp: []uint16{9090}, namedPorts: []*varvev1.NamedPort{{Name: "api", Protocol: "TCP", Port: 8080}}},
	{namespace: "shop", name: "batch"},
	{namespace: "shop", name: "db", tcp: []uint16{5432}},
	{namespace: "guest", name: "intruder"},
}

// space makes a namespace of this run with its loopback up.
func (s *stage) space(name string) (*testns.NS, error) {
	ns, err := testns.New(s.id + "-" + name)
	if err != nil {
		return nil, err
	}
	s.spaces = append(s.spaces, ns)
	s.later("network namespace "+name, ns.Close)
	return ns, ns.Do(func() error { return inSpace(linkUp("lo")) })
}

// inSpace runs netlink calls on a handle of the calling thread's namespace.
func inSpace(calls ...func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	for _, call := range calls {
		if err := call(h); err != nil {
			return err
		}
	}
	return nil
}

func linkUp(name string) func(*netlink.Handle) error {
	return func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("interface %s: up: %w", name, err)
		}
		return nil
	}
}

func withoutDAD(name string) func(*netlink.Handle) error {
	return func(*netlink.Handle) error { return testns.SkipDAD(name) }
}

// address adds an address without waiting for duplicate address detection.
func address(name string, p netip.Prefix) func(*netlink.Handle) error {
	return func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
		a, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("interface %s: address %s: %w", name, p, err)
		}
		return nil
	}
}

func route(to netip.Prefix, via netip.Addr) func(*netlink.Handle) error {
	return func(h *netlink.Handle) error {
		dst, err := netlink.ParseIPNet(to.String())
		if err != nil {
			return err
		}
		if err := h.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("route %s via %s: %w", to, via, err)
		}
		return nil
	}
}

// setNode makes the node's namespace, a router with an uplink, and the outside
// world at the other end of it.
func (s *stage) setNode() error {
	var err error
	if s.node, err = s.space("node"); err != nil {
		return err
	}
	outside, err := s.space("outside")
	if err != nil {
		return err
	}
	err = s.node.Do(func() error {
		far, err := os.Open(outside.Path())
		if err != nil {
			return err
		}
		defer far.Close()
		for name, value := range map[string]string{
			"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return inSpace(func(h *netlink.Handle) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "uplink"
			if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(far.Fd()))}); err != nil {
				return fmt.Errorf("veth uplink: %w", err)
			}
			return nil
		}, withoutDAD("uplink"), linkUp("uplink"), address("uplink", nodeAddr[v4]), address("uplink", nodeAddr[v6]))
	})
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	err = outside.Do(func() error {
		calls := []func(*netlink.Handle) error{withoutDAD("eth0"), linkUp("eth0")}
		for _, f := range families {
			calls = append(calls, address("eth0", outsideAddr[f]))
			for _, a := range []netip.Addr{supplier[f], stranger[f]} {
				calls = append(calls, address("lo", netip.PrefixFrom(a, a.BitLen())))
			}
			calls = append(calls, route(podRange[f], nodeAddr[f].Addr()))
		}
		return inSpace(calls...)
	})
	if err != nil {
		return fmt.Errorf("outside: %w", err)
	}
	err = s.node.Do(func() error {
		return inSpace(
			route(netip.PrefixFrom(supplier[v4], 24).Masked(), outsideAddr[v4].Addr()),
			route(netip.PrefixFrom(supplier[v6], 64).Masked(), outsideAddr[v6].Addr()),
		)
	})
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	s.actors["host"] = &actor{
		name: "host", space: s.node, addr: [2]netip.Addr{nodeAddr[v4].Addr(), nodeAddr[v6].Addr()},
		source: [2]netip.Addr{podRange[v4].Addr().Next(), podRange[v6].Addr().Next()},
	}
	s.actors["visitor"] = &actor{name: "visitor", space: outside, addr: [2]netip.Addr{outsideAddr[v4].Addr(), outsideAddr[v6].Addr()}}
	s.actors["supplier"] = &actor{name: "supplier", space: outside, addr: supplier}
	s.actors["stranger"] = &actor{name: "stranger", space: outside, addr: stranger}
	if err := s.serve(s.node, "tcp", 9100); err != nil {
		return err
	}
	return s.serve(outside, "tcp", 443)
}

// serve starts an echo server for both families on every address of a namespace.
func (s *stage) serve(ns *testns.NS, network string, port uint16) error {
	start := ns.EchoTCP
	if network == "udp" {
		start = ns.EchoUDP
	}
	server, err := start(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		return err
	}
	s.later(fmt.Sprintf("%s server %d", network, port), server.Close)
	return nil
}

// addWorkloads makes the workloads' namespaces and servers, and has the agent
// connect them.
func (s *stage) addWorkloads(ctx context.Context) error {
	made := make([]*actor, len(workloads))
	for i, w := range workloads {
		ns, err := s.space(w.name)
		if err != nil {
			return err
		}
		made[i] = &actor{name: w.name, ref: w.namespace + "/" + w.name, space: ns}
		for _, port := range w.tcp {
			if err := s.serve(ns, "tcp", port); err != nil {
				return err
			}
		}
		for _, port := range w.udp {
			if err := s.serve(ns, "udp", port); err != nil {
				return err
			}
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, w := range workloads {
		group.Go(func() error {
			resp, err := s.client.Endpoints.Add(ctx, connect.NewRequest(&varvev1.AddEndpointRequest{
				Namespace: w.namespace, Name: w.name, Labels: map[string]string{"app": w.name},
				Netns: made[i].space.Path(), NamedPorts: w.namedPorts,
			}))
			if err != nil {
				return fmt.Errorf("endpoint add %s: %w", made[i].ref, err)
			}
			for f, a := range []string{resp.Msg.Endpoint.GetIpv4(), resp.Msg.Endpoint.GetIpv6()} {
				// The API may give an address with its prefix length.
				bare, _, _ := strings.Cut(a, "/")
				if made[i].addr[f], err = netip.ParseAddr(bare); err != nil {
					return fmt.Errorf("endpoint %s: %s address: %w", made[i].ref, family(f), err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, a := range made {
		s.actors[a.name] = a
	}
	return nil
}

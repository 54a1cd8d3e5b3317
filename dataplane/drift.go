package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/projections"
)

// DriftKind is what kind of thing somebody else has changed.
type DriftKind string

// Kinds of drift.
const (
	DriftRow       DriftKind = "row"       // of a BPF map
	DriftConfig    DriftKind = "config"    // the switches that all programs read
	DriftLink      DriftKind = "link"      // of a program to an interface
	DriftPin       DriftKind = "pin"       // of a map
	DriftInterface DriftKind = "interface" // gone, down, renamed, other MAC
	DriftRoute     DriftKind = "route"     // of the host to an endpoint
	DriftNeighbour DriftKind = "neighbour" // an endpoint's entry on the host
	DriftAddress   DriftKind = "address"   // a gateway on the loopback
	DriftSysctl    DriftKind = "sysctl"
)

// DriftKinds are all kinds.
var DriftKinds = []DriftKind{
	DriftRow, DriftConfig, DriftLink, DriftPin, DriftInterface, DriftRoute, DriftNeighbour, DriftAddress, DriftSysctl,
}

// Drift is one thing of the kernel that was not as this agent had left it.
type Drift struct {
	Kind   DriftKind
	Object string // "policy", "interface vv0a1b tcx ingress"
	What   string // in people's words
	// Err is why it is not as it should be even now; nil: it is repaired.
	Err error
}

// String is one line.
func (d Drift) String() string {
	s := string(d.Kind) + " " + strings.TrimPrefix(d.Object, string(d.Kind)+" ") + ": " + d.What
	if d.Err != nil {
		s += ": not repaired: " + d.Err.Error()
	}
	return s
}

// CheckRows compares a part of the maps with what Sync has left there, so that
// five calls in a row have compared every row, and a map of some thousand rows
// each call. If it returns differences, what must not wait is repaired; the caller
// must see to it that Sync, which will read the maps anew, does the rest. One call
// at a time. t gives rows their names, and may be nil.
func (d *Dataplane) CheckRows(ctx context.Context, t *projections.Tables) ([]Difference, error) {
	var n names
	if t != nil {
		n = t.Names
	}
	ds, err := d.rows.pass(ctx, n)
	if err != nil {
		err = fmt.Errorf("compare maps: %w", err)
	}
	return ds, err
}

// CheckShared checks what belongs to no endpoint, and repairs it: the pins of the
// maps, the programs' switches, the gateways' addresses and forwarding.
func (d *Dataplane) CheckShared(ctx context.Context, s NodeSpec) ([]Drift, error) {
	var out []Drift
	d.pins.Lock()
	for _, f := range d.guard.MapPins() {
		out = append(out, Drift{Kind: DriftPin, Object: f.Object, What: f.What, Err: f.Err})
	}
	d.pins.Unlock()
	switch have, err := d.objs.GetConfig(); {
	case err != nil:
		return out, err
	case have != d.settings:
		x := Drift{Kind: DriftConfig, Object: "config", What: fmt.Sprintf("has %+v, want %+v", have, d.settings)}
		if x.Err = d.objs.SetConfig(d.settings); x.Err == nil {
			d.objs.BumpAllGenerations()
		}
		out = append(out, x)
	}
	if s.DNSProxy {
		if err := d.refreshDevices(ctx); err != nil {
			return out, err
		}
	}
	node, err := d.nodeDrift(ctx, s)
	if err != nil || len(node) == 0 {
		return out, err
	}
	err = setupNode(ctx, d.node, s)
	for i := range node {
		node[i].Err = err
	}
	return append(out, node...), nil
}

func (d *Dataplane) nodeDrift(ctx context.Context, s NodeSpec) ([]Drift, error) {
	var out []Drift
	lo, err := d.node.link("lo")
	if err != nil || lo == nil {
		return nil, errors.Join(err, errors.New("node: no loopback"))
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		out = append(out, Drift{Kind: DriftInterface, Object: "interface lo", What: "is down"})
	}
	addrs, err := dump(ctx, func() ([]netlink.Addr, error) { return d.node.handle.AddrList(lo, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("node: addresses: %w", err)
	}
	have := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			have[ip.Unmap()] = true
		}
	}
	for _, g := range s.gateways() {
		if !have[g] {
			out = append(out, Drift{Kind: DriftAddress, Object: "gateway " + g.String(), What: "is not on the loopback"})
		}
	}
	if len(s.Ranges) > 0 {
		routes, err := dump(ctx, func() ([]netlink.Route, error) {
			return d.node.handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_TYPE)
		})
		if err != nil {
			return nil, fmt.Errorf("node: routes: %w", err)
		}
		for _, r := range s.Ranges {
			if !slices.ContainsFunc(routes, func(have netlink.Route) bool { return isRange(have, r) }) {
				out = append(out, Drift{Kind: DriftRoute, Object: "range " + r.String(), What: "has no route that makes free addresses unreachable"})
			}
		}
	}
	var settings []sysctl
	if s.Gateway4.IsValid() {
		settings = append(settings, sysctl{"ipv4/ip_forward", "1"})
	}
	if s.Gateway6.IsValid() {
		settings = append(settings, sysctl{"ipv6/conf/all/forwarding", "1"})
	}
	if s.DNSProxy {
		proxy, err := proxyDrift(ctx, d.node, lo, s)
		if out = append(out, proxy...); err != nil {
			return out, err
		}
	}
	sysctls, err := d.node.sysctlDrift(settings)
	return append(out, sysctls...), err
}

func isRange(have netlink.Route, r netip.Prefix) bool {
	want := unreachable(r)
	return have.Dst != nil && have.Dst.String() == want.Dst.String() && have.Priority == want.Priority
}

// sysctlDrift reads settings, all on one thread.
func (n *namespace) sysctlDrift(settings []sysctl) (out []Drift, err error) {
	if len(settings) == 0 {
		return nil, nil
	}
	err = n.do(func() error {
		for _, s := range settings {
			now, err := os.ReadFile(filepath.Join("/proc/sys/net", s.file))
			if value := strings.TrimSpace(string(now)); err == nil && value != s.value {
				out = append(out, Drift{
					Kind: DriftSysctl, Object: "net." + strings.ReplaceAll(s.file, "/", "."), What: fmt.Sprintf("is %s, want %s", value, s.value),
				})
			}
		}
		return nil
	})
	return out, err
}

// Bound is an interface as it should be and the index that its host side has.
type Bound struct {
	InterfaceSpec
	Ifindex int
}

// SuspectInterfaces lists those, by HostName, of which the host's side is not as
// it should be. It changes nothing: an interface may be in the midst of being made
// or removed, which the caller knows and excludes before RepairInterface. Sysctls
// are read of a fifth of the interfaces at each call. One call at a time.
func (d *Dataplane) SuspectInterfaces(ctx context.Context, all []Bound) ([]string, error) {
	s, err := takeSnapshot(ctx, d.node)
	if err != nil {
		return nil, err
	}
	var suspects []string
	d.turn++
	err = d.node.do(func() error {
		d.pins.Lock()
		defer d.pins.Unlock()
		for i, b := range all {
			bad := len(s.drift(d.config.GatewayMAC, b)) > 0
			if !bad {
				sound, err := d.guard.Sound(b.Ifindex)
				bad = err != nil || !sound
			}
			if !bad && (i+d.turn)%sweepPasses == 0 {
				for _, c := range hostSysctls(d.node, b.InterfaceSpec) {
					now, err := os.ReadFile(filepath.Join("/proc/sys/net", c.file))
					bad = bad || err == nil && strings.TrimSpace(string(now)) != c.value
				}
			}
			if bad {
				suspects = append(suspects, b.HostName)
			}
		}
		return d.guard.Release()
	})
	return suspects, err
}

// RepairInterface repairs the host's side of an interface, programs first, and
// says what was wrong. An interface that is gone is told as the one Drift there
// is, with ErrNoInterface: whether it can be made anew the caller has to find out.
func (d *Dataplane) RepairInterface(ctx context.Context, b Bound) ([]Drift, error) {
	s, err := takeSnapshot(ctx, d.node)
	if err != nil {
		return nil, err
	}
	host := s.byIndex[b.Ifindex]
	if host == nil {
		return []Drift{{Kind: DriftInterface, Object: "interface " + b.HostName, What: "is gone", Err: ErrNoInterface}}, nil
	}
	var out []Drift
	err = d.node.do(func() error {
		d.pins.Lock()
		defer d.pins.Unlock()
		found, err := d.guard.Interface(b.Ifindex)
		for _, f := range found {
			out = append(out, Drift{Kind: DriftLink, Object: "interface " + b.HostName + " " + f.Object, What: f.What, Err: f.Err})
		}
		return err
	})
	if err != nil {
		return out, err
	}
	wrong := s.drift(d.config.GatewayMAC, b)
	sysctls, err := d.node.sysctlDrift(hostSysctls(d.node, b.InterfaceSpec))
	if err != nil {
		return out, err
	}
	if wrong = append(wrong, sysctls...); len(wrong) == 0 {
		return out, nil
	}
	err = d.restoreInterface(ctx, host, b.InterfaceSpec)
	for i := range wrong {
		wrong[i].Err = err
	}
	return append(out, wrong...), nil
}

func (d *Dataplane) restoreInterface(ctx context.Context, host netlink.Link, s InterfaceSpec) error {
	h := d.node.handle
	if host.Attrs().Name != s.HostName {
		if err := h.LinkSetName(host, s.HostName); err != nil {
			return fmt.Errorf("rename: %w", err)
		}
	}
	if !bytes.Equal(host.Attrs().HardwareAddr, d.config.GatewayMAC[:]) {
		if err := h.LinkSetHardwareAddr(host, d.config.GatewayMAC[:]); err != nil {
			return fmt.Errorf("MAC: %w", err)
		}
	}
	if err := d.node.setSysctls(hostSysctls(d.node, s)); err != nil {
		return err
	}
	if host.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(host); err != nil {
			return fmt.Errorf("up: %w", err)
		}
	}
	return hostRoutes(ctx, d.node, host, s)
}

// snapshot is the host's interfaces and how it reaches endpoints.
type snapshot struct {
	byIndex    map[int]netlink.Link
	routes     map[hop]netip.Addr // and their source
	neighbours map[hop]string     // and their MAC
}

// hop is an address that is reached by an interface.
type hop struct {
	ifindex int
	addr    netip.Addr
}

func takeSnapshot(ctx context.Context, n *namespace) (*snapshot, error) {
	s := &snapshot{byIndex: make(map[int]netlink.Link), routes: make(map[hop]netip.Addr), neighbours: make(map[hop]string)}
	links, err := dump(ctx, n.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	for _, l := range links {
		s.byIndex[l.Attrs().Index] = l
	}
	routes, err := dump(ctx, func() ([]netlink.Route, error) { return n.handle.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Type != unix.RTN_UNICAST {
			continue
		}
		if ones, bits := r.Dst.Mask.Size(); ones == bits {
			src, _ := netip.AddrFromSlice(r.Src)
			s.routes[hop{r.LinkIndex, addrOf(r.Dst.IP)}] = src.Unmap()
		}
	}
	neighbours, err := dump(ctx, func() ([]netlink.Neigh, error) { return n.handle.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	for _, e := range neighbours {
		if e.State == netlink.NUD_PERMANENT {
			s.neighbours[hop{e.LinkIndex, addrOf(e.IP)}] = string(e.HardwareAddr)
		}
	}
	return s, nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// drift is what is wrong with the host's side of an interface, programs and
// sysctls aside.
func (s *snapshot) drift(gatewayMAC [6]byte, b Bound) []Drift {
	object := "interface " + b.HostName
	l := s.byIndex[b.Ifindex]
	if l == nil {
		return []Drift{{Kind: DriftInterface, Object: object, What: "is gone"}}
	}
	var out []Drift
	wrong := func(kind DriftKind, format string, args ...any) {
		out = append(out, Drift{Kind: kind, Object: object, What: fmt.Sprintf(format, args...)})
	}
	if name := l.Attrs().Name; name != b.HostName {
		wrong(DriftInterface, "is named %s", name)
	}
	if mac := l.Attrs().HardwareAddr; !bytes.Equal(mac, gatewayMAC[:]) {
		wrong(DriftInterface, "has MAC %s, want %s", mac, net.HardwareAddr(gatewayMAC[:]))
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		wrong(DriftInterface, "is down")
	}
	for _, f := range b.families() {
		at := hop{b.Ifindex, f.addr}
		switch src, ok := s.routes[at]; {
		case !ok:
			wrong(DriftRoute, "has no route to %s", f.addr)
		case src != f.gateway:
			wrong(DriftRoute, "has a route to %s from %s, want from %s", f.addr, src, f.gateway)
		}
		switch mac, ok := s.neighbours[at]; {
		case !ok:
			wrong(DriftNeighbour, "has no permanent neighbour %s", f.addr)
		case mac != string(b.MAC[:]):
			wrong(DriftNeighbour, "has neighbour %s at %s, want %s", f.addr, net.HardwareAddr(mac), net.HardwareAddr(b.MAC[:]))
		}
	}
	return out
}

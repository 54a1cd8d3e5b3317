package dataplane

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/varve-net/varve/bpf/abi"
)

// What the proxy needs of the node is made once, found if somebody takes it away,
// and made again.
func TestProxyRoutingDrift(t *testing.T) {
	w := newWorld(t, nil)
	spec := gateways
	spec.DNSProxy = true
	for range 2 {
		if err := w.SetupNode(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	do := func(fn func() error) { t.Helper(); w.check(w.node.Do(fn)) }
	check := func(want ...string) {
		t.Helper()
		found, err := w.CheckShared(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range found {
			if d.Err != nil {
				t.Error(d)
			}
			got = append(got, d.Object)
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("found %v, want %v", got, want)
		}
	}
	check()
	do(func() error { return netlink.RuleDel(proxyRule(netlink.FAMILY_V4)) })
	check("rule for the DNS proxy")
	check()
	do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteDel(proxyRoute(lo, netlink.FAMILY_V6))
	})
	check("route to the DNS proxy")
	check()
	do(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "other"}); err != nil {
			return err
		}
		return nil
	})
	check()
	var index int
	var mac [6]byte
	do(func() error {
		l, err := netlink.LinkByName("uplink")
		if err == nil {
			index, mac = l.Attrs().Index, [6]byte(l.Attrs().HardwareAddr)
		}
		return err
	})
	var have abi.Device
	if err := w.objs.Devices.Lookup(uint32(index), &have); err != nil || have.MAC != mac {
		t.Errorf("device %d: %x, %v; want %x", index, have.MAC, err, mac)
	}
	do(func() error {
		l, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	check()
	if err := w.objs.Devices.Lookup(uint32(index), &have); err == nil {
		t.Errorf("device %d is gone, but in the map", index)
	}
}

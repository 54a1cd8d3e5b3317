package dataplane

import (
	"context"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
)

// AdoptInterface finds the host side of an interface that an earlier run made,
// sees to it that the programs are on it, and changes nothing else: it may be in
// the midst of traffic. ErrNoInterface, ErrForeignInterface.
func (d *Dataplane) AdoptInterface(ctx context.Context, hostName string) (ifindex int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	host, err := d.node.link(hostName)
	switch {
	case err != nil:
		return 0, err
	case host == nil:
		return 0, fmt.Errorf("interface %s: %w", hostName, ErrNoInterface)
	case !isOurs(host, d.config.GatewayMAC):
		return 0, fmt.Errorf("interface %s: %w", hostName, ErrForeignInterface)
	}
	ifindex = host.Attrs().Index
	if err := d.node.do(func() error { return d.guard.Attach(ifindex) }); err != nil {
		return 0, fmt.Errorf("interface %s: attach programs: %w", hostName, err)
	}
	return ifindex, nil
}

// ListInterfaces names the host sides that this agent made or on which its
// programs are, sorted. Those of another agent in the same network namespace are
// not among them.
func (d *Dataplane) ListInterfaces(ctx context.Context) ([]string, error) {
	var attached []int
	if err := d.node.do(func() (err error) {
		attached, err = d.objs.Attached()
		return err
	}); err != nil {
		return nil, err
	}
	links, err := dump(ctx, func() ([]netlink.Link, error) { return d.node.handle.LinkList() })
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	mine := ownerOf(d.config)
	var names []string
	for _, l := range links {
		if mine.made(l) || slices.Contains(attached, l.Attrs().Index) {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Ifindex is the host side of a local endpoint as of the last Sync, 0 if it has
// none.
func (d *Dataplane) Ifindex(endpointID uint32) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bind[endpointID]
}

// Capacities is the number of rows that each map takes, by its name. The table
// ipcache is in two maps: full addresses in ipcache, the rest in ipcache_lpm.
func (d *Dataplane) Capacities() map[string]int {
	return map[string]int{
		"endpoints":   d.maps.Endpoints.MaxEntries(),
		"ipcache":     d.maps.IPCache.MaxEntries(),
		"ipcache_lpm": d.maps.IPCacheLPM.MaxEntries(),
		"classes":     d.maps.Classes.MaxEntries(),
		"policy":      d.maps.Policy.MaxEntries(),
		"ct4":         int(d.objs.CT4.MaxEntries()),
		"ct6":         int(d.objs.CT6.MaxEntries()),
	}
}

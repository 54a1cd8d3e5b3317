package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filter is a program that a cls_bpf filter of a clsact qdisc runs with direct
// action, the way before TCX. The filter goes with its interface and not with the
// pin of its program, which only tells whose it is: it is ours as long as it runs
// the program that is pinned. So this works in the interface's network namespace
// and in no other.
type filter struct{ *ebpf.Program }

var _ holder = (*filter)(nil)

// The place of our filter among those of a hook: the first. It is fixed, so that
// a request for it replaces what is there, under RCU and with no packet in
// between (cls_bpf_change).
const (
	filterPriority = 1
	filterHandle   = 1
	filterName     = "varve" // by which a filter is known as ours
)

// attachFilter attaches, or replaces a filter of ours, and pins the program. The
// qdisc is made if need be and never removed: it goes with the interface, and
// empty it does nothing.
func (o *Objects) attachFilter(ifindex int, h hook, prog *ebpf.Program) error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := nl.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact qdisc: %w", err)
	}
	there, err := first(nl, ifindex, h)
	if err != nil {
		return err
	}
	if bpf, ok := there.(*netlink.BpfFilter); there != nil && (!ok || bpf.Name != filterName) {
		return fmt.Errorf("%w: a filter of kind %s has priority %d", ErrForeignFilter, there.Type(), filterPriority)
	}
	f := &netlink.BpfFilter{FilterAttrs: filterAttrs(ifindex, h), Fd: prog.FD(), Name: filterName, DirectAction: true}
	if err := nl.FilterReplace(f); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	// A program remembers where it is pinned and would move from there.
	pinned, err := prog.Clone()
	if err != nil {
		return fmt.Errorf("program: %w", err)
	}
	return errors.Join(o.pinHolder(pinned, ifindex, h), pinned.Close())
}

func filterAttrs(ifindex int, h hook) netlink.FilterAttrs {
	return netlink.FilterAttrs{LinkIndex: ifindex, Parent: h.parent, Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL}
}

// first is the filter at our place of a hook; nil if there is none, no qdisc or
// no such interface.
func first(nl *netlink.Handle, ifindex int, h hook) (netlink.Filter, error) {
	for {
		filters, err := nl.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, h.parent)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("filters: %w", err)
		}
		for _, f := range filters {
			if a := f.Attrs(); a.LinkIndex == ifindex && a.Priority == filterPriority && a.Handle == filterHandle {
				return f, nil
			}
		}
		return nil, nil
	}
}

func (f *filter) live(ifindex int, h hook) (live bool, err error) {
	err = f.find(ifindex, h, func(*netlink.Handle, netlink.Filter) error {
		live = true
		return nil
	})
	return live, err
}

func (f *filter) detach(ifindex int, h hook) error {
	return f.find(ifindex, h, func(nl *netlink.Handle, there netlink.Filter) error {
		if err := nl.FilterDel(there); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("filter: %w", err)
		}
		return nil
	})
}

// find calls fn if there is a filter that runs this program.
func (f *filter) find(ifindex int, h hook, fn func(*netlink.Handle, netlink.Filter) error) error {
	info, err := f.Info()
	if err != nil {
		return fmt.Errorf("program info: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return errors.New("program info: the kernel tells no id")
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer nl.Close()
	there, err := first(nl, ifindex, h)
	if err != nil {
		return err
	}
	if bpf, ok := there.(*netlink.BpfFilter); ok && ebpf.ProgramID(bpf.Id) == id {
		return fn(nl, there)
	}
	return nil
}

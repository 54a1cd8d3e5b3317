package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
	"github.com/vishvananda/netlink"
)

// hook is one of the two places of an interface that carry a program.
type hook struct {
	suffix string
	attach ebpf.AttachType // TCX
	parent uint32          // clsact
}

var (
	hookFrom = hook{"from", ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS}
	hookTo   = hook{"to", ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS}
)

// holder is what keeps a program on a hook, and is pinned.
type holder interface {
	// live tells whether it is on that hook of that interface.
	live(ifindex int, h hook) (bool, error)
	// detach takes the program off; no error if it is off.
	detach(ifindex int, h hook) error
	Close() error
}

// openPin opens what is pinned for a hook; fs.ErrNotExist if nothing is.
func openPin(path string) (holder, error) {
	pinned, err := pin.Load(path, nil)
	if err != nil {
		return nil, err
	}
	switch p := pinned.(type) {
	case *ebpf.Program:
		return &filter{p}, nil
	case link.Link:
		return &tcxLink{p}, nil
	}
	return nil, errors.Join(errors.New("neither a link nor a program: remove the pin"), pinned.Close())
}

// Attach puts both programs on the host side of a veth pair, an interface of the
// caller's network namespace (the calling goroutine must be locked to its thread
// if that is not the process's own). Where ours are already, they are replaced
// atomically: there is no packet that meets neither the old nor the new ones.
// Idempotent. to_container goes first, so that no reply to a packet of the
// container is seen by nobody.
//
// They go by TCX, and by filters on a clsact qdisc if the kernel has no TCX (it
// came with 6.6); where filters are and TCX is to be had, it takes over from them.
//
// An interface that has the programs of another layout keeps them until Migrate.
//
// Errors: ErrForeignFilter.
func (o *Objects) Attach(ifindex int) error {
	if kept, err := o.keptByPredecessor(ifindex); err != nil || kept {
		return err
	}
	o.attaching.Lock()
	defer o.attaching.Unlock()
	return o.attachBoth(ifindex)
}

func (o *Objects) attachBoth(ifindex int) error {
	if err := o.attach(ifindex, hookTo, o.ToContainer); err != nil {
		return fmt.Errorf("interface %d: %s: %w", ifindex, hookTo.attach, err)
	}
	if err := o.attach(ifindex, hookFrom, o.FromContainer); err != nil {
		return fmt.Errorf("interface %d: %s: %w", ifindex, hookFrom.attach, err)
	}
	return nil
}

func (o *Objects) attach(ifindex int, h hook, prog *ebpf.Program) error {
	path := o.linkPin(ifindex, h)
	held, err := openPin(path)
	if errors.Is(err, fs.ErrNotExist) {
		return o.attachNew(ifindex, h, prog, nil)
	}
	if err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	live, err := held.live(ifindex, h)
	switch l, isLink := held.(*tcxLink); {
	case err != nil:
	case live && isLink:
		err = l.Update(prog)
	case live:
		err = o.attachNew(ifindex, h, prog, held)
	default:
		// The interface it was made for is gone and its number is in use again.
		if err = os.Remove(path); err != nil {
			err = fmt.Errorf("stale pin: %w", err)
			break
		}
		err = o.attachNew(ifindex, h, prog, nil)
	}
	return errors.Join(err, held.Close())
}

// attachNew attaches by the best way that there is. old is the filter that is
// pinned and runs, nil if there is none.
func (o *Objects) attachNew(ifindex int, h hook, prog *ebpf.Program, old holder) error {
	if o.clsact {
		return o.attachFilter(ifindex, h, prog)
	}
	err := o.attachTCX(ifindex, h, prog)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return o.attachFilter(ifindex, h, prog)
	}
	if err != nil || old == nil {
		return err
	}
	// What TCX lets pass does not reach the filter any more.
	return old.detach(ifindex, h)
}

// pinHolder pins p for a hook, in one step also if something is pinned there.
func (o *Objects) pinHolder(p pin.Pinner, ifindex int, h hook) error {
	path := o.linkPin(ifindex, h)
	next := filepath.Join(o.dir, "next", filepath.Base(path))
	if err := os.MkdirAll(filepath.Dir(next), 0o700); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin left by a crash: %w", err)
	}
	if err := p.Pin(next); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(fmt.Errorf("pin: %w", err), os.Remove(next))
	}
	return nil
}

// Detach takes both programs off an interface of the caller's network namespace
// and removes their pins, the container's way out first. It is no error if there
// is nothing to detach, or if the interface has gone.
func (o *Objects) Detach(ifindex int) error {
	for _, h := range []hook{hookFrom, hookTo} {
		if err := removePin(o.linkPin(ifindex, h), ifindex, h); err != nil {
			return fmt.Errorf("interface %d: %s: %w", ifindex, h.attach, err)
		}
	}
	return nil
}

// Attached lists the interfaces that have both programs, in ascending order. An
// interface that has lost one (a crash between the two) is not listed, so that
// whoever compares this with what should be attaches it again. Until Migrate, those
// with the programs of another layout are listed too. Call it, like
// Attach, in the interfaces' network namespace.
func (o *Objects) Attached() ([]int, error) {
	pins, err := pinsIn(o.dir)
	if err != nil {
		return nil, err
	}
	for _, p := range o.predecessors {
		theirs, err := pinsIn(p.dir)
		if err != nil {
			return nil, err
		}
		pins = append(pins, theirs...)
	}
	from, to := make(map[int]bool), make(map[int]bool)
	for _, p := range pins {
		switch {
		case !p.live:
		case p.hook == hookFrom:
			from[p.ifindex] = true
		default:
			to[p.ifindex] = true
		}
	}
	var attached []int
	for ifindex := range from {
		if to[ifindex] {
			attached = append(attached, ifindex)
		}
	}
	slices.Sort(attached)
	return attached, nil
}

// PruneLinks removes the pins of what is on no interface any more, and returns
// the interfaces' numbers, in ascending order. Call it, like Attach, in the
// interfaces' network namespace.
func (o *Objects) PruneLinks() ([]int, error) {
	pins, err := pinsIn(o.dir)
	if err != nil {
		return nil, err
	}
	var pruned []int
	for _, p := range pins {
		if p.live {
			continue
		}
		if err := removePin(p.path, p.ifindex, p.hook); err != nil {
			return pruned, fmt.Errorf("pin %s: %w", p.path, err)
		}
		pruned = append(pruned, p.ifindex)
	}
	slices.Sort(pruned)
	return slices.Compact(pruned), nil
}

type hookPin struct {
	path    string
	ifindex int
	hook    hook
	live    bool // on the interface the pin is named after
}

// pinsIn reads the pins of a layout's directory.
func pinsIn(layout string) ([]hookPin, error) {
	dir := filepath.Join(layout, "links")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	var pins []hookPin
	for _, e := range entries {
		p, err := parsePin(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("links: %w", err)
		}
		held, err := openPin(p.path)
		if err != nil {
			return nil, fmt.Errorf("pin %s: %w", p.path, err)
		}
		p.live, err = held.live(p.ifindex, p.hook)
		if err := errors.Join(err, held.Close()); err != nil {
			return nil, fmt.Errorf("pin %s: %w", p.path, err)
		}
		pins = append(pins, p)
	}
	return pins, nil
}

// parsePin reads a pin's name, such as 7-from.
func parsePin(path string) (hookPin, error) {
	number, suffix, _ := strings.Cut(filepath.Base(path), "-")
	ifindex, err := strconv.Atoi(number)
	for _, h := range []hook{hookFrom, hookTo} {
		if err == nil && h.suffix == suffix {
			return hookPin{path: path, ifindex: ifindex, hook: h}, nil
		}
	}
	return hookPin{}, fmt.Errorf("%s is not a pin of ours: remove it", path)
}

// removePin unpins and detaches. Detaching explicitly matters: another process
// may hold the link open, and the program must stop all the same.
func removePin(path string, ifindex int, h hook) error {
	held, err := openPin(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(held.detach(ifindex, h), os.Remove(path), held.Close())
}

func (o *Objects) linkPin(ifindex int, h hook) string {
	return filepath.Join(o.dir, "links", strconv.Itoa(ifindex)+"-"+h.suffix)
}

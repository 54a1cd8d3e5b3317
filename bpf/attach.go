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
)

// hook is one of the two places of an interface that carry a program.
type hook struct {
	suffix string
	attach ebpf.AttachType
}

var (
	hookFrom = hook{"from", ebpf.AttachTCXIngress}
	hookTo   = hook{"to", ebpf.AttachTCXEgress}
)

// Attach puts both programs on the host side of a veth pair, an interface of the
// caller's network namespace (the calling goroutine must be locked to its thread
// if that is not the process's own). Where a link is pinned already, its program
// is replaced atomically: there is no packet that meets neither the old nor the
// new one. Idempotent. to_container goes first, so that no reply to a packet of
// the container is seen by nobody.
func (o *Objects) Attach(ifindex int) error {
	if err := o.attach(ifindex, hookTo, o.ToContainer); err != nil {
		return fmt.Errorf("interface %d: %s: %w", ifindex, hookTo.attach, err)
	}
	if err := o.attach(ifindex, hookFrom, o.FromContainer); err != nil {
		return fmt.Errorf("interface %d: %s: %w", ifindex, hookFrom.attach, err)
	}
	return nil
}

func (o *Objects) attach(ifindex int, h hook, prog *ebpf.Program) error {
	pin := o.linkPin(ifindex, h)
	l, err := link.LoadPinnedLink(pin, nil)
	switch {
	case err == nil:
		current, err := linkIfindex(l)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		if current == ifindex {
			return errors.Join(l.Update(prog), l.Close())
		}
		// The interface it was made for is gone and its number is in use again.
		if err := errors.Join(l.Unpin(), l.Close()); err != nil {
			return fmt.Errorf("stale pin: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	l, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: h.attach})
	if err != nil {
		return err
	}
	// Closing a link that is not pinned detaches it.
	return errors.Join(l.Pin(pin), l.Close())
}

// Detach takes both programs off an interface and removes their pins, the
// container's way out first. It is no error if there is nothing to detach, or if
// the interface has gone.
func (o *Objects) Detach(ifindex int) error {
	for _, h := range []hook{hookFrom, hookTo} {
		if err := removeLink(o.linkPin(ifindex, h)); err != nil {
			return fmt.Errorf("interface %d: %s: %w", ifindex, h.attach, err)
		}
	}
	return nil
}

// Attached lists the interfaces that have both links, in ascending order. An
// interface that has lost one (a crash between the two) is not listed, so that
// whoever compares this with what should be attaches it again.
func (o *Objects) Attached() ([]int, error) {
	links, err := o.links()
	if err != nil {
		return nil, err
	}
	hooks := make(map[int]int)
	for _, l := range links {
		if l.live {
			hooks[l.ifindex]++
		}
	}
	var attached []int
	for ifindex, n := range hooks {
		if n == 2 {
			attached = append(attached, ifindex)
		}
	}
	slices.Sort(attached)
	return attached, nil
}

// PruneLinks removes the pins of links whose interface is gone, and returns the
// interfaces' numbers, in ascending order.
func (o *Objects) PruneLinks() ([]int, error) {
	links, err := o.links()
	if err != nil {
		return nil, err
	}
	var pruned []int
	for _, l := range links {
		if l.live {
			continue
		}
		if err := removeLink(l.pin); err != nil {
			return pruned, fmt.Errorf("pin %s: %w", l.pin, err)
		}
		pruned = append(pruned, l.ifindex)
	}
	slices.Sort(pruned)
	return slices.Compact(pruned), nil
}

type pinnedLink struct {
	pin     string
	ifindex int
	live    bool // still attached to the interface the pin is named after
}

func (o *Objects) links() ([]pinnedLink, error) {
	dir := filepath.Join(o.dir, "links")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	var links []pinnedLink
	for _, e := range entries {
		number, _, _ := strings.Cut(e.Name(), "-")
		ifindex, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("links: %s is not a pin of ours: remove it", filepath.Join(dir, e.Name()))
		}
		p := pinnedLink{pin: filepath.Join(dir, e.Name()), ifindex: ifindex}
		l, err := link.LoadPinnedLink(p.pin, nil)
		if err != nil {
			return nil, fmt.Errorf("pin %s: %w", p.pin, err)
		}
		current, err := linkIfindex(l)
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, fmt.Errorf("pin %s: %w", p.pin, err)
		}
		p.live = current == ifindex
		links = append(links, p)
	}
	return links, nil
}

// linkIfindex is the interface that a link is attached to, 0 once it is gone.
func linkIfindex(l link.Link) (int, error) {
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("link info: %w", err)
	}
	tcx := info.TCX()
	if tcx == nil {
		return 0, errors.New("link info: not a TCX link: remove the pin")
	}
	return int(tcx.Ifindex), nil
}

// removeLink unpins and detaches. Detaching explicitly matters: another process
// may hold the link open, and the program must stop all the same.
func removeLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = l.Detach()
	return errors.Join(err, l.Unpin(), l.Close())
}

func (o *Objects) linkPin(ifindex int, h hook) string {
	return filepath.Join(o.dir, "links", strconv.Itoa(ifindex)+"-"+h.suffix)
}

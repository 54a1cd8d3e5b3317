package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// tcxLink is a TCX link, which the kernel detaches once it is neither pinned nor
// open, or its interface goes.
type tcxLink struct{ link.Link }

var _ holder = (*tcxLink)(nil)

// attachTCX attaches, as the first of the hook, and pins. ebpf.ErrNotSupported if the kernel has no TCX:
// package link tells that by trying it.
func (o *Objects) attachTCX(ifindex int, h hook, prog *ebpf.Program) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: h.attach, Anchor: link.Head()})
	if err != nil {
		return err
	}
	// Closing a link that is not pinned detaches it.
	return errors.Join(o.pinHolder(l, ifindex, h), l.Close())
}

func (l *tcxLink) live(ifindex int, _ hook) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("link info: %w", err)
	}
	tcx := info.TCX()
	if tcx == nil {
		return false, errors.New("link info: not a TCX link: remove the pin")
	}
	return int(tcx.Ifindex) == ifindex, nil // 0 once the interface is gone
}

func (l *tcxLink) detach(int, hook) error { return l.Detach() }

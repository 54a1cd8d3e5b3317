package testns

import (
	"errors"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// HasTCX tells whether the kernel has TCX (Linux 6.6), by trying. What is about TCX
// alone has no meaning without it.
var HasTCX = sync.OnceValues(func() (bool, error) {
	const next = -1 // TCX_NEXT
	ns, err := New("probe")
	if err != nil {
		return false, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "BSD", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, next), asm.Return()},
	})
	if err != nil {
		return false, errors.Join(err, ns.Close())
	}
	err = ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: lo.Attrs().Index, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		return l.Close()
	})
	has := !errors.Is(err, ebpf.ErrNotSupported)
	if !has {
		err = nil
	}
	return has, errors.Join(err, prog.Close(), ns.Close())
})

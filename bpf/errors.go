package bpf

import "errors"

var (
	// ErrNotBPFFS: the pin directory is not on a bpffs. MountBPFFS makes one.
	ErrNotBPFFS = errors.New("not on a bpffs: mount one there (varve does so with MountBPFFS) or choose another pin directory")
	// ErrIncompatiblePin: a pinned map has another type, size or layout than
	// these programs need. RemoveAll clears the pins; traffic stops until they
	// are built anew.
	ErrIncompatiblePin = errors.New("pinned map is incompatible: remove the pins, or ask for the size that the pinned map has")
	// ErrForeignFilter: on a kernel without TCX, another's filter is where ours has
	// to be. Remove it, or give it another priority.
	ErrForeignFilter = errors.New("the first place on the interface's clsact qdisc is taken by another's filter: remove it or give it another priority")
	// ErrUnknownLayout: programs run whose flows cannot be converted to this
	// binary's layout: they are of a newer binary, or of a much older one. Go by way
	// of a release between the two, or clear the pins by RemoveAll; traffic stops
	// until they are built anew.
	ErrUnknownLayout = errors.New("the programs in the kernel have a layout that this binary cannot take over from: use a release that knows both, or remove the pins")
	// ErrUnknownMap: Options.MapSizes names no map, or one of fixed size.
	ErrUnknownMap = errors.New("no such map, or one of fixed size")
)

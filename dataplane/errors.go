package dataplane

import (
	"errors"
	"fmt"
)

var (
	// ErrMapFull: the rows do not fit a map. Nothing that refers to them was
	// changed: the old policy holds everywhere. Always inside a *FullError.
	ErrMapFull = errors.New("map is full")
	// ErrPinsBusy: another agent runs on this directory of pins. Two would each take
	// the other's rows and interfaces for what a crash left.
	ErrPinsBusy = errors.New("another agent uses these BPF pins")
	// ErrPinsForeign: the pins, and the containers that hang on them, belong to the
	// log of another state directory.
	ErrPinsForeign = errors.New("BPF pins belong to another log")
	// ErrNoNamespace: the container's network namespace does not exist.
	ErrNoNamespace = errors.New("network namespace does not exist")
	// ErrForeignInterface: an interface of the name asked for exists and was not
	// made here.
	ErrForeignInterface = errors.New("interface exists and is not ours")
	// ErrNotContainer: the network namespace is the node's own, or is connected to
	// something else already. Its default route is not ours to replace.
	ErrNotContainer = errors.New("network namespace is not an unconnected container's")
	// ErrNoInterface: an interface that should have been made is not there.
	ErrNoInterface = errors.New("no such interface")
	// ErrNoBigTCP: the kernel does not know BIG TCP for the family asked for.
	ErrNoBigTCP = errors.New("this kernel has no BIG TCP for IPv4, which came with Linux 6.3")
	// ErrEventsBusy: another reader has the ring buffer; it has only one.
	ErrEventsBusy = errors.New("events are being read already")
)

// FullError says which map is too small and by how much.
type FullError struct {
	Map        string
	MaxEntries int
	// Need is the number of rows the map would have to hold at once: while a
	// change goes on, that is the old rows and the new ones.
	Need int
	// Unfit is the number of rows that did not fit.
	Unfit int
}

func (e *FullError) Error() string {
	return fmt.Sprintf("map %s: %d rows do not fit: the change needs %d at once, the map takes %d; raise its size with %s",
		e.Map, e.Unfit, e.Need, e.MaxEntries, SizeFlag(e.Map))
}

// SizeFlag is the agent's setting that gives a map its size.
func SizeFlag(name string) string {
	switch name {
	case "policy":
		return "bpf-policy-map-max"
	case "ct4", "ct6":
		return "bpf-ct-max"
	case "fragments":
		return "bpf-fragments-map-max"
	}
	return "bpf-map-max " + name + "=ENTRIES"
}

// Unwrap makes errors.Is(err, ErrMapFull) true.
func (e *FullError) Unwrap() error { return ErrMapFull }

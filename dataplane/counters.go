package dataplane

import "github.com/varve-net/varve/bpf"

// Counter is packets and bytes of one reason and direction, over all CPUs, since
// the maps were made.
type Counter = bpf.Counter

// Counters returns those that are not zero, by reason, egress first, and the
// number of events lost because the ring buffer was full.
func (d *Dataplane) Counters() (counters []Counter, lostEvents uint64, err error) {
	return d.objs.ReadCounters()
}

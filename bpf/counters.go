package bpf

import (
	"fmt"

	"github.com/varve-net/varve/bpf/abi"
)

// Counter is packets and bytes since the map was made, summed over CPUs.
type Counter struct {
	Reason    abi.Reason
	Direction abi.Direction
	// Audited: first packets that audit mode let pass. Reason is why they would have
	// been dropped; they are counted as forwarded as well.
	Audited bool
	Packets uint64
	Bytes   uint64
}

// ReadCounters returns every counter that is not zero, by reason, egress first,
// those of audit mode after the others, and the number of events that the ring buffer had no room for.
func (o *Objects) ReadCounters() (counters []Counter, lostEvents uint64, err error) {
	sum := func(i uint32) (Counter, error) {
		var percpu []abi.CounterValue
		if err := o.Counters.Lookup(i, &percpu); err != nil {
			return Counter{}, fmt.Errorf("map counters: element %d: %w", i, err)
		}
		var c Counter
		for _, v := range percpu {
			c.Packets += v.Packets
			c.Bytes += v.Bytes
		}
		return c, nil
	}
	for r := abi.Reason(0); r < abi.ReasonCount; r++ {
		for _, d := range []abi.Direction{abi.Egress, abi.Ingress} {
			c, err := sum(abi.CounterIndex(r, d))
			if err != nil {
				return nil, 0, err
			}
			if c.Packets > 0 {
				c.Reason, c.Direction = r, d
				counters = append(counters, c)
			}
		}
	}
	for _, r := range []abi.Reason{abi.PolicyDefaultDeny, abi.PolicyDenied} {
		for _, d := range []abi.Direction{abi.Egress, abi.Ingress} {
			c, err := sum(abi.AuditedIndex(r, d))
			if err != nil {
				return nil, 0, err
			}
			if c.Packets > 0 {
				c.Reason, c.Direction, c.Audited = r, d, true
				counters = append(counters, c)
			}
		}
	}
	lost, err := sum(abi.CounterLostEvents)
	return counters, lost.Packets, err
}

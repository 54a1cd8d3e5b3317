package dataplane

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// Flow is a conntrack entry.
type Flow struct {
	// Src opened the flow. For ICMP echo both ports are the identifier.
	Src, Dst    netip.AddrPort
	Protocol    uint8
	SrcIdentity uint32
	Denied      bool // judged again and denied: dropped both ways
	SeenReply   bool
	Proxy       bool // Src talks to the DNS proxy, whatever Dst says
	// TCP flags seen from either side, abi.TCPSyn and so on.
	SrcTCP, DstTCP uint8
	// Ifindex of the host side if that end is a local endpoint.
	SrcIfindex, DstIfindex int
	// ExpiresIn is what is left at the time of reading; not above 0: expired.
	ExpiresIn  time.Duration
	Row        uint64 // policy row that admitted it, 0: nothing is enforced
	Generation uint32
}

// Flows calls fn for each conntrack entry, expired ones included, IPv4 first. A
// flow that comes or goes meanwhile may be seen, or not, or twice.
func (d *Dataplane) Flows(ctx context.Context, fn func(Flow) error) error {
	return EachFlow(ctx, d.objs.CT4, d.objs.CT6, fn)
}

// EachFlow is Flows for who has only the maps.
func EachFlow(ctx context.Context, ct4, ct6 *ebpf.Map, fn func(Flow) error) error {
	now, err := bootSeconds()
	if err != nil {
		return err
	}
	err = eachBatch(ctx, ct4, func(keys []abi.CT4Key, values []abi.CTValue) error {
		for i, k := range keys {
			a := [2]netip.Addr{netip.AddrFrom4(k.Addr[0]), netip.AddrFrom4(k.Addr[1])}
			if err := fn(flow(a, k.PortBE, k.Protocol, values[i], now)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("map ct4: %w", err)
	}
	err = eachBatch(ctx, ct6, func(keys []abi.CT6Key, values []abi.CTValue) error {
		for i, k := range keys {
			a := [2]netip.Addr{netip.AddrFrom16(k.Addr[0]), netip.AddrFrom16(k.Addr[1])}
			if err := fn(flow(a, k.PortBE, k.Protocol, values[i], now)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("map ct6: %w", err)
	}
	return nil
}

func flow(addrs [2]netip.Addr, portsBE [2][2]byte, protocol uint8, v abi.CTValue, now uint32) Flow {
	src := v.Flags & abi.CTOrigin
	dst := 1 - src
	end := func(i uint32) netip.AddrPort {
		return netip.AddrPortFrom(addrs[i], binary.BigEndian.Uint16(portsBE[i][:]))
	}
	return Flow{
		Src: end(src), Dst: end(dst), Protocol: protocol, SrcIdentity: v.SrcIdentity,
		Denied: v.Flags&abi.CTDenied != 0, SeenReply: v.Flags&abi.CTSeenReply != 0,
		Proxy:  v.Flags&abi.CTProxy != 0,
		SrcTCP: v.Side[src].TCP, DstTCP: v.Side[dst].TCP,
		SrcIfindex: int(v.Side[src].Ifindex), DstIfindex: int(v.Side[dst].Ifindex),
		ExpiresIn: time.Duration(int64(v.ExpiresSeconds)-int64(now)) * time.Second,
		Row:       v.Row, Generation: v.Generation,
	}
}

// collectGrace is how long an entry stays after it expired. A program that has
// just found it may still be about to extend it.
const collectGrace = 2

// CollectFlows removes expired entries and returns how many. It may run while
// packets flow: an entry is read again right before it is removed, and a flow
// that loses its entry at that very moment is judged as a new one.
func (d *Dataplane) CollectFlows(ctx context.Context) (int, error) {
	now, err := bootSeconds()
	if err != nil {
		return 0, err
	}
	n4, err4 := collect[abi.CT4Key](ctx, d.objs.CT4, now)
	n6, err6 := collect[abi.CT6Key](ctx, d.objs.CT6, now)
	if err4 != nil {
		err4 = fmt.Errorf("map ct4: %w", err4)
	}
	if err6 != nil {
		err6 = fmt.Errorf("map ct6: %w", err6)
	}
	return n4 + n6, errors.Join(err4, err6)
}

func collect[K comparable](ctx context.Context, m *ebpf.Map, now uint32) (removed int, err error) {
	expired := func(v abi.CTValue) bool { return int64(v.ExpiresSeconds)+collectGrace < int64(now) }
	err = eachBatch(ctx, m, func(keys []K, values []abi.CTValue) error {
		for i, k := range keys {
			if !expired(values[i]) {
				continue
			}
			var v abi.CTValue
			err := m.Lookup(&k, &v)
			if err == nil && expired(v) {
				err = m.Delete(&k)
				if err == nil {
					removed++
				}
			}
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
		return nil
	})
	return removed, err
}

// bootSeconds is the clock that ExpiresSeconds is on.
func bootSeconds() (uint32, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("boot clock: %w", err)
	}
	return uint32(ts.Sec), nil
}

// Compare orders flows by protocol, source and destination.
func (f Flow) Compare(g Flow) int {
	return cmp.Or(cmp.Compare(f.Protocol, g.Protocol), f.Src.Compare(g.Src), f.Dst.Compare(g.Dst))
}

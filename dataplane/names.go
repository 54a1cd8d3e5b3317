package dataplane

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// NameRow is a row of the map `fqdn`: the classes of names by which an address is open to
// an endpoint.
type NameRow struct {
	Endpoint uint32
	Addr     netip.Addr
	Class    []uint64
	// Expires is when the kernel ceases to admit new connections by each class.
	Expires []time.Time
}

// Names reads the map `fqdn`, by endpoint and address.
func (d *Dataplane) Names(ctx context.Context) ([]NameRow, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return nil, err
	}
	now := time.Now()
	by := map[abi.FQDNKey]NameRow{} // one that is read twice is the same row
	err := EachName(ctx, d.objs.FQDN, func(keys []abi.FQDNKey, values []abi.FQDNValue) error {
		for i, k := range keys {
			row := NameRow{Endpoint: k.Endpoint, Addr: k.Addr.Addr()}
			for j, class := range values[i].Class {
				if class != 0 {
					row.Class = append(row.Class, class)
					row.Expires = append(row.Expires, now.Add(time.Duration(int64(values[i].ExpiresSeconds[j])*int64(time.Second)-ts.Nano())))
				}
			}
			by[k] = row
		}
		return nil
	})
	return slices.SortedFunc(maps.Values(by), func(a, b NameRow) int {
		x, y := a.Addr.As16(), b.Addr.As16()
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), bytes.Compare(x[:], y[:]))
	}), err
}

// EachName calls fn for the rows of the map `fqdn`, many at a time. What is written
// meanwhile may be among them or not. fn must not keep the slices.
func EachName(ctx context.Context, m *ebpf.Map, fn func([]abi.FQDNKey, []abi.FQDNValue) error) error {
	return eachBatch(ctx, m, fn)
}

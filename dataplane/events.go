package dataplane

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/varve-net/varve/bpf/abi"
)

// Event is a record of the ring buffer, decoded.
type Event struct {
	Type      abi.EventType
	Reason    abi.Reason
	Direction abi.Direction // whose policy or check decided
	// SinceBoot is when, on the boot clock.
	SinceBoot time.Duration
	Endpoint  uint32 // id of the endpoint that decided, 0 if none was found
	Ifindex   int
	EtherType uint16
	Protocol  uint8
	Src, Dst  netip.Addr
	// Ports; for ICMP the type and the code.
	SrcPort, DstPort uint16
	Length           int    // of the packet, in bytes
	SrcPeer, DstPeer uint64 // as the programs resolved them
	// Row of the policy that decided, 0: none did. Table is the one asked.
	Row, Table uint64
	// Drift is set if this is not of the ring buffer but tells what somebody else
	// has changed; of the rest, only SinceBoot and Endpoint mean something then.
	Drift *Drift
}

// eventPause is how long the reader of the ring buffer rests once it has caught up.
// The programs wake a reader that waits (bpf_ringbuf_submit without flags: only if
// all before has been consumed), and a wake-up costs more than the packet of the
// event. So the first event of a quiet time is read at once, and those that follow
// close behind it are read together, without a wake-up for each. The ring buffer
// holds 6,500 events: 330,000 a second for the length of a pause.
const eventPause = 20 * time.Millisecond

// Events calls fn for each record of the ring buffer until ctx ends, then returns
// nil; an error of fn ends it too and is returned. A record is late by 20 ms at
// most. One reader at a time: ErrEventsBusy. What fn is too slow for is lost and
// counted (Counters).
func (d *Dataplane) Events(ctx context.Context, fn func(Event) error) error {
	if !d.eventsBusy.TryLock() {
		return ErrEventsBusy
	}
	defer d.eventsBusy.Unlock()
	r, err := ringbuf.NewReader(d.objs.Events)
	if err != nil {
		return fmt.Errorf("map events: %w", err)
	}
	defer r.Close()
	// SetDeadline would wait for the read that it is to end; Close interrupts it.
	defer context.AfterFunc(ctx, func() { _ = r.Close() })()
	pause := time.NewTimer(eventPause)
	defer pause.Stop()
	var record ringbuf.Record
	for {
		err := r.ReadInto(&record)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("map events: %w", err)
		}
		e, err := decodeEvent(record.RawSample)
		if err != nil {
			return err
		}
		if err := fn(e); err != nil {
			return err
		}
		if record.Remaining > 0 {
			continue
		}
		pause.Reset(eventPause)
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}

// decodeEvent decodes a record as the programs write it.
func decodeEvent(raw []byte) (Event, error) {
	var e abi.Event
	// By its bytes: the layout is the programs' own, padding included, and package
	// encoding/binary would take a microsecond of every new flow.
	size := int(unsafe.Sizeof(e))
	// The ring buffer's records are padded to 8 bytes.
	if len(raw) < size {
		return Event{}, fmt.Errorf("map events: a record has %d bytes, an event %d", len(raw), size)
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), size), raw)
	be := binary.BigEndian
	out := Event{
		Type: e.Type, Reason: e.Reason, Direction: e.Direction, SinceBoot: time.Duration(e.TimeNS),
		Endpoint: e.Endpoint, Ifindex: int(e.Ifindex), EtherType: be.Uint16(e.EtherTypeBE[:]), Protocol: e.Protocol,
		SrcPort: be.Uint16(e.SrcPortBE[:]), DstPort: be.Uint16(e.DstPortBE[:]), Length: int(e.Length),
		SrcPeer: e.SrcPeer, DstPeer: e.DstPeer, Row: e.Row, Table: e.Table,
	}
	if !e.Src.IsZero() || !e.Dst.IsZero() {
		out.Src, out.Dst = e.Src.Addr(), e.Dst.Addr()
	}
	return out, nil
}

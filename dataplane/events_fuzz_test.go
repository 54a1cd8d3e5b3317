package dataplane

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/varve-net/varve/bpf/abi"
)

// FuzzDecodeEvent decodes a record of any bytes: no panic, an error exactly if it
// is too short for an event, and addresses as the record has them.
func FuzzDecodeEvent(f *testing.F) {
	var zero, drop bytes.Buffer
	e := abi.Event{Type: 1, Reason: 2, Protocol: 6, Endpoint: 3, SrcPortBE: [2]byte{0x1f, 0x90}, DstPortBE: [2]byte{0, 80}}
	for i := range e.Src {
		e.Src[i], e.Dst[i] = byte(i+1), byte(i+2)
	}
	for b, v := range map[*bytes.Buffer]abi.Event{&zero: {}, &drop: e} {
		if err := binary.Write(b, binary.NativeEndian, v); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(b.Bytes()[:b.Len()-1])
		f.Add(append(bytes.Clone(b.Bytes()), 0, 0, 0, 0))
	}
	f.Add([]byte(nil))
	size := binary.Size(abi.Event{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := decodeEvent(raw)
		if (err != nil) != (len(raw) < size) {
			t.Fatalf("%d bytes of %d: %v", len(raw), size, err)
		}
		if err != nil {
			if got != (Event{}) {
				t.Errorf("an error and %+v", got)
			}
			return
		}
		again, err := decodeEvent(append(bytes.Clone(raw[:size]), 0xff))
		if err != nil || again != got {
			t.Errorf("padding changes %+v to %+v, %v", got, again, err)
		}
		if got.Src == (netip.Addr{}) != (got.Dst == netip.Addr{}) {
			t.Errorf("one address only: %s and %s", got.Src, got.Dst)
		}
	})
}

func BenchmarkDecodeEvent(b *testing.B) {
	raw := make([]byte, binary.Size(abi.Event{}))
	raw[40], raw[56] = 1, 2 // addresses
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeEvent(raw); err != nil {
			b.Fatal(err)
		}
	}
}

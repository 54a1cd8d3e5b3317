package log

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestBatchRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "events")
		b := EncodeBatch(events)
		size := BatchOverhead
		for _, e := range events {
			size += BatchEventOverhead + len(e)
		}
		if len(b) > size {
			t.Fatalf("%d bytes, the overheads promise at most %d", len(b), size)
		}
		got, err := DecodeBatch(b)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, events, bytes.Equal) {
			t.Fatalf("got %x, want %x", got, events)
		}
		at := rapid.IntRange(0, 8*len(b)-1).Draw(t, "bit")
		b[at/8] ^= 1 << (at % 8)
		// One flipped bit in the version byte alone looks like another version.
		want := ErrCorrupt
		if at < 8 {
			want = ErrUpgradeNeeded
		}
		if _, err := DecodeBatch(b); !errors.Is(err, want) {
			t.Fatalf("bit %d flipped: %v, want %v", at, err, want)
		}
	})
}

// framed gives a body the header that makes its CRC right.
func framed(body ...byte) []byte {
	b := append([]byte{batchVersion, 0, 0, 0, 0}, body...)
	binary.LittleEndian.PutUint32(b[1:], Checksum(body))
	return b
}

func TestDecodeBatchRefuses(t *testing.T) {
	long := binary.AppendUvarint([]byte{1}, MaxEventBytes+1)
	newer := framed(0)
	newer[0]++
	damaged := bytes.Clone(newer)
	damaged[1]++
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"empty":                   {nil, ErrCorrupt},
		"short header":            {framed()[:4], ErrCorrupt},
		"no count":                {framed(), ErrCorrupt},
		"count of nothing":        {framed(1), ErrCorrupt},
		"count beyond the bytes":  {framed(0xff, 0xff, 0xff, 0xff, 0x0f), ErrCorrupt},
		"count overflows":         {framed(bytes.Repeat([]byte{0xff}, 11)...), ErrCorrupt},
		"event beyond the bytes":  {framed(1, 2, 'x'), ErrCorrupt},
		"event too long":          {framed(append(long, make([]byte, MaxEventBytes+1)...)...), ErrCorrupt},
		"bytes after the last":    {framed(1, 1, 'x', 'y'), ErrCorrupt},
		"too long":                {make([]byte, MaxBatchBytes+1), ErrCorrupt},
		"newer version":           {newer, ErrUpgradeNeeded},
		"other version, bad CRC":  {damaged, ErrCorrupt},
		"an empty batch is legal": {framed(0), nil},
	} {
		_, err := DecodeBatch(c.in)
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if corrupt := (*CorruptError)(nil); errors.Is(err, ErrCorrupt) && !errors.As(err, &corrupt) {
			t.Errorf("%s: %v is no *CorruptError", name, err)
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(EncodeBatch(nil))
	f.Add(EncodeBatch([][]byte{[]byte("a"), {}, []byte("bc")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= batchHeader { // let the fuzzer past the CRC
			b = bytes.Clone(b)
			binary.LittleEndian.PutUint32(b[1:], Checksum(b[batchHeader:]))
		}
		events, err := DecodeBatch(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUpgradeNeeded) {
				t.Fatalf("unclassified error: %v", err)
			}
			return
		}
		again, err := DecodeBatch(EncodeBatch(events))
		if err != nil || !slices.EqualFunc(again, events, bytes.Equal) {
			t.Fatalf("after re-encoding: %x, %v", again, err)
		}
	})
}

package flows

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/flows/flowpb"
	"github.com/varve-net/varve/log"
)

// block is what was seen from one moment to another.
type block struct {
	fromNS, toNS     int64
	gap              bool // nobody watched before it
	lost, overflowed uint64
	flows            []Flow
}

// dictionary gives values their index + 1 in a list.
type dictionary[T comparable] struct {
	index map[T]uint32
	all   []T
}

func (d *dictionary[T]) add(v T) uint32 {
	var none T
	if v == none {
		return 0
	}
	if i, ok := d.index[v]; ok {
		return i
	}
	if d.index == nil {
		d.index = map[T]uint32{}
	}
	d.all = append(d.all, v)
	d.index[v] = uint32(len(d.all))
	return d.index[v]
}

func (b *block) encode() ([]byte, error) {
	var strings dictionary[string]
	var addrs dictionary[netip.Addr]
	pb := &flowpb.Block{FromUnixNs: b.fromNS, ToUnixNs: b.toNS, Gap: b.gap, Lost: b.lost, Overflowed: b.overflowed}
	for i := range b.flows {
		f := &b.flows[i]
		out := &flowpb.Flow{
			Source: addrs.add(f.Src), Destination: addrs.add(f.Dst),
			SourceName: strings.add(f.SrcName), DestinationName: strings.add(f.DstName),
			SourceIdentity: f.SrcIdentity, DestinationIdentity: f.DstIdentity,
			Protocol: uint32(f.Protocol), Port: uint32(f.Port), Verdict: uint32(f.Verdict), Reason: uint32(f.Reason), Direction: uint32(f.Direction),
			Row: f.Row, FirstNs: uint64(max(0, f.FirstNS-b.fromNS)), LastNs: uint64(max(0, f.LastNS-b.fromNS)), Count: f.Count,
			FirstRevision: uint64(f.FirstRevision), MoreRevisions: uint64(f.LastRevision - f.FirstRevision),
		}
		for _, r := range f.Rules {
			out.Rules = append(out.Rules, strings.add(r))
		}
		pb.Flows = append(pb.Flows, out)
	}
	pb.Strings = strings.all
	for _, a := range addrs.all {
		pb.Addresses = append(pb.Addresses, a.AsSlice())
	}
	return proto.Marshal(pb)
}

// decodeBlock reads what encode wrote. It trusts nothing.
func decodeBlock(raw []byte) (*block, error) {
	pb := new(flowpb.Block)
	if err := proto.Unmarshal(raw, pb); err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, len(pb.Addresses)+1)
	for i, a := range pb.Addresses {
		var ok bool
		if addrs[i+1], ok = netip.AddrFromSlice(a); !ok {
			return nil, fmt.Errorf("address %d has %d bytes", i, len(a))
		}
	}
	texts := append([]string{""}, pb.Strings...)
	b := &block{fromNS: pb.FromUnixNs, toNS: pb.ToUnixNs, gap: pb.Gap, lost: pb.Lost, overflowed: pb.Overflowed, flows: make([]Flow, len(pb.Flows))}
	for i, f := range pb.Flows {
		for _, index := range append([]uint32{f.SourceName, f.DestinationName}, f.Rules...) {
			if int(index) >= len(texts) {
				return nil, fmt.Errorf("flow %d: string %d of %d", i, index, len(pb.Strings))
			}
		}
		if int(f.Source) >= len(addrs) || int(f.Destination) >= len(addrs) {
			return nil, fmt.Errorf("flow %d: address %d or %d of %d", i, f.Source, f.Destination, len(pb.Addresses))
		}
		b.flows[i] = Flow{
			Key: Key{
				Src: addrs[f.Source], Dst: addrs[f.Destination], SrcName: texts[f.SourceName], DstName: texts[f.DestinationName],
				SrcIdentity: f.SourceIdentity, DstIdentity: f.DestinationIdentity, Protocol: uint8(f.Protocol), Port: uint16(f.Port),
				Verdict: Verdict(f.Verdict), Reason: abi.Reason(f.Reason), Direction: abi.Direction(f.Direction), Row: f.Row,
			},
			FirstNS: b.fromNS + int64(f.FirstNs), LastNS: b.fromNS + int64(f.LastNs), Count: f.Count,
			FirstRevision: log.Revision(f.FirstRevision), LastRevision: log.Revision(f.FirstRevision + f.MoreRevisions),
		}
		for _, index := range f.Rules {
			b.flows[i].Rules = append(b.flows[i].Rules, texts[index])
		}
	}
	return b, nil
}

// A segment file is a header and frames:
//
//	header = magic "VARVEFLW" | version u32 | CRC32C of the 12 bytes before u32
//	frame  = length u32 | CRC32C of length and body u32 | body: a flowpb.Block
//
// Numbers are little-endian.
const (
	magic      = "VARVEFLW"
	version    = 1
	headerSize = 16
	frameSize  = 8
	// maxBody bounds what a damaged length can ask for; memory bounds real blocks.
	maxBody = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendHeader(b []byte) []byte {
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[len(b)-12:], castagnoli))
}

// checkHeader says what is wrong with a header.
func checkHeader(b []byte) error {
	switch {
	case len(b) < headerSize || string(b[:8]) != magic:
		return fmt.Errorf("no flow segment: it begins with %q", b[:min(len(b), 8)])
	case crc32.Checksum(b[:12], castagnoli) != binary.LittleEndian.Uint32(b[12:]):
		return fmt.Errorf("the header's checksum is wrong")
	case binary.LittleEndian.Uint32(b[8:]) != version:
		return fmt.Errorf("format %d: %w", binary.LittleEndian.Uint32(b[8:]), log.ErrUpgradeNeeded)
	}
	return nil
}

func appendFrame(b, body []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[start+4:], frameCRC(b[start:]))
	return b
}

func frameCRC(frame []byte) uint32 {
	return crc32.Update(crc32.Checksum(frame[:4], castagnoli), castagnoli, frame[frameSize:])
}

package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf/abi"
)

// BenchmarkPacket is the time of one run of a program on one packet, the kernel's
// test harness (some 38 ns) included, with 100k addresses in the ipcache and as
// many flows in conntrack.
func BenchmarkPacket(b *testing.B) {
	const n = 100_000
	sizes := smallSizes()
	sizes["ipcache"], sizes["ct4"], sizes["ct6"] = 131072, 262144, 131072
	w := newWorld(b, sizes)
	fill(b, w, n)
	// The harness gives every run the packet as the last one left it, so a's MAC is
	// what delivery writes as source.
	w.a.mac, w.a.value.MAC = gateway, gateway
	w.enforce(&w.a, abi.Egress, allow(abi.ClassPod, tcp, 80), allow(abi.ClassPod, udp, 80), allow(abi.ClassPod, sctp, 80))
	w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tcp, 80), allow(abi.ClassPod, udp, 80), allow(abi.ClassPod, sctp, 80))
	datagram := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: w.b.v4, proto: udp, dstPort: 80, payload: make([]byte, 400)}
	fragments := datagram.split(1, 0, 128)

	for _, bb := range []struct {
		name      string
		prog      *ebpf.Program
		p         pod
		f         frame
		counted   abi.Reason
		direction abi.Direction
	}{
		{"IPv4/established", w.o.FromContainer, w.a, frame{src: w.a.v4, dst: w.b.v4, proto: tcp, dstPort: 80, flags: ack}, abi.Forwarded, abi.Ingress},
		{"IPv6/established", w.o.FromContainer, w.a, frame{src: w.a.v6, dst: w.b.v6, proto: tcp, dstPort: 80, flags: ack}, abi.Forwarded, abi.Ingress},
		{"IPv4/to-container", w.o.ToContainer, w.b, frame{src: remote4, dst: w.b.v4, proto: tcp, dstPort: 80, flags: ack}, abi.Forwarded, abi.Ingress},
		{"IPv4/fragment", w.o.FromContainer, w.a, fragments[1], abi.Forwarded, abi.Ingress},
		{"IPv4/SCTP", w.o.FromContainer, w.a, frame{src: w.a.v4, dst: w.b.v4, proto: sctp, dstPort: 80}, abi.Forwarded, abi.Ingress},
		{"IPv6/hop-by-hop", w.o.FromContainer, w.a, frame{src: w.a.v6, dst: w.b.v6, proto: tcp, dstPort: 80, flags: ack, next: hopByHop, options: ext(tcp)}, abi.Forwarded, abi.Ingress},
		// A SYN on a flow that saw a RST opens it anew, each time.
		{"IPv4/reopened", w.o.FromContainer, w.a, frame{src: w.a.v4, dst: w.b.v4, proto: tcp, srcPort: 9, dstPort: 80, flags: syn | rst}, abi.Forwarded, abi.Ingress},
		{"IPv4/denied", w.o.FromContainer, w.a, frame{src: w.a.v4, dst: w.b.v4, proto: tcp, srcPort: 8, dstPort: 81, flags: syn}, abi.PolicyDefaultDeny, abi.Egress},
	} {
		b.Run(bb.name, func(b *testing.B) {
			f := bb.f
			f.srcMAC, f.dstMAC = bb.p.mac, gateway
			w.from(w.a, fragments[0])
			before := w.counters()[counterName(bb.counted, bb.direction)]
			data := append(f.bytes(), make([]byte, 64)...)
			var took time.Duration
			err := w.ns.Do(func() (err error) {
				opts := &ebpf.RunOptions{Data: data, Repeat: uint32(b.N), Context: skbContext{Ifindex: bb.p.ifindex}}
				start := time.Now()
				_, err = bb.prog.Run(opts)
				took = time.Since(start)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			if c := w.counters(); c[counterName(bb.counted, bb.direction)]-before < uint64(b.N) {
				b.Fatalf("not the path it is named after: %v", c)
			}
			b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/packet")
		})
	}
}

// fill puts n more addresses into the ipcache and n more flows into ct4.
func fill(b *testing.B, w *world, n int) {
	b.Helper()
	keys, values := make([]abi.IPCacheKey, n), make([]abi.IPCacheValue, n)
	flows, states := make([]abi.CT4Key, n), make([]abi.CTValue, n)
	for i := range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0a020000+uint32(i))
		keys[i].Addr = abi.AddrFrom(netip.AddrFrom4(a))
		values[i].Peer = uint64(1000 + i)
		flows[i] = abi.CT4Key{Addr: [2][4]byte{w.a.v4.As4(), a}, PortBE: [2][2]byte{{1, 1}, {0, 80}}, Protocol: tcp}
		states[i].ExpiresSeconds = 1 << 30
	}
	if _, err := w.o.IPCache.BatchUpdate(keys, values, nil); err != nil {
		b.Fatal(err)
	}
	if _, err := w.o.CT4.BatchUpdate(flows, states, nil); err != nil {
		b.Fatal(err)
	}
}

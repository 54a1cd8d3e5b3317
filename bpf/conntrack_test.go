package bpf

import (
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/bpf/abi"
)

// lifetime is how many seconds the only flow has left.
func (w *world) lifetime() int64 {
	w.t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		w.t.Fatal(err)
	}
	return int64(w.flow().ExpiresSeconds) - now.Sec
}

func TestLifetimes(t *testing.T) {
	w := newWorld(t, smallSizes())
	w.config(func(c *abi.Config) {
		c.TCPEstablishedSeconds, c.TCPSynSeconds, c.TCPClosingSeconds, c.OtherSeconds = 4000, 300, 100, 200
	})
	type step struct {
		reply bool
		flags uint8 // SCTP: chunk
		want  int64
	}
	for _, tt := range []struct {
		name  string
		proto uint8
		steps []step
	}{
		{"TCP orderly", tcp, []step{{false, syn, 300}, {false, syn, 300}, {true, syn | ack, 4000}, {false, ack, 4000}, {false, fin | ack, 4000}, {true, ack, 4000}, {true, fin | ack, 100}, {false, ack, 100}}},
		{"TCP refused", tcp, []step{{false, syn, 300}, {true, rst | ack, 100}}},
		{"TCP aborted", tcp, []step{{false, syn, 300}, {true, syn | ack, 4000}, {false, rst, 100}}},
		{"TCP reused after FIN", tcp, []step{{false, syn, 300}, {true, fin | ack, 4000}, {false, syn, 300}}},
		{"UDP", udp, []step{{false, 0, 200}, {true, 0, 200}, {false, 0, 200}}},
		{"SCTP orderly", sctp, []step{{false, 1, 300}, {true, 2, 4000}, {false, 0, 4000}, {false, 7, 4000}, {true, 8, 100}, {false, 14, 100}}},
		{"SCTP aborted", sctp, []step{{false, 1, 300}, {true, 2, 4000}, {true, 6, 100}}},
		{"SCTP again after SHUTDOWN", sctp, []step{{false, 1, 300}, {true, 2, 4000}, {false, 7, 4000}, {false, 1, 300}}},
		{"SCTP restart of a live one", sctp, []step{{false, 1, 300}, {true, 2, 4000}, {false, 1, 4000}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			families(t, func(t *testing.T, v family) {
				w.forget()
				for i, s := range tt.steps {
					request, reply := v.out(w.a, v.of(w.b), tt.proto, 40000, 80, s.flags), v.out(w.b, v.of(w.a), tt.proto, 80, 40000, s.flags)
					request.chunk, reply.chunk = s.flags, s.flags
					if s.reply {
						w.from(w.b, reply).accepted(t, redirected, abi.Egress, abi.Ingress)
					} else {
						w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)
					}
					if got := w.lifetime(); got > s.want+1 || got < s.want-2 {
						t.Errorf("step %d: %d s left, want %d", i, got, s.want)
					}
				}
			})
		})
	}
}

// TestReplyNeedsNoRule: the answer to an allowed flow passes whatever the answerer
// may send itself; without the flow it does not.
func TestReplyNeedsNoRule(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		w.enforce(&w.a, abi.Egress, allow(abi.ClassPod, tcp, 80))
		w.enforce(&w.b, abi.Ingress, allow(abi.ClassPod, tcp, 80))
		w.enforce(&w.a, abi.Ingress)
		w.enforce(&w.b, abi.Egress)
		request, reply := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn), v.out(w.b, v.of(w.a), tcp, 80, 40000, syn|ack)
		w.from(w.b, reply).refused(t, abi.PolicyDefaultDeny, abi.Egress)
		w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.from(w.b, reply).accepted(t, redirected, abi.Egress, abi.Ingress)
		// Expired, it is as if it had never been.
		w.editFlow(func(ct *abi.CTValue) { ct.ExpiresSeconds = 1 })
		w.from(w.b, reply).refused(t, abi.PolicyDefaultDeny, abi.Egress)
	})
}

// TestOpeningFromTheOtherSide: only an opening packet tells who opens; a flow is
// no permission for the other side to open one of the same ports.
func TestOpeningFromTheOtherSide(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		for _, proto := range []uint8{tcp, sctp} {
			w.forget()
			w.enforce(&w.b, abi.Egress)
			ab, ba := v.out(w.a, v.of(w.b), proto, 40000, 80, syn), v.out(w.b, v.of(w.a), proto, 80, 40000, syn)
			ab.chunk, ba.chunk = 1, 1
			w.from(w.a, ab).accepted(t, redirected, abi.Egress, abi.Ingress)
			was := w.flow()
			w.from(w.b, ba).refused(t, abi.PolicyDefaultDeny, abi.Egress)
			if w.flow() != was {
				t.Errorf("a refused packet changed the flow: %+v, was %+v", w.flow(), was)
			}
			w.enforce(&w.b, abi.Egress, allow(abi.ClassPod, proto, 40000))
			w.from(w.b, ba).accepted(t, redirected, abi.Egress, abi.Ingress)
			if f := w.flow(); f.Flags != abi.CTOrigin {
				t.Errorf("flags %d, want the flow to be b's", f.Flags)
			}
		}
	})
}

// TestRevocation walks a live flow through policy changes, seen from both sides.
func TestRevocation(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		for _, bumped := range []netip.Addr{v.of(w.a), v.of(w.b)} {
			w.forget()
			http := allow(abi.ClassPod, tcp, 80)
			w.unraised = false
			w.policy(&w.a, abi.Egress, false)
			w.enforce(&w.b, abi.Egress)
			w.enforce(&w.b, abi.Ingress, http)
			w.unraised = true
			request, reply := v.out(w.a, v.of(w.b), tcp, 40000, 80, syn), v.out(w.b, v.of(w.a), tcp, 80, 40000, ack)
			bump := func() { w.o.BumpGenerations(abi.AddrFrom(bumped)) }
			w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)
			request.flags = ack
			before := w.flow().Generation

			// Another policy that allows it too: undisturbed, and judged once.
			w.enforce(&w.b, abi.Ingress, row{abi.ClassPod, tcp, 90, 16, abi.VerdictDeny}, http)
			bump()
			w.from(w.b, reply).accepted(t, redirected, abi.Egress, abi.Ingress)
			if f := w.flow(); f.Generation != before+1 || f.Row != 2 {
				t.Errorf("generation %d row %d, want %d and 2", f.Generation, f.Row, before+1)
			}
			w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)

			// Without a new generation nothing is judged.
			w.enforce(&w.b, abi.Ingress)
			w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)

			// Revoked: cut at the next packet, be it a reply, and both ways from then on.
			bump()
			r := w.from(w.b, reply)
			if r.refused(t, abi.PolicyRevoked, abi.Ingress); r.events[0].Endpoint != w.b.value.ID || r.events[0].Table != w.table {
				t.Errorf("revoked by endpoint %d table %d, want b's", r.events[0].Endpoint, r.events[0].Table)
			}
			if w.flow().Flags&abi.CTDenied == 0 {
				t.Error("the flow is not marked as denied")
			}
			w.from(w.a, request).refused(t, abi.PolicyRevoked, abi.Egress)
			w.from(w.b, reply).refused(t, abi.PolicyRevoked, abi.Egress)

			// The other way round would be allowed, but the flow is a's.
			w.policy(&w.b, abi.Egress, false)
			bump()
			w.from(w.b, reply).refused(t, abi.PolicyRevoked, abi.Ingress)

			// Allowed again.
			w.enforce(&w.b, abi.Ingress, http)
			bump()
			w.from(w.b, reply).accepted(t, redirected, abi.Egress, abi.Ingress)
			w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)
			if w.flow().Flags&abi.CTDenied != 0 {
				t.Error("the flow is still marked as denied")
			}
		}
	})
}

// TestRevocationThroughHost is the same for a flow whose far side is not local.
func TestRevocationThroughHost(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		w.enforce(&w.a, abi.Ingress, allow(v.world, udp, 53))
		w.enforce(&w.a, abi.Egress)
		in, out := v.in(v.outside, w.a, udp, 5000, 53, 0), v.out(w.a, v.outside, udp, 53, 5000, 0)
		w.to(w.a, in).accepted(t, passed, abi.Ingress)
		w.from(w.a, out).accepted(t, passed, abi.Egress)
		w.o.BumpAllGenerations()
		w.from(w.a, out).accepted(t, passed, abi.Egress)
		w.enforce(&w.a, abi.Ingress)
		w.o.BumpAllGenerations()
		w.from(w.a, out).refused(t, abi.PolicyRevoked, abi.Ingress)
		w.to(w.a, in).refused(t, abi.PolicyRevoked, abi.Ingress)
	})
}

// TestMovedEndpoint: an address that another container now has.
func TestMovedEndpoint(t *testing.T) {
	w := newWorld(t, smallSizes())
	families(t, func(t *testing.T, v family) {
		w.forget()
		request, reply := v.out(w.a, v.of(w.b), udp, 1, 53, 0), v.out(w.b, v.of(w.a), udp, 53, 1, 0)
		w.from(w.a, request).accepted(t, redirected, abi.Egress, abi.Ingress)
		was := w.b
		w.b.mac, w.b.value.MAC = mac{2, 0, 0, 0, 0, 0xc}, mac{2, 0, 0, 0, 0, 0xc}
		w.policy(&w.b, abi.Ingress, false)
		w.o.BumpGenerations(abi.AddrFrom(v.of(w.b)))
		r := w.from(w.a, request)
		r.accepted(t, redirected, abi.Egress, abi.Ingress)
		if mac(r.out[:6]) != w.b.mac {
			t.Errorf("goes to %x, want the new %x", r.out[:6], w.b.mac)
		}
		w.from(w.b, reply).refused(t, abi.SpoofedMAC, abi.Egress)
		reply.srcMAC = w.b.mac
		w.from(w.b, reply).accepted(t, redirected, abi.Egress, abi.Ingress)
		w.b = was
		w.policy(&w.b, abi.Ingress, false)
	})
}

// TestGenerationSlots compares Go's slot with that of the programs for addresses
// that fill many slots: a bump must always be noticed.
func TestGenerationSlots(t *testing.T) {
	w := newWorld(t, smallSizes())
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var b6 [16]byte
		for i := range b6 {
			b6[i] = byte(rnd.Uint32())
		}
		b6[0] = 0x20
		b4 := [4]byte{20, b6[1], b6[2], b6[3]}
		for _, f := range []frame{
			{src: w.a.v4, dst: netip.AddrFrom4(b4)},
			{src: w.a.v6, dst: netip.AddrFrom16(b6)},
		} {
			w.forget()
			f.srcMAC, f.dstMAC, f.proto = w.a.mac, gateway, udp
			w.from(w.a, f).accepted(t, passed, abi.Egress)
			was := w.flow().Generation
			w.o.BumpGenerations(abi.AddrFrom(f.dst), abi.AddrFrom(f.dst))
			w.from(w.a, f).accepted(t, passed, abi.Egress)
			if got := w.flow().Generation; got != was+1 {
				t.Errorf("%s: generation %d after one bump of %d", f.dst, got, was)
			}
		}
	}
}

// TestConntrackFull loads the same programs with a table that does not evict.
func TestConntrackFull(t *testing.T) {
	w := newWorld(t, smallSizes())
	spec, err := loadEndpoint()
	if err != nil {
		t.Fatal(err)
	}
	if err := sizeMaps(spec, smallSizes(), filepath.Join(w.o.dir, "maps")); err != nil {
		t.Fatal(err)
	}
	replacements := w.o.Maps()
	delete(replacements, "ct4")
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	spec.Maps["ct4"].Type, spec.Maps["ct4"].MaxEntries = ebpf.Hash, 1
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer c.Close()
	f := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: w.b.v4, proto: udp, srcPort: 1}
	w.run(c.Programs["from_container"], w.a, f).accepted(t, redirected, abi.Egress, abi.Ingress)
	f.srcPort = 2
	w.run(c.Programs["from_container"], w.a, f).refused(t, abi.CTFull, abi.Ingress)
}

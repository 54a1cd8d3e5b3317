package bpf

import (
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/varve-net/varve/bpf/abi"
)

// TestReplacedRowIsNotAnothers: the kernel uses the memory of a replaced row again at
// once. A packet that is judged while the row of its endpoint is replaced by an equal
// one, and its memory becomes the row of an endpoint that may do everything, is still
// denied.
func TestReplacedRowIsNotAnothers(t *testing.T) {
	const packets = 300_000
	w := newWorld(t, smallSizes())
	// Every length of prefix is asked for: that takes long, and whether there is a
	// default deny is read after it.
	var rows []row
	for bits := range uint8(17) {
		rows = append(rows, row{abi.ClassAny, sctp, 0, bits, abi.VerdictAllow}, row{abi.ClassPod, sctp, 0, bits, abi.VerdictAllow})
	}
	w.enforce(&w.a, abi.Egress, rows...)
	free := w.a.value
	free.ID, free.Egress = 99, abi.PolicyRef{}
	var done atomic.Bool
	failed := make(chan error, 1)
	go func() {
		for !done.Load() {
			for _, put := range []struct {
				ifindex uint32
				v       abi.EndpointValue
			}{{w.a.ifindex, w.a.value}, {4711, free}} {
				if err := w.o.Endpoints.Update(abi.EndpointKey{Ifindex: put.ifindex}, put.v, ebpf.UpdateAny); err != nil {
					failed <- err
					return
				}
			}
			w.o.BumpGenerations(abi.AddrFrom(w.a.v4)) // as whoever writes a row does
		}
		failed <- nil
	}()
	before := w.counters()
	f := frame{srcMAC: w.a.mac, dstMAC: gateway, src: w.a.v4, dst: w.b.v4, proto: tcp, srcPort: 40000, dstPort: 80, flags: syn}
	err := w.ns.Do(func() error {
		_, err := w.o.FromContainer.Run(&ebpf.RunOptions{Data: f.bytes(), Repeat: packets, Context: skbContext{Ifindex: w.a.ifindex}})
		return err
	})
	done.Store(true)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	passed := w.counters()[counterName(abi.Forwarded, abi.Egress)] - before[counterName(abi.Forwarded, abi.Egress)]
	denied := w.counters()[counterName(abi.PolicyDefaultDeny, abi.Egress)] - before[counterName(abi.PolicyDefaultDeny, abi.Egress)]
	t.Logf("%d denied, %d passed", denied, passed)
	if passed > 0 {
		t.Errorf("%d packets passed by the row of another", passed)
	}
	if denied == 0 {
		t.Error("nothing was denied by policy")
	}
}

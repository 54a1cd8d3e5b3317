package policytest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/drawn"
	"github.com/varve-net/varve/internal/naive"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// drawCase draws the pods of a case; the policies come beside.
func drawCase(t *rapid.T) *testCase {
	c := &testCase{ID: "drawn", Namespaces: map[string]map[string]string{"default": {}}}
	for i := range rapid.IntRange(1, 4).Draw(t, "pods") {
		p := pod{Namespace: "default", Name: fmt.Sprintf("p%d", i), Labels: drawn.Labels(t), IP: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 3)})}
		if rapid.Bool().Draw(t, "IPv6") {
			p.IP = netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+3))
		}
		for _, n := range drawn.NamedPorts(t) {
			p.Ports = append(p.Ports, podPort{n.Name, uint32(n.Port), policy.ProtocolName(n.Protocol)})
		}
		c.Pods = append(c.Pods, p)
	}
	for id := abi.IdentityHost; id <= abi.IdentityIngress; id++ {
		if id != abi.IdentityWorld {
			c.Entities = append(c.Entities, policy.ReservedLabels(id)[0].Key)
		}
	}
	for _, s := range drawn.Addrs {
		a := netip.MustParseAddr(s)
		if !slices.ContainsFunc(c.Pods, func(p pod) bool { return p.IP == a }) {
			c.Externals = append(c.Externals, a)
		}
	}
	return c
}

// TestDifferential: random policies, labels and probes get the same verdict from the
// tables, from packets through the programs, and from the naive evaluator.
func TestDifferential(t *testing.T) {
	kernel := newTestKernel(t)
	verdicts, notAsked := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		c := drawCase(t)
		state, err := replay(c, drawn.Policies(t))
		if err != nil {
			t.Fatal(err)
		}
		view := state.View()
		tables, err := projections.Build(view, nodeName, projections.Options{})
		if err != nil {
			t.Fatal(err)
		}
		parties, err := gather(c, view, tables)
		if err != nil {
			t.Fatal(err)
		}
		packets, err := kernel.Load(t.Context(), tables)
		if err != nil {
			t.Fatal(err)
		}
		defer packets.Close()
		walk, err := Tables.Load(t.Context(), tables)
		if err != nil {
			t.Fatal(err)
		}
		policies := slices.Collect(view.Policies())
		ports := rapid.SliceOfNDistinct(rapid.SampledFrom(drawn.Ports), 3, 3, rapid.ID[uint16]).Draw(t, "ports")
		for _, subject := range parties[:len(c.Pods)] {
			for _, other := range parties {
				if other.addr == subject.addr || other.addr.IsValid() && other.addr.Is4() != subject.addr.Is4() {
					continue
				}
				for d := range abi.Direction(2) {
					for _, protocol := range drawn.Protocols {
						for _, port := range ports {
							q := question(d, subject, other, uint8(protocol), port)
							if icmp := protocol == 1 || protocol == 58; icmp && port > 255 {
								continue
							}
							want := naive.Allows(policies, policy.Direction(d), naiveParty(view, subject), naiveParty(view, other), uint8(protocol), port)
							for name, j := range map[string]Judge{"tables": walk, "bpf": packets} {
								got, err := j.Allows(q)
								if errors.Is(err, ErrNotAsked) {
									notAsked++
									continue
								}
								if err != nil {
									t.Fatal(err)
								}
								if verdicts++; got != want {
									t.Fatalf("%s of %s, %s, port %d/%d: %s %v, naive %v (%s)",
										policy.Direction(d), subject.name, other.name, port, protocol, name, got, want, j.Explain(q))
								}
							}
						}
					}
				}
			}
		}
	})
	t.Logf("%d verdicts, %d not asked", verdicts, notAsked)
	if verdicts < 5*notAsked {
		t.Errorf("%d verdicts, but %d not asked", verdicts, notAsked)
	}
}

func naiveParty(view fsm.View, p party) naive.Party {
	if p.endpoint != 0 {
		for e := range view.Endpoints() {
			if e.ID == p.endpoint {
				id, _ := view.Identity(e.Identity)
				return naive.Party{Endpoint: e, Labels: id.Labels}
			}
		}
	}
	if p.addr.IsValid() {
		return naive.Party{Addr: p.addr, Labels: policy.CIDRLabels(p.addr.Is6())}
	}
	return naive.Party{Reserved: uint32(p.peer), Labels: policy.ReservedLabels(uint32(p.peer))}
}

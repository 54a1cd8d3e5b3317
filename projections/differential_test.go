package projections

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/drawn"
	"github.com/varve-net/varve/internal/naive"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

func drawPolicies(t *rapid.T) []*fsm.Policy {
	var out []*fsm.Policy
	for i, set := range drawn.Policies(t) {
		p, err := policy.Compile(set)
		if err != nil {
			t.Fatalf("drawn policy: %v", err)
		}
		out = append(out, &fsm.Policy{Policy: p, Set: set, Revision: log.Revision(100 + i)})
	}
	return out
}

type world struct {
	facts   facts
	parties []naive.Party // endpoints first
}

func drawWorld(t *rapid.T) world {
	w := world{facts: facts{cluster: "default", revision: 7, policies: drawPolicies(t)}}
	identities := make(map[uint32]*fsm.Identity)
	byLabels := make(map[string]*fsm.Identity)
	for i := range rapid.IntRange(1, 5).Draw(t, "endpoints") {
		labels := drawn.Labels(t)
		e := &fsm.Endpoint{
			Ref: fsm.EndpointRef{Namespace: "default", Name: fmt.Sprintf("e%d", i)}, ID: uint32(i + 1),
			Node: rapid.SampledFrom([]string{"one", "one", "two"}).Draw(t, "node"), Labels: labels,
			AuditMode: rapid.IntRange(0, 5).Draw(t, "endpoint audit") == 0,
			IPv4:      netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+2)),
		}
		for _, n := range drawn.NamedPorts(t) {
			e.NamedPorts = append(e.NamedPorts, fsm.NamedPort(n))
		}
		ls := policy.EndpointLabels("default", "default", nil, labels, "")
		id, ok := byLabels[ls.String()]
		if !ok {
			id = &fsm.Identity{ID: uint32(256 + len(byLabels)), Labels: ls, Revision: log.Revision(i + 1)}
			byLabels[ls.String()], identities[id.ID] = id, id
		}
		e.Identity = id.ID
		w.facts.endpoints = append(w.facts.endpoints, e)
		w.parties = append(w.parties, naive.Party{Endpoint: e, Labels: ls})
	}
	w.facts.identity = func(id uint32) (*fsm.Identity, bool) { i, ok := identities[id]; return i, ok }
	w.facts.nodes = []*fsm.Node{
		{Name: "one", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		{Name: "two", Addresses: []netip.Addr{netip.MustParseAddr("192.0.3.1")}},
	}
	for id := abi.IdentityHost; id <= abi.IdentityIngress; id++ {
		if id != abi.IdentityWorld {
			w.parties = append(w.parties, naive.Party{Reserved: id, Labels: policy.ReservedLabels(id)})
		}
	}
	for _, s := range drawn.Addrs {
		a := netip.MustParseAddr(s)
		p := naive.Party{Addr: a, Labels: policy.CIDRLabels(a.Is6())}
		switch {
		case s == "10.0.0.1":
			p = naive.Party{Reserved: abi.IdentityHost, Labels: policy.ReservedLabels(abi.IdentityHost)}
		case s == "192.0.3.1":
			p = naive.Party{Reserved: abi.IdentityRemoteNode, Labels: policy.ReservedLabels(abi.IdentityRemoteNode)}
		case slices.ContainsFunc(w.facts.endpoints, func(e *fsm.Endpoint) bool { return e.IPv4 == a || e.IPv6 == a }):
			continue
		}
		w.parties = append(w.parties, p)
	}
	return w
}

// number is the peer as the tables know it.
func number(p naive.Party, tables *Tables) uint64 {
	switch {
	case p.Endpoint != nil:
		return tables.PeerOf(p.Endpoint.IPv6)
	case p.Addr.IsValid():
		return tables.PeerOf(p.Addr)
	}
	return uint64(p.Reserved)
}

func TestTablesAgreeWithNaiveEvaluator(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		tables, err := build(w.facts, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, subject := range w.parties {
			if subject.Endpoint == nil || subject.Endpoint.Node != "one" {
				continue
			}
			for _, other := range w.parties {
				peer := number(other, tables)
				for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
					for _, protocol := range drawn.Protocols {
						for _, port := range drawn.Ports {
							q := Question{
								Endpoint: subject.Endpoint.ID, Direction: abi.Direction(d),
								Peer: peer, Protocol: uint8(protocol), Port: port,
							}
							got, err := tables.Verdict(q)
							if err != nil {
								t.Fatal(err)
							}
							want, audited := naive.Audits(w.facts.policies, d, subject, other, uint8(protocol), port)
							if (got.Verdict == abi.VerdictAllow) != want {
								t.Fatalf("%s of %s, other %+v, port %d/%d: tables allow %v, naive %v\nrow %+v\npolicies %s",
									d, subject.Endpoint.Ref.Name, other, port, protocol, !want, want, got.Row, describe(w.facts.policies))
							}
							if got.Audited != audited {
								t.Fatalf("%s of %s, other %+v, port %d/%d: tables say audited %v, naive %v\nrow %+v\npolicies %s",
									d, subject.Endpoint.Ref.Name, other, port, protocol, !audited, audited, got.Row, describe(w.facts.policies))
							}
							if !got.Default && len(got.Row.Cause.Rules) == 0 {
								t.Fatalf("row %+v has no rule", got.Row)
							}
						}
					}
				}
			}
		}
	})
}

func describe(policies []*fsm.Policy) string {
	var b strings.Builder
	for _, p := range policies {
		for _, s := range p.Policy.Specs {
			fmt.Fprintf(&b, "\n%s on %s, default deny %v, audit %v", p.Policy.Ref, s.Subject, s.DefaultDeny, s.Audit)
			for _, r := range s.Rules {
				fmt.Fprintf(&b, "\n  %s any=%v all=%v ports=%v peers=", r.Section, r.AnyPeer, r.AllPorts, r.Ports)
				for _, peer := range r.Peers {
					fmt.Fprintf(&b, "[%s]", peer.Key())
				}
			}
		}
	}
	return b.String()
}

// What is built for one endpoint alone gives it the verdicts, rows and classes that
// the whole node's tables do.
func TestBuildEndpointIsPartOfBuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		whole, err := build(w.facts, "one", Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range w.facts.endpoints {
			if e.Node != "one" {
				continue
			}
			f := w.facts
			f.subject = func(other *fsm.Endpoint, _ *fsm.Identity) bool { return other == e }
			part, err := build(f, "one", Options{})
			if err != nil {
				t.Fatal(err)
			}
			want, _ := whole.Endpoints.Get(EndpointKey{e.ID})
			if got, ok := part.Endpoints.Get(EndpointKey{e.ID}); !ok || part.Endpoints.Len() != 1 || got.Value != want.Value {
				t.Fatalf("%d endpoint rows, want %+v", part.Endpoints.Len(), want)
			}
			for _, other := range w.parties {
				for _, d := range []abi.Direction{abi.Egress, abi.Ingress} {
					for _, protocol := range drawn.Protocols {
						for _, port := range drawn.Ports[2:8] {
							ask := func(tables *Tables) Answer {
								a, err := tables.Verdict(Question{Endpoint: e.ID, Direction: d, Peer: number(other, tables), Protocol: uint8(protocol), Port: port})
								if err != nil {
									t.Fatal(err)
								}
								return a
							}
							got, want := ask(part), ask(whole)
							if got.Verdict != want.Verdict || got.Default != want.Default || got.Class != want.Class ||
								got.Row != nil && (got.Row.Value != want.Row.Value || !sameCause(got.Row.Cause, want.Row.Cause)) {
								t.Fatalf("endpoint %s, other %+v: got %+v, want %+v", e.Ref.Name, other, got, want)
							}
						}
					}
				}
			}
		}
	})
}

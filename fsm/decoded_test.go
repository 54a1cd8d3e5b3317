package fsm

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/log/eventpb"
)

// applyPoisoned applies events from one buffer, which is overwritten after each: of
// its bytes the state must have kept none.
func applyPoisoned(t interface{ Fatal(...any) }, s *State, events ...[]byte) {
	var buf []byte
	for _, b := range events {
		buf = append(buf[:0], b...)
		if _, _, err := s.Apply(buf); err != nil {
			t.Fatal(err)
		}
		for i := range buf {
			buf[i] = 0xa5
		}
	}
}

func TestStateKeepsNothingOfAnEvent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := drawHistory(t)
		want, got := New(testCluster), New(testCluster)
		for _, b := range history {
			if _, _, err := want.Apply(b); err != nil {
				t.Fatal(err)
			}
		}
		applyPoisoned(t, got, history...)
		sameViews(t, "over bytes that were overwritten", got.View(), want.View())
		if !maps.Equal(got.owners, want.owners) || !maps.Equal(got.byLabels, want.byLabels) || !maps.Equal(got.learned, want.learned) {
			t.Fatal("the indexes differ")
		}
		if !slices.Equal(got.changes, want.changes) {
			t.Fatalf("the journal has %+v, want %+v", got.changes, want.changes)
		}
	})
}

// The same with every field of an endpoint set, in events that make it, change it,
// replace it with the same and with other values, and delete it.
func TestStateKeepsNothingOfAFullEvent(t *testing.T) {
	full := func(incarnation uint64, suffix string) *eventpb.Event {
		e := create("n1", "default", "db", incarnation, "10.0.0."+suffix, labels("app", "db"+suffix, "tier", "x"), seq(10*incarnation), id(fmt.Sprint("c", incarnation)))
		c := e.GetEndpointCreated()
		c.Addresses = append(c.Addresses, ip("2001:db8::"+suffix))
		c.ServiceAccount, c.NetnsId, c.Netns = "robot"+suffix, "4:"+suffix, "/run/netns/"+suffix
		c.HostInterface, c.ContainerInterface = "vv"+suffix, "eth"+suffix
		c.NamedPorts = []*eventpb.NamedPort{{Name: "http" + suffix, Protocol: 6, Port: 80}}
		return e
	}
	change := update("n1", "default", "db", 2, labels("app", "other"), seq(25))
	change.GetEndpointUpdated().ServiceAccount = "changed"
	change.GetEndpointUpdated().NamedPorts = []*eventpb.NamedPort{{Name: "dns", Protocol: 17, Port: 53}}
	events := []*eventpb.Event{full(1, "7"), full(2, "7"), change, full(3, "8")}
	gone := append(slices.Clone(events), deleteEndpoint("n1", "default", "db", 3, seq(40)))
	for n, history := range [][]*eventpb.Event{events[:1], events[:2], events[:3], events, gone} {
		want, got := base(t), base(t)
		var all [][]byte
		for _, e := range history {
			all = append(all, marshal(t, e))
			want.ok(e)
		}
		applyPoisoned(t, got.State, all...)
		sameViews(t, "over bytes that were overwritten", got.View(), want.View())
		if !maps.Equal(got.owners, want.owners) || !slices.Equal(got.changes, want.changes) {
			t.Errorf("history %d: owners %v, want %v; changes %+v, want %+v", n, got.owners, want.owners, got.changes, want.changes)
		}
		for namespace, needs := range want.known {
			for workload := range needs {
				if _, ok := got.known[namespace][workload]; !ok {
					t.Errorf("history %d: a workload of %s is not known", n, namespace)
				}
			}
		}
	}
}

package fsm

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// mixed is the history of a cluster with pods endpoints on 10 nodes in 20
// namespaces under 100 policies: they are created, then churned. Of the churn
// four in ten events relabel an endpoint, four replace one, one sets a policy
// and one in a hundred is a namespace's. Every event has a request id.
func mixed(t testing.TB, pods, churn int) [][]byte {
	var history [][]byte
	var seqs [10]uint64
	incarnation := make([]uint64, pods)
	add := func(e *eventpb.Event) {
		e.RequestId = fmt.Sprintf("0190b4a2-7c3e-7a10-8000-%012d", len(history))
		e.TimeUnixNs = 1_700_000_000*second + int64(len(history))*1000
		history = append(history, marshal(t, e))
	}
	node := func(i int) string { return fmt.Sprintf("node-%d", i%10) }
	next := func(i int) option { seqs[i%10]++; return seq(seqs[i%10]) }
	where := func(i int) (string, string) { return fmt.Sprintf("team-%d", i%20), fmt.Sprintf("web-%d", i) }
	pod := func(i, app int) {
		incarnation[i]++
		namespace, name := where(i)
		e := create(node(i), namespace, name, incarnation[i], addr(i), labels("app", fmt.Sprintf("app-%d", app), "tier", "web", "version", "v1"), next(i))
		e.GetEndpointCreated().HostInterface, e.GetEndpointCreated().Netns = fmt.Sprintf("vv%d", i), "/run/netns/"+name
		add(e)
	}
	for i := range 10 {
		add(join(node(i), []string{fmt.Sprintf("192.0.2.%d", i+1)}, next(i)))
	}
	for i := range 20 {
		add(setNamespace(fmt.Sprintf("team-%d", i), labels("team", fmt.Sprint(i))))
	}
	for i := range pods {
		pod(i, i%40)
	}
	for n := range churn {
		i := n * 7919 % pods
		namespace, name := where(i)
		switch k := n % 10; {
		case n%1000 == 999: // touches pods/20 endpoints
			add(setNamespace(fmt.Sprintf("team-%d", n/1000%20), labels("team", fmt.Sprint(n%20), "rev", fmt.Sprint(n/20_000))))
		case k < 5:
			add(update(node(i), namespace, name, incarnation[i], labels("app", fmt.Sprintf("app-%d", n%41), "tier", "web", "version", "v2"), next(i)))
		case k < 9:
			pod(i, n%40)
		default:
			add(setPolicy(cnp(namespace, fmt.Sprintf("policy-%d", n%100)), fmt.Sprintf("app-%d", n%40)))
		}
	}
	return history
}

// BenchmarkApplyMixed applies to a state of 10,000 endpoints, with a View after
// each batch of 64, as raft does. One op is one event, from bytes to state.
func BenchmarkApplyMixed(b *testing.B) {
	history := mixed(b, 10_000, 100_000)
	b.ReportAllocs()
	b.ResetTimer()
	var s *State
	applied := 0
	for n := range b.N {
		if n%len(history) == 0 {
			s = New(testCluster)
		}
		_, r, err := s.Apply(history[n%len(history)])
		if err != nil {
			b.Fatal(err)
		}
		if r.Outcome == log.OutcomeApplied {
			applied++
		}
		if n%64 == 63 {
			s.View()
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	if applied != b.N {
		b.Fatalf("%d of %d events were applied", applied, b.N)
	}
}

// One kind of event at a time, over 1,000 endpoints.
func BenchmarkApply(b *testing.B) {
	run := func(name string, event func(n int) *eventpb.Event) {
		b.Run(name, func(b *testing.B) {
			f := newFold(b)
			for _, e := range mixed(b, 1000, 0) {
				if _, _, err := f.Apply(e); err != nil {
					b.Fatal(err)
				}
			}
			events := make([][]byte, 2)
			for n := range events {
				events[n] = marshal(b, event(n))
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if _, r, err := f.Apply(events[n%2]); err != nil || r.Outcome != log.OutcomeApplied {
					b.Fatalf("%+v, %v", r, err)
				}
			}
		})
	}
	run("policy", func(n int) *eventpb.Event {
		return setPolicy(cnp("team-1", "p"), fmt.Sprintf("app-%d", n))
	})
	run("update", func(n int) *eventpb.Event {
		return update("node-1", "team-1", "web-1", 1, labels("app", fmt.Sprintf("app-%d", n), "tier", "web"))
	})
	run("relabel of 50", func(n int) *eventpb.Event {
		return setNamespace("team-1", labels("n", fmt.Sprint(n)))
	})
}

func BenchmarkView(b *testing.B) {
	f := newFold(b)
	for _, e := range mixed(b, 10_000, 0) {
		if _, _, err := f.Apply(e); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		f.View()
	}
}

func BenchmarkSnapshot(b *testing.B) {
	f := newFold(b)
	for _, e := range mixed(b, 10_000, 20_000) {
		if _, _, err := f.Apply(e); err != nil {
			b.Fatal(err)
		}
	}
	v := f.View()
	file := snapshot(b, v)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			if err := v.WriteSnapshot(io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			if _, err := ReadSnapshot(bytes.NewReader(file)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

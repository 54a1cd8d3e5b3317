package metrics

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
)

// gather is every series of one scrape: its value, or a histogram's count. The
// key is the name without varve_, and the labels' values by the labels' names.
func (k *kit) gather() map[string]float64 {
	k.t.Helper()
	families, err := k.registry.Gather()
	if err != nil {
		k.t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		name, ours := strings.CutPrefix(f.GetName(), namespace+"_")
		if !ours {
			continue
		}
		for _, m := range f.Metric {
			key := name
			for _, l := range m.Label {
				key += " " + l.GetValue()
			}
			switch f.GetType() {
			case dto.MetricType_GAUGE:
				out[key] = m.GetGauge().GetValue()
			case dto.MetricType_COUNTER:
				out[key] = m.GetCounter().GetValue()
			case dto.MetricType_HISTOGRAM:
				out[key] = float64(m.GetHistogram().GetSampleCount())
			default:
				k.t.Fatalf("%s is a %s", f.GetName(), f.GetType())
			}
		}
	}
	return out
}

// expect compares some series; those wanted to be -1 must not be there.
func (k *kit) expect(want map[string]float64) {
	k.t.Helper()
	all := k.gather()
	got := map[string]float64{}
	for key := range want {
		if v, ok := all[key]; ok {
			got[key] = v
		} else {
			got[key] = -1
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		k.t.Errorf("series (-want +got):\n%s", diff)
	}
}

func TestScrapeTellsWhatIs(t *testing.T) {
	k := newKit(t)
	k.mustAppend(joined())
	k.mustAppend(created("web", 2))
	k.mustAppend(created("client", 3))
	k.mustAppend(policySet(t, "web"))
	k.round(dataplane.Stats{}, nil)
	k.mustAppend(policySet(t, "more")) // not in force
	k.kernel.lost = 7
	k.kernel.counters = []dataplane.Counter{
		counter(abi.Forwarded, abi.Egress, 10, 1000), counter(abi.Forwarded, abi.Ingress, 9, 900),
		counter(abi.PolicyDefaultDeny, abi.Ingress, 2, 120),
	}
	k.unready[fsm.EndpointRef{Namespace: "default", Name: "client"}] = "no-interface"
	k.unready[fsm.EndpointRef{Namespace: "default", Name: "gone"}] = "disconnected"
	k.ObserveFlows(250, 1)

	k.expect(map[string]float64{"log_revision": -1, "log_append_total applied": 5})
	k.attach()
	k.expect(map[string]float64{
		"log_revision": 5, "log_apply_lag": 1, "log_history_first_revision": 1,
		"policy": 2, "identity cluster_local": 2, "identity reserved": 10, "nodes_all_num": 1,
		"endpoint_state ready": 1, "endpoint_state no-interface": 1, "endpoint_state disconnected": -1,
		"forward_count_total EGRESS": 10, "forward_bytes_total INGRESS": 900,
		"drop_count_total INGRESS policy default deny": 2, "drop_bytes_total INGRESS policy default deny": 120,
		"drop_count_total EGRESS policy default deny": 0, "drop_count_total INGRESS forwarded": -1,
		"events_lost_total":    7,
		"bpf_map_pressure ct4": 0.25, "bpf_map_pressure ct6": 0.002,
		"bpf_map_pressure endpoints":                                        0.5,
		"build_info " + runtime.GOARCH + " " + runtime.GOOS + " go1 abc v1": 1,
	})
	size, err := k.log.HistoryBytes()
	if got := k.gather()["log_history_bytes"]; err != nil || got != float64(size) || size == 0 {
		t.Errorf("history of %g bytes, want %d (%v)", got, size, err)
	}
	k.NotReady("the agent is stopping")
	k.expect(map[string]float64{"log_revision": -1, "policy": -1})
}

func TestCountsOfAViewFollowIt(t *testing.T) {
	k := newKit(t)
	k.attach()
	k.expect(map[string]float64{"nodes_all_num": 0, "endpoint_state ready": 0, "identity cluster_local": 0})
	k.mustAppend(joined())
	k.mustAppend(created("web", 2))
	k.expect(map[string]float64{"nodes_all_num": 1, "endpoint_state ready": 1, "identity cluster_local": 1})
}

func TestLogAppends(t *testing.T) {
	k := newKit(t)
	e := policySet(t, "web")
	e.RequestId = "once"
	k.mustAppend(e)
	if r := k.append(e); r.Outcome != log.OutcomeRepeat {
		t.Fatalf("%+v", r)
	}
	e = policySet(t, "web")
	e.ExpectedRevision = new(uint64)
	if r := k.append(e); r.Outcome != log.OutcomeConflict {
		t.Fatalf("%+v", r)
	}
	if r := k.append(policyDeleted("missing")); r.Outcome != log.OutcomeRejected {
		t.Fatalf("%+v", r)
	}
	// The client is answered first.
	if err := k.log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.expect(map[string]float64{
		"log_append_total applied": 1, "log_append_total repeat": 1, "log_append_total conflict": 1,
		"log_append_total rejected": 1, "log_append_total error": 0, "log_commit_seconds": 4,
	})
}

func TestRounds(t *testing.T) {
	k := newKit(t)
	k.attach()
	k.mustAppend(joined())
	k.mustAppend(created("web", 2))
	k.mustAppend(policySet(t, "web"))
	k.round(dataplane.Stats{
		Endpoints: dataplane.Changes{Added: 1, Updated: 2}, IPCacheLPM: dataplane.Changes{Added: 2}, Policy: dataplane.Changes{Deleted: 4},
	}, nil)
	full := func(name string, unfit int) error { return &dataplane.FullError{Map: name, Unfit: unfit} }
	k.round(dataplane.Stats{Policy: dataplane.Changes{Added: 99}}, fmt.Errorf("sync: %w", errors.Join(full("policy", 5), full("classes", 6))))
	k.round(dataplane.Stats{}, errors.New("map policy: update: EPERM"))
	k.ObserveRound(Round{Revision: 9, Build: time.Second, Err: errors.New("revision 9: no such identity")})
	k.expect(map[string]float64{
		"endpoint_regenerations_total success": 1, "endpoint_regenerations_total fail": 3,
		"endpoint_regeneration_time_stats_seconds policyCalculation success": 3,
		"endpoint_regeneration_time_stats_seconds policyCalculation fail":    1,
		"endpoint_regeneration_time_stats_seconds mapSync success":           1,
		"endpoint_regeneration_time_stats_seconds mapSync fail":              2,
		"endpoint_regeneration_time_stats_seconds total fail":                3,
		"bpf_map_ops_total endpoints update success":                         3,
		"bpf_map_ops_total ipcache_lpm update success":                       2,
		"bpf_map_ops_total policy delete success":                            4,
		"bpf_map_ops_total policy update success":                            0, // what failed is not counted as done
		"bpf_map_ops_total policy update fail":                               5,
		"bpf_map_ops_total classes update fail":                              6,
	})
}

// Whatever the history of rounds, the two maps of the ipcache have the rows that
// the table has for them.
func TestPressureOfTheTwoIPCaches(t *testing.T) {
	k := newKit(t)
	k.attach()
	check := func(when string) {
		t.Helper()
		m := k.gather()
		exact, trie := 0, 0
		for p := range k.tables.IPCache.All() {
			if p.Key.PrefixLen == 128 {
				exact++
			} else {
				trie++
			}
		}
		if exact == 0 || trie == 0 {
			t.Fatalf("%s: %d and %d rows prove nothing", when, exact, trie)
		}
		got := [2]float64{m["bpf_map_pressure ipcache"] * 100, m["bpf_map_pressure ipcache_lpm"] * 10}
		if want := [2]float64{float64(exact), float64(trie)}; !cmp.Equal(got, want) {
			t.Errorf("%s: rows %v, want %v", when, got, want)
		}
	}
	k.mustAppend(joined())
	k.mustAppend(created("web", 2))
	k.round(dataplane.Stats{}, nil)
	check("first round")
	k.mustAppend(created("client", 3))
	k.round(dataplane.Stats{IPCache: dataplane.Changes{Added: 1}}, nil)
	check("an address more")
	k.mustAppend(policySet(t, "web"))
	k.round(dataplane.Stats{IPCacheLPM: dataplane.Changes{Added: 1}}, nil)
	check("a range more")
	k.mustAppend(policyDeleted("web"))
	k.round(dataplane.Stats{}, errors.New("interrupted half way"))
	k.round(dataplane.Stats{}, nil)
	check("after a failure")
	k.round(dataplane.Stats{Unbound: []uint32{1}}, nil)
	k.expect(map[string]float64{"bpf_map_pressure endpoints": 0.25})
}

func TestHooks(t *testing.T) {
	k := newKit(t)
	k.Bootstrapped("overall", time.Second)
	k.DigestMismatch(DigestTables)
	k.MapDriftRepaired("policy", 3)
	k.expect(map[string]float64{
		"agent_bootstrap_seconds success overall": 1, "digest_mismatch_total tables": 1,
		"map_drift_repaired_total policy": 3, "map_drift_repaired_total classes": 0,
	})
}

func TestNames(t *testing.T) {
	k := newKit(t)
	k.attach()
	k.mustAppend(joined())
	k.round(dataplane.Stats{}, nil)
	k.Bootstrapped("overall", time.Second)
	var names []string
	families, err := k.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), namespace+"_") {
			names = append(names, f.GetName())
		}
	}
	if len(names) < 20 {
		t.Fatalf("only %d metrics", len(names))
	}
	problems, err := testutil.GatherAndLint(k.registry, names...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestServer(t *testing.T) {
	k := newKit(t)
	s := serve(t, k.Metrics)
	steps := []struct {
		name string
		do   func()
		code int
		body string
	}{
		{"before anything", func() {}, 503, "the agent is starting\n"},
		{"with a reason", func() { k.NotReady("the log is being read") }, 503, "the log is being read\n"},
		{"enforcing", k.attach, 200, "ok\n"},
		{"not in force", func() { k.health = errors.New("revision 5: map policy is full") }, 503, "revision 5: map policy is full\n"},
		{"stopping", func() { k.NotReady("the agent is stopping") }, 503, "the agent is stopping\n"},
	}
	for _, step := range steps {
		step.do()
		if code, body := get(t, s, "/healthz"); code != step.code || body != step.body {
			t.Errorf("%s: %d %q, want %d %q", step.name, code, body, step.code, step.body)
		}
	}
	if code, body := get(t, s, "/metrics"); code != http.StatusOK || !strings.Contains(body, "\nvarve_build_info{") || !strings.Contains(body, "\ngo_goroutines ") || !strings.Contains(body, "\nprocess_open_fds ") {
		t.Errorf("metrics: %d\n%s", code, body)
	}
	if code, _ := get(t, s, "/"); code != http.StatusNotFound {
		t.Errorf("/: %d", code)
	}
	resp, err := http.Post("http://"+s.Addr().String()+"/metrics", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}

func TestServeNamesTheFlag(t *testing.T) {
	k := newKit(t)
	s := serve(t, k.Metrics)
	if _, err := k.Serve(s.Addr().String()); err == nil || !strings.HasPrefix(err.Error(), "prometheus-serve-addr "+s.Addr().String()+": ") {
		t.Errorf("a port that is taken: %v", err)
	}
}

// A part that cannot be read leaves the rest readable, and is told.
func TestScrapeOfWhatCannotBeRead(t *testing.T) {
	k := newKit(t)
	s := serve(t, k.Metrics)
	k.attach()
	k.kernel.fail = errTest
	code, body := get(t, s, "/metrics")
	if code != http.StatusOK || !strings.Contains(body, "\nvarve_log_revision 0\n") || strings.Contains(body, "\nvarve_drop_count_total") {
		t.Errorf("%d\n%s", code, body)
	}
	if _, err := k.registry.Gather(); !strings.Contains(fmt.Sprint(err), errTest.Error()) {
		t.Errorf("gather: %v", err)
	}
}

// What a scrape reads is closed only after NotReady has returned.
func TestNotReadyWaitsForScrapes(t *testing.T) {
	k := newKit(t)
	k.kernel.entered, k.kernel.proceed = make(chan struct{}), make(chan struct{})
	k.attach()
	scraped, detached := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := k.registry.Gather()
		scraped <- err
	}()
	<-k.kernel.entered
	go func() {
		defer close(detached)
		k.NotReady("the agent is stopping")
	}()
	for k.mu.TryRLock() { // until NotReady waits for the lock, or has had it
		k.mu.RUnlock()
		select {
		case <-detached:
			t.Fatal("NotReady returned in the middle of a scrape")
		case <-time.After(time.Millisecond):
		}
	}
	close(k.kernel.proceed)
	<-detached
	if err := <-scraped; err != nil {
		t.Error(err)
	}
}

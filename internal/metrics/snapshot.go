package metrics

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// Log is the log as a scrape reads it.
type Log interface {
	View() fsm.View
	Head() (log.Revision, log.Hash)
	First() log.Revision
	HistoryBytes() (int64, error)
	// HistoryLost is how many revisions are known to be lost.
	HistoryLost() uint64
	ClockBehind() time.Duration
}

// Datapath is the kernel's side as a scrape reads it.
type Datapath interface {
	Counters() (counters []dataplane.Counter, lostEvents uint64, err error)
	Capacities() map[string]int
}

// Sources is what a scrape asks. All of it must answer at once, and from any
// goroutine.
type Sources struct {
	Node     string
	Log      Log
	Datapath Datapath
	// InForce is the revision of the tables in force.
	InForce func() log.Revision
	// Unready has a word, out of few, for the state of each local endpoint that
	// is not ready. Endpoints that no longer exist may be in it.
	Unready func() map[fsm.EndpointRef]string
	// Flows is how the flow record does; nil: there is none.
	Flows func() flows.Stats
	// Health is why the node does not enforce what its log says, or nil.
	Health func() error
}

// Attach makes scrapes ask s, and /healthz s.Health.
func (m *Metrics) Attach(s Sources) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sources = &s
}

// NotReady detaches what was attached, and returns when no scrape uses it any
// more. reason is what /healthz says from now on.
func (m *Metrics) NotReady(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sources, m.notReady = nil, reason
}

// Health is why the node does not enforce what its log says, or nil.
func (m *Metrics) Health() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.sources == nil {
		return errors.New(m.notReady)
	}
	return m.sources.Health()
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

// What a scrape asks for.
var (
	descPolicy        = desc("policy", "Policies in the state.")
	descPolicyMax     = desc("policy_max_revision", "Revision of the last policy change that is in force on this node.")
	descIdentity      = desc("identity", "Identities allocated, by type.", "type")
	descNodes         = desc("nodes_all_num", "Nodes of the cluster.")
	descEndpointState = desc("endpoint_state", "Endpoints of this node, by state.", "endpoint_state")
	descPressure      = desc("bpf_map_pressure", "Rows of a BPF map as a part of what it takes: 1 is full.", "map_name")
	descDropCount     = desc("drop_count_total", "Packets dropped, by reason and direction.", "reason", "direction")
	descAuditCount    = desc("policy_audit_count_total", "First packets of flows that audit mode let pass, by why policy would have dropped them and direction.", "reason", "direction")
	descDropBytes     = desc("drop_bytes_total", "Bytes of packets dropped, by reason and direction.", "reason", "direction")
	descForwardCount  = desc("forward_count_total", "Packets let through, by direction.", "direction")
	descForwardBytes  = desc("forward_bytes_total", "Bytes of packets let through, by direction.", "direction")
	descEventsLost    = desc("events_lost_total", "Drop and flow events for which the ring buffer had no room.")
	descRevision      = desc("log_revision", "Revision of the log's head on this node.")
	descLag           = desc("log_apply_lag", "Revisions by which the tables in force are behind the log's head.")
	descHistoryBytes  = desc("log_history_bytes", "Size of the files that keep every record.")
	descFlowBytes     = desc("flow_store_bytes", "Size of the files of the flow record.")
	descFlowEvents    = desc("flow_store_events_total", "Events that the flow record took in since the agent's start.")
	descFlowMissing   = desc("flow_store_missing_events", "Events that are missing in the time that the flow record covers.", "reason")
	descFlowOldest    = desc("flow_store_oldest_timestamp_seconds", "Time from which the flow record is kept.")
	descHistoryLost   = desc("log_history_lost_revisions", "Revisions that cannot be read from the node's history, as far as it was checked.")
	descClockBehind   = desc("log_clock_behind_seconds", "Seconds by which the node's clock is behind the effective time of the log's last event.")
	descHistoryFirst  = desc("log_history_first_revision", "Oldest revision that is still kept.")
)

// snapshot collects what is there at the time of a scrape: nothing before there
// is something to ask.
type snapshot struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (snapshot) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descPolicy, descPolicyMax, descIdentity, descNodes, descEndpointState, descPressure, descDropCount, descDropBytes,
		descForwardCount, descForwardBytes, descEventsLost, descRevision, descLag, descHistoryBytes, descHistoryFirst, descHistoryLost, descClockBehind,
		descFlowBytes, descFlowEvents, descFlowMissing, descFlowOldest,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s snapshot) Collect(ch chan<- prometheus.Metric) {
	s.m.mu.RLock()
	defer s.m.mu.RUnlock()
	src := s.m.sources
	if src == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}

	// The head comes last: it may move meanwhile, and a lag is never negative.
	inForce := src.InForce()
	view := src.Log.View()
	head, _ := src.Log.Head()
	gauge(descRevision, float64(head))
	gauge(descLag, float64(head)-float64(inForce))
	gauge(descHistoryFirst, float64(src.Log.First()))
	gauge(descHistoryLost, float64(src.Log.HistoryLost()))
	gauge(descClockBehind, src.Log.ClockBehind().Seconds())
	if size, err := src.Log.HistoryBytes(); err != nil {
		ch <- prometheus.NewInvalidMetric(descHistoryBytes, err)
	} else {
		gauge(descHistoryBytes, float64(size))
	}

	c := s.m.counted.of(view, src.Node)
	gauge(descPolicy, float64(c.policies))
	gauge(descPolicyMax, float64(s.m.rounds.policyRevision()))
	gauge(descIdentity, float64(c.identities), "cluster_local")
	gauge(descIdentity, float64(reservedIdentities), "reserved")
	gauge(descNodes, float64(c.nodes))
	for state, n := range states(view, src, c.endpoints) {
		gauge(descEndpointState, float64(n), state)
	}
	capacities := src.Datapath.Capacities()
	for name, rows := range s.m.fill.counts() {
		if capacity := capacities[name]; capacity > 0 {
			gauge(descPressure, float64(rows)/float64(capacity), name)
		}
	}
	collectCounters(src.Datapath, ch)
	if src.Flows != nil {
		collectFlows(src.Flows(), ch)
	}
}

func collectFlows(st flows.Stats, ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descFlowBytes, float64(st.Bytes))
	gauge(descFlowMissing, float64(st.Lost), "lost")
	gauge(descFlowMissing, float64(st.Overflowed), "overflowed")
	if st.FromNS != 0 {
		gauge(descFlowOldest, float64(st.FromNS)/1e9)
	}
	ch <- prometheus.MustNewConstMetric(descFlowEvents, prometheus.CounterValue, float64(st.Observed))
}

// states counts the local endpoints by state.
func states(view fsm.View, src *Sources, endpoints int) map[string]int {
	n := map[string]int{}
	for ref, state := range src.Unready() {
		if ep, ok := view.Endpoint(ref); ok && ep.Node == src.Node {
			n[state]++
			endpoints--
		}
	}
	n["ready"] = endpoints
	return n
}

// directions are named as in Cilium.
var directions = [2]string{abi.Egress: "EGRESS", abi.Ingress: "INGRESS"}

func collectCounters(d Datapath, ch chan<- prometheus.Metric) {
	counters, lost, err := d.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descDropCount, err)
		return
	}
	var sums, audited [abi.ReasonCount][2]dataplane.Counter
	for _, c := range counters {
		if c.Audited {
			audited[c.Reason][c.Direction] = c
		} else {
			sums[c.Reason][c.Direction] = c
		}
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	counter(descEventsLost, lost)
	for _, r := range []abi.Reason{abi.PolicyDefaultDeny, abi.PolicyDenied} {
		for dir, c := range audited[r] {
			counter(descAuditCount, c.Packets, r.String(), directions[dir])
		}
	}
	for reason, by := range sums {
		for dir, c := range by {
			if r := abi.Reason(reason); r == abi.Forwarded {
				counter(descForwardCount, c.Packets, directions[dir])
				counter(descForwardBytes, c.Bytes, directions[dir])
			} else {
				counter(descDropCount, c.Packets, r.String(), directions[dir])
				counter(descDropBytes, c.Bytes, r.String(), directions[dir])
			}
		}
	}
}

// counted is the sizes of a View, kept as long as its revision is the newest.
type counted struct {
	mu    sync.Mutex
	known bool
	sizes
}

type sizes struct {
	revision                               log.Revision
	policies, identities, nodes, endpoints int // endpoints: of this node
}

func (c *counted) of(view fsm.View, node string) sizes {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known && c.revision == view.Revision() {
		return c.sizes
	}
	s := sizes{revision: view.Revision()}
	for range view.Policies() {
		s.policies++
	}
	for range view.Identities() {
		s.identities++
	}
	for n := range view.Nodes() {
		if !n.Left {
			s.nodes++
		}
	}
	for ep := range view.Endpoints() {
		if ep.Node == node {
			s.endpoints++
		}
	}
	c.sizes, c.known = s, true
	return s
}

// reservedIdentities is how many numbers have a fixed meaning.
var reservedIdentities = func() (n int) {
	for id := range abi.IdentityFirstDynamic {
		if policy.ReservedLabels(id) != nil {
			n++
		}
	}
	return n
}()

// Package metrics shows what an agent does to Prometheus. Names begin with
// varve_; where Cilium has a metric of the rest of the name, it means the same
// here. docs/metrics.md lists all of them, and a test compares.
//
// What happens is observed as it happens (ObserveRound, ObserveCommit and so on);
// what is, is asked for at a scrape, from Sources. A scrape reads counters, sizes
// and the immutable View: never a whole map of the kernel, and never anything
// under the lock of who writes it. So enforcement does not wait for a scrape.
package metrics

import (
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/internal/version"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog"
)

const namespace = "varve"

// Values of the labels outcome and status, as in Cilium.
const (
	success = "success"
	fail    = "fail"
)

// Scopes of endpoint_regeneration_time_stats_seconds, as in Cilium.
const (
	scopeTotal  = "total"
	scopePolicy = "policyCalculation"
	scopeSync   = "mapSync"
)

// Values of the label operation.
const (
	opUpdate = "update"
	opDelete = "delete"
)

// DigestTables is the tables' digest, in the projection and in the kernel.
const DigestTables = "tables"

// outcomeError is the outcome of an append that got none.
const outcomeError = "error"

// outcomes name what Apply makes of an event.
var outcomes = map[log.Outcome]string{
	log.OutcomeApplied:  "applied",
	log.OutcomeRejected: "rejected",
	log.OutcomeConflict: "conflict",
	log.OutcomeRepeat:   "repeat",
}

// Metrics is all metrics of an agent. Safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	logger   *slog.Logger

	policyDelay       prometheus.Histogram
	regenerationTime  *prometheus.HistogramVec // scope, status
	regenerations     *prometheus.CounterVec   // outcome
	mapOps            *prometheus.CounterVec   // map_name, operation, outcome
	bootstrap         *prometheus.HistogramVec // scope, outcome
	commits           prometheus.Histogram
	appends           *prometheus.CounterVec // outcome
	digestMismatches  *prometheus.CounterVec // digest
	mapDriftsRepaired *prometheus.CounterVec // map_name

	rounds rounds
	fill   fill

	mu       sync.RWMutex
	sources  *Sources // nil while there is nothing to ask
	notReady string   // why not

	counted counted
}

// New makes the metrics of an agent that is about to start.
func New(v version.Info, logger *slog.Logger) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), logger: logger, notReady: "the agent is starting"}
	m.policyDelay = histogram("policy_implementation_delay",
		"Seconds from a policy change's event to its being in force in the datapath of this node.", 0.0005, 18)
	m.regenerationTime = histograms("endpoint_regeneration_time_stats_seconds",
		"Time to bring all endpoints of this node to a revision, by scope: policyCalculation builds the tables, mapSync writes the difference.",
		0.0001, 18, "scope", "status")
	m.regenerations = counters("endpoint_regenerations_total",
		"Attempts to bring all endpoints of this node to a revision, by outcome.", "outcome")
	m.mapOps = counters("bpf_map_ops_total",
		"Rows written to and deleted from the BPF maps of tables.", "map_name", "operation", "outcome")
	m.bootstrap = histograms("agent_bootstrap_seconds",
		"Time since the process's start at the end of a phase of the agent's start.", 0.01, 14, "scope", "outcome")
	m.commits = histogram("log_commit_seconds",
		"Time from proposing a Raft entry to its being durable and applied; an entry holds all events that waited.", 0.0001, 16)
	m.appends = counters("log_append_total",
		"Events appended, by what became of them.", "outcome")
	m.digestMismatches = counters("digest_mismatch_total",
		"Comparisons of two digests that must be equal and were not.", "digest")
	m.mapDriftsRepaired = counters("map_drift_repaired_total",
		"Rows of BPF maps that somebody else had changed and that were put right.", "map_name")
	m.preset()

	m.registry.MustRegister(
		m.policyDelay, m.regenerationTime, m.regenerations, m.mapOps, m.bootstrap, m.commits, m.appends,
		m.digestMismatches, m.mapDriftsRepaired, buildInfo(v), snapshot{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// preset makes the series whose labels are known, so that the first increase
// is seen as one.
func (m *Metrics) preset() {
	for _, name := range mapNames {
		m.mapOps.WithLabelValues(name, opUpdate, success)
		m.mapOps.WithLabelValues(name, opDelete, success)
		m.mapOps.WithLabelValues(name, opUpdate, fail)
		m.mapDriftsRepaired.WithLabelValues(name)
	}
	for _, o := range outcomes {
		m.appends.WithLabelValues(o)
	}
	m.appends.WithLabelValues(outcomeError)
	m.digestMismatches.WithLabelValues(DigestTables)
	for _, o := range []string{success, fail} {
		m.regenerations.WithLabelValues(o)
	}
}

func buildInfo(v version.Info) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "1; the labels say which varve this is.",
		ConstLabels: prometheus.Labels{
			"version": v.Version, "revision": v.Commit, "goversion": v.Go, "goos": runtime.GOOS, "goarch": runtime.GOARCH,
		},
	})
	g.Set(1)
	return g
}

// histogram has count buckets that begin at first seconds and double.
func histogram(name, help string, first float64, count int) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(first, 2, count),
	})
}

func histograms(name, help string, first float64, count int, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(first, 2, count),
	}, labels)
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

// ObserveCommit counts one entry of the log. It is a raftlog.Config.Observe.
func (m *Metrics) ObserveCommit(c raftlog.Commit) {
	if c.Err != nil {
		m.appends.WithLabelValues(outcomeError).Add(float64(c.Events))
		return
	}
	m.commits.Observe(c.Took.Seconds())
	var by [8]int
	for _, r := range c.Results {
		by[r.Outcome&7]++
	}
	for o, name := range outcomes {
		if n := by[o]; n > 0 {
			m.appends.WithLabelValues(name).Add(float64(n))
		}
	}
}

// ObserveRound counts one round of the projection loop.
func (m *Metrics) ObserveRound(r Round) {
	outcome, built := success, success
	if r.Err != nil {
		outcome = fail
	}
	if r.Tables == nil {
		built = fail
	} else {
		m.regenerationTime.WithLabelValues(scopeSync, outcome).Observe(r.Sync.Seconds())
	}
	m.regenerationTime.WithLabelValues(scopePolicy, built).Observe(r.Build.Seconds())
	m.regenerationTime.WithLabelValues(scopeTotal, outcome).Observe((r.Build + r.Sync).Seconds())
	m.regenerations.WithLabelValues(outcome).Inc()
	if r.Err != nil {
		m.countUnfit(r.Err)
		m.fill.doubt()
		return
	}
	for name, c := range changes(&r.Stats) {
		m.mapOps.WithLabelValues(name, opUpdate, success).Add(float64(c.Added + c.Updated))
		m.mapOps.WithLabelValues(name, opDelete, success).Add(float64(c.Deleted))
	}
	m.fill.set(r.Tables, &r.Stats)
	m.rounds.ended(r.Revision, r.Ended)
}

// countUnfit counts the rows that full maps did not take. Several maps may be
// full at once.
func (m *Metrics) countUnfit(err error) {
	var several interface{ Unwrap() []error }
	if errors.As(err, &several) {
		for _, e := range several.Unwrap() {
			m.countUnfit(e)
		}
		return
	}
	var full *dataplane.FullError
	if errors.As(err, &full) {
		m.mapOps.WithLabelValues(full.Map, opUpdate, fail).Add(float64(full.Unfit))
	}
}

// ObserveFlows takes the number of conntrack entries, which are counted from time
// to time and not at a scrape.
func (m *Metrics) ObserveFlows(ipv4, ipv6 int) { m.fill.setFlows(ipv4, ipv6) }

// Bootstrapped notes when a phase of the agent's start had ended, counted from
// the start of the process.
func (m *Metrics) Bootstrapped(scope string, after time.Duration) {
	m.bootstrap.WithLabelValues(scope, success).Observe(after.Seconds())
}

// DigestMismatch counts a comparison that found two digests to differ that must
// be equal; digest says of what.
func (m *Metrics) DigestMismatch(digest string) { m.digestMismatches.WithLabelValues(digest).Inc() }

// MapDriftRepaired counts rows of a map that somebody else had changed and that
// are right again.
func (m *Metrics) MapDriftRepaired(mapName string, rows int) {
	m.mapDriftsRepaired.WithLabelValues(mapName).Add(float64(rows))
}

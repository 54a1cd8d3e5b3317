package dns

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-net/varve/dataplane/dns/relay"
	"github.com/varve-net/varve/dataplane/dns/wire"
)

// Metrics is what a proxy shows to Prometheus; docs/dns.md lists it. Names begin
// with varve_; where Cilium has a metric of the rest of the name, it means the same.
type Metrics struct {
	requests  *prometheus.CounterVec   // rule
	upstream  *prometheus.HistogramVec // error, protocol
	total     prometheus.Histogram
	late      prometheus.Counter
	unfit     prometheus.Counter
	collected prometheus.Counter
	names     prometheus.Gauge
	addresses prometheus.Gauge
	logLost   prometheus.Counter
}

const namespace = "varve"

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	seconds := prometheus.ExponentialBuckets(0.00005, 2, 18) // 50 us to 6.5 s
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "policy_l7_total",
			Help: "DNS questions of containers, by what policy said: received, forwarded, denied, parse_errors.",
		}, []string{"rule"}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "proxy_upstream_reply_seconds", Buckets: seconds,
			Help: "Seconds until a DNS server answered, or was given up on.",
		}, []string{"error", "protocol"}),
		total: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "proxy_datapath_update_seconds", Buckets: seconds,
			Help: "Seconds from a DNS server's answer until it was given to the container.",
		}),
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "proxy_datapath_update_timeout_total",
			Help: "DNS answers that were not applied within tofqdns-proxy-response-max-delay, so that the container was told SERVFAIL.",
		}),
		unfit: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "fqdn_classes_unfit_total",
			Help: "Classes of names that were left out of an address's row because it was full.",
		}),
		collected: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "fqdn_gc_deletions_total",
			Help: "Addresses of names that expired and are no longer in use.",
		}),
		names:     prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "fqdn_active_names", Help: "Names that endpoints have asked for and that are kept."}),
		addresses: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "fqdn_active_ips", Help: "Addresses that are kept under names."}),
		logLost: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "fqdn_log_lost_total", Help: "Questions that are missing in the log of questions.",
		}),
	}
	r.MustRegister(m.requests, m.upstream, m.total, m.late, m.unfit, m.collected, m.names, m.addresses, m.logLost)
	for _, rule := range []string{"received", "forwarded", "denied", "parse_errors"} {
		m.requests.WithLabelValues(rule)
	}
	return m
}

// observer counts questions; the counters are looked up once.
type observer struct {
	received, forwarded, denied, malformed prometheus.Counter
	upstream                               map[uint8]prometheus.Observer
	m                                      *Metrics
}

func (m *Metrics) observer() *observer {
	return &observer{
		received: m.requests.WithLabelValues("received"), forwarded: m.requests.WithLabelValues("forwarded"),
		denied: m.requests.WithLabelValues("denied"), malformed: m.requests.WithLabelValues("parse_errors"),
		upstream: map[uint8]prometheus.Observer{relay.UDP: m.upstream.WithLabelValues("", "udp"), relay.TCP: m.upstream.WithLabelValues("", "tcp")},
		m:        m,
	}
}

func (o *observer) observe(e *relay.Exchange) {
	o.received.Inc()
	switch {
	case e.Verdict == relay.Rejected:
		o.denied.Inc()
		return
	case e.Verdict == relay.Malformed:
		o.malformed.Inc()
		return
	}
	o.forwarded.Inc()
	switch {
	case e.Upstream > 0:
		o.upstream[e.Protocol].Observe(e.Upstream.Seconds())
		o.m.total.Observe((e.Total - e.Upstream).Seconds())
	case e.RCode == wire.ServFail:
		protocol := "udp"
		if e.Protocol == relay.TCP {
			protocol = "tcp"
		}
		o.m.upstream.WithLabelValues(errorLabel(e.Problem), protocol).Observe(e.Total.Seconds())
	}
	if e.Problem == relay.NotApplied {
		o.m.late.Inc()
	}
}

// errorLabel is a short name of a problem.
func errorLabel(p relay.Problem) string {
	switch p {
	case relay.ServerSilent:
		return "timeout"
	case relay.ServerGone:
		return "refused"
	case relay.ServerAbsent:
		return "unreachable"
	case relay.BadReply:
		return "malformed"
	case relay.TooMany:
		return "overload"
	}
	return "other"
}

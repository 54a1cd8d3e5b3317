package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/metrics"
	"github.com/varve-net/varve/internal/version"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog"
	"github.com/varve-net/varve/projections"
)

// Phases of a start, as scopes of varve_agent_bootstrap_seconds; the names are
// Cilium's.
const (
	phaseRestore  = "restore"  // the log was replayed
	phaseBPF      = "bpfBase"  // programs and maps are loaded, and the node is set up
	phaseMaps     = "mapsInit" // the maps hold what the log says
	phaseOverall  = "overall"  // the API answers
	stateNotReady = "invalid"
)

// newMetrics makes the metrics and, if there is an address, serves them until
// stop. They are observed in any case: that costs little.
func newMetrics(cfg *Config) (met *metrics.Metrics, stop func() error, err error) {
	v := version.Get()
	if cfg.Version != "" {
		v.Version = cfg.Version
	}
	met = metrics.New(v, cfg.Logger)
	if cfg.PrometheusServeAddr == "" {
		return met, func() error { return nil }, nil
	}
	srv, err := met.Serve(cfg.PrometheusServeAddr)
	if err != nil {
		return nil, nil, err
	}
	return met, srv.Close, nil
}

// sources is what scrapes ask of an agent that enforces.
func sources(node string, l *raftlog.Log, dp metrics.Datapath, proj *projector, eps *endpoints, recorded *flows.Store) metrics.Sources {
	s := metrics.Sources{
		Node: node, Log: l, Datapath: dp, Unready: eps.unready, Health: proj.Err,
		InForce: func() log.Revision {
			if t := proj.Current(); t != nil {
				return t.Revision
			}
			return 0
		},
	}
	if recorded != nil {
		s.Flows = recorded.Stats
	}
	return s
}

// follow observes how long policy changes take to come into force. Without it
// the agent does all its work: it never ends the agent.
func follow(ctx context.Context, met *metrics.Metrics, l *raftlog.Log, proj *projector, logger *slog.Logger) {
	if err := met.Follow(ctx, l, l.View(), proj.Current().Revision); ctx.Err() == nil && !errors.Is(err, log.ErrClosed) {
		logger.Warn("varve_policy_implementation_delay is not observed any more", "error", err)
	}
}

// countFlows counts the conntrack entries.
func countFlows(ctx context.Context, dp *dataplane.Dataplane, met *metrics.Metrics) error {
	var ipv4, ipv6 int
	err := dp.Flows(ctx, func(f dataplane.Flow) error {
		if f.Src.Addr().Is4() {
			ipv4++
		} else {
			ipv6++
		}
		return nil
	})
	if err == nil {
		met.ObserveFlows(ipv4, ipv6)
	}
	return err
}

// measure counts conntrack entries now and then, until ctx ends.
func measure(ctx context.Context, dp *dataplane.Dataplane, met *metrics.Metrics, logger *slog.Logger) {
	t := time.NewTicker(gcInterval)
	defer t.Stop()
	for {
		if err := countFlows(ctx, dp, met); err != nil && ctx.Err() == nil {
			logger.Warn("conntrack entries are not counted", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// unready has a word for the state of each endpoint that is not ready: few words,
// since each is a value of a label.
func (m *endpoints) unready() map[fsm.EndpointRef]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	words := make(map[fsm.EndpointRef]string, len(m.states))
	for ref, state := range m.states {
		words[ref] = stateWord(state)
	}
	return words
}

// stateWord is a state without what is particular to one endpoint.
func stateWord(state string) string {
	for _, known := range []string{"not activated", "no interface", "disconnected"} {
		if strings.HasPrefix(state, known) {
			return strings.ReplaceAll(known, " ", "-")
		}
	}
	return stateNotReady
}

// watchedKernel counts the differences that somebody asked for and found.
type watchedKernel struct {
	*dataplane.Dataplane
	met *metrics.Metrics
}

// Verify implements apiserver.Kernel.
func (k watchedKernel) Verify(ctx context.Context, t *projections.Tables) ([]dataplane.Difference, error) {
	differences, err := k.Dataplane.Verify(ctx, t)
	if len(differences) > 0 {
		k.met.DigestMismatch(metrics.DigestTables)
	}
	return differences, err
}

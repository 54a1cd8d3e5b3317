package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/internal/apiserver"
	"github.com/varve-net/varve/internal/inforce"
	"github.com/varve-net/varve/internal/keeper"
	"github.com/varve-net/varve/internal/metrics"
	"github.com/varve-net/varve/internal/past"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/raftlog"
	"github.com/varve-net/varve/projections"
)

// closeTimeout bounds the orderly end of the log.
const closeTimeout = 10 * time.Second

// Run runs an agent until ctx ends or a part of it fails beyond repair. Whatever
// way it ends, programs, maps and links stay pinned: traffic and policy go on.
func Run(ctx context.Context, cfg Config) (err error) {
	began := time.Now()
	if err := cfg.normalize(); err != nil {
		return err
	}
	logger := cfg.Logger
	met, stopMetrics, err := newMetrics(&cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopMetrics()) }()

	met.NotReady("the log is being read")
	identity, err := cluster.LoadOrCreate(cfg.StateDir, cfg.Cluster, cfg.Node)
	if err != nil {
		return err
	}
	rlog, err := raftlog.Open(ctx, raftlog.Config{
		Dir: filepath.Join(cfg.StateDir, "log"), Cluster: identity.Cluster, Raft: cluster.RaftConfig(identity),
		Logger: logger, SnapshotThreshold: cfg.SnapshotThreshold, Observe: met.ObserveCommit,
	})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		err = errors.Join(err, rlog.Close(stop))
	}()
	replayed := time.Since(began)
	logger.Info("log replayed", "revision", rlog.View().Revision(), "took", replayed)
	met.Bootstrapped(phaseRestore, replayed)
	met.NotReady("the datapath is being loaded")

	// Before anything of the machine is touched: another agent may answer there.
	listener, err := apiserver.Bind(cfg.Socket, cfg.Group)
	if err != nil {
		return err
	}
	defer listener.Close()

	dp, err := dataplane.Open(dataplane.Config{
		PinDir: cfg.BPFRoot, MapSizes: mapSizes(&cfg), EnableIPv4: cfg.IPv4Range.IsValid(), EnableIPv6: cfg.IPv6Range.IsValid(),
		NewFlowEvents: true, Owner: identity.ServerID, Logger: logger,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dp.Close()) }()
	defer met.NotReady("the agent is stopping") // before what scrapes ask is closed
	if err := dp.CheckBigTCP(cfg.IPv4BigTCP); err != nil {
		return fmt.Errorf("%w: enable-ipv4-big-tcp: %w", ErrConfig, err)
	}
	if err := dp.SetupNode(ctx, nodeSpec(&cfg)); err != nil {
		return err
	}
	met.Bootstrapped(phaseBPF, time.Since(began))
	met.NotReady("the tables are being written")

	fct := &facts{log: rlog, view: rlog.View, cluster: cfg.Cluster, node: cfg.Node}
	if err := announce(ctx, &cfg, fct); err != nil {
		return err
	}

	abandonRestore(ctx, &cfg, rlog)

	var eps *endpoints
	write := func(ctx context.Context, t *projections.Tables, d projections.Delta) (dataplane.Stats, error) {
		return dp.Enforce(ctx, t, d, eps.bindings(rlog.View()))
	}
	dns, err := newDNS(&cfg, identity.Cluster, rlog)
	if err != nil {
		return err
	}
	if dns != nil {
		defer dns.client.Close()
		write = dns.rules.wrap(rlog.View, write)
	}
	proj := newProjector(cfg.Node, rlog, write, logger)
	digests, err := inforce.Open(cfg.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, digests.Close()) }()
	proj.observe = func(r metrics.Round) {
		met.ObserveRound(r)
		recordInForce(digests, r, logger)
	}
	proj.clean = dp.Clean
	eps = newEndpoints(&cfg, fct, rlog.View, proj.Wait, dp)
	eps.resync = func(ctx context.Context) error { _, err := proj.round(ctx); return err }

	// The order of a start under traffic: find the interfaces, make the rows
	// right, and only then let go of what is not wanted any more.
	if err := eps.adopt(ctx); err != nil {
		return err
	}
	stats, err := proj.round(ctx)
	if err != nil {
		return err
	}
	met.Bootstrapped(phaseMaps, time.Since(began))
	eps.recover(ctx)

	mon := newMonitor()
	var known *names
	if dns != nil {
		known = &names{proxy: dns.client, view: rlog.View, current: proj.Current, node: cfg.Node}
	}
	drifts := &drift{
		dp: dp, eps: eps, node: nodeSpec(&cfg), every: cfg.DriftInterval, current: proj.Current,
		publish: mon.publish, repaired: met.MapDriftRepaired, logger: logger,
	}
	if known != nil {
		drifts.names = known.repair
	}
	recorded, err := openFlows(&cfg, dp)
	if err != nil {
		return err
	}
	publish := mon.publish
	if recorded != nil {
		defer func() { err = errors.Join(err, recorded.Close()) }()
		rec := newRecorder(recorded, proj.inForce)
		publish = func(e dataplane.Event) error { rec.observe(e); return mon.publish(e) }
	}
	info := apiserver.Info{
		Version: cfg.Version, Cluster: cfg.Cluster, Node: cfg.Node, PID: os.Getpid(), StartedUnixNS: began.UnixNano(),
		ReplayedEvents: rlog.Replayed(), ReplayNS: int64(replayed), BootstrapNS: int64(time.Since(began)), BootstrapWritten: uint64(stats.Total()),
	}
	history := past.New(past.Config{Log: rlog, Cluster: cfg.Cluster, Checkpoints: rlog.History(), Logger: logger})
	keep := keeper.New(keeper.Config{
		Log: rlog, Past: history, Events: log.Revision(cfg.CheckpointEvents),
		MaxAge: cfg.HistoryMaxAge, MaxBytes: cfg.HistoryMaxBytes, Logger: logger,
	})
	serving := apiserver.Config{
		Listener: listener, Group: cfg.Group, RestoreGroup: cfg.RestoreGroup, Cluster: cfg.Cluster, Node: cfg.Node,
		Info: func() apiserver.Info { return info },
		Log:  rlog, Projector: proj, Endpoints: eps, Kernel: watchedKernel{dp, met}, Monitor: mon,
		Past: history, InForce: digests.All, Flows: recorded, Drift: drifts.Report, DNSSocket: cfg.DNSSocket, Logger: logger,
	}
	if known != nil {
		serving.Names = known
	}
	srv := apiserver.New(serving)
	met.Bootstrapped(phaseOverall, time.Since(began))
	met.Attach(sources(cfg.Node, rlog, dp, proj, eps, recorded))
	logger.Info("enforcing", "revision", proj.Current().Revision, "rows_written", stats.Total(), "took", time.Since(began), "socket", cfg.Socket)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return proj.run(ctx) })
	g.Go(func() error { return ended(ctx, dp.Events(ctx, publish)) })
	g.Go(func() error { return collect(ctx, dp) })
	g.Go(func() error { drifts.run(ctx); return nil })
	g.Go(func() error { watchClock(ctx, clockOffset(), logger); return nil })
	g.Go(func() error { keep.Run(ctx); return nil })
	g.Go(func() error { return watchAddresses(ctx, &cfg, fct) })
	if recorded != nil {
		g.Go(func() error { recorded.Run(ctx); return nil })
	}
	if cfg.PrometheusServeAddr != "" {
		g.Go(func() error { follow(ctx, met, rlog, proj, logger); return nil })
		g.Go(func() error { measure(ctx, dp, met, logger); return nil })
	}
	if dns != nil {
		g.Go(func() error { dns.run(ctx); return nil })
	}
	g.Go(func() error { return srv.Serve(ctx) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-rlog.Done():
			return rlog.Err()
		}
	})
	if cfg.Ready != nil {
		close(cfg.Ready)
	}
	return g.Wait()
}

// recordInForce remembers which tables came in force, for audits. Enforcement does
// not depend on it.
func recordInForce(digests *inforce.Recorder, r metrics.Round, logger *slog.Logger) {
	if r.Err != nil || r.Tables == nil {
		return
	}
	err := digests.Add(inforce.Record{Revision: r.Revision, JournalSeq: r.JournalSeq, TimeNS: r.Ended.UnixNano(), Digest: r.Tables.Digest()})
	if err != nil {
		logger.Warn("what is in force is not recorded for audits", "revision", r.Revision, "error", err)
	}
}

// mapSizes are the sizes that the configuration names.
func mapSizes(cfg *Config) map[string]uint32 {
	sizes := map[string]uint32{}
	if cfg.ConntrackMax > 0 {
		sizes["ct4"], sizes["ct6"] = uint32(cfg.ConntrackMax), uint32(cfg.ConntrackMax)
	}
	if cfg.PolicyMax > 0 {
		sizes["policy"] = uint32(cfg.PolicyMax)
	}
	if cfg.FragmentsMax > 0 {
		sizes["fragments"] = uint32(cfg.FragmentsMax)
	}
	maps.Copy(sizes, cfg.MapMax)
	return sizes
}

// ended is nil for what ended because ctx did.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// collect removes expired conntrack entries from time to time.
func collect(ctx context.Context, dp *dataplane.Dataplane) error {
	t := time.NewTicker(gcInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if _, err := dp.CollectFlows(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

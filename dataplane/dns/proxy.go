package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/varve-net/varve/bpf"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane/dns/relay"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/log/journal"
)

// Proxy is the DNS proxy of a node.
type Proxy struct {
	cfg     Config
	maps    *bpf.Objects
	journal *journal.Journal
	rules   atomic.Pointer[rules]
	keeper  *keeper
	relay   *relay.Relay
	log     *Log

	loading    sync.Mutex
	compacting sync.Mutex
	compacted  int64 // size of the journal after it was last compacted
}

// Open opens all that a proxy has: the pinned maps, its journal, its sockets. The map
// `fqdn` then says what journal and rules file say. The kernel hands questions over
// from before that is read, so that those which come meanwhile are late and not lost;
// they wait for Run.
func Open(ctx context.Context, cfg Config, metrics prometheus.Registerer) (_ *Proxy, err error) {
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.giveUp(), p.Close())
		}
	}()
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if p.journal, err = journal.Open(journal.Config{Dir: filepath.Join(cfg.StateDir, "journal")}); err != nil {
		return nil, err
	}
	if p.log, err = OpenLog(filepath.Join(cfg.StateDir, "log"), cfg.LogBytes); err != nil {
		return nil, err
	}
	if p.maps, err = openMaps(ctx, &cfg); err != nil {
		return nil, err
	}
	met := NewMetrics(metrics)
	p.log.lost = met.logLost
	empty, err := compile(&dnslink.Rules{Cluster: cfg.Cluster, Node: cfg.Node}, nil)
	if err != nil {
		return nil, err
	}
	p.rules.Store(empty)
	p.keeper = newKeeper(&p.cfg, p.maps, p.journal, &p.rules, met)
	seen := met.observer()
	p.relay, err = relay.New(ctx, relay.Config{
		Port: cfg.Port, Mark: abi.MarkFromProxy, RejectCode: cfg.RejectCode, Compress: cfg.Compress, MaxDelay: cfg.MaxDelay, Timeout: cfg.Timeout,
		Policy: newJudge(p.maps, &p.rules, &p.keeper.opened), Learner: p.keeper, Logger: cfg.Logger,
		Observe: func(e *relay.Exchange) {
			seen.observe(e)
			p.log.add(e)
		},
	})
	if err != nil {
		return nil, err
	}
	p.keeper.flush = p.relay.Flush
	if err := p.announce(); err != nil {
		return nil, err
	}
	return p, p.restore()
}

// giveUp closes the sockets of a proxy that never ran.
func (p *Proxy) giveUp() error {
	if p.relay == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return p.relay.Run(ctx)
}

// restore brings facts and rules back, and the kernel to them.
func (p *Proxy) restore() error {
	raw, err := dnslink.ReadRules(p.cfg.Rules)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.cfg.Logger.Info("no rules yet: nothing may be asked until the agent has written them", "file", p.cfg.Rules)
	case err != nil:
		return err
	default:
		if err := p.mine(raw); err != nil {
			return err
		}
		r, err := compile(raw, nil)
		if err != nil {
			return err
		}
		p.rules.Store(r)
	}
	seed, err := readSeed(p.seedPath())
	if err != nil {
		return err
	}
	if err := p.keeper.restore(seed); err != nil {
		return err
	}
	if err := p.keeper.adopt(); err != nil {
		return err
	}
	written, err := p.keeper.repair(context.Background())
	if err != nil {
		return err
	}
	p.cfg.Logger.Info("DNS facts restored", "names", p.keeper.facts.names, "addresses", p.keeper.facts.addresses, "rows_written", written.count, "last", p.journal.Last())
	return nil
}

// openMaps waits for the maps: at a node's very first start the agent makes them.
func openMaps(ctx context.Context, cfg *Config) (*bpf.Objects, error) {
	for told := false; ; {
		maps, err := bpf.OpenPinned(cfg.PinDir)
		if !errors.Is(err, fs.ErrNotExist) {
			return maps, err
		}
		if !told {
			cfg.Logger.Info("waiting for the agent to pin its maps", "dir", cfg.PinDir)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// announce tells the programs where to hand questions over.
func (p *Proxy) announce() error {
	var v abi.Proxy
	binary.BigEndian.PutUint16(v.PortBE[:], p.relay.Port())
	if err := p.maps.Proxy.Put(uint32(0), &v); err != nil {
		return fmt.Errorf("map proxy: %w", err)
	}
	p.cfg.Logger.Info("DNS proxy listens", "port", p.relay.Port())
	return nil
}

// Port is where the proxy listens.
func (p *Proxy) Port() uint16 { return p.relay.Port() }

// Log is the log of questions.
func (p *Proxy) Log() *Log { return p.log }

// Health is why new answers are refused; nil: they are not.
func (p *Proxy) Health() error {
	p.keeper.mu.Lock()
	defer p.keeper.mu.Unlock()
	return p.keeper.broken
}

// Run answers questions until ctx ends.
func (p *Proxy) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.relay.Run(ctx) })
	g.Go(func() error { return p.keeper.run(ctx) })
	g.Go(func() error { return p.keeper.runCollector(ctx) })
	g.Go(func() error { return p.log.run(ctx) })
	return g.Wait()
}

// Close closes what Open opened, after Run. The maps stay as they are: known names
// stay reachable.
func (p *Proxy) Close() error {
	var errs []error
	if p.log != nil {
		errs = append(errs, p.log.Close())
	}
	if p.journal != nil {
		errs = append(errs, p.journal.Close())
	}
	if p.maps != nil {
		errs = append(errs, p.maps.Close())
	}
	return errors.Join(errs...)
}

package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/log/journal"
)

var _ dnslink.Proxy = (*Proxy)(nil)

// Status implements dnslink.Proxy.
func (p *Proxy) Status(context.Context) (dnslink.Status, error) {
	s := dnslink.Status{
		Cluster: p.cfg.Cluster, Node: p.cfg.Node, PID: os.Getpid(), Version: p.cfg.Version,
		Rules: p.rules.Load().Revision, Last: p.journal.Last(),
	}
	p.keeper.mu.Lock()
	defer p.keeper.mu.Unlock()
	if p.keeper.broken != nil {
		s.Err = p.keeper.broken.Error()
	}
	return s, nil
}

// Load implements dnslink.Proxy.
func (p *Proxy) Load(context.Context) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	raw, err := dnslink.ReadRules(p.cfg.Rules)
	if err != nil {
		return err
	}
	if err := p.mine(raw); err != nil {
		return err
	}
	return p.keeper.load(raw)
}

// mine tells whether rules are of this node.
func (p *Proxy) mine(r *dnslink.Rules) error {
	if r.Cluster != p.cfg.Cluster || r.Node != p.cfg.Node {
		return fmt.Errorf("rules file %s: %w: of node %s/%s, this is %s/%s", p.cfg.Rules, dnslink.ErrOtherNode, r.Cluster, r.Node, p.cfg.Cluster, p.cfg.Node)
	}
	return nil
}

// Seed implements dnslink.Proxy.
func (p *Proxy) Seed(_ context.Context, s dnslink.Seed) error {
	k := p.keeper
	k.writing.Lock()
	defer k.writing.Unlock()
	if p.journal.Last() != 0 {
		return nil
	}
	if err := writeSeed(p.seedPath(), &s); err != nil {
		return err
	}
	if err := p.journal.Reset(s.Last); err != nil {
		return err
	}
	k.mu.Lock()
	r, now := k.rules.Load(), k.clock()
	for _, o := range s.Facts {
		k.facts.observe(k.facts.endpoint(keyOf(o), r), 0, o, now)
	}
	k.gauge()
	k.mu.Unlock()
	_, err := k.repair(context.Background())
	return err
}

func (p *Proxy) seedPath() string { return filepath.Join(p.cfg.StateDir, "seed") }

// Facts implements dnslink.Proxy.
func (p *Proxy) Facts(ctx context.Context, after uint64, limit int, linger time.Duration) ([]dnslink.Fact, error) {
	if err := p.journal.Wait(ctx, after); err != nil {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	if linger > 0 && limit > 1 {
		wait, cancel := context.WithTimeout(ctx, linger)
		err := p.journal.Wait(wait, after+uint64(limit)-1)
		ended := wait.Err() != nil
		cancel()
		if err != nil && !ended {
			return nil, err
		}
	}
	records, err := p.journal.Read(after, limit)
	if errors.Is(err, journal.ErrCompacted) {
		return nil, fmt.Errorf("%w: %w", dnslink.ErrCompacted, err)
	}
	if err != nil {
		return nil, err
	}
	out := make([]dnslink.Fact, len(records))
	for i, r := range records {
		out[i] = dnslink.Fact{Seq: r.Seq, Data: r.Data}
	}
	return out, nil
}

// compactBytes is how large the journal grows before what the log has and nothing
// needs is removed from it.
const compactBytes = 8 << 20

// Shipped implements dnslink.Proxy.
func (p *Proxy) Shipped(_ context.Context, last uint64) error {
	p.journal.Shipped(last)
	size := p.journal.Size()
	p.compacting.Lock()
	defer p.compacting.Unlock()
	if size < compactBytes || size < 2*p.compacted {
		return nil
	}
	err := p.journal.Compact(func(seq uint64) bool {
		p.keeper.mu.Lock()
		defer p.keeper.mu.Unlock()
		return p.keeper.facts.backing[seq] > 0
	})
	p.compacted = p.journal.Size()
	return err
}

// Repair implements dnslink.Proxy.
func (p *Proxy) Repair(ctx context.Context) (int, []dnslink.Difference, error) {
	return p.compare(ctx, true)
}

// Verify implements dnslink.Proxy.
func (p *Proxy) Verify(ctx context.Context) (int, []dnslink.Difference, error) {
	return p.compare(ctx, false)
}

func (p *Proxy) compare(ctx context.Context, repair bool) (int, []dnslink.Difference, error) {
	// Rules and facts go together only once rules are loaded.
	p.loading.Lock()
	defer p.loading.Unlock()
	d, err := p.keeper.compare(ctx, repair)
	if d == nil {
		return 0, nil, err
	}
	return d.count, d.told, err
}

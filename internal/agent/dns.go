package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/dnsrpc"
	"github.com/varve-net/varve/log/raftlog"
	"github.com/varve-net/varve/projections"
)

// dns is the agent's side of the node's DNS proxy: what it tells it, what it hears
// from it, and, unless somebody else does, that it runs.
type dns struct {
	client *dnsrpc.Client
	rules  *dnsRules
	facts  *dnsFacts
	child  *dnsChild // nil: somebody else runs it
}

// newDNS is nil if the node has no DNS proxy.
func newDNS(cfg *Config, cluster string, rlog *raftlog.Log) (*dns, error) {
	if cfg.DNSProxy == DNSProxyOff {
		return nil, nil
	}
	dir := dnsDir(cfg.StateDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the DNS proxy: %w", err)
	}
	client := dnsrpc.NewClient(cfg.DNSSocket)
	d := &dns{
		client: client,
		rules: &dnsRules{
			path: filepath.Join(dir, "rules"), cluster: cluster, node: cfg.Node, local: newLocals(cfg.Node), proxy: client, logger: cfg.Logger,
		},
		facts: &dnsFacts{
			log: rlog, view: rlog.View, proxy: client, cluster: cluster, node: cfg.Node,
			actor: "dns-proxy:" + cfg.Node, logger: cfg.Logger,
		},
	}
	if cfg.DNSProxy == DNSProxyChild {
		d.child = newDNSChild(cfg, client)
	}
	return d, nil
}

// run ships facts, and keeps the proxy going, until ctx ends.
func (d *dns) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { d.facts.run(ctx) })
	if d.child != nil {
		wg.Go(func() { d.child.run(ctx) })
	}
	wg.Wait()
}

// wrap puts the rules of the tables that sync brings into force around it.
func (d *dnsRules) wrap(view func() fsm.View, sync syncFunc) syncFunc {
	return func(ctx context.Context, t *projections.Tables, delta projections.Delta) (stats dataplane.Stats, err error) {
		err = d.around(ctx, view(), t, &delta, func() error {
			stats, err = sync(ctx, t, delta)
			return err
		})
		return stats, err
	}
}

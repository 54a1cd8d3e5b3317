package projections

import (
	"fmt"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// Projection keeps a node's tables equal to those of the newest View at the cost
// of what changed: always the same rows, causes, names and digests that Build
// makes of the View from scratch. It has one writer; the Tables that it returns
// are immutable and may be read by anyone.
type Projection struct {
	node string
	opts Options

	live    *live // nil: to be built from scratch
	view    fsm.View
	current *Tables
}

// New makes a Projection that has seen no View.
func New(node string, opts Options) *Projection { return &Projection{node: node, opts: opts} }

// Update brings the tables to a View. The delta leads from the Tables of the
// last Update that had no error to these; its From is nil if all was built
// anew: at first, after an error, if the View is not a later one of the same
// State or too far ahead (fsm.View.ChangesSince), or if the node itself changed.
//
// The errors are those of Build. After one the Projection starts anew.
func (p *Projection) Update(v fsm.View) (*Tables, Delta, error) {
	delta := Delta{From: p.current}
	if p.live == nil || !p.follow(v) {
		delta = Delta{}
		if err := p.rebuild(v); err != nil {
			p.Forget()
			return nil, Delta{}, err
		}
	}
	p.live.settle(v.Policies())
	if err := p.live.ids.err; err != nil {
		p.Forget()
		return nil, Delta{}, err
	}
	tables, changes := p.live.freeze(v.Revision())
	p.view, p.current = v, tables
	if delta.From == nil {
		return tables, Delta{}, nil
	}
	changes.From = delta.From
	return tables, changes, nil
}

// Forget makes the next Update build from scratch.
func (p *Projection) Forget() { p.live, p.current, p.view = nil, nil, fsm.View{} }

func (p *Projection) rebuild(v fsm.View) error {
	self, ok := v.Node(p.node)
	if !ok || self.Left {
		return fmt.Errorf("node %s: %w", p.node, ErrUnknownNode)
	}
	p.live = newLive(v.Cluster(), self, p.opts)
	for n := range v.Nodes() {
		if !n.Left {
			p.live.addNode(n)
		}
	}
	for e := range v.Endpoints() {
		id, ok := v.Identity(e.Identity)
		if !ok {
			return unknownIdentity(e)
		}
		p.live.addEndpoint(e, id)
	}
	return nil
}

func unknownIdentity(e *fsm.Endpoint) error {
	return fmt.Errorf("endpoint %s/%s, identity %d: %w", e.Ref.Namespace, e.Ref.Name, e.Identity, ErrUnknownIdentity)
}

// follow tells the tables what changed. false: they must be built anew.
func (p *Projection) follow(v fsm.View) bool {
	changes, ok := v.ChangesSince(p.view)
	if !ok {
		return false
	}
	f := newChanged(changes)
	//purity:ordered claims are kept by rank and name; false discards what was done
	for name := range f.nodes {
		was, is := standing(p.view, name), standing(v, name)
		if name == p.node && (was == nil || is == nil || was.KubeAPIServer != is.KubeAPIServer || was.AuditMode != is.AuditMode) {
			return false
		}
		if was != nil && is != nil && was.Revision == is.Revision {
			continue // only its counters moved
		}
		if was != nil {
			p.live.removeNode(was)
		}
		if is != nil {
			p.live.addNode(is)
		}
	}
	// First all that go, so that a number or an address is free when it is taken.
	//purity:ordered users are counted, and claims kept by rank and name
	for ref := range f.endpoints {
		if was, ok := p.view.Endpoint(ref); ok {
			p.live.removeEndpoint(was)
		}
	}
	//purity:ordered users are counted, and claims kept by rank and name; false discards what was done
	for ref := range f.endpoints {
		if is, ok := v.Endpoint(ref); ok {
			id, ok := v.Identity(is.Identity)
			if !ok {
				return false
			}
			p.live.addEndpoint(is, id)
		}
	}
	//purity:ordered each is inserted at its place in the order of policies
	for ref := range f.policies {
		was, _ := p.view.Policy(ref)
		is, _ := v.Policy(ref)
		p.live.changePolicy(ref, was, is)
	}
	return true
}

// standing is a node that is in the cluster.
func standing(v fsm.View, name string) *fsm.Node {
	if n, ok := v.Node(name); ok && !n.Left {
		return n
	}
	return nil
}

// changed is what a list of changes names, each once.
type changed struct {
	nodes     map[string]struct{}
	endpoints map[fsm.EndpointRef]struct{}
	policies  map[policy.Ref]struct{}
}

func newChanged(changes []fsm.Change) changed {
	f := changed{make(map[string]struct{}), make(map[fsm.EndpointRef]struct{}), make(map[policy.Ref]struct{})}
	for _, c := range changes {
		switch c.Kind {
		case fsm.ChangeNode:
			f.nodes[c.Name()] = struct{}{}
		case fsm.ChangeEndpoint:
			f.endpoints[c.Endpoint()] = struct{}{}
		case fsm.ChangePolicy:
			f.policies[c.Policy()] = struct{}{}
		}
	}
	return f
}

func ipcacheValue(peer uint64) abi.IPCacheValue { return abi.IPCacheValue{Peer: peer} }

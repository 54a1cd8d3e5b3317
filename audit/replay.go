package audit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

// Supposition is what policies might have been: these instead of those of their
// names, and without the deleted ones.
type Supposition struct {
	Set    []*eventpb.PolicySet
	Delete []policy.Ref
}

// Recording is a node's flow record; *flows.Store is one.
type Recording interface {
	Read(ctx context.Context, fromNS, toNS int64, flow func(*flows.Flow) error, gap func(flows.Gap) error) error
}

// ErrTooMany: there are more distinct flows than are judged at once.
var ErrTooMany = errors.New("more than a million distinct flows; choose a shorter time")

const maxDistinct = 1_000_000

// Replay is which recorded flows a supposition would have judged otherwise.
type Replay struct {
	FromNS, ToNS int64 // of the flow record that was looked through
	// Flows is how many distinct flows there were, Events how often they were seen.
	Flows, Events uint64
	// Skipped were dropped for a reason that no policy has a part in.
	Skipped uint64
	// Unexplained do not follow from the policies in force when they were seen, such
	// as packets that were on their way while a policy changed; they are not compared.
	Unexplained uint64
	// TooOld were seen under a state that is no longer kept.
	TooOld uint64
	Groups []ReplayGroup // the most events first
	Gaps   []flows.Gap   // of the record, by age
}

// ReplayGroup is flows between two workloads that would have been judged otherwise
// alike.
type ReplayGroup struct {
	From, To string // workloads, or who else the ends are
	Protocol uint8
	Port     uint16
	Was, Is  Outcome
	Reason   string // what decides under the supposition
	Flows    uint64 // distinct
	Events   uint64
	FirstNS  int64
	LastNS   int64
	Samples  []string // some of the flows, "shop/web 10.0.0.5 -> shop/db 10.0.0.6"
}

// maxSamples is how many flows of a group are named.
const maxSamples = 5

// ReplayFlows judges the flows of a node's record, seen in a time, as if a
// supposition had held all the while, each at the revision that was in force when it
// was first seen.
func (a *Auditor) ReplayFlows(ctx context.Context, record Recording, node string, fromNS, toNS int64, what Supposition) (*Replay, error) {
	r := &replaying{Auditor: a, node: node, what: what, out: &Replay{FromNS: fromNS, ToNS: toNS}, groups: map[groupKey]*ReplayGroup{}}
	for _, set := range what.Set {
		ref, err := policy.RefFromPB(set.GetRef())
		if err != nil {
			return nil, err
		}
		r.changed = append(r.changed, ref)
	}
	r.changed = append(r.changed, what.Delete...)
	if err := r.gather(ctx, record, fromNS, toNS); err != nil {
		return nil, err
	}
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	for _, g := range r.groups {
		r.out.Groups = append(r.out.Groups, *g)
	}
	slices.SortFunc(r.out.Groups, func(x, y ReplayGroup) int {
		return cmp.Or(cmp.Compare(y.Events, x.Events), cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To), cmp.Compare(x.Port, y.Port), cmp.Compare(x.Reason, y.Reason))
	})
	return r.out, nil
}

// distinct is a flow without what does not matter for its verdict.
type distinct struct {
	src, dst         netip.Addr
	srcName, dstName string
	protocol         uint8
	port             uint16
	allowed          bool
	revision         log.Revision
}

type seen struct {
	distinct
	events          uint64
	firstNS, lastNS int64
}

type groupKey struct {
	from, to string
	protocol uint8
	port     uint16
	was, is  Outcome
	reason   string
}

// replaying is a replay at work.
type replaying struct {
	*Auditor
	node    string
	what    Supposition
	changed []policy.Ref
	told    map[questioner][]verdict.Fact
	out     *Replay
	flows   []*seen // by revision
	groups  map[groupKey]*ReplayGroup
}

// gather reads the record.
func (r *replaying) gather(ctx context.Context, record Recording, fromNS, toNS int64) error {
	all := map[distinct]*seen{}
	err := record.Read(ctx, fromNS, toNS, func(f *flows.Flow) error {
		r.out.Events += f.Count
		if f.Verdict == flows.Dropped && !byPolicy(f.Reason) || !f.Src.IsValid() || !f.Dst.IsValid() {
			r.out.Skipped += f.Count
			return nil
		}
		d := distinct{f.Src, f.Dst, f.SrcName, f.DstName, f.Protocol, f.Port, f.Verdict != flows.Dropped, f.FirstRevision}
		s, ok := all[d]
		if !ok {
			if len(all) == maxDistinct {
				return ErrTooMany
			}
			s = &seen{distinct: d, firstNS: f.FirstNS}
			all[d] = s
		}
		s.events += f.Count
		s.firstNS, s.lastNS = min(s.firstNS, f.FirstNS), max(s.lastNS, f.LastNS)
		return nil
	}, func(g flows.Gap) error {
		r.out.Gaps = append(r.out.Gaps, g)
		return nil
	})
	if err != nil {
		return err
	}
	r.out.Flows = uint64(len(all))
	for _, s := range all {
		r.flows = append(r.flows, s)
	}
	slices.SortFunc(r.flows, func(x, y *seen) int {
		return cmp.Or(cmp.Compare(x.revision, y.revision), cmp.Compare(x.firstNS, y.firstNS), x.src.Compare(y.src), x.dst.Compare(y.dst), cmp.Compare(x.port, y.port))
	})
	return nil
}

// byPolicy tells whether policy decided a drop.
func byPolicy(reason abi.Reason) bool {
	return reason == abi.PolicyDefaultDeny || reason == abi.PolicyDenied || reason == abi.PolicyRevoked
}

// run folds the log once over all revisions at which flows were seen, into the state
// as it was and as it would have been, and judges each flow at its own.
func (r *replaying) run(ctx context.Context) error {
	first, head := r.Past.First(), r.Past.Head()
	for len(r.flows) > 0 && r.flows[0].revision < first {
		r.out.TooOld += r.flows[0].events
		r.flows = r.flows[1:]
	}
	if len(r.flows) == 0 {
		return nil
	}
	start := r.flows[0].revision
	last := min(head, r.flows[len(r.flows)-1].revision)
	view, err := r.Past.View(ctx, start)
	if err != nil {
		return err
	}
	keep := newSieve(r.endpoints())
	if err := r.listen(ctx, keep, start); err != nil {
		return err
	}
	real := newWorld(r.Options, keep.excerpt(view))
	supposed := newWorld(r.Options, view.Excerpt(keep.endpoints, func(ref policy.Ref) bool { return keep.policy(ref) && !slices.Contains(r.changed, ref) }))
	if err := r.suppose(supposed); err != nil {
		return err
	}
	judge := func(until log.Revision) error {
		for len(r.flows) > 0 && r.flows[0].revision <= until {
			if err := r.judge(real, supposed, r.flows[0]); err != nil {
				return fmt.Errorf("revision %d: %w", r.flows[0].revision, err)
			}
			r.flows = r.flows[1:]
		}
		return nil
	}
	if start < last {
		err = r.Past.Read(ctx, start+1, last, func(rec log.Record) error {
			if err := judge(rec.Revision - 1); err != nil {
				return err
			}
			if !keep.record(&rec) {
				return nil
			}
			if err := real.fold(&rec); err != nil {
				return err
			}
			if ref, err := policy.ParseStream(string(log.PeekStream(rec.Event))); err == nil && slices.Contains(r.changed, ref) {
				return nil
			}
			if err := supposed.fold(&rec); err != nil || !bytes.HasPrefix(log.PeekStream(rec.Event), restoreStreams) {
				return err
			}
			return r.suppose(supposed) // it may have put back what is supposed otherwise
		})
		if err != nil {
			return err
		}
	}
	return judge(last)
}

// suppose makes the policies of a world what they might have been.
func (r *replaying) suppose(w *world) error {
	for _, ref := range r.what.Delete {
		w.state.SupposeNot(ref)
	}
	for _, set := range r.what.Set {
		if err := w.state.Suppose(set); err != nil {
			return err
		}
	}
	return nil
}

// endpoints are those that any flow names.
func (r *replaying) endpoints() []fsm.EndpointRef {
	var out []fsm.EndpointRef
	have := map[string]bool{}
	for _, f := range r.flows {
		for _, name := range []string{f.srcName, f.dstName} {
			if name == "" || have[name] {
				continue
			}
			have[name] = true
			namespace, short, _ := strings.Cut(name, "/")
			out = append(out, fsm.EndpointRef{Namespace: namespace, Name: short})
		}
	}
	return out
}

// judge compares what a flow's verdict was with what it would have been.
func (r *replaying) judge(real, supposed *world, f *seen) error {
	more := r.later(f)
	was, _, err := real.judge(r.node, f, more)
	if err != nil {
		return err
	}
	recorded := Denied
	if f.allowed {
		recorded = Allowed
	}
	if was != recorded {
		r.out.Unexplained += f.events
		return nil
	}
	is, reason, err := supposed.judge(r.node, f, more)
	if err != nil || is == was {
		return err
	}
	from, to := real.workload(f.src, f.srcName), real.workload(f.dst, f.dstName)
	key := groupKey{from, to, f.protocol, f.port, was, is, reason}
	g, ok := r.groups[key]
	if !ok {
		g = &ReplayGroup{From: from, To: to, Protocol: f.protocol, Port: f.port, Was: was, Is: is, Reason: reason, FirstNS: f.firstNS}
		r.groups[key] = g
	}
	g.Flows++
	g.Events += f.events
	g.FirstNS, g.LastNS = min(g.FirstNS, f.firstNS), max(g.LastNS, f.lastNS)
	sample := strings.TrimSpace(f.srcName+" "+f.src.String()) + " -> " + strings.TrimSpace(f.dstName+" "+f.dst.String())
	if len(g.Samples) < maxSamples && !slices.Contains(g.Samples, sample) {
		g.Samples = append(g.Samples, sample)
	}
	return nil
}

// questioner is an endpoint and an address that it was told.
type questioner struct {
	endpoint string
	addr     netip.Addr
}

// listen gathers what endpoints were told after a revision of the addresses that flows
// went to. A fact is in the log a moment after the kernel has it, and as much later as no
// agent ran, so the flow that it admitted may have been seen before.
func (r *replaying) listen(ctx context.Context, keep *sieve, start log.Revision) error {
	r.told = map[questioner][]verdict.Fact{}
	for _, f := range r.flows {
		if f.allowed && f.srcName != "" && f.dstName == "" {
			r.told[questioner{f.srcName, f.dst}] = nil
		}
	}
	if head := r.Past.Head(); len(r.told) > 0 && start < head {
		return r.Past.Read(ctx, start+1, head, func(rec log.Record) error {
			if !keep.dns[string(log.PeekStream(rec.Event))] || rec.Outcome != log.OutcomeApplied {
				return nil
			}
			e, err := log.Unmarshal(rec.Event)
			if err != nil {
				return err
			}
			o := e.GetDnsObserved()
			for _, x := range o.GetAddresses() {
				addr, _ := netip.AddrFromSlice(x.GetAddress())
				key := questioner{o.GetRef().GetNamespace() + "/" + o.GetRef().GetName(), addr}
				if known, ok := r.told[key]; ok {
					r.told[key] = append(known, verdict.Fact{Name: o.Name, Addr: addr, Chain: o.Chain, ExpiresNS: x.GetExpiresUnixNs(), Revision: rec.Revision})
				}
			}
			return nil
		})
	}
	return nil
}

// later is what the log tells only after a flow of what may have admitted it. One that
// was dropped was not admitted by anything.
func (r *replaying) later(f *seen) []verdict.Fact {
	if !f.allowed {
		return nil
	}
	all := r.told[questioner{f.srcName, f.dst}]
	i, _ := slices.BinarySearchFunc(all, f.revision+1, func(x verdict.Fact, at log.Revision) int { return cmp.Compare(x.Revision, at) })
	return all[i:]
}

// world is a state that is folded on, with the tables of the endpoints that were
// asked about since it last changed.
type world struct {
	opts   projections.Options
	state  *fsm.State
	view   fsm.View
	fresh  bool // view is of state
	tables map[fsm.EndpointRef]*projections.Tables
}

func newWorld(opts projections.Options, state *fsm.State) *world {
	return &world{opts: opts, state: state}
}

func (w *world) fold(r *log.Record) error {
	w.fresh = false
	return w.state.Fold(r)
}

func (w *world) refresh() {
	if !w.fresh {
		w.view, w.fresh, w.tables = w.state.View(), true, map[fsm.EndpointRef]*projections.Tables{}
	}
}

func (w *world) tablesOf(e *fsm.Endpoint) (*projections.Tables, error) {
	if t, ok := w.tables[e.Ref]; ok {
		return t, nil
	}
	t, err := projections.BuildEndpoint(w.view, e.Ref, w.opts)
	if err == nil {
		w.tables[e.Ref] = t
	}
	return t, err
}

// judge is the verdict of a node on a flow: of the directions that it enforces. It is
// Absent if an endpoint was not there.
func (w *world) judge(node string, f *seen, more []verdict.Fact) (Outcome, string, error) {
	w.refresh()
	from, okFrom := w.party(f.src, f.srcName)
	to, okTo := w.party(f.dst, f.dstName)
	if !okFrom || !okTo {
		return Absent, "", nil
	}
	answer, err := verdict.Ask(w.view, w.tablesOf, verdict.Question{
		From: from, To: to, Protocol: f.protocol, Port: f.port, TimeNS: f.firstNS, More: more,
	})
	if errors.Is(err, verdict.ErrFamily) {
		return Absent, "", nil
	}
	if err != nil {
		return Absent, "", err
	}
	var reasons []string
	for _, s := range []struct {
		name    string
		subject verdict.Party
		side    verdict.Side
	}{{"egress", from, answer.Egress}, {"ingress", to, answer.Ingress}} {
		if s.subject.Endpoint == nil || s.subject.Endpoint.Node != node {
			continue
		}
		if !s.side.Allowed {
			return Denied, s.name + ": " + because(s.side), nil
		}
		if s.side.Reason == verdict.ByRule {
			reasons = append(reasons, s.name+": "+because(s.side))
		}
	}
	return Allowed, strings.Join(reasons, "; "), nil
}

// because is what decided one direction, in a few words.
func because(s verdict.Side) string {
	var names []string
	for _, r := range s.Rules {
		names = append(names, r.RuleRef.String())
	}
	for _, i := range s.Isolated {
		names = append(names, "isolated by "+i.Policy.String())
	}
	if len(names) == 0 {
		return string(s.Reason)
	}
	return strings.Join(names, ", ")
}

// party is who had an address; false if it is not the endpoint that the record
// names.
func (w *world) party(addr netip.Addr, name string) (verdict.Party, bool) {
	if name == "" {
		return verdict.Party{Addr: addr}, true
	}
	namespace, short, _ := strings.Cut(name, "/")
	e, ok := w.view.Endpoint(fsm.EndpointRef{Namespace: namespace, Name: short})
	if !ok || e.IPv4 != addr && e.IPv6 != addr {
		return verdict.Party{}, false
	}
	return verdict.Party{Endpoint: e, Addr: addr}, true
}

// workloadLabels name an endpoint's workload, the first that it has.
var workloadLabels = []string{"app.kubernetes.io/name", "k8s-app", "app"}

// workload is what an endpoint is one of, e.g. "shop/app=web"; of an address without
// one it is the node or the world.
func (w *world) workload(addr netip.Addr, name string) string {
	if p, ok := w.party(addr, name); ok && p.Endpoint != nil {
		for _, key := range workloadLabels {
			if v := p.Endpoint.Labels[key]; v != "" {
				return p.Endpoint.Ref.Namespace + "/" + key[strings.LastIndex(key, "/")+1:] + "=" + v
			}
		}
		return name
	}
	for n := range w.view.Nodes() {
		if !n.Left && slices.Contains(n.Addresses, addr) {
			return "node " + n.Name
		}
	}
	return "world"
}

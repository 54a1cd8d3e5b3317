package audit

import (
	"bytes"
	"context"
	"net/netip"
	"slices"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/verdict"
)

// sieve keeps, of all records, those that can touch the answer to a question in
// some span of revisions: of the endpoints that were its parties in that span, of
// their namespaces and the policies in those, of cluster-wide policies, of restores,
// and of nodes. Nothing else can: a policy of a namespace selects only its own endpoints
// (policy.Compile), and a peer's part in a verdict is its labels, its named ports
// and its address.
//
//	all records           1,000,000
//	  of these streams        a few thousand   <- folded into an excerpt
//	    that select a party     a few hundred  <- judged
type sieve struct {
	endpoints  []fsm.EndpointRef
	streams    map[string]bool // of endpoints and namespaces
	dns        map[string]bool // of what endpoints learn
	namespaces map[string]bool
	// about is what an answer to a question for a name has to hold to be kept, one of
	// these; nil: every answer is.
	about [][]byte
}

func newSieve(endpoints []fsm.EndpointRef) *sieve {
	s := &sieve{endpoints: endpoints, streams: map[string]bool{}, dns: map[string]bool{}, namespaces: map[string]bool{}}
	for _, ref := range endpoints {
		s.streams["endpoint/"+ref.String()] = true
		s.dns[dnsStreams+ref.String()] = true
		s.streams["namespace/"+ref.Namespace] = true
		s.namespaces[ref.Namespace] = true
	}
	return s
}

// policy tells whether a policy can select one of the endpoints.
func (s *sieve) policy(ref policy.Ref) bool {
	return !policy.KindNamespaced(ref.Kind) || s.namespaces[ref.Namespace]
}

var (
	nodeStreams        = []byte("node/")
	policyStreams      = []byte("policy/")
	clusterwideStreams = []byte("policy/ccnp/")
	restoreStreams     = []byte("restore/")
)

const dnsStreams = "dns/"

// record tells whether a record is of the sieve's.
func (s *sieve) record(r *log.Record) bool {
	if r.Outcome != log.OutcomeApplied {
		return false
	}
	stream := log.PeekStream(r.Event)
	switch {
	case bytes.HasPrefix(stream, nodeStreams), bytes.HasPrefix(stream, clusterwideStreams), bytes.HasPrefix(stream, restoreStreams):
		return true
	case bytes.HasPrefix(stream, policyStreams):
		// policy/KIND/NAMESPACE/NAME
		parts := bytes.SplitN(stream, []byte("/"), 4)
		return len(parts) == 4 && s.namespaces[string(parts[2])]
	case s.dns[string(stream)]:
		return s.about == nil || slices.ContainsFunc(s.about, func(b []byte) bool { return bytes.Contains(r.Event, b) })
	}
	return s.streams[string(stream)]
}

// excerpt is the sieve's part of a View.
func (s *sieve) excerpt(view fsm.View) *fsm.State { return view.Excerpt(s.endpoints, s.policy) }

// touches tells whether a change of a policy can change a verdict: whether, before
// or after it, the policy selects one of the endpoints.
func (s *sieve) touches(view fsm.View, ref policy.Ref) bool {
	p, ok := view.Policy(ref)
	if !ok {
		return false
	}
	for _, at := range s.endpoints {
		e, ok := view.Endpoint(at)
		if !ok {
			continue
		}
		id, ok := view.Identity(e.Identity)
		if ok && slices.ContainsFunc(p.Policy.Specs, func(spec policy.Spec) bool { return spec.Subject.Matches(id.Labels) }) {
			return true
		}
	}
	return false
}

// sieveOf finds who the parties of a question were in a span of revisions, of whose
// beginning view is the state. A name is whoever has an address that some From was told
// for it.
func (a *Auditor) sieveOf(ctx context.Context, q Question, view fsm.View, last log.Revision) (*sieve, error) {
	var endpoints []fsm.EndpointRef
	var addrs []netip.Addr
	about := [][]byte{}
	for _, words := range []string{q.From, q.To} {
		if ref, ok := podOf(words); ok {
			endpoints = append(endpoints, ref)
		} else if addr, ok := addrOf(words); ok {
			addrs = append(addrs, addr)
		}
	}
	if addr, ok := addrOf(q.To); ok {
		about = append(about, addr.AsSlice())
	} else if to, err := verdict.ParseParty(fsm.View{}, q.To); err == nil && to.Name != "" {
		about = append(about, []byte(to.Name))
		told, err := a.told(ctx, to.Name, view, last)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, told...)
	}
	if len(addrs) > 0 {
		for e := range view.Endpoints() {
			if slices.Contains(addrs, e.IPv4) || slices.Contains(addrs, e.IPv6) {
				endpoints = append(endpoints, e.Ref)
			}
		}
		users, err := a.users(ctx, view.Revision(), last, addrs)
		if err != nil {
			return nil, err
		}
		endpoints = append(endpoints, users...)
	}
	s := newSieve(endpoints)
	s.about = about
	return s, nil
}

// told is the addresses that anybody was told for a name, until the end of a span of
// revisions.
func (a *Auditor) told(ctx context.Context, name string, view fsm.View, last log.Revision) (out []netip.Addr, err error) {
	for n := range view.Names() {
		if n.Name == name {
			for _, x := range n.Addresses {
				out = append(out, x.Addr)
			}
		}
	}
	if view.Revision() < last {
		err = a.Past.Read(ctx, view.Revision()+1, last, func(r log.Record) error {
			if !bytes.HasPrefix(log.PeekStream(r.Event), []byte(dnsStreams)) || !bytes.Contains(r.Event, []byte(name)) {
				return nil
			}
			e, err := log.Unmarshal(r.Event)
			if o := e.GetDnsObserved(); o.GetName() == name {
				out = append(out, addrsOf(o)...)
			}
			return err
		})
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), err
}

func addrsOf(o *eventpb.DnsObserved) (out []netip.Addr) {
	for _, x := range o.GetAddresses() {
		if a, ok := netip.AddrFromSlice(x.GetAddress()); ok {
			out = append(out, a)
		}
	}
	return out
}

// users are the endpoints that were created with one of some addresses after a
// revision and up to another.
func (a *Auditor) users(ctx context.Context, after, last log.Revision, addrs []netip.Addr) ([]fsm.EndpointRef, error) {
	if after >= last {
		return nil, nil
	}
	var out []fsm.EndpointRef
	err := a.Past.Read(ctx, after+1, last, func(r log.Record) error {
		if r.Outcome != log.OutcomeApplied || !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return bytes.Contains(r.Event, a.AsSlice()) }) {
			return nil
		}
		e, err := log.Unmarshal(r.Event)
		if err != nil {
			return err
		}
		if created := e.GetEndpointCreated(); created != nil && uses(created, addrs) {
			out = append(out, fsm.EndpointRef{Namespace: created.Ref.GetNamespace(), Name: created.Ref.GetName()})
		}
		return nil
	})
	return out, err
}

func uses(created *eventpb.EndpointCreated, addrs []netip.Addr) bool {
	return slices.ContainsFunc(created.Addresses, func(b []byte) bool {
		a, ok := netip.AddrFromSlice(b)
		return ok && slices.Contains(addrs, a.Unmap())
	})
}

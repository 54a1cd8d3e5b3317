package audit

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// Event is a record of the log as an answer quotes it.
type Event struct {
	Revision log.Revision
	// Kept is false if retention has removed the record: all that is known of it
	// is its revision.
	Kept     bool
	TimeNS   int64
	Kind     log.Kind
	Stream   string
	Actor    string // as authenticated
	Node     string // that took the request, or whose fact it is
	Rejected string // why it had no effect; empty: it was applied
	Text     string // what it says, in a line
	// Roles say what it has to do with the answer.
	Roles []string
}

// Event fetches a record.
func (a *Auditor) Event(ctx context.Context, revision log.Revision) (Event, error) {
	return a.event(ctx, revision)
}

func (a *Auditor) event(ctx context.Context, revision log.Revision, roles ...string) (Event, error) {
	out := Event{Revision: revision, Roles: roles}
	if revision <= a.Past.First() {
		return out, nil
	}
	err := a.Past.Read(ctx, revision, revision, func(r log.Record) (err error) {
		out, err = eventOf(&r)
		out.Roles = roles
		return err
	})
	return out, err
}

// eventOf is a record as answers quote it.
func eventOf(r *log.Record) (Event, error) {
	e, err := log.Unmarshal(r.Event)
	if err != nil {
		return Event{}, fmt.Errorf("revision %d: %w", r.Revision, err)
	}
	kind, err := log.KindOf(e)
	if err != nil {
		return Event{}, fmt.Errorf("revision %d: %w", r.Revision, err)
	}
	return Event{
		Revision: r.Revision, Kept: true, TimeNS: r.TimeNS, Kind: kind, Stream: e.Stream,
		Actor: e.GetActor().GetName(), Node: e.GetOrigin().GetNode(), Rejected: r.Reason, Text: describe(e, kind),
	}, nil
}

// causes gathers revisions and what each has to do with an answer.
type causes map[log.Revision][]string

func (c causes) add(revision log.Revision, format string, args ...any) {
	role := fmt.Sprintf(format, args...)
	if revision != 0 && !slices.Contains(c[revision], role) {
		c[revision] = append(c[revision], role)
	}
}

// events fetches what was gathered, in the order of revisions.
func (a *Auditor) events(ctx context.Context, c causes) ([]Event, error) {
	out := make([]Event, 0, len(c))
	for _, revision := range slices.Sorted(maps.Keys(c)) {
		e, err := a.event(ctx, revision, c[revision]...)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// describe is what an event says, in a line.
func describe(e *eventpb.Event, kind log.Kind) string {
	_, name, _ := strings.Cut(e.Stream, "/")
	switch p := e.Payload.(type) {
	case *eventpb.Event_PolicySet:
		return fmt.Sprintf("sets policy %s: %s", name, rules(p.PolicySet))
	case *eventpb.Event_PolicyDeleted:
		return "deletes policy " + name
	case *eventpb.Event_NamespaceSet:
		return fmt.Sprintf("sets namespace %s, labels %s", name, labelsText(p.NamespaceSet.Labels))
	case *eventpb.Event_NamespaceDeleted:
		return "deletes namespace " + name
	case *eventpb.Event_EndpointCreated:
		c := p.EndpointCreated
		return fmt.Sprintf("creates endpoint %s with %s on node %s, labels %s", name, addresses(c.Addresses), c.Node, labelsText(c.Labels))
	case *eventpb.Event_EndpointUpdated:
		return fmt.Sprintf("changes endpoint %s, labels %s", name, labelsText(p.EndpointUpdated.Labels))
	case *eventpb.Event_EndpointDeleted:
		return "deletes endpoint " + name
	case *eventpb.Event_NodeJoined:
		return fmt.Sprintf("node %s joins with %s", name, addresses(p.NodeJoined.Addresses))
	case *eventpb.Event_NodeUpdated:
		return fmt.Sprintf("node %s has %s", name, addresses(p.NodeUpdated.Addresses))
	case *eventpb.Event_DnsObserved:
		o := p.DnsObserved
		return fmt.Sprintf("endpoint %s asks for %s and is told %s", name, strings.TrimSuffix(o.Name, "."), answerText(o))
	case *eventpb.Event_DnsCollected:
		c := p.DnsCollected
		return fmt.Sprintf("endpoint %s forgets %s of %s, which had expired", name, addresses(c.Addresses), strings.TrimSuffix(c.Name, "."))
	case *eventpb.Event_NodeLeft:
		return fmt.Sprintf("node %s leaves, and its endpoints with it", name)
	case *eventpb.Event_SnapshotStaged:
		st := p.SnapshotStaged
		return fmt.Sprintf("stages part %d of restore %s: namespaces: %d, policies: %d", st.Part, name, len(st.Namespaces), len(st.Policies))
	case *eventpb.Event_SnapshotRestored:
		return fmt.Sprintf("restores policies and namespaces as of revision %d (restore %s)", p.SnapshotRestored.GetSource().GetRevision(), name)
	case *eventpb.Event_SnapshotAbandoned:
		return fmt.Sprintf("abandons restore %s: %s", name, p.SnapshotAbandoned.Reason)
	}
	return kind.String() + " " + name
}

// answerText is the addresses of an answer, each with its expiry, and the names that led
// to them.
func answerText(o *eventpb.DnsObserved) string {
	var out []string
	for _, a := range o.Addresses {
		if addr, ok := netip.AddrFromSlice(a.GetAddress()); ok {
			out = append(out, fmt.Sprintf("%s until %s", addr, timeText(a.GetExpiresUnixNs())))
		}
	}
	text := strings.Join(out, ", ")
	if len(o.Chain) > 0 {
		text += ", by way of " + strings.Join(o.Chain, " ")
	}
	return text
}

func timeText(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339) }

func rules(set *eventpb.PolicySet) string {
	var parts []string
	count := func(name string, n int) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, name))
		}
	}
	var in, out, inDeny, outDeny int
	for _, s := range set.Specs {
		in, out = in+len(s.Ingress), out+len(s.Egress)
		inDeny, outDeny = inDeny+len(s.IngressDeny), outDeny+len(s.EgressDeny)
	}
	count("ingress", in)
	count("egress", out)
	count("ingressDeny", inDeny)
	count("egressDeny", outDeny)
	if len(parts) == 0 {
		return "no rules"
	}
	return strings.Join(parts, ", ")
}

func addresses(raw [][]byte) string {
	var out []string
	for _, b := range raw {
		if a, ok := netip.AddrFromSlice(b); ok {
			out = append(out, a.String())
		}
	}
	if len(out) == 0 {
		return "no address"
	}
	return strings.Join(out, " ")
}

func labelsText(labels map[string]string) string {
	if len(labels) == 0 {
		return "none"
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}

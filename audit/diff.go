package audit

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"time"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// StateChange is a row of the state that is otherwise at a later revision.
type StateChange struct {
	Kind string // namespace, node, identity, endpoint, policy, name
	Name string // of a name "NAMESPACE/ENDPOINT NAME"
	// Was and Is are the row, in a line; empty: there was none, or is none.
	Was, Is string
	// Revision of the event that the later row, or else the earlier one, is of.
	Revision log.Revision
}

// EventsBetween calls fn for each record after a revision and up to another.
func (a *Auditor) EventsBetween(ctx context.Context, after, until log.Revision, fn func(Event) error) error {
	if after >= until {
		return nil
	}
	return a.Past.Read(ctx, after+1, until, func(r log.Record) error {
		e, err := eventOf(&r)
		if err != nil {
			return err
		}
		return fn(e)
	})
}

// DiffState calls fn for each row that two Views do not have alike, by kind and in
// the order of names.
func DiffState(was, is fsm.View, fn func(StateChange) error) error {
	err := diffRows("namespace", was.Namespaces(), is.Namespaces(), func(n *fsm.Namespace) (string, stateRow) {
		return n.Name, stateRow{n.Name, "labels " + labelsText(n.Labels), n.Revision}
	}, fn)
	if err != nil {
		return err
	}
	if err := diffRows("node", was.Nodes(), is.Nodes(), nodeRow, fn); err != nil {
		return err
	}
	err = diffRows("identity", was.Identities(), is.Identities(), func(i *fsm.Identity) (string, stateRow) {
		text := i.Labels.String()
		if i.ReleasedRevision != 0 {
			text += ", released"
		}
		return fmt.Sprintf("%010d", i.ID), stateRow{fmt.Sprint(i.ID), text, max(i.Revision, i.ReleasedRevision)}
	}, fn)
	if err != nil {
		return err
	}
	if err := diffRows("endpoint", was.Endpoints(), is.Endpoints(), endpointRow, fn); err != nil {
		return err
	}
	err = diffRows("policy", was.Policies(), is.Policies(), func(p *fsm.Policy) (string, stateRow) {
		ref := p.Policy.Ref
		text := fmt.Sprintf("%s, set at revision %d", rules(p.Set), p.Revision)
		return fmt.Sprintf("%d\x00%s\x00%s", ref.Kind, ref.Namespace, ref.Name), stateRow{ref.String(), text, p.Revision}
	}, fn)
	if err != nil {
		return err
	}
	if err := diffRows("name", was.Names(), is.Names(), nameRow, fn); err != nil {
		return err
	}
	return diffRows("restore", underWay(was), underWay(is), func(s *fsm.Staging) (string, stateRow) {
		return s.Restore, stateRow{s.Restore, fmt.Sprintf("under way on node %s, parts: %d", s.Node, s.Parts), s.Revision}
	}, fn)
}

// underWay yields the restore that is.
func underWay(v fsm.View) iter.Seq[*fsm.Staging] {
	return func(yield func(*fsm.Staging) bool) {
		if s, ok := v.Staging(); ok {
			yield(&s)
		}
	}
}

// stateRow is a row of the state: its name and its content in a line.
type stateRow struct {
	name, text string
	revision   log.Revision
}

func nodeRow(n *fsm.Node) (string, stateRow) {
	var parts []string
	if n.Left {
		parts = append(parts, "left")
	}
	for _, a := range n.Addresses {
		parts = append(parts, a.String())
	}
	for _, p := range n.EndpointCIDRs {
		parts = append(parts, "endpoints in "+p.String())
	}
	if n.KubeAPIServer {
		parts = append(parts, "kube-apiserver")
	}
	return n.Name, stateRow{n.Name, strings.Join(parts, ", "), n.Revision}
}

func endpointRow(e *fsm.Endpoint) (string, stateRow) {
	parts := []string{fmt.Sprintf("node %s, id %d, identity %d", e.Node, e.ID, e.Identity)}
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			parts = append(parts, a.String())
		}
	}
	parts = append(parts, "labels "+labelsText(e.Labels))
	if e.ServiceAccount != "default" {
		parts = append(parts, "service account "+e.ServiceAccount)
	}
	for _, p := range e.NamedPorts {
		parts = append(parts, fmt.Sprintf("port %s %d", p.Name, p.Port))
	}
	parts = append(parts, fmt.Sprintf("incarnation %d", e.Incarnation))
	return e.Ref.Namespace + "\x00" + e.Ref.Name, stateRow{e.Ref.String(), strings.Join(parts, ", "), e.Revision}
}

// nameRow is what an endpoint was told of a name.
func nameRow(n *fsm.Name) (string, stateRow) {
	parts := make([]string, len(n.Addresses))
	for i, a := range n.Addresses {
		parts[i] = fmt.Sprintf("%s until %s", a.Addr, time.Unix(0, a.ExpiresNS).UTC().Format(time.RFC3339Nano))
	}
	text := strings.Join(parts, ", ")
	if len(n.Chain) > 0 {
		text += " by way of " + strings.Join(n.Chain, ", ")
	}
	return n.Endpoint.Namespace + "\x00" + n.Endpoint.Name + "\x00" + n.Name, stateRow{n.Endpoint.String() + " " + n.Name, text, n.Revision}
}

// diffRows merges two sequences that are in the order of their keys.
func diffRows[T any](kind string, was, is iter.Seq[*T], row func(*T) (key string, r stateRow), fn func(StateChange) error) error {
	nextWas, stopWas := iter.Pull(was)
	defer stopWas()
	nextIs, stopIs := iter.Pull(is)
	defer stopIs()
	a, okA := nextWas()
	b, okB := nextIs()
	for okA || okB {
		var keyA, keyB string
		var rowA, rowB stateRow
		if okA {
			keyA, rowA = row(a)
		}
		if okB {
			keyB, rowB = row(b)
		}
		order := cmp.Compare(keyA, keyB)
		switch {
		case !okB:
			order = -1
		case !okA:
			order = 1
		}
		change := StateChange{Kind: kind}
		if order <= 0 {
			change.Name, change.Was, change.Revision = rowA.name, rowA.text, rowA.revision
			a, okA = nextWas()
		}
		if order >= 0 {
			change.Name, change.Is, change.Revision = rowB.name, rowB.text, rowB.revision
			b, okB = nextIs()
		}
		if change.Was == change.Is {
			continue
		}
		if err := fn(change); err != nil {
			return err
		}
	}
	return nil
}

// DiffTable calls fn for each row that two tables do not have alike, in the order
// of the later table, and then for those that are gone. One of was and is may be
// nil.
func DiffTable[K, V comparable](was, is *projections.Table[K, V], fn func(was, is *projections.Row[K, V]) error) error {
	for row := range is.All() {
		old, ok := was.Get(row.Key)
		if ok && old.Value == row.Value {
			continue
		}
		if err := fn(old, row); err != nil {
			return err
		}
	}
	for row := range was.All() {
		if _, ok := is.Get(row.Key); !ok {
			if err := fn(row, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

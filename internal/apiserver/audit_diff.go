package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/audit"
	"github.com/varve-net/varve/internal/auditserver"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/projections"
)

// Parts of a diff.
const (
	partEvents = "events"
	partState  = "state"
	partTables = "tables"
)

var diffParts = []string{partEvents, partState, partTables}

// stateKinds are the kinds of rows of the state.
var stateKinds = []string{"namespace", "node", "identity", "endpoint", "policy"}

// Diff implements AuditService.
func (a auditService) Diff(ctx context.Context, req *connect.Request[varvev1.AuditDiffRequest], stream *connect.ServerStream[varvev1.AuditDiffResponse]) error {
	if err := checkDiff(req.Msg); err != nil {
		return err
	}
	if req.Msg.From == "" {
		return invalid("from: empty; give a revision, a time or how long ago")
	}
	from, err := a.s.scene(ctx, req.Msg.From)
	if err != nil {
		return fieldOf("from", err)
	}
	to, err := a.s.scene(ctx, orNow(req.Msg.To))
	if err != nil {
		return fieldOf("to", err)
	}
	if from.view.Revision() > to.view.Revision() {
		return invalid("from: revision %d is after revision %d of to", from.view.Revision(), to.view.Revision())
	}
	d := &differ{auditService: a, req: req.Msg, stream: stream, from: from, to: to, node: req.Msg.Node, counts: map[countKey]*varvev1.AuditDiffCount{}}
	if d.node == "" {
		d.node = a.s.Node
	}
	return streamError(d.run(ctx))
}

func orNow(at string) string {
	if at == "" {
		return "now"
	}
	return at
}

// fieldOf names the field that an error is about.
func fieldOf(field string, err error) error {
	return connect.NewError(connect.CodeOf(err), fmt.Errorf("%s: %s", field, message(err)))
}

func checkDiff(req *varvev1.AuditDiffRequest) error {
	for i, p := range req.Parts {
		if !slices.Contains(diffParts, p) {
			return invalid("parts[%d]: %q is none of %v", i, p, diffParts)
		}
	}
	for i, k := range req.Kinds {
		if _, err := log.ParseKind(k); err != nil && !slices.Contains(stateKinds, k) {
			return invalid("kinds[%d]: %q is neither a kind of event, such as policy-set, nor one of %v", i, k, stateKinds)
		}
	}
	for i, m := range req.Maps {
		if !slices.Contains(mapNames, m) {
			return invalid("maps[%d]: %q is none of %v", i, m, mapNames)
		}
	}
	return nil
}

type countKey struct{ part, kind string }

// differ sends a diff, part by part.
type differ struct {
	auditService
	req      *varvev1.AuditDiffRequest
	stream   *connect.ServerStream[varvev1.AuditDiffResponse]
	from, to *scene
	node     string
	counts   map[countKey]*varvev1.AuditDiffCount
}

func (d *differ) run(ctx context.Context) error {
	span := &varvev1.AuditSpan{From: d.from.at, To: d.to.at, Node: d.node}
	if err := d.stream.Send(&varvev1.AuditDiffResponse{Part: &varvev1.AuditDiffResponse_Span{Span: span}}); err != nil {
		return err
	}
	if d.has(partEvents) {
		if err := d.Auditor().EventsBetween(ctx, d.from.view.Revision(), d.to.view.Revision(), d.event); err != nil {
			return pastError(ctx, err)
		}
	}
	if d.has(partState) {
		if err := audit.DiffState(d.from.view, d.to.view, d.state); err != nil {
			return err
		}
	}
	if d.has(partTables) {
		if err := d.tables(ctx); err != nil {
			return err
		}
	}
	return d.sendCounts()
}

// has tells whether a part is asked for. Filters by kind or map ask for their parts.
func (d *differ) has(part string) bool {
	if len(d.req.Parts) > 0 {
		return slices.Contains(d.req.Parts, part)
	}
	if len(d.req.Maps) == 0 && len(d.req.Kinds) == 0 {
		return true
	}
	return part == partTables && len(d.req.Maps) > 0 || part != partTables && len(d.req.Kinds) > 0
}

// count counts a change, and tells whether it is to be shown.
func (d *differ) count(part, kind string, was, is bool) bool {
	key := countKey{part, kind}
	c, ok := d.counts[key]
	if !ok {
		c = &varvev1.AuditDiffCount{Part: part, Kind: kind}
		d.counts[key] = c
	}
	switch {
	case was && is:
		c.Changed++
	case was:
		c.Removed++
	default:
		c.Added++
	}
	return d.req.Limit == 0 || c.Added+c.Changed+c.Removed <= d.req.Limit
}

func (d *differ) event(e audit.Event) error {
	if len(d.req.Kinds) > 0 && !slices.Contains(d.req.Kinds, e.Kind.String()) || !d.count(partEvents, e.Kind.String(), false, true) {
		return nil
	}
	return d.stream.Send(&varvev1.AuditDiffResponse{Part: &varvev1.AuditDiffResponse_Event{Event: auditserver.EventProto(&e)}})
}

func (d *differ) state(c audit.StateChange) error {
	if len(d.req.Kinds) > 0 && !slices.Contains(d.req.Kinds, c.Kind) || !d.count(partState, c.Kind, c.Was != "", c.Is != "") {
		return nil
	}
	return d.stream.Send(&varvev1.AuditDiffResponse{Part: &varvev1.AuditDiffResponse_State{State: &varvev1.AuditStateChange{
		Kind: c.Kind, Name: c.Name, Was: c.Was, Is: c.Is, Revision: uint64(c.Revision),
	}}})
}

// tables sends what changed in the node's tables. A node that was not in the cluster
// had none.
func (d *differ) tables(ctx context.Context) error {
	was, err := d.tablesOf(ctx, d.from)
	if err != nil {
		return err
	}
	is, err := d.tablesOf(ctx, d.to)
	if err != nil {
		return err
	}
	if was == nil && is == nil {
		if d.req.Node != "" {
			return notFound("node: %q was not in the cluster, neither at revision %d nor at %d", d.node, d.from.view.Revision(), d.to.view.Revision())
		}
		return nil
	}
	if was == nil {
		was = &projections.Tables{}
	}
	if is == nil {
		is = &projections.Tables{}
	}
	wasDump := dump{names: newNames(d.from.view, was, d.node), node: d.node}
	isDump := dump{names: newNames(d.to.view, is, d.node), node: d.node}
	for _, table := range mapNames {
		if len(d.req.Maps) > 0 && !slices.Contains(d.req.Maps, table) {
			continue
		}
		err := eachChange(table, wasDump, isDump, was, is, func(was, is *auditRow) error {
			if !d.count(partTables, table, was != nil, is != nil) {
				return nil
			}
			return d.stream.Send(&varvev1.AuditDiffResponse{Part: &varvev1.AuditDiffResponse_Row{Row: rowChange(table, was, is)}})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) tablesOf(ctx context.Context, c *scene) (*projections.Tables, error) {
	t, err := d.s.Past.Tables(ctx, c.view.Revision(), d.node)
	if errors.Is(err, projections.ErrUnknownNode) {
		return nil, nil
	}
	return t, pastError(ctx, err)
}

func (d *differ) sendCounts() error {
	keys := slices.SortedFunc(maps.Keys(d.counts), func(a, b countKey) int {
		if a.part != b.part {
			return slices.Index(diffParts, a.part) - slices.Index(diffParts, b.part)
		}
		return slices.Compare([]string{a.kind}, []string{b.kind})
	})
	for _, k := range keys {
		if err := d.stream.Send(&varvev1.AuditDiffResponse{Part: &varvev1.AuditDiffResponse_Count{Count: d.counts[k]}}); err != nil {
			return err
		}
	}
	return nil
}

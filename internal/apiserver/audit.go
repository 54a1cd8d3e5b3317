package apiserver

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/auditserver"
)

// auditService adds to the questions about connections those about whole states.
type auditService struct {
	*auditserver.Service
	s *Server
}

// At implements AuditService.
func (a auditService) At(ctx context.Context, req *connect.Request[varvev1.AuditAtRequest]) (*connect.Response[varvev1.AuditAtResponse], error) {
	at := req.Msg.At
	if at == "" {
		at = "now"
	}
	c, err := a.s.scene(ctx, at)
	if err != nil {
		return nil, err
	}
	chain, digest := c.view.Chain(), c.view.Digest()
	resp := &varvev1.AuditAtResponse{At: c.at, Cluster: c.view.Cluster(), Chain: chain[:], StateDigest: digest[:]}
	if req.Msg.Node != "" {
		return a.tablesAt(ctx, c, req.Msg, resp)
	}
	for ns := range c.view.Namespaces() {
		resp.Namespaces = append(resp.Namespaces, &varvev1.Namespace{Name: ns.Name, Labels: ns.Labels, Revision: uint64(ns.Revision)})
	}
	resp.Nodes = nodes(c.view)
	resp.Identities = identities(c.view)
	for ep := range c.view.Endpoints() {
		resp.Endpoints = append(resp.Endpoints, endpointFacts(ep))
	}
	for p := range c.view.Policies() {
		resp.Policies = append(resp.Policies, policyProto(c.view, p, ""))
	}
	resp.Names = learnedNames(c.view)
	for _, n := range []struct {
		what  string
		count int
	}{
		{"namespaces", len(resp.Namespaces)}, {"nodes", len(resp.Nodes)}, {"identities", len(resp.Identities)},
		{"endpoints", len(resp.Endpoints)}, {"policies", len(resp.Policies)}, {"names", len(resp.Names)},
	} {
		resp.Counts = append(resp.Counts, &varvev1.AuditCount{What: n.what, Count: uint64(n.count)})
	}
	if req.Msg.Summary {
		resp.Namespaces, resp.Nodes, resp.Identities, resp.Endpoints, resp.Policies, resp.Names = nil, nil, nil, nil, nil, nil
	}
	return connect.NewResponse(resp), nil
}

// tablesAt tells a node's tables.
func (a auditService) tablesAt(ctx context.Context, c *scene, req *varvev1.AuditAtRequest, resp *varvev1.AuditAtResponse) (*connect.Response[varvev1.AuditAtResponse], error) {
	t, err := a.s.Past.Tables(ctx, c.view.Revision(), req.Node)
	if err != nil {
		return nil, pastError(ctx, fmt.Errorf("node: %w", err))
	}
	digest := t.Digest()
	resp.Node, resp.TablesDigest = req.Node, digest[:]
	for _, sum := range summaries(t) {
		resp.Tables = append(resp.Tables, &varvev1.TableStatus{Name: sum.name, Rows: uint64(sum.rows), Digest: sum.digest[:]})
	}
	if !req.Summary {
		d := dump{names: newNames(c.view, t, req.Node), node: req.Node}
		resp.Rows = &varvev1.DumpResponse{
			Endpoints: d.endpoints(t), Ipcache: d.ipcache(t), Policies: d.policies(t), Classes: d.classes(t), At: c.at,
		}
		opened, err := t.Opened(c.view)
		if err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		for row := range opened.All() {
			resp.Rows.Names = append(resp.Rows.Names, d.openedRow(row))
		}
	}
	return connect.NewResponse(resp), nil
}

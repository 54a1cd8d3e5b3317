package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/auditserver"
	"github.com/varve-net/varve/projections"
)

// Provenance implements AuditService.
func (a auditService) Provenance(ctx context.Context, req *connect.Request[varvev1.ProvenanceRequest]) (*connect.Response[varvev1.ProvenanceResponse], error) {
	if !slices.Contains(mapNames, req.Msg.Map) {
		return nil, invalid("map: %q is none of %s", req.Msg.Map, strings.Join(mapNames, ", "))
	}
	key := strings.Join(strings.Fields(strings.Join(req.Msg.Key, " ")), " ")
	if key == "" {
		return nil, invalid("key: empty; `varve bpf %s list` prints the keys", req.Msg.Map)
	}
	c, err := a.s.scene(ctx, orNow(req.Msg.At))
	if err != nil {
		return nil, err
	}
	node := req.Msg.Node
	if node == "" {
		node = a.s.Node
	}
	t, err := a.s.Past.Tables(ctx, c.view.Revision(), node)
	if err != nil {
		return nil, pastError(ctx, fmt.Errorf("node: %w", err))
	}
	d := dump{names: newNames(c.view, t, node), node: node}
	row, err := d.find(t, req.Msg.Map, key)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	if row == nil {
		return nil, notFound("map %s has no row %q%s on node %s; `varve bpf %s list` prints the keys", req.Msg.Map, key, c.then(), node, req.Msg.Map)
	}
	resp := &varvev1.ProvenanceResponse{At: c.at, Node: node, Map: req.Msg.Map, Key: row.key, Value: row.value}
	resp.Rules, _ = causeStrings(row.cause)
	for _, revision := range row.cause.Events {
		e, err := a.Auditor().Event(ctx, revision)
		if err != nil {
			return nil, pastError(ctx, err)
		}
		resp.Events = append(resp.Events, auditserver.EventProto(&e))
	}
	return connect.NewResponse(resp), nil
}

// find is the row that a key names; nil if there is none. An address finds the row
// that the programs would find for it.
func (d dump) find(t *projections.Tables, table, key string) (*auditRow, error) {
	if addr, err := netip.ParseAddr(key); err == nil && table == mapIPCache {
		addr = addr.Unmap()
		for bits := addr.BitLen(); bits >= 0; bits-- {
			if row, ok := t.IPCache.Get(projections.PrefixFrom(netip.PrefixFrom(addr, bits))); ok {
				return d.auditIPCache(row), nil
			}
		}
		return nil, nil
	}
	if p, err := netip.ParsePrefix(key); err == nil && table == mapIPCache {
		key = p.Masked().String()
	}
	if endpoint, _, _ := strings.Cut(key, " "); (table == mapEndpoint || table == mapFQDN) && !strings.Contains(endpoint, "/") && strings.Trim(endpoint, "0123456789") != "" {
		key = defaultNamespace + "/" + key
	}
	var found *auditRow
	err := d.eachRow(t, table, func(r *auditRow) bool {
		if slices.ContainsFunc(r.names, func(name string) bool { return strings.EqualFold(strings.Join(strings.Fields(name), " "), key) }) {
			found = r
		}
		return found == nil
	})
	return found, err
}

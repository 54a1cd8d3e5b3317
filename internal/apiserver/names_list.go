package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// nameLister answers which names endpoints of the node know: now by the DNS proxy, which
// is ahead of the log, and of the past by the log.
type nameLister struct {
	*Server
	proxy varvev1connect.FQDNServiceClient // nil: there is none
}

// list is FQDNService's ListNames.
func (s nameLister) list(ctx context.Context, req *connect.Request[varvev1.ListNamesRequest]) (*connect.Response[varvev1.ListNamesResponse], error) {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	only, err := s.only(c, req.Msg.Endpoint)
	if err != nil {
		return nil, err
	}
	if !c.present() {
		return s.past(ctx, c, only, req.Msg)
	}
	if s.proxy == nil {
		return nil, errNoProxy
	}
	resp, err := s.proxy.ListNames(ctx, connect.NewRequest(req.Msg))
	if told, ok := errors.AsType[*connect.Error](err); ok && connect.IsWireError(err) {
		return nil, connect.NewError(told.Code(), errors.New(told.Message()))
	}
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("the DNS proxy does not answer on %s: %w", s.DNSSocket, err))
	}
	return connect.NewResponse(resp.Msg), nil
}

// only is the scene's, of an endpoint of this node.
func (s nameLister) only(c *scene, name string) (*fsm.Endpoint, error) {
	e, err := c.only(name)
	if e != nil && e.Node != s.Node {
		return nil, notFound("endpoint %s is of node %s%s; ask there", endpointName(e.Ref), e.Node, c.then())
	}
	return e, err
}

// past lists names as the log has them.
func (s nameLister) past(ctx context.Context, c *scene, only *fsm.Endpoint, req *varvev1.ListNamesRequest) (*connect.Response[varvev1.ListNamesResponse], error) {
	var pattern policy.FQDNSelector
	var addr netip.Addr
	var err error
	if req.Pattern != "" {
		if pattern, err = policy.ParseFQDN("", req.Pattern); err != nil {
			return nil, invalid("pattern: %w", err)
		}
	}
	if req.Address != "" {
		if addr, err = netip.ParseAddr(req.Address); err != nil {
			return nil, invalid("address: %q; give one such as 203.0.113.7", req.Address)
		}
		addr = addr.Unmap()
	}
	tables, err := c.tables(ctx)
	if err != nil {
		return nil, err
	}
	opened := openers(tables)
	out := &varvev1.ListNamesResponse{At: c.at, AskedUnixNs: c.askedNS}
	for n := range c.view.Names() {
		e, ok := c.view.Endpoint(n.Endpoint)
		if !ok || e.Node != s.Node || only != nil && e != only || req.Pattern != "" && !pattern.Matches(n.Name) {
			continue
		}
		k := &varvev1.KnownName{Endpoint: endpointName(n.Endpoint), Name: n.Name, Chain: n.Chain, Addresses: knownAddresses(n, addr)}
		for _, set := range opened[e.ID] {
			k.Selected = k.Selected || set.Matches(n.Name)
		}
		if len(k.Addresses) > 0 {
			out.Names = append(out.Names, k)
		}
	}
	return connect.NewResponse(out), nil
}

// knownAddresses are those of a name, or of them the one that is asked for.
func knownAddresses(n *fsm.Name, only netip.Addr) (out []*varvev1.KnownAddress) {
	for _, a := range n.Addresses {
		if !only.IsValid() || a.Addr == only {
			out = append(out, &varvev1.KnownAddress{Address: a.Addr.String(), ExpiresUnixNs: a.ExpiresNS, Revision: uint64(a.Revision)})
		}
	}
	return out
}

// openers are the names that rules of each endpoint of a node open, by its number.
func openers(t *projections.Tables) map[uint32][]projections.NameSet {
	if t == nil {
		return nil
	}
	byTable := map[uint64][]projections.NameSet{}
	for row := range t.Learned.All() {
		byTable[row.Key.Table] = append(byTable[row.Key.Table], row.Value)
	}
	out := map[uint32][]projections.NameSet{}
	for row := range t.Endpoints.All() {
		if sets := byTable[row.Value.Egress.Table]; len(sets) > 0 {
			out[row.Key.ID] = sets
		}
	}
	return out
}

// learnedNames are all that a state knows of names.
func learnedNames(view fsm.View) (out []*varvev1.LearnedName) {
	for n := range view.Names() {
		out = append(out, &varvev1.LearnedName{
			Endpoint: endpointName(n.Endpoint), Name: n.Name, Addresses: knownAddresses(n, netip.Addr{}), Chain: n.Chain, Revision: uint64(n.Revision),
		})
	}
	return out
}

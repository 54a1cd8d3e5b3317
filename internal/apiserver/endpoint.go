package apiserver

import (
	"context"
	"maps"
	"net"
	"slices"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
	"github.com/varve-net/varve/projections"
)

// defaultNamespace is where an endpoint or policy stands that names none.
const defaultNamespace = "default"

func endpointName(ref fsm.EndpointRef) string { return ref.Namespace + "/" + ref.Name }

func endpointRef(namespace, name string) (fsm.EndpointRef, error) {
	if name == "" {
		return fsm.EndpointRef{}, invalid("name: empty; name the endpoint")
	}
	if namespace == "" {
		namespace = defaultNamespace
	}
	return fsm.EndpointRef{Namespace: namespace, Name: name}, nil
}

type endpointService struct{ *Server }

func (s endpointService) Add(ctx context.Context, req *connect.Request[varvev1.AddEndpointRequest]) (*connect.Response[varvev1.AddEndpointResponse], error) {
	ref, created, err := s.Endpoints.Add(ctx, ActorFrom(ctx), req.Msg)
	if err != nil {
		return nil, err
	}
	ep, err := s.endpoint(ref)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&varvev1.AddEndpointResponse{Endpoint: ep, Created: created}), nil
}

func (s endpointService) List(ctx context.Context, req *connect.Request[varvev1.ListEndpointsRequest]) (*connect.Response[varvev1.ListEndpointsResponse], error) {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	tables, err := c.tables(ctx)
	if err != nil {
		return nil, err
	}
	resp := &varvev1.ListEndpointsResponse{Revision: uint64(c.view.Revision()), At: c.at}
	for ep := range c.view.Endpoints() {
		if req.Msg.Namespace == "" || ep.Ref.Namespace == req.Msg.Namespace {
			resp.Endpoints = append(resp.Endpoints, s.endpointProto(ep, tables, c.present()))
		}
	}
	return connect.NewResponse(resp), nil
}

func (s endpointService) Get(ctx context.Context, req *connect.Request[varvev1.GetEndpointRequest]) (*connect.Response[varvev1.GetEndpointResponse], error) {
	ref, err := endpointRef(req.Msg.Namespace, req.Msg.Name)
	if err != nil {
		return nil, err
	}
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	ep, ok := c.view.Endpoint(ref)
	if !ok {
		return nil, notFound("endpoint %s does not exist%s; `varve endpoint list` shows what does", endpointName(ref), c.then())
	}
	tables, err := c.tables(ctx)
	if err != nil {
		return nil, err
	}
	resp := &varvev1.GetEndpointResponse{Endpoint: s.endpointProto(ep, tables, c.present()), Revision: uint64(c.view.Revision()), At: c.at}
	if id, ok := c.view.Identity(ep.Identity); ok {
		resp.IdentityLabels = labelStrings(id.Labels)
	}
	return connect.NewResponse(resp), nil
}

func (s endpointService) SetLabels(ctx context.Context, req *connect.Request[varvev1.SetEndpointLabelsRequest]) (*connect.Response[varvev1.SetEndpointLabelsResponse], error) {
	ref, err := endpointRef(req.Msg.Namespace, req.Msg.Name)
	if err != nil {
		return nil, err
	}
	if err := s.Endpoints.SetLabels(ctx, ActorFrom(ctx), ref, req.Msg.Set, req.Msg.Remove); err != nil {
		return nil, err
	}
	ep, err := s.endpoint(ref)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&varvev1.SetEndpointLabelsResponse{Endpoint: ep}), nil
}

func (s endpointService) Configure(ctx context.Context, req *connect.Request[varvev1.ConfigureEndpointRequest]) (*connect.Response[varvev1.ConfigureEndpointResponse], error) {
	ref, err := endpointRef(req.Msg.Namespace, req.Msg.Name)
	if err != nil {
		return nil, err
	}
	if on := req.Msg.PolicyAuditMode; on != nil {
		if err := s.Endpoints.SetAuditMode(ctx, ActorFrom(ctx), ref, *on); err != nil {
			return nil, err
		}
	}
	ep, err := s.endpoint(ref)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&varvev1.ConfigureEndpointResponse{Endpoint: ep}), nil
}

func (s endpointService) Delete(ctx context.Context, req *connect.Request[varvev1.DeleteEndpointRequest]) (*connect.Response[varvev1.DeleteEndpointResponse], error) {
	ref, err := endpointRef(req.Msg.Namespace, req.Msg.Name)
	if err != nil {
		return nil, err
	}
	deleted, err := s.Endpoints.Delete(ctx, ActorFrom(ctx), ref)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&varvev1.DeleteEndpointResponse{Deleted: deleted}), nil
}

func (s *Server) endpoint(ref fsm.EndpointRef) (*varvev1.Endpoint, error) {
	ep, ok := s.Log.View().Endpoint(ref)
	if !ok {
		return nil, notFound("endpoint %s was deleted meanwhile", endpointName(ref))
	}
	return s.endpointProto(ep, s.Projector.Current(), true), nil
}

// endpointProto describes an endpoint. How a local one does is known at present
// only.
func (s *Server) endpointProto(ep *fsm.Endpoint, tables *projections.Tables, present bool) *varvev1.Endpoint {
	out := endpointFacts(ep)
	if ep.Node != s.Node {
		out.State = "remote"
		return out
	}
	if present {
		out.State = s.Endpoints.State(ep.Ref)
	}
	if tables != nil {
		if row, ok := tables.Endpoints.Get(projections.EndpointKey{ID: ep.ID}); ok {
			out.PolicyAuditMode = row.Value.Egress.Flags&abi.PolicyAudit != 0 // the node may be in audit mode
			out.EgressEnforced = row.Value.Egress.Flags&abi.PolicyEnforced != 0
			out.IngressEnforced = row.Value.Ingress.Flags&abi.PolicyEnforced != 0
		}
	}
	return out
}

// endpointFacts are what the log says of an endpoint.
func endpointFacts(ep *fsm.Endpoint) *varvev1.Endpoint {
	out := &varvev1.Endpoint{
		Namespace: ep.Ref.Namespace, Name: ep.Ref.Name, Id: ep.ID, Identity: ep.Identity,
		Labels: maps.Clone(ep.Labels), ServiceAccount: ep.ServiceAccount,
		Mac: net.HardwareAddr(ep.MAC[:]).String(), Node: ep.Node, Netns: ep.Netns,
		HostInterface: ep.HostInterface, ContainerInterface: ep.ContainerInterface,
		Incarnation: ep.Incarnation, CreatedRevision: uint64(ep.Created), Revision: uint64(ep.Revision),
		Mtu: uint32(ep.MTU), BigTcp: ep.BigTCP, PolicyAuditMode: ep.AuditMode,
	}
	if ep.IPv4.IsValid() {
		out.Ipv4 = ep.IPv4.String()
	}
	if ep.IPv6.IsValid() {
		out.Ipv6 = ep.IPv6.String()
	}
	for _, p := range ep.NamedPorts {
		out.NamedPorts = append(out.NamedPorts, &varvev1.NamedPort{Name: p.Name, Protocol: protocolName(p.Protocol), Port: uint32(p.Port)})
	}
	return out
}

func labelStrings(ls policy.Labels) []string {
	out := make([]string, len(ls))
	for i, l := range ls {
		out[i] = l.String()
	}
	return out
}

type namespaceService struct{ *Server }

func (s namespaceService) Apply(ctx context.Context, req *connect.Request[varvev1.ApplyNamespaceRequest]) (*connect.Response[varvev1.ApplyNamespaceResponse], error) {
	if req.Msg.Name == "" {
		return nil, invalid("name: empty; name the namespace")
	}
	r, err := s.append(ctx, &eventpb.Event{
		RequestId: req.Msg.RequestId, ExpectedRevision: req.Msg.ExpectedRevision,
		Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: req.Msg.Name, Labels: req.Msg.Labels}},
	})
	if err != nil {
		return nil, err
	}
	if err := s.inForce(ctx, r.Revision); err != nil {
		return nil, err
	}
	for _, ns := range namespaces(s.Log.View()) {
		if ns.Name == req.Msg.Name {
			return connect.NewResponse(&varvev1.ApplyNamespaceResponse{Namespace: ns}), nil
		}
	}
	return nil, notFound("namespace %s was deleted meanwhile", req.Msg.Name)
}

func (s namespaceService) List(ctx context.Context, req *connect.Request[varvev1.ListNamespacesRequest]) (*connect.Response[varvev1.ListNamespacesResponse], error) {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&varvev1.ListNamespacesResponse{Namespaces: namespaces(c.view), Revision: uint64(c.view.Revision()), At: c.at}), nil
}

// namespaces lists those that were applied and those that only endpoints name.
func namespaces(view fsm.View) []*varvev1.Namespace {
	byName := map[string]*varvev1.Namespace{}
	for ns := range view.Namespaces() {
		byName[ns.Name] = &varvev1.Namespace{Name: ns.Name, Labels: maps.Clone(ns.Labels), Revision: uint64(ns.Revision)}
	}
	for ep := range view.Endpoints() {
		ns := byName[ep.Ref.Namespace]
		if ns == nil {
			ns = &varvev1.Namespace{Name: ep.Ref.Namespace}
			byName[ns.Name] = ns
		}
		ns.Endpoints++
	}
	out := make([]*varvev1.Namespace, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name])
	}
	return out
}

type identityService struct{ *Server }

func (s identityService) List(ctx context.Context, req *connect.Request[varvev1.ListIdentitiesRequest]) (*connect.Response[varvev1.ListIdentitiesResponse], error) {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	resp := &varvev1.ListIdentitiesResponse{Revision: uint64(c.view.Revision()), At: c.at}
	if req.Msg.Reserved {
		for id := abi.IdentityHost; id <= abi.IdentityWorldIPv6; id++ {
			resp.Identities = append(resp.Identities, &varvev1.Identity{Id: id, Labels: labelStrings(policy.ReservedLabels(id))})
		}
	}
	resp.Identities = append(resp.Identities, identities(c.view)...)
	return connect.NewResponse(resp), nil
}

// identities lists those that labels have led to.
func identities(view fsm.View) []*varvev1.Identity {
	var out []*varvev1.Identity
	for id := range view.Identities() {
		out = append(out, &varvev1.Identity{
			Id: id.ID, Labels: labelStrings(id.Labels), Endpoints: uint32(id.Refs),
			Revision: uint64(id.Revision), Released: id.ReleasedRevision != 0,
		})
	}
	return out
}

type nodeService struct{ *Server }

func (s nodeService) List(ctx context.Context, req *connect.Request[varvev1.ListNodesRequest]) (*connect.Response[varvev1.ListNodesResponse], error) {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&varvev1.ListNodesResponse{Nodes: nodes(c.view), Revision: uint64(c.view.Revision()), At: c.at}), nil
}

// nodes lists the members of the cluster, those that left too.
func nodes(view fsm.View) []*varvev1.Node {
	endpoints := map[string]uint32{}
	for ep := range view.Endpoints() {
		endpoints[ep.Node]++
	}
	var out []*varvev1.Node
	for n := range view.Nodes() {
		node := &varvev1.Node{
			Name: n.Name, KubeApiserver: n.KubeAPIServer, Left: n.Left, Endpoints: endpoints[n.Name], Revision: uint64(n.Revision),
		}
		for _, a := range n.Addresses {
			node.Addresses = append(node.Addresses, a.String())
		}
		for _, p := range n.EndpointCIDRs {
			node.EndpointCidrs = append(node.EndpointCidrs, p.String())
		}
		out = append(out, node)
	}
	return out
}

package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/projections"
)

type datapathService struct{ *Server }

// Dump shows the kernel's rows, not the desired ones; only their names come from
// the projection.
func (s datapathService) Dump(ctx context.Context, req *connect.Request[varvev1.DumpRequest]) (*connect.Response[varvev1.DumpResponse], error) {
	view := s.Log.View()
	n := newNames(view, s.Projector.Current(), s.Node)
	only, err := s.only(view, req.Msg.Endpoint)
	if err != nil {
		return nil, err
	}
	resp := &varvev1.DumpResponse{}
	if req.Msg.Map == varvev1.Map_MAP_CT {
		var flows []dataplane.Flow
		err := s.Kernel.Flows(ctx, func(f dataplane.Flow) error {
			if only == nil || concerns(f, only) {
				flows = append(flows, f)
			}
			return nil
		})
		if err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		slices.SortFunc(flows, dataplane.Flow.Compare)
		for _, f := range flows {
			resp.Flows = append(resp.Flows, flowRow(f))
		}
		return connect.NewResponse(resp), nil
	}

	have, err := s.Kernel.KernelTables(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	switch req.Msg.Map {
	case varvev1.Map_MAP_ENDPOINT:
		for row := range have.Endpoints.All() {
			if only == nil || row.Key.ID == only.ID {
				resp.Endpoints = append(resp.Endpoints, s.endpointRow(n, row.Key.ID, row.Value))
			}
		}
	case varvev1.Map_MAP_IPCACHE:
		for row := range have.IPCache.All() {
			resp.Ipcache = append(resp.Ipcache, s.ipcacheRow(n, row.Key, row.Value))
		}
	case varvev1.Map_MAP_POLICY:
		for row := range have.Policy.All() {
			r := policyRow(n, row.Key, row.Value)
			if only == nil || slices.Contains(r.Endpoints, endpointName(only.Ref)) {
				resp.Policies = append(resp.Policies, r)
			}
		}
	case varvev1.Map_MAP_CLASS:
		for row := range have.Classes.All() {
			resp.Classes = append(resp.Classes, &varvev1.ClassRow{
				Scope: hex(row.Key.Scope), Peer: n.peer(row.Key.Peer, netip.Addr{}), Class: n.class(row.Value.Class),
			})
		}
	default:
		return nil, invalid("map: unknown; give MAP_ENDPOINT, MAP_IPCACHE, MAP_POLICY, MAP_CLASS or MAP_CT")
	}
	return connect.NewResponse(resp), nil
}

// only finds the endpoint that a dump is limited to; nil is no limit.
func (s datapathService) only(view fsm.View, name string) (*fsm.Endpoint, error) {
	if name == "" {
		return nil, nil
	}
	namespace, short, ok := strings.Cut(name, "/")
	if !ok {
		namespace, short = defaultNamespace, name
	}
	ep, ok := view.Endpoint(fsm.EndpointRef{Namespace: namespace, Name: short})
	if !ok {
		return nil, notFound("endpoint %s/%s does not exist; `varve endpoint list` shows what does", namespace, short)
	}
	return ep, nil
}

func (s datapathService) endpointRow(n *names, id uint32, v abi.EndpointValue) *varvev1.EndpointRow {
	out := &varvev1.EndpointRow{
		Ifindex: uint32(s.Kernel.Ifindex(id)), Id: v.ID, Identity: v.Identity, Mac: net.HardwareAddr(v.MAC[:]).String(),
		EgressTable: hex(v.Egress.Table), IngressTable: hex(v.Ingress.Table),
		EgressEnforced: v.Egress.Flags&abi.PolicyEnforced != 0, IngressEnforced: v.Ingress.Flags&abi.PolicyEnforced != 0,
		Endpoint: n.endpointName(id),
	}
	if v.IPv4 != ([4]byte{}) {
		out.Ipv4 = netip.AddrFrom4(v.IPv4).String()
	}
	if v.IPv6 != ([16]byte{}) {
		out.Ipv6 = netip.AddrFrom16(v.IPv6).String()
	}
	return out
}

func (s datapathService) ipcacheRow(n *names, k projections.Prefix, v abi.IPCacheValue) *varvev1.IPCacheRow {
	p := prefixOf(k)
	out := &varvev1.IPCacheRow{Prefix: p.String(), Identity: IdentityOf(v.Peer, p.Addr()), Peer: n.peer(v.Peer, p.Addr())}
	if ep, ok := n.byAddr[p.Addr()]; ok && p.IsSingleIP() {
		if ep.Node == s.Node {
			out.Ifindex = uint32(s.Kernel.Ifindex(ep.ID))
		}
		if id, ok := n.view.Identity(ep.Identity); ok {
			out.Labels = labelStrings(id.Labels)
		}
	}
	return out
}

// prefixOf is the prefix as people write it.
func prefixOf(k projections.Prefix) netip.Prefix {
	addr, bits := netip.AddrFrom16(k.Addr), int(k.PrefixLen)
	if addr.Is4In6() && bits >= 96 {
		return netip.PrefixFrom(addr.Unmap(), bits-96)
	}
	return netip.PrefixFrom(addr, bits)
}

func policyRow(n *names, k abi.PolicyKey, v abi.PolicyValue) *varvev1.PolicyRow {
	out := &varvev1.PolicyRow{
		Table: hex(k.Table), Class: n.class(k.Class), Direction: n.direction[k.Table],
		Protocol: protocolName(k.Protocol), Ports: ports(k.PortBE, k.PortBits, k.Protocol),
		Verdict: "allow", Endpoints: n.byTable[k.Table], Row: hex(v.Row),
	}
	if v.Verdict == abi.VerdictDeny {
		out.Verdict = "deny"
	}
	out.Rules, out.Revisions = n.rules(v.Row)
	return out
}

// concerns tells whether an endpoint is at either end of a flow.
func concerns(f dataplane.Flow, ep *fsm.Endpoint) bool {
	return slices.ContainsFunc([]netip.Addr{f.Src.Addr(), f.Dst.Addr()}, func(a netip.Addr) bool { return a == ep.IPv4 || a == ep.IPv6 })
}

func flowRow(f dataplane.Flow) *varvev1.ConntrackRow {
	return &varvev1.ConntrackRow{
		Protocol: protocolName(f.Protocol), Source: f.Src.String(), Destination: f.Dst.String(),
		State: flowState(f), ExpiresSeconds: uint32(max(0, f.ExpiresIn).Seconds()), SourceIdentity: f.SrcIdentity, Row: hex(f.Row),
	}
}

// flowState is a flow's state in a word or two.
func flowState(f dataplane.Flow) string {
	tcp := f.SrcTCP | f.DstTCP
	switch {
	case f.ExpiresIn <= 0:
		return "expired"
	case f.Denied:
		return "denied"
	case tcp&abi.TCPRst != 0:
		return "reset"
	case tcp&abi.TCPFin != 0:
		return "closing"
	case f.SeenReply:
		return "established"
	case tcp&abi.TCPSyn != 0:
		return "syn sent"
	default:
		return "no reply yet"
	}
}

// class names a class: every peer, a reserved identity, or the selectors.
func (n *names) class(c uint64) string {
	switch {
	case c == abi.ClassAny:
		return "any"
	case c == abi.ClassPod:
		return "pod"
	case c < uint64(abi.IdentityFirstDynamic):
		return n.peer(c, netip.Addr{})
	case n.tables != nil && n.tables.Names[c] != "":
		return n.tables.Names[c]
	default:
		return fmt.Sprintf("class %016x", c)
	}
}

func (s datapathService) Counters(context.Context, *connect.Request[varvev1.CountersRequest]) (*connect.Response[varvev1.CountersResponse], error) {
	counters, lost, err := s.Kernel.Counters()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	resp := &varvev1.CountersResponse{EventsLost: lost}
	for _, c := range counters {
		resp.Counters = append(resp.Counters, &varvev1.Counter{
			Reason: c.Reason.String(), Direction: directionName(c.Direction), Packets: c.Packets, Bytes: c.Bytes,
		})
	}
	return connect.NewResponse(resp), nil
}

func directionName(d abi.Direction) string {
	if d == abi.Egress {
		return "egress"
	}
	return "ingress"
}

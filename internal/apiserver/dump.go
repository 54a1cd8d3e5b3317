package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/dataplane"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/projections"
)

type datapathService struct{ *Server }

// Dump shows the kernel's rows, not the desired ones; only their names come from
// the projection. Of the past it shows what the log says that they should have been.
func (s datapathService) Dump(ctx context.Context, req *connect.Request[varvev1.DumpRequest]) (*connect.Response[varvev1.DumpResponse], error) {
	c, err := s.scene(ctx, req.Msg.At)
	if err != nil {
		return nil, err
	}
	only, err := c.only(req.Msg.Endpoint)
	if err != nil {
		return nil, err
	}
	resp := &varvev1.DumpResponse{At: c.at}
	if req.Msg.Map == varvev1.Map_MAP_CT {
		if !c.present() {
			return nil, invalid("map: flows are not in the log, so only those of a running agent are known, and only now")
		}
		if resp.Flows, err = s.flows(ctx, only); err != nil {
			return nil, err
		}
		return connect.NewResponse(resp), nil
	}
	desired, err := c.tables(ctx)
	if err != nil {
		return nil, err
	}
	d := dump{names: newNames(c.view, desired, s.Node), node: s.Node, only: only}
	if req.Msg.Map == varvev1.Map_MAP_FQDN {
		if resp.Names, err = s.nameRows(ctx, c, d, desired); err != nil {
			return nil, err
		}
		return connect.NewResponse(resp), nil
	}
	have := desired
	switch {
	case c.present():
		d.ifindex = s.Kernel.Ifindex
		if have, err = s.Kernel.KernelTables(ctx); err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
	case have == nil:
		return nil, notFound("node %q was not in the cluster at revision %d", s.Node, c.view.Revision())
	}
	switch req.Msg.Map {
	case varvev1.Map_MAP_ENDPOINT:
		resp.Endpoints = d.endpoints(have)
	case varvev1.Map_MAP_IPCACHE:
		resp.Ipcache = d.ipcache(have)
	case varvev1.Map_MAP_POLICY:
		resp.Policies = d.policies(have)
	case varvev1.Map_MAP_CLASS:
		resp.Classes = d.classes(have)
	default:
		return nil, invalid("map: unknown; give MAP_ENDPOINT, MAP_IPCACHE, MAP_POLICY, MAP_CLASS, MAP_FQDN or MAP_CT")
	}
	return connect.NewResponse(resp), nil
}

func (s datapathService) flows(ctx context.Context, only *fsm.Endpoint) ([]*varvev1.ConntrackRow, error) {
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
	var out []*varvev1.ConntrackRow
	for _, f := range flows {
		out = append(out, flowRow(f))
	}
	return out, nil
}

// dump shows rows of a node's tables.
type dump struct {
	*names
	node string
	only *fsm.Endpoint // rows of this endpoint; nil: all
	// ifindex is the interface of an endpoint; nil: not known.
	ifindex func(endpointID uint32) int
}

func (d dump) endpoints(t *projections.Tables) (out []*varvev1.EndpointRow) {
	for row := range t.Endpoints.All() {
		if d.only == nil || row.Key.ID == d.only.ID {
			out = append(out, d.endpointRow(row.Key.ID, row.Value))
		}
	}
	return out
}

func (d dump) ipcache(t *projections.Tables) (out []*varvev1.IPCacheRow) {
	for row := range t.IPCache.All() {
		out = append(out, d.ipcacheRow(row.Key, row.Value))
	}
	return out
}

func (d dump) policies(t *projections.Tables) (out []*varvev1.PolicyRow) {
	for row := range t.Policy.All() {
		r := policyRow(d.names, row.Key, row.Value)
		if d.only == nil || slices.Contains(r.Endpoints, endpointName(d.only.Ref)) {
			out = append(out, r)
		}
	}
	return out
}

func (d dump) classes(t *projections.Tables) (out []*varvev1.ClassRow) {
	for row := range t.Classes.All() {
		out = append(out, &varvev1.ClassRow{
			Scope: hex(row.Key.Scope), Peer: d.peer(row.Key.Peer, netip.Addr{}), Class: d.class(row.Value.Class),
		})
	}
	return out
}

func (d dump) interfaceOf(id uint32) uint32 {
	if d.ifindex == nil {
		return 0
	}
	return uint32(d.ifindex(id))
}

func (d dump) endpointRow(id uint32, v abi.EndpointValue) *varvev1.EndpointRow {
	out := &varvev1.EndpointRow{
		Ifindex: d.interfaceOf(id), Id: v.ID, Identity: v.Identity, Mac: net.HardwareAddr(v.MAC[:]).String(),
		EgressTable: hex(v.Egress.Table), IngressTable: hex(v.Ingress.Table),
		EgressEnforced: v.Egress.Flags&abi.PolicyEnforced != 0, IngressEnforced: v.Ingress.Flags&abi.PolicyEnforced != 0,
		Endpoint: d.endpointName(id),
	}
	if v.IPv4 != ([4]byte{}) {
		out.Ipv4 = netip.AddrFrom4(v.IPv4).String()
	}
	if v.IPv6 != ([16]byte{}) {
		out.Ipv6 = netip.AddrFrom16(v.IPv6).String()
	}
	return out
}

func (d dump) ipcacheRow(k projections.Prefix, v abi.IPCacheValue) *varvev1.IPCacheRow {
	p := prefixOf(k)
	out := &varvev1.IPCacheRow{Prefix: p.String(), Identity: IdentityOf(v.Peer, p.Addr()), Peer: d.peer(v.Peer, p.Addr())}
	if ep, ok := d.byAddr[p.Addr()]; ok && p.IsSingleIP() {
		if ep.Node == d.node {
			out.Ifindex = d.interfaceOf(ep.ID)
		}
		if id, ok := d.view.Identity(ep.Identity); ok {
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
		Verdict: rowVerdict(v), Endpoints: n.byTable[k.Table], Row: hex(v.Row),
	}
	if c, ok := n.byRow[v.Row]; ok {
		out.Rules, out.Revisions = causeStrings(c)
	}
	return out
}

// rowVerdict is what a row says. Of those that deny in audit mode only, it says what
// the row does as well, if that is anything.
func rowVerdict(v abi.PolicyValue) string {
	audited := v.Flags&abi.PolicyAudited != 0
	switch {
	case v.Verdict == abi.VerdictDeny:
		return "deny"
	case v.Verdict == abi.VerdictNone:
		return "audited deny"
	case audited:
		return "allow, audited deny"
	}
	return "allow"
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
			Reason: c.Reason.String(), Direction: directionName(c.Direction), Packets: c.Packets, Bytes: c.Bytes, Audited: c.Audited,
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

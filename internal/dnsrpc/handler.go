// Package dnsrpc carries dnslink.Proxy over a unix socket: NewHandler is the
// proxy's side, NewClient the agent's.
package dnsrpc

import (
	"context"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/internal/dnslink"
	"github.com/varve-net/varve/log/eventpb"
)

// maxFacts bounds an answer of Facts, whatever the agent asks for.
const maxFacts = 4096

// NewHandler serves p, under the path that it returns.
func NewHandler(p dnslink.Proxy, opts ...connect.HandlerOption) (path string, h http.Handler) {
	return varvev1connect.NewDNSProxyServiceHandler(&handler{p}, opts...)
}

type handler struct{ proxy dnslink.Proxy }

// answer gives errors that the client can tell apart a code of their own.
func answer[T any](m *T, err error) (*connect.Response[T], error) {
	switch {
	case err == nil:
		return connect.NewResponse(m), nil
	case errors.Is(err, dnslink.ErrOtherNode):
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	case errors.Is(err, dnslink.ErrCompacted):
		return nil, connect.NewError(connect.CodeOutOfRange, err)
	case errors.Is(err, context.Canceled):
		return nil, connect.NewError(connect.CodeCanceled, err)
	}
	return nil, connect.NewError(connect.CodeInternal, err)
}

func (h *handler) Status(ctx context.Context, _ *connect.Request[varvev1.DNSProxyStatusRequest]) (*connect.Response[varvev1.DNSProxyStatusResponse], error) {
	s, err := h.proxy.Status(ctx)
	return answer(&varvev1.DNSProxyStatusResponse{
		Cluster: s.Cluster, Node: s.Node, Pid: uint64(s.PID), Version: s.Version, RulesRevision: s.Rules, Last: s.Last, Error: s.Err,
	}, err)
}

func (h *handler) Load(ctx context.Context, _ *connect.Request[varvev1.DNSProxyLoadRequest]) (*connect.Response[varvev1.DNSProxyLoadResponse], error) {
	return answer(&varvev1.DNSProxyLoadResponse{}, h.proxy.Load(ctx))
}

func (h *handler) Seed(ctx context.Context, r *connect.Request[varvev1.DNSProxySeedRequest]) (*connect.Response[varvev1.DNSProxySeedResponse], error) {
	s := dnslink.Seed{Last: r.Msg.Last}
	for _, b := range r.Msg.Observed {
		o := new(eventpb.DnsObserved)
		if err := o.UnmarshalVT(b); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		s.Facts = append(s.Facts, o)
	}
	return answer(&varvev1.DNSProxySeedResponse{}, h.proxy.Seed(ctx, s))
}

func (h *handler) Facts(ctx context.Context, r *connect.Request[varvev1.DNSProxyFactsRequest]) (*connect.Response[varvev1.DNSProxyFactsResponse], error) {
	wait, cancel := context.WithTimeout(ctx, time.Duration(r.Msg.WaitMilliseconds)*time.Millisecond)
	defer cancel()
	facts, err := h.proxy.Facts(wait, r.Msg.After, int(min(r.Msg.Limit, maxFacts)), time.Duration(r.Msg.LingerMilliseconds)*time.Millisecond)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = nil
	}
	m := new(varvev1.DNSProxyFactsResponse)
	for _, f := range facts {
		m.Facts = append(m.Facts, &varvev1.DNSProxyFact{Seq: f.Seq, Event: f.Data})
	}
	return answer(m, err)
}

func (h *handler) Shipped(ctx context.Context, r *connect.Request[varvev1.DNSProxyShippedRequest]) (*connect.Response[varvev1.DNSProxyShippedResponse], error) {
	return answer(&varvev1.DNSProxyShippedResponse{}, h.proxy.Shipped(ctx, r.Msg.Last))
}

func (h *handler) Repair(ctx context.Context, r *connect.Request[varvev1.DNSProxyRepairRequest]) (*connect.Response[varvev1.DNSProxyRepairResponse], error) {
	compare := h.proxy.Repair
	if r.Msg.DryRun {
		compare = h.proxy.Verify
	}
	n, told, err := compare(ctx)
	m := &varvev1.DNSProxyRepairResponse{Differed: uint64(n)}
	for _, d := range told {
		m.Differences = append(m.Differences, &varvev1.DNSProxyDifference{
			Endpoint: d.Endpoint, Address: d.Addr.AsSlice(), Have: rowProto(d.Have), Want: rowProto(d.Want),
		})
	}
	return answer(m, err)
}

func rowProto(v *abi.FQDNValue) *varvev1.DNSProxyRow {
	if v == nil {
		return nil
	}
	out := new(varvev1.DNSProxyRow)
	for i := range v.Class {
		out.Pairs = append(out.Pairs, &varvev1.DNSProxyPair{Class: v.Class[i], ExpiresSeconds: v.ExpiresSeconds[i]})
	}
	return out
}

func rowOf(m *varvev1.DNSProxyRow) *abi.FQDNValue {
	if m == nil {
		return nil
	}
	v := new(abi.FQDNValue)
	for i, p := range m.Pairs[:min(len(m.Pairs), abi.FQDNPairs)] {
		v.Class[i], v.ExpiresSeconds[i] = p.Class, p.ExpiresSeconds
	}
	return v
}

var _ varvev1connect.DNSProxyServiceHandler = (*handler)(nil)

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/dataplane/dns"
	"github.com/varve-net/varve/policy"
)

// service answers what people ask of a proxy.
type service struct{ proxy *dns.Proxy }

var _ varvev1connect.FQDNServiceHandler = service{}

// filter is what calls have in common.
type filter struct {
	endpoint string // "namespace/name"; empty: all
	every    bool   // all names
	names    policy.FQDNSelector
}

func newFilter(endpoint, pattern string) (filter, error) {
	f := filter{endpoint: endpoint, every: pattern == ""}
	if endpoint != "" && !strings.Contains(endpoint, "/") {
		f.endpoint = "default/" + endpoint
	}
	if pattern == "" {
		return f, nil
	}
	var err error
	if f.names, err = policy.ParseFQDN("", pattern); err != nil {
		return f, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("pattern: %w", err))
	}
	return f, nil
}

func (f *filter) matches(endpoint, name string) bool {
	return (f.endpoint == "" || f.endpoint == endpoint) && (f.every || f.names.Matches(name))
}

// ListNames implements varvev1connect.FQDNServiceHandler.
func (s service) ListNames(_ context.Context, r *connect.Request[varvev1.ListNamesRequest]) (*connect.Response[varvev1.ListNamesResponse], error) {
	f, err := newFilter(r.Msg.GetEndpoint(), r.Msg.GetPattern())
	if err != nil {
		return nil, err
	}
	var of dns.Of
	of.Namespace, of.Endpoint, _ = strings.Cut(f.endpoint, "/")
	if text := r.Msg.GetAddress(); text != "" {
		if of.Addr, err = netip.ParseAddr(text); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("address: %q; give one such as 203.0.113.7", text))
		}
		of.Addr = of.Addr.Unmap()
	}
	out := new(varvev1.ListNamesResponse)
	for _, n := range s.proxy.Names(of) {
		endpoint := n.Namespace + "/" + n.Endpoint
		if !f.matches(endpoint, n.Name) {
			continue
		}
		k := &varvev1.KnownName{Endpoint: endpoint, Name: n.Name, Chain: n.Chain, Selected: n.Selected}
		for _, a := range n.Addresses {
			k.Addresses = append(k.Addresses, &varvev1.KnownAddress{Address: a.Addr.String(), ExpiresUnixNs: a.ExpiresUnixNS})
		}
		out.Names = append(out.Names, k)
	}
	return connect.NewResponse(out), nil
}

var verdicts = map[string]bool{"": true, "allowed": true, "denied": true, "malformed": true}

// ReadQuestions implements varvev1connect.FQDNServiceHandler.
func (s service) ReadQuestions(ctx context.Context, r *connect.Request[varvev1.ReadQuestionsRequest], out *connect.ServerStream[varvev1.Question]) error {
	f, err := newFilter(r.Msg.GetEndpoint(), r.Msg.GetPattern())
	if err != nil {
		return err
	}
	verdict := r.Msg.GetVerdict()
	if !verdicts[verdict] {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("verdict: %q is none of allowed, denied, malformed", verdict))
	}
	since := time.Unix(0, r.Msg.GetSinceUnixNs())
	wanted := func(e *dns.Entry) bool {
		return f.matches(e.Endpoint, e.Name) && (verdict == "" || verdict == e.Verdict)
	}
	log := s.proxy.Log()
	// The header goes out at once, so that a follower knows that it follows.
	if err := out.Send(nil); err != nil {
		return err
	}
	if last := int(r.Msg.GetLast()); last > 0 {
		var newest []*dns.Entry
		at, err := log.Read(since, func(e *dns.Entry) error {
			if wanted(e) {
				newest = append(newest, e)
				if len(newest) >= 2*last {
					newest = append(newest[:0], newest[len(newest)-last:]...)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		defer at.Close()
		for _, e := range newest[max(0, len(newest)-last):] {
			if err := out.Send(question(e)); err != nil {
				return err
			}
		}
		if !r.Msg.GetFollow() {
			return nil
		}
		return ended(ctx, log.Follow(ctx, at, send(out, wanted)))
	}
	at, err := log.Read(since, send(out, wanted))
	if err != nil {
		return err
	}
	defer at.Close()
	if !r.Msg.GetFollow() {
		return nil
	}
	return ended(ctx, log.Follow(ctx, at, send(out, wanted)))
}

func send(out *connect.ServerStream[varvev1.Question], wanted func(*dns.Entry) bool) func(*dns.Entry) error {
	return func(e *dns.Entry) error {
		if !wanted(e) {
			return nil
		}
		return out.Send(question(e))
	}
}

// ended is nil for a stream that its reader ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func question(e *dns.Entry) *varvev1.Question {
	return &varvev1.Question{
		TimeUnixNs: e.Time.UnixNano(), Endpoint: e.Endpoint, Client: e.Client, Server: e.Server, Protocol: e.Protocol,
		Name: e.Name, Type: uint32(e.Type), Verdict: e.Verdict, Row: e.Row, Rule: e.Rule, Rcode: uint32(e.RCode), Problem: e.Problem,
		Chain: e.Chain, Addresses: e.Addresses, TtlSeconds: e.TTLSeconds, UpstreamNs: e.UpstreamNS, TotalNs: e.TotalNS,
	}
}

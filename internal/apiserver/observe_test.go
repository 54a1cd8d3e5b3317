package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/flows"
)

func openFlows(t *testing.T) *flows.Store {
	t.Helper()
	s, err := flows.Open(flows.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// observed flows, some seconds apart: TCP from web to db, its denial, UDP to the
// world, ICMP to db.
func (k *kit) observe(t *testing.T) {
	t.Helper()
	start := time.Now().Add(-time.Minute).UnixNano()
	web, db, world := netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.1.0.6"), netip.MustParseAddr("2001:db8::9")
	for i, key := range []flows.Key{
		{Src: web, Dst: db, SrcName: "default/web", DstName: "shop/db", SrcIdentity: 300, DstIdentity: 301, Protocol: 6, Port: 5432, Verdict: flows.Forwarded, Row: 1},
		{Src: web, Dst: db, SrcName: "default/web", DstName: "shop/db", SrcIdentity: 300, DstIdentity: 301, Protocol: 6, Port: 5432, Verdict: flows.Dropped, Reason: abi.PolicyDenied, Direction: abi.Ingress},
		{Src: web, Dst: world, SrcName: "default/web", SrcIdentity: 300, DstIdentity: abi.IdentityWorldIPv6, Protocol: 17, Port: 53, Verdict: flows.Forwarded},
		{Src: world, Dst: db, DstName: "shop/db", SrcIdentity: abi.IdentityWorldIPv6, DstIdentity: 301, Protocol: 58, Port: 128, Verdict: flows.Dropped, Reason: abi.PolicyDefaultDeny, Direction: abi.Ingress},
	} {
		at := start + int64(i)*1e9
		k.flows.Observe(flows.Flow{Key: key, FirstNS: at, LastNS: at, Count: uint64(i + 1), FirstRevision: 2, LastRevision: 2})
	}
}

// receive reads a stream of flows, each as its count; gaps as "gap".
func receive(t *testing.T, k *kit, req *varvev1.ObserveRequest) (string, error) {
	t.Helper()
	stream, err := k.Flows.Observe(t.Context(), connect.NewRequest(req))
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out []string
	for stream.Receive() {
		switch r := stream.Msg().Response.(type) {
		case *varvev1.ObserveResponse_Flow:
			out = append(out, fmt.Sprint(r.Flow.Count))
		case *varvev1.ObserveResponse_Gap:
			out = append(out, "gap")
		}
	}
	return strings.Join(out, " "), stream.Err()
}

func TestObserve(t *testing.T) {
	k := newKit(t)
	k.observe(t)
	for _, c := range []struct {
		name string
		f    *varvev1.FlowFilter
		want string
	}{
		{"all", nil, "1 2 3 4"},
		{"verdict", &varvev1.FlowFilter{Verdicts: []string{"dropped"}}, "2 4"},
		{"reason", &varvev1.FlowFilter{DropReasons: []string{"Policy Denied"}}, "2"},
		{"from a pod", &varvev1.FlowFilter{FromPods: []string{"default/web"}}, "1 2 3"},
		{"from a namespace", &varvev1.FlowFilter{FromPods: []string{"default/"}, Verdicts: []string{"FORWARDED"}}, "1 3"},
		{"to a pod", &varvev1.FlowFilter{ToPods: []string{"shop/db"}}, "1 2 4"},
		{"a pod at either end", &varvev1.FlowFilter{Pods: []string{"shop/db"}}, "1 2 4"},
		{"to an address", &varvev1.FlowFilter{ToIps: []string{"2001:db8::9"}}, "3"},
		{"a prefix at either end", &varvev1.FlowFilter{Ips: []string{"2001:db8::/32"}}, "3 4"},
		{"from a prefix", &varvev1.FlowFilter{FromIps: []string{"10.1.0.0/29", "192.0.2.1"}}, "1 2 3"},
		{"port and protocol", &varvev1.FlowFilter{Ports: []uint32{5432, 53}, Protocols: []string{"tcp"}}, "1 2"},
		{"type of ICMP", &varvev1.FlowFilter{Ports: []uint32{128}, Protocols: []string{"ICMPv6"}}, "4"},
		{"identity", &varvev1.FlowFilter{Identities: []uint32{301}}, "1 2 4"},
		{"none", &varvev1.FlowFilter{Ports: []uint32{1}}, ""},
	} {
		got, err := receive(t, k, &varvev1.ObserveRequest{Filter: c.f, Until: "30s"})
		if err != nil || strings.TrimSpace(strings.ReplaceAll(got, "gap", "")) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	if got, err := receive(t, k, &varvev1.ObserveRequest{Last: 2}); err != nil || got != "3 4" {
		t.Errorf("the last two: %q, %v", got, err)
	}
	if got, err := receive(t, k, &varvev1.ObserveRequest{Since: "2h", Until: "1h"}); err != nil || got != "gap" {
		t.Errorf("before there was a record: %q, %v", got, err)
	}
}

func TestObserveRefuses(t *testing.T) {
	k := newKit(t)
	for want, req := range map[string]*varvev1.ObserveRequest{
		"since: ":                {Since: "yesterday"},
		"until: ":                {Until: "1h", Follow: true},
		"since: is after until":  {Since: "1h", Until: "2h"},
		"filter.verdicts[0]: ":   {Filter: &varvev1.FlowFilter{Verdicts: []string{"MAYBE"}}},
		"filter.drop_reasons[1]": {Filter: &varvev1.FlowFilter{DropReasons: []string{"fragment", "bad luck"}}},
		"filter.protocols[0]: ":  {Filter: &varvev1.FlowFilter{Protocols: []string{"gre"}}},
		"filter.ports[0]: ":      {Filter: &varvev1.FlowFilter{Ports: []uint32{65536}}},
		"filter.from_pods[0]: ":  {Filter: &varvev1.FlowFilter{FromPods: []string{"web"}}},
		"filter.to_ips[0]: ":     {Filter: &varvev1.FlowFilter{ToIps: []string{"10.0.0"}}},
	} {
		_, err := receive(t, k, req)
		if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// A follower gets the newest of what is there, and then what comes.
func TestObserveFollows(t *testing.T) {
	k := newKit(t)
	k.observe(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stream, err := k.Flows.Observe(ctx, connect.NewRequest(&varvev1.ObserveRequest{Follow: true, Last: 1}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var got []uint64
	for len(got) < 2 && stream.Receive() {
		if f := stream.Msg().GetFlow(); f != nil {
			if got = append(got, f.Count); len(got) == 1 {
				k.flows.Observe(flows.Flow{Key: flows.Key{Protocol: 6, Verdict: flows.Forwarded}, FirstNS: time.Now().UnixNano(), LastNS: time.Now().UnixNano(), Count: 77})
			}
		}
	}
	if diff := cmp.Diff([]uint64{4, 77}, got); diff != "" {
		t.Errorf("%v (-want +got):\n%s", stream.Err(), diff)
	}
	stop()
	for stream.Receive() {
	}
	if err := stream.Err(); connect.CodeOf(err) != connect.CodeCanceled && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestStatusTellsOfTheFlowRecord(t *testing.T) {
	k := newKit(t)
	resp, err := k.Agent.Status(t.Context(), connect.NewRequest(&varvev1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if f := resp.Msg.Flows; f == nil || f.MaxBytes != flows.DefaultMaxBytes || f.Error != "" {
		t.Errorf("%v", f)
	}
}

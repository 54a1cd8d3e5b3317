package apiserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/log/eventpb"
)

const dbPolicy = `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: db}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: '5432', protocol: TCP}]}]
  - fromCIDR: [192.0.2.0/24]`

func (k *kit) policy(t *testing.T, manifest string) uint64 {
	t.Helper()
	resp, err := k.Policies.Apply(t.Context(), connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: manifest}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg.Policies[0].Revision
}

func (k *kit) diff(t *testing.T, req *varvev1.AuditDiffRequest) (out []*varvev1.AuditDiffResponse, err error) {
	t.Helper()
	stream, err := k.Audit.Diff(t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for stream.Receive() {
		out = append(out, stream.Msg())
	}
	return out, stream.Err()
}

// A diff names the events, the rows of the state and those of each map, and counts
// what a limit leaves out.
func TestAuditDiff(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "web", "web", "10.1.0.2", 2)
	k.endpoint(t, "db", "db", "10.1.0.3", 3)
	before, _ := k.log.Head()
	set := k.policy(t, dbPolicy)
	all, err := k.diff(t, &varvev1.AuditDiffRequest{From: fmt.Sprint(before)})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range all {
		switch p := r.Part.(type) {
		case *varvev1.AuditDiffResponse_Event:
			lines = append(lines, fmt.Sprintf("event %d %s", p.Event.Revision, p.Event.Text))
		case *varvev1.AuditDiffResponse_State:
			lines = append(lines, fmt.Sprintf("state %s %s: %q -> %q", p.State.Kind, p.State.Name, p.State.Was, p.State.Is))
		case *varvev1.AuditDiffResponse_Row:
			if !slices.Contains(p.Row.Revisions, set) && len(p.Row.Rules) > 0 && p.Row.Rules[0] != "allow-localhost" {
				t.Errorf("a row that does not follow from the policy: %v", p.Row)
			}
			if p.Row.Map == mapIPCache {
				lines = append(lines, fmt.Sprintf("row %s: %q -> %q", p.Row.Key, p.Row.Was, p.Row.Is))
			}
		case *varvev1.AuditDiffResponse_Count:
			lines = append(lines, fmt.Sprintf("count %s %s +%d ~%d -%d", p.Count.Part, p.Count.Kind, p.Count.Added, p.Count.Changed, p.Count.Removed))
		}
	}
	policies := 0
	for row := range (projector{k.log}).Current().Policy.All() {
		_ = row
		policies++
	}
	want := []string{
		"event 4 sets policy cnp/default/db: 2 ingress",
		`state policy cnp/default/db: "" -> "2 ingress, set at revision 4"`,
		`row 192.0.2.0/24: "" -> "192.0.2.0/24, identity 9"`,
		"count events policy-set +1 ~0 -0",
		"count state policy +1 ~0 -0",
		"count tables class +2 ~0 -0",
		"count tables endpoint +0 ~1 -0",
		"count tables ipcache +1 ~0 -0",
		fmt.Sprintf("count tables policy +%d ~0 -0", policies),
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// The other way round it is refused; what is filtered and limited is counted.
	if _, err := k.diff(t, &varvev1.AuditDiffRequest{From: "4", To: "3"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("backwards: %v", err)
	}
	few, err := k.diff(t, &varvev1.AuditDiffRequest{From: "0", Parts: []string{"tables"}, Maps: []string{mapPolicy}, Limit: 1})
	if err != nil || len(few) != 3 || few[2].GetCount().GetAdded() != uint64(policies) || few[1].GetRow().GetMap() != mapPolicy {
		t.Errorf("%v, %v", few, err)
	}
	for want, req := range map[string]*varvev1.AuditDiffRequest{
		"from: ":     {},
		"from":       {From: "yesterday"},
		"to: ":       {From: "1", To: "99"},
		"parts[0]: ": {From: "1", Parts: []string{"rows"}},
		"kinds[0]: ": {From: "1", Kinds: []string{"policies"}},
		"maps[0]: ":  {From: "1", Maps: []string{"ct"}},
	} {
		if _, err := k.diff(t, req); err == nil || !strings.Contains(err.Error(), want) || connect.CodeOf(err) == connect.CodeInternal {
			t.Errorf("%q: %v", want, err)
		}
	}
	if _, err := k.diff(t, &varvev1.AuditDiffRequest{From: "1", Node: "nobody"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a node that never was: %v", err)
	}
}

// Every row of every map is found by the key that the map's listing prints, and the
// events behind it are told.
func TestAuditProvenance(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "web", "web", "10.1.0.2", 2)
	k.endpoint(t, "db", "db", "10.1.0.3", 3)
	k.policy(t, dbPolicy)
	find := func(table string, key ...string) *varvev1.ProvenanceResponse {
		t.Helper()
		resp, err := k.Audit.Provenance(t.Context(), connect.NewRequest(&varvev1.ProvenanceRequest{Map: table, Key: key}))
		if err != nil {
			t.Errorf("%s %q: %v", table, key, err)
			return &varvev1.ProvenanceResponse{}
		}
		return resp.Msg
	}
	found := 0
	for m, table := range map[varvev1.Map]string{
		varvev1.Map_MAP_ENDPOINT: mapEndpoint, varvev1.Map_MAP_IPCACHE: mapIPCache, varvev1.Map_MAP_CLASS: mapClass, varvev1.Map_MAP_POLICY: mapPolicy,
	} {
		rows, err := k.Datapath.Dump(t.Context(), connect.NewRequest(&varvev1.DumpRequest{Map: m, At: "now"}))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows.Msg.Endpoints {
			found++
			if p := find(table, r.Endpoint); p.Key != r.Endpoint || len(p.Events) == 0 {
				t.Errorf("%v", p)
			}
			find(table, fmt.Sprint(r.Id))
		}
		for _, r := range rows.Msg.Ipcache {
			found++
			if p := find(table, r.Prefix); p.Key != r.Prefix {
				t.Errorf("%v", p)
			}
		}
		for _, r := range rows.Msg.Classes {
			found++
			if p := find(table, r.Scope, r.Peer); p.Value != r.Class {
				t.Errorf("%v, want class %s", p, r.Class)
			}
		}
		for _, r := range rows.Msg.Policies {
			found++
			byNumber := find(table, r.Row)
			if diff := cmp.Diff(r.Rules, byNumber.Rules); diff != "" {
				t.Error(diff)
			}
			if p := find(table, r.Table, r.Class, r.Protocol, r.Ports); p.Value != byNumber.Value {
				t.Errorf("%v by its columns, %v by its number", p, byNumber)
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d rows", found)
	}
	// An address finds what the programs find.
	if p := find(mapIPCache, "192.0.2.77"); p.Key != "192.0.2.0/24" || len(p.Events) != 1 || p.Events[0].Kind != "policy-set" {
		t.Errorf("%v", p)
	}
	if p := find(mapEndpoint, "web"); p.Key != "default/web" {
		t.Errorf("%v", p)
	}
	for code, req := range map[connect.Code]*varvev1.ProvenanceRequest{
		connect.CodeInvalidArgument: {Map: "ct", Key: []string{"x"}},
		connect.CodeNotFound:        {Map: mapPolicy, Key: []string{"0123456789abcdef"}},
		connect.CodeOutOfRange:      {Map: mapPolicy, Key: []string{"0123456789abcdef"}, At: "99"},
	} {
		_, err := k.Audit.Provenance(t.Context(), connect.NewRequest(req))
		codeIs(t, err, code)
	}
}

func TestAuditReplay(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "web", "web", "10.1.0.2", 2)
	k.endpoint(t, "db", "db", "10.1.0.3", 3)
	k.policy(t, dbPolicy)
	head, _ := k.log.Head()
	now := time.Now().UnixNano()
	for i, port := range []uint16{5432, 5433} {
		f := flows.Flow{
			Key: flows.Key{
				Src: netip.MustParseAddr("10.1.0.2"), Dst: netip.MustParseAddr("10.1.0.3"), SrcName: "default/web", DstName: "default/db",
				Protocol: 6, Port: port, Verdict: flows.Forwarded,
			},
			FirstNS: now, LastNS: now, Count: uint64(7 * (i + 1)), FirstRevision: head, LastRevision: head,
		}
		if port == 5433 {
			f.Verdict, f.Reason = flows.Dropped, abi.PolicyDefaultDeny
		}
		k.flows.Observe(f)
	}
	replay := func(req *varvev1.AuditReplayRequest) (*varvev1.AuditReplayResponse, error) {
		resp, err := k.Audit.Replay(t.Context(), connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	got, err := replay(&varvev1.AuditReplayRequest{Manifest: strings.Replace(dbPolicy, "5432", "5433", 1)})
	if err != nil || len(got.Groups) != 2 || got.Groups[0].Is != "allowed" || got.Groups[0].Events != 14 || got.Groups[1].Is != "denied" ||
		got.Groups[0].From != "default/app=web" || got.Groups[0].Port != "5433/tcp" || got.DifferingEvents != 21 || got.Flows != 2 {
		t.Errorf("%v, %v", got, err)
	}
	got, err = replay(&varvev1.AuditReplayRequest{Delete: []*eventpb.PolicyRef{{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "db"}}, Since: "1h"})
	if err != nil || len(got.Groups) != 1 || got.Groups[0].Port != "5433/tcp" || len(got.Gaps) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err = replay(&varvev1.AuditReplayRequest{Manifest: dbPolicy}); err != nil || len(got.Groups) != 0 {
		t.Errorf("the policy as it is: %v, %v", got, err)
	}
	for _, req := range []*varvev1.AuditReplayRequest{
		{}, {Manifest: "kind: Nonsense"}, {Manifest: dbPolicy, Since: "soon"}, {Manifest: dbPolicy, Since: "1h", Until: "2h"},
		{Delete: []*eventpb.PolicyRef{{Name: "x"}}},
		{Delete: []*eventpb.PolicyRef{{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "never"}}},
	} {
		_, err := replay(req)
		if code := connect.CodeOf(err); code != connect.CodeInvalidArgument && code != connect.CodeNotFound {
			t.Errorf("%v: %v", req, err)
		}
	}
}

package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	v1c "github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/log/eventpb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func hash(b byte) []byte { return []byte(strings.Repeat(string(rune(b)), 32)) }

func cnp(ns, name string) *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: ns, Name: name}
}

func ccnp(name string) *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY, Name: name}
}

const webManifest = `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"web","namespace":"default"},"spec":{"description":"first\nsecond","endpointSelector":{"matchLabels":{"app":"web","tier":"80"}},"ingress":[{"fromEntities":["all"]}]}}`

func webEndpoint() *varvev1.Endpoint {
	return &varvev1.Endpoint{
		Namespace: "default", Name: "web", Id: 7, Identity: 70001, Labels: map[string]string{"tier": "front", "app": "web"},
		ServiceAccount: "default", Ipv4: "10.244.0.5", Ipv6: "fd00:10:244::5", Mac: "02:00:00:00:00:05",
		NamedPorts: []*varvev1.NamedPort{{Name: "http", Protocol: "TCP", Port: 8080}}, Node: "n1", Netns: "/run/netns/web",
		HostInterface: "vrv7", ContainerInterface: "eth0", Incarnation: 1, CreatedRevision: 12, Revision: 14, State: "ready", IngressEnforced: true,
	}
}

func brokenEndpoint() *varvev1.Endpoint {
	return &varvev1.Endpoint{Namespace: "shop", Name: "cart", Id: 8, Identity: 70002, Ipv4: "10.244.0.6", State: "missing interface"}
}

func webPolicy() *varvev1.Policy {
	return &varvev1.Policy{
		Ref: cnp("default", "web"), Manifest: webManifest, CreatedRevision: 15, Revision: 17,
		Specs: []*eventpb.PolicySpec{{Ingress: []*eventpb.Rule{{AnyPeer: true}}}}, Endpoints: []string{"default/web"},
	}
}

func goodStatus() *varvev1.StatusResponse {
	return &varvev1.StatusResponse{
		Version: "v1.2.3", Cluster: "default", Node: "n1", Pid: 4711, StartedUnixNs: at.UnixNano(),
		Checks: []*varvev1.Check{
			{Name: "log", Ok: true, Nanoseconds: 12_345},
			{Name: "bpffs", Ok: true, Message: "mounted at /sys/fs/bpf/varve", Nanoseconds: 2_345_678},
		},
		Revision: 42, AppliedRevision: 42, Chain: hash(1), StateDigest: hash(2), TablesDigest: hash(3), KernelDigest: hash(3),
		Tables: []*varvev1.TableStatus{
			{Name: "endpoint", Rows: 2, Capacity: 65536, Digest: hash(4), KernelDigest: hash(4)},
			{Name: "policy", Rows: 49152, Capacity: 65536, Digest: hash(5), KernelDigest: hash(5)},
		},
		Endpoints: 2, Identities: 1, Policies: 1,
		ReplayedEvents: 42, ReplayNanoseconds: 1_234_567, BootstrapNanoseconds: 81_234_567, BootstrapRowsWritten: 1,
	}
}

func badStatus() *varvev1.StatusResponse {
	s := goodStatus()
	s.AppliedRevision = 40
	s.Checks[0].Ok, s.Checks[0].Message = false, "disk full"
	s.KernelDigest = hash(9)
	s.Tables[0].KernelDigest = hash(8)
	s.Differences = []*varvev1.Difference{
		{Table: "endpoint", Kind: "missing", Key: "id 7", Want: "identity 70001"},
		{Table: "ipcache", Kind: "differs", Key: "10.244.0.5/32", Want: "70001", Have: "2"},
	}
	return s
}

func records() []proto.Message {
	ns := at.UnixNano()
	return []proto.Message{
		&varvev1.Record{
			Revision: 16, TimeUnixNs: ns, Outcome: varvev1.Outcome_OUTCOME_APPLIED, Kind: "namespace-set", Chain: hash(1), Leaf: hash(2),
			Event: &eventpb.Event{
				Stream: "namespace/shop", Actor: &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: "unix:uid=0,gid=0,pid=9"},
				Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "shop", Labels: map[string]string{"team": "sales"}}},
			},
		},
		&varvev1.Record{
			Revision: 17, TimeUnixNs: ns + 1e9, Outcome: varvev1.Outcome_OUTCOME_REJECTED, Reason: "no specs", Kind: "policy-set", Chain: hash(3), Leaf: hash(4),
			Event: &eventpb.Event{Stream: "policy/cnp/default/web", Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{Ref: cnp("default", "web")}}},
		},
	}
}

func datapathEvents() []proto.Message {
	ns := at.UnixNano()
	return []proto.Message{
		&varvev1.DatapathEvent{
			TimeUnixNs: ns, Type: "drop", Reason: "policy denied", Direction: "ingress", Protocol: "TCP", Source: "10.244.0.5", Destination: "10.244.0.6",
			SourcePort: 43210, DestinationPort: 5432, SourceName: "default/web", DestinationName: "default/db",
			Rules: []string{"cnp/default/db ingressDeny[0]"}, Revisions: []uint64{17, 19}, Endpoint: "default/db",
		},
		&varvev1.DatapathEvent{
			TimeUnixNs: ns + 1000, Type: "drop", Reason: "policy default deny", Direction: "egress", Protocol: "ICMPv6",
			Source: "fd00:10:244::5", Destination: "2001:db8::1", SourceName: "default/web", DestinationName: "world", IcmpType: 128, ByName: true,
		},
		&varvev1.DatapathEvent{
			TimeUnixNs: ns + 2000, Type: "new-flow", Direction: "egress", Protocol: "UDP", Source: "fd00:10:244::5", Destination: "fd00:10:244::6",
			SourcePort: 5000, DestinationPort: 53, SourceName: "default/web",
		},
		&varvev1.DatapathEvent{TimeUnixNs: ns + 3000, Type: "lost", Lost: 1},
	}
}

// everything is an agent with something to show at each of its calls.
func everything(t *testing.T) *fakeAgent {
	f := startFakeAgent(t)
	f.on(v1c.AgentServiceStatusProcedure, goodStatus())
	f.on(v1c.EndpointServiceListProcedure, &varvev1.ListEndpointsResponse{Revision: 42, Endpoints: []*varvev1.Endpoint{webEndpoint(), brokenEndpoint()}})
	f.on(v1c.EndpointServiceGetProcedure, &varvev1.GetEndpointResponse{Endpoint: webEndpoint(), IdentityLabels: []string{"k8s:app=web", "k8s:tier=front"}, Revision: 42})
	f.on(v1c.EndpointServiceAddProcedure, &varvev1.AddEndpointResponse{Endpoint: webEndpoint(), Created: true})
	f.on(v1c.EndpointServiceSetLabelsProcedure, &varvev1.SetEndpointLabelsResponse{Endpoint: webEndpoint()})
	f.on(v1c.EndpointServiceDeleteProcedure, &varvev1.DeleteEndpointResponse{Deleted: true})
	f.on(v1c.NamespaceServiceApplyProcedure, &varvev1.ApplyNamespaceResponse{Namespace: &varvev1.Namespace{Name: "shop", Revision: 43}})
	f.on(v1c.FQDNServiceListNamesProcedure, &varvev1.ListNamesResponse{
		At: &varvev1.Moment{Revision: 41, TimeUnixNs: at.UnixNano()}, AskedUnixNs: at.Add(time.Minute).UnixNano(), Names: []*varvev1.KnownName{
			{Endpoint: "default/web", Name: "api.example.com.", Selected: true, Chain: []string{"lb.example.net."}, Addresses: []*varvev1.KnownAddress{
				{Address: "203.0.113.7", ExpiresUnixNs: at.Add(2 * time.Minute).UnixNano(), Revision: 40}, {Address: "203.0.113.8", ExpiresUnixNs: at.Add(30 * time.Second).UnixNano(), Revision: 40},
			}},
			{Endpoint: "default/web", Name: "www.example.org.", Addresses: []*varvev1.KnownAddress{{Address: "203.0.113.9", ExpiresUnixNs: at.Add(time.Hour).UnixNano(), Revision: 41}}},
		},
	})
	f.on(v1c.NamespaceServiceListProcedure, &varvev1.ListNamespacesResponse{Revision: 42, Namespaces: []*varvev1.Namespace{
		{Name: "default", Endpoints: 1}, {Name: "shop", Labels: map[string]string{"team": "sales"}, Revision: 16, Endpoints: 1},
	}})
	f.on(v1c.IdentityServiceListProcedure, &varvev1.ListIdentitiesResponse{Revision: 42, Identities: []*varvev1.Identity{
		{Id: 1, Labels: []string{"reserved:host"}}, {Id: 70001, Labels: []string{"k8s:app=web", "k8s:tier=front"}, Endpoints: 1, Revision: 12},
		{Id: 70009, Labels: []string{"k8s:app=old"}, Revision: 9, Released: true},
	}})
	f.on(v1c.PolicyServiceListProcedure, &varvev1.ListPoliciesResponse{Revision: 42, Policies: []*varvev1.Policy{
		webPolicy(), {Ref: ccnp("lockdown"), Revision: 18}, {Ref: cnp("shop", "twice"), Revision: 20},
		{Ref: &eventpb.PolicyRef{Kind: eventpb.PolicyKind_NETWORK_POLICY, Namespace: "shop", Name: "twice"}, Revision: 21},
	}})
	f.on(v1c.PolicyServiceGetProcedure, &varvev1.GetPolicyResponse{Policy: webPolicy(), Revision: 42})
	f.on(v1c.PolicyServiceValidateProcedure, &varvev1.ValidatePolicyResponse{})
	f.on(v1c.PolicyServiceApplyProcedure, &varvev1.ApplyPolicyResponse{
		Policies: []*varvev1.AppliedPolicy{
			{Ref: cnp("default", "web"), Action: varvev1.AppliedPolicy_CONFIGURED, Revision: 43},
			{Ref: ccnp("lockdown"), Action: varvev1.AppliedPolicy_UNCHANGED, Revision: 18},
		},
		Warnings: []*varvev1.PolicyWarning{{Source: "stdin", Line: 7, Path: "spec.ingress[0]", Problem: "selects no one"}},
	})
	told := &varvev1.AuditEvent{
		Revision: 40, Kept: true, TimeUnixNs: at.UnixNano(), Kind: "dns-observed", Actor: "dns-proxy:n1", Node: "n1",
		Text: "endpoint default/web asks for api.example.com and is told 203.0.113.7 until 2026-03-01T03:05:05Z",
	}
	f.on(v1c.PolicyServiceVerdictProcedure, &varvev1.VerdictResponse{
		Allowed: true, Revision: 42, Port: "443/tcp",
		From: &varvev1.VerdictParty{Name: "web", Endpoint: "default/web", Node: "n1", Address: "10.244.0.5", Identity: 70001},
		To:   &varvev1.VerdictParty{Name: "203.0.113.7", Address: "203.0.113.7"},
		Egress: &varvev1.DirectionVerdict{Allowed: true, Reason: "rule", Row: "00ee", Table: "00bb", Events: []uint64{17}, Rules: []*varvev1.DecidingRule{
			{Policy: cnp("default", "web"), Section: "egress", Index: 2, Revision: 17, Text: "cnp/default/web egress[2]"},
			{Policy: ccnp("world"), Section: "egress", Revision: 9, Text: "ccnp/world egress[0]"},
		}, ByName: true, Facts: []*varvev1.NameFact{
			{Name: "api.example.com.", Address: "203.0.113.7", Chain: []string{"edge.example.net."}, ExpiresUnixNs: at.UnixNano(), Revision: 40, Standing: "admits"},
			{Name: "old.example.com.", Address: "203.0.113.7", ExpiresUnixNs: at.UnixNano(), Standing: "expired"},
		}},
		Ingress: &varvev1.DirectionVerdict{Allowed: true, Reason: "no policy guards it"},
	})
	f.on(v1c.AuditServiceBisectProcedure, &varvev1.BisectResponse{Outcome: "denied", At: 42, Flips: []*varvev1.AuditFlip{
		{Revision: 40, Before: "denied", After: "allowed", TimeUnixNs: at.UnixNano(), Event: told},
		{Revision: 41, Before: "allowed", After: "denied", TimeUnixNs: at.Add(time.Minute).UnixNano(), Event: told, Expired: []*varvev1.NameFact{
			{Name: "api.example.com.", Address: "203.0.113.7", ExpiresUnixNs: at.Add(time.Minute).UnixNano(), Revision: 40, Standing: "expired"},
		}},
	}})
	f.on(v1c.PolicyServiceDeleteProcedure, &varvev1.DeletePolicyResponse{Revision: 44})
	f.on(v1c.LogServiceReadProcedure, records()...)
	f.on(v1c.LogServiceVerifyProcedure, &varvev1.VerifyResponse{First: 1, Last: 42, Chain: hash(1), StateDigest: hash(2), ReplayDigest: hash(2), ReplayNanoseconds: 1_500_000})
	f.on(v1c.LogServiceAppendProcedure, &varvev1.AppendResponse{Head: 43, Results: []*varvev1.AppendResult{{Outcome: varvev1.Outcome_OUTCOME_APPLIED, Revision: 43}}})
	f.on(v1c.DatapathServiceMonitorProcedure, datapathEvents()...)
	f.on(v1c.DatapathServiceCountersProcedure, &varvev1.CountersResponse{EventsLost: 3, Counters: []*varvev1.Counter{
		{Reason: "forwarded", Direction: "egress", Packets: 12, Bytes: 3456}, {Reason: "policy denied", Direction: "ingress", Packets: 1, Bytes: 60},
	}})
	f.on(v1c.DatapathServiceDumpProcedure, &varvev1.DumpResponse{
		Endpoints: []*varvev1.EndpointRow{
			{Ifindex: 12, Id: 7, Identity: 70001, Ipv4: "10.244.0.5", Mac: "02:00:00:00:00:05", IngressTable: "00aa", IngressEnforced: true, Endpoint: "default/web"},
			{Ifindex: 14, Id: 8, Identity: 70002, Ipv4: "10.244.0.6", Mac: "02:00:00:00:00:06", IngressEnforced: true, EgressTable: "00bb"},
		},
		Ipcache:  []*varvev1.IPCacheRow{{Prefix: "10.244.0.5/32", Identity: 70001, Peer: "default/web", Ifindex: 12, Labels: []string{"k8s:app=web"}}, {Prefix: "0.0.0.0/0", Identity: 2, Peer: "world"}},
		Policies: []*varvev1.PolicyRow{{Table: "00aa", Class: "any peer", Direction: "ingress", Protocol: "TCP", Ports: "80", Verdict: "allow", Rules: []string{"cnp/default/web ingress[0]"}, Revisions: []uint64{17}, Endpoints: []string{"default/web"}}},
		Flows:    []*varvev1.ConntrackRow{{Protocol: "TCP", Source: "10.244.0.5:43210", Destination: "10.244.0.6:5432", State: "denied", ExpiresSeconds: 75, SourceIdentity: 70001}},
		Classes:  []*varvev1.ClassRow{{Scope: "00cc", Peer: "default/web", Class: "00dd"}},
		Names: []*varvev1.FQDNRow{
			{
				Endpoint: "default/web", Id: 7, Address: "203.0.113.7", Rules: []string{"cnp/default/web egress[2]"}, Revisions: []uint64{17, 40},
				Classes: []*varvev1.FQDNClass{{Class: "00ab", Names: "*.example.com.", ExpiresUnixNs: at.Add(24 * time.Hour).UnixNano(), Told: []string{"api.example.com."}}},
			},
			{Id: 9, Address: "203.0.113.9", Classes: []*varvev1.FQDNClass{{Class: "00ac", ExpiresUnixNs: at.Add(-time.Second).UnixNano()}}},
		},
	})
	return f
}

// TestGolden compares what commands print with the files of testdata/golden.
func TestGolden(t *testing.T) {
	f := everything(t)
	for _, args := range []string{
		"status", "status --verify", "status -o yaml",
		"endpoint list", "endpoint list -o json", "endpoint list -o yaml", "endpoint get web", "endpoint get default/web -o json",
		"endpoint add web --netns web -l app=web,tier=front", "endpoint label web app=web old-", "endpoint delete web shop/cart",
		"namespace list", "namespace apply shop --labels team=sales",
		"identity list",
		"policy list", "policy list -o json", "policy get default/web", "policy get web -o yaml", "policy get cnp/default/web -o json",
		"policy apply -", "policy apply - -o json", "policy delete cnp/default/web lockdown",
		"policy verdict --from web --to 203.0.113.7 --port 443/tcp", "policy verdict --from web --to 203.0.113.7 --port 443 -o json",
		"bpf endpoint list", "bpf ipcache list", "bpf policy list", "bpf ct list", "bpf class list", "bpf fqdn list", "bpf fqdn list -o json", "fqdn cache list web --at 41", "audit bisect --from web --to 203.0.113.7 --port 443 --all", "bpf metrics list", "bpf class list -o yaml",
		"log tail", "log read --from 16", "log read -o json", "log read -o yaml", "log verify", "log append -",
	} {
		t.Run(args, func(t *testing.T) {
			stdin := ""
			switch {
			case strings.HasPrefix(args, "log append"):
				stdin = `{"namespace_set": {"name": "shop"}}`
			case strings.HasPrefix(args, "policy apply"):
				stdin = webManifest
			}
			golden(t, args, varve(t, f, stdin, strings.Fields(args)...))
		})
	}
}

// TestGoldenAudited: what audit mode lets pass is neither allowed nor denied.
func TestGoldenAudited(t *testing.T) {
	f := startFakeAgent(t)
	f.on(v1c.PolicyServiceVerdictProcedure, &varvev1.VerdictResponse{
		Allowed: true, Audited: true, Revision: 42, Port: "22/tcp",
		From:   &varvev1.VerdictParty{Name: "cart", Endpoint: "default/cart", Node: "n1"},
		To:     &varvev1.VerdictParty{Name: "web", Endpoint: "default/web", Node: "n1"},
		Egress: &varvev1.DirectionVerdict{Allowed: true, Reason: "not isolated"},
		Ingress: &varvev1.DirectionVerdict{Allowed: true, Audited: true, Reason: "default deny", IsolatedBy: []*varvev1.IsolatingSpec{
			{Policy: cnp("default", "web"), Revision: 17},
		}},
	})
	for _, args := range []string{"policy verdict --from cart --to web --port 22", "policy verdict --from cart --to web --port 22 -o json"} {
		got := varve(t, f, "", strings.Fields(args)...)
		if got.code != exitYes {
			t.Errorf("%s: exit code %d, want %d", args, got.code, exitYes)
		}
		golden(t, args, got)
	}
}

// TestGoldenTrouble is TestGolden for answers that are no.
func TestGoldenTrouble(t *testing.T) {
	f := everything(t)
	f.on(v1c.AgentServiceStatusProcedure, badStatus())
	f.on(v1c.LogServiceVerifyProcedure, &varvev1.VerifyResponse{First: 1, Last: 42, BadRevision: 17, Problem: "chain is 00, the event gives 01"})
	f.on(v1c.LogServiceAppendProcedure, &varvev1.AppendResponse{Head: 43, Results: []*varvev1.AppendResult{
		{Outcome: varvev1.Outcome_OUTCOME_APPLIED, Revision: 42}, {Outcome: varvev1.Outcome_OUTCOME_REPEAT, Revision: 12},
		{Outcome: varvev1.Outcome_OUTCOME_CONFLICT, Revision: 13, Reason: "stream namespace/x: at revision 13, expected 12"}, {Outcome: varvev1.Outcome_OUTCOME_REJECTED, Revision: 43, Reason: "no name"},
	}})
	f.fail(v1c.PolicyServiceApplyProcedure, connect.CodeInvalidArgument, "2 problems",
		&varvev1.PolicyError{Source: "stdin", Line: 9, Path: "spec.ingress[0].toPorts[0].rules", Problem: "L7 rules are not supported", Remedy: "remove them", Unsupported: true},
		&varvev1.PolicyError{Source: "stdin", Line: 12, Path: "spec.egress[1]", Problem: "unknown field \"to\""})
	f.on(v1c.PolicyServiceVerdictProcedure, &varvev1.VerdictResponse{
		Revision: 42, Port: "443/tcp",
		From: &varvev1.VerdictParty{Name: "10.244.0.5", Endpoint: "default/web", Node: "n1", Address: "10.244.0.5", Identity: 70001},
		To:   &varvev1.VerdictParty{Name: "example.com"},
		Egress: &varvev1.DirectionVerdict{Reason: "default deny", Table: "00bb", IsolatedBy: []*varvev1.IsolatingSpec{
			{Policy: cnp("default", "web"), Spec: 1, Revision: 17}, {Policy: ccnp("lockdown"), Revision: 18},
		}},
		Ingress: &varvev1.DirectionVerdict{Allowed: true, Reason: "no policy guards it"},
		Name: &varvev1.NameVerdict{Name: "example.com", Rules: []*varvev1.DecidingRule{
			{Policy: cnp("default", "web"), Spec: 1, Section: "egress", Index: 2, Revision: 17, Text: "cnp/default/web specs[1].egress[2]"},
		}},
	})
	for _, args := range []string{
		"status", "status --verify", "log verify", "log append -", "policy apply -", "policy verdict --from 10.244.0.5 --to example.com --port 443",
	} {
		t.Run(args, func(t *testing.T) {
			got := varve(t, f, `[{"namespace_set":{}},{"namespace_set":{}},{"namespace_set":{}},{"namespace_set":{}}]`, strings.Fields(args)...)
			if got.code != exitNo {
				t.Errorf("exit code %d, want %d", got.code, exitNo)
			}
			golden(t, "trouble "+args, got)
		})
	}
}

// golden compares with a file named after the arguments.
func golden(t *testing.T, name string, got result) {
	t.Helper()
	text := fmt.Sprintf("$ varve %s\n-- stdout --\n%s-- stderr --\n%s-- exit code --\n%d\n", strings.TrimPrefix(name, "trouble "), got.stdout, got.stderr, got.code)
	name = strings.NewReplacer(" ", "_", "/", ".").Replace(name)
	path := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run with -update", err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

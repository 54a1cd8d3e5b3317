package cli

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	v1c "github.com/varve-net/varve/api/varve/v1/varvev1connect"
	"github.com/varve-net/varve/internal/policytest"
	"github.com/varve-net/varve/log/eventpb"
)

const goodPolicy = `apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEntities: [all]
`

func TestValidateAccepts(t *testing.T) {
	got := varve(t, nil, goodPolicy, "policy", "validate", "--offline", "-")
	if got != (result{code: exitYes, stdout: "policy cnp/default/web is valid\n"}) {
		t.Errorf("got %+v", got)
	}
	got = varve(t, nil, goodPolicy, "policy", "validate", "-") // no agent answers
	if got.code != exitYes || !strings.Contains(got.stderr, "not compared with what is there now") {
		t.Errorf("got %+v", got)
	}
}

// TestValidateSaysEveryError: with file, line, path and remedy, and exit code 1.
func TestValidateSaysEveryError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bad.yaml")
	text := strings.Replace(goodPolicy, "fromEntities: [all]", "fromEntites: [all]\n  unheardOf: 1", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := varve(t, nil, goodPolicy, "policy", "validate", "--offline", "-", path)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if got.code != exitNo || len(lines) != 3 || got.stderr != "" {
		t.Fatalf("got %+v, want exit code %d and three lines", got, exitNo)
	}
	for i, want := range []string{"policy cnp/default/web is valid", path + ":7: spec.ingress[0].fromEntites: ", path + ":8: spec.unheardOf: "} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d is %q, want it to begin with %q", i+1, lines[i], want)
		}
	}

	got = varve(t, nil, "", "policy", "validate", path, "-o", "json")
	var doc struct{ Errors []struct{ Path string } }
	if err := json.Unmarshal([]byte(got.stdout), &doc); err != nil || got.code != exitNo || len(doc.Errors) != 2 {
		t.Errorf("-o json: %v, %+v", err, got)
	}
}

const testCases = `{"id":"open","namespaces":{"default":{}},"pods":[{"ns":"default","name":"a","labels":{"app":"a"},"ip":"10.0.0.1"},{"ns":"default","name":"b","labels":{"app":"b"},"ip":"10.0.0.2"}],"externals":[],"entities":[],"policies":[],"probes":[{"port":80,"proto":"TCP"}],"truth":[[".3","3."]]}
{"id":"wrong","desc":"says denied","namespaces":{"default":{}},"pods":[{"ns":"default","name":"a","labels":{"app":"a"},"ip":"10.0.0.1"},{"ns":"default","name":"b","labels":{"app":"b"},"ip":"10.0.0.2"}],"externals":[],"entities":[],"policies":[],"probes":[{"port":80,"proto":"TCP"}],"truth":[[".1","3."]]}
`

// TestPolicyTestFails: the difference is shown, counted, and exit code 1.
func TestPolicyTestFails(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("cases.jsonl", []byte(testCases), 0o600); err != nil {
		t.Fatal(err)
	}
	got := varve(t, nil, "", "policy", "test", "cases.jsonl")
	if got.code != exitNo || got.stderr != "" {
		t.Errorf("got %+v, want exit code %d and no progress bar", got, exitNo)
	}
	for _, want := range []string{"FAIL cases.jsonl:2: wrong (says denied)", "1 default/a  .1    .3   .x\n", "cases.jsonl   2       1        1        0 "} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("output lacks %q:\n%s", want, got.stdout)
		}
	}

	got = varve(t, nil, "", "policy", "test", "cases.jsonl", "-o", "json")
	var report policytest.Report
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil || got.code != exitNo || report.Passed != 1 || report.Failed != 1 {
		t.Errorf("-o json: %v, %+v", err, got)
	}

	got = varve(t, nil, "", "policy", "test", "cases.jsonl", "-o", "junit", "--junit", "report.xml")
	var suites struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Cases    []struct {
			Name    string `xml:"name,attr"`
			Failure *struct {
				Text string `xml:",chardata"`
			} `xml:"failure"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal([]byte(got.stdout), &suites); err != nil || got.code != exitNo {
		t.Fatalf("-o junit: %v, %+v", err, got)
	}
	if suites.Tests != 2 || suites.Failures != 1 || len(suites.Cases) != 2 || suites.Cases[0].Failure != nil ||
		suites.Cases[1].Name != "wrong: says denied" || !strings.Contains(suites.Cases[1].Failure.Text, ".1    .3   .x") {
		t.Errorf("-o junit: %s", got.stdout)
	}
	if file, err := os.ReadFile("report.xml"); err != nil || string(file) != got.stdout {
		t.Errorf("--junit: %v, %s", err, file)
	}
}

// TestPolicyTestEngines: the real programs, asked alone and beside the tables.
func TestPolicyTestEngines(t *testing.T) {
	t.Chdir(t.TempDir())
	first, _, _ := strings.Cut(testCases, "\n")
	if err := os.WriteFile("cases.jsonl", []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	for engine, says := range map[string]string{"bpf": "4 verdicts by bpf in ", "both": "8 verdicts by tables, bpf in "} {
		got := varve(t, nil, "", "policy", "test", "--engine", engine, "cases.jsonl")
		if got.code != exitYes || !strings.Contains(got.stdout, says) {
			t.Errorf("%s: got %+v, want exit code %d and %q", engine, got, exitYes, says)
		}
	}
}

func TestPolicyTestPasses(t *testing.T) {
	t.Chdir(t.TempDir())
	first, _, _ := strings.Cut(testCases, "\n")
	if err := os.WriteFile("cases.jsonl", []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := varve(t, nil, "", "policy", "test", "cases.jsonl"); got.code != exitYes {
		t.Errorf("got %+v, want exit code %d", got, exitYes)
	}
}

// TestDeleteByManifest: names are enough, also in lists and of what this version
// would not accept.
func TestDeleteByManifest(t *testing.T) {
	f := everything(t)
	manifest := goodPolicy + `---
apiVersion: v1
kind: List
items:
- {kind: CiliumClusterwideNetworkPolicy, metadata: {name: lockdown}, spec: {unknown: 1}}
- {kind: NetworkPolicy, metadata: {name: np, namespace: shop}}
---
`
	got := varve(t, f, manifest, "policy", "delete", "-f", "-")
	if got.code != exitYes {
		t.Fatalf("got %+v", got)
	}
	var asked []string
	for _, m := range f.asked {
		asked = append(asked, refArg(m.(*varvev1.DeletePolicyRequest).Ref))
	}
	if diff := cmp.Diff([]string{"cnp/default/web", "ccnp/lockdown", "np/shop/np"}, asked); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
}

// TestPolicyNames: what an argument may leave out.
func TestPolicyNames(t *testing.T) {
	f := everything(t)
	for _, tt := range []struct {
		arg  string
		want string
		no   string
	}{
		{arg: "cnp/default/web", want: "cnp/default/web"},
		{arg: "CiliumNetworkPolicy/default/web", want: "cnp/default/web"},
		{arg: "cnp/web", want: "cnp/default/web"},
		{arg: "ccnp/lockdown", want: "ccnp/lockdown"},
		{arg: "default/web", want: "cnp/default/web"},
		{arg: "web", want: "cnp/default/web"},
		{arg: "lockdown", want: "ccnp/lockdown"},
		{arg: "shop/twice", no: "there is more than one; give the kind: cnp/shop/twice, np/shop/twice"},
		{arg: "shop/web", no: "does not exist"},
		{arg: "twice", no: "does not exist"},
	} {
		t.Run(tt.arg, func(t *testing.T) {
			got := varve(t, f, "", "policy", "get", tt.arg, "-o", "yaml")
			if tt.no != "" {
				if got.code == exitYes || !strings.Contains(got.stderr, tt.no) {
					t.Errorf("got %+v, want %q", got, tt.no)
				}
				return
			}
			if got.code != exitYes {
				t.Fatalf("got %+v", got)
			}
			if ref := refArg(last[*varvev1.GetPolicyRequest](t, f).Ref); ref != tt.want {
				t.Errorf("asked for %s, want %s", ref, tt.want)
			}
		})
	}
}

// TestRequests: what the flags of writes become.
func TestRequests(t *testing.T) {
	f := everything(t)
	t.Run("endpoint add", func(t *testing.T) {
		varve(t, f, "", "endpoint", "add", "shop/db", "--netns", "db", "-l", "app=db,tier=", "--port", "sql=5432", "--port", "dns=53/UDP",
			"--address", "10.244.0.9,fd00::9", "--interface", "net0", "--mtu", "1400", "--service-account", "db")
		want := &varvev1.AddEndpointRequest{
			Namespace: "shop", Name: "db", Labels: map[string]string{"app": "db", "tier": ""}, ServiceAccount: "db", Netns: "/run/netns/db",
			Addresses:          []string{"10.244.0.9", "fd00::9"},
			NamedPorts:         []*varvev1.NamedPort{{Name: "sql", Protocol: "TCP", Port: 5432}, {Name: "dns", Protocol: "UDP", Port: 53}},
			ContainerInterface: "net0", Mtu: 1400,
		}
		if diff := cmp.Diff(want, last[*varvev1.AddEndpointRequest](t, f), protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	})
	t.Run("endpoint label", func(t *testing.T) {
		varve(t, f, "", "endpoint", "label", "web", "-n", "shop", "app=web", "old-", "empty=")
		want := &varvev1.SetEndpointLabelsRequest{Namespace: "shop", Name: "web", Set: map[string]string{"app": "web", "empty": ""}, Remove: []string{"old"}}
		if diff := cmp.Diff(want, last[*varvev1.SetEndpointLabelsRequest](t, f), protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	})
	t.Run("policy apply", func(t *testing.T) {
		varve(t, f, goodPolicy, "policy", "apply", "-f", "-", "--request-id", "r1", "--expected-revision", "0")
		want := &varvev1.ApplyPolicyRequest{Manifest: goodPolicy, Source: "stdin", RequestId: "r1", ExpectedRevision: new(uint64)}
		if diff := cmp.Diff(want, last[*varvev1.ApplyPolicyRequest](t, f), protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	})
	t.Run("policy verdict", func(t *testing.T) {
		f.on(v1c.PolicyServiceVerdictProcedure, &varvev1.VerdictResponse{
			Revision: 17, At: &varvev1.Moment{Revision: 17, TimeUnixNs: 1e18},
			From: &varvev1.VerdictParty{Name: "web"}, To: &varvev1.VerdictParty{Name: "db"}, Port: "443/tcp",
			Egress: &varvev1.DirectionVerdict{Reason: "default deny"}, Ingress: &varvev1.DirectionVerdict{Allowed: true, Reason: "not isolated"},
		})
		got := varve(t, f, "", "policy", "verdict", "--from", "web", "--to", "db", "--port", "443", "--at", "-2h")
		want := &varvev1.VerdictRequest{From: "web", To: "db", Port: "443/tcp", At: "-2h"}
		asked := last[*varvev1.VerdictRequest](t, f)
		asked.At = strings.TrimSpace(asked.At)
		if diff := cmp.Diff(want, asked, protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		if first, _, _ := strings.Cut(got.stdout, "\n"); got.code != exitNo || first != "denied  web -> db, port 443/tcp, at revision 17 of 2001-09-09T01:46:40Z" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("log append", func(t *testing.T) {
		varve(t, f, `{"namespaceSet": {"name": "a"}, "requestId": "r"} [{"namespace_deleted": {"name": "b"}, "expected_revision": "3"}]`, "log", "append")
		three := uint64(3)
		want := &varvev1.AppendRequest{Events: []*eventpb.Event{
			{RequestId: "r", Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "a"}}},
			{ExpectedRevision: &three, Payload: &eventpb.Event_NamespaceDeleted{NamespaceDeleted: &eventpb.NamespaceDeleted{Name: "b"}}},
		}}
		if diff := cmp.Diff(want, last[*varvev1.AppendRequest](t, f), protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	})
	t.Run("bpf policy list", func(t *testing.T) {
		varve(t, f, "", "bpf", "policy", "list", "--endpoint", "web")
		want := &varvev1.DumpRequest{Map: varvev1.Map_MAP_POLICY, Endpoint: "default/web"}
		if diff := cmp.Diff(want, last[*varvev1.DumpRequest](t, f), protocmp.Transform()); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	})
}

// TestEmptyListsSayNothingToScripts: standard output stays empty.
func TestEmptyListsSayNothingToScripts(t *testing.T) {
	f := startFakeAgent(t)
	f.on(v1c.EndpointServiceListProcedure, &varvev1.ListEndpointsResponse{})
	if got := varve(t, f, "", "endpoint", "list"); got != (result{code: exitYes, stderr: "no endpoints\n"}) {
		t.Errorf("got %+v", got)
	}
	if got := varve(t, f, "", "endpoint", "list", "-o", "json"); !strings.Contains(got.stdout, `"endpoints": []`) {
		t.Errorf("-o json: %+v, want an empty list", got)
	}
}

package policytest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/projections"
)

func run(t *testing.T, opts Options, files ...string) *Report {
	t.Helper()
	report, err := Run(t.Context(), files, opts)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func newTestKernel(t *testing.T) Engine {
	t.Helper()
	k, err := NewKernel()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// Every case passes, or is refused for a field that is known to be missing.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl*")
	if err != nil {
		t.Fatal(err)
	}
	report := run(t, Options{Engines: []Engine{Tables, newTestKernel(t)}}, files...)
	t.Logf("%d verdicts in %s, %d not asked", report.Verdicts, time.Duration(report.Nanoseconds), report.NotAsked)
	refused := make(map[string][]string)
	for _, r := range report.Results {
		switch {
		case r.Outcome == Fail:
			t.Errorf("%s:%d: %s: %s\n%s", r.File, r.Line, r.Case, r.Reason, r.Difference)
		case r.Outcome == Refused:
			refused[r.Case] = r.Fields
		}
	}
	want := map[string][]string{"trap/40": {"policies[0].spec.ingress[0].toPorts[0].rules.http"}}
	if diff := cmp.Diff(want, refused); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	if report.Connections < 200_000 || report.Verdicts < report.Connections || report.Wrong != 0 {
		t.Errorf("%d connections, %d verdicts, %d wrong", report.Connections, report.Verdicts, report.Wrong)
	}
}

// A small case to spoil: client may enter server at http, which is 8080.
const smallCase = `{"id":"small","namespaces":{"default":{}},` +
	`"pods":[{"ns":"default","name":"server","labels":{"app":"server"},"ip":"10.0.0.1","ports":[{"name":"HTTP","port":8080,"proto":"TCP"}]},` +
	`{"ns":"default","name":"client","labels":{"app":"client"},"ip":"10.0.0.2","ports":null}],` +
	`"externals":["203.0.113.1"],"entities":["host"],` +
	`"policies":[{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"np","namespace":"default"},` +
	`"spec":{"podSelector":{"matchLabels":{"app":"server"}},"ingress":[{"from":[{"podSelector":{}}],"ports":[{"port":"http"}]}]}}],` +
	`"probes":[{"port":8080,"proto":"TCP"},{"port":80,"proto":"TCP"}],` +
	`"truth":[[".333","3.33","23..","33.."],[".333","2.33","23..","33.."]]}`

func write(t *testing.T, lines ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cases.jsonl")
	if err := os.WriteFile(name, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func replaceOnce(t *testing.T, s, old, with string) string {
	t.Helper()
	if !strings.Contains(s, old) {
		t.Fatalf("the case does not hold %s", old)
	}
	return strings.Replace(s, old, with, 1)
}

func TestOutcomes(t *testing.T) {
	replace := func(old, with string) string { return replaceOnce(t, smallCase, old, with) }
	for _, c := range []struct {
		name, line string
		want       Outcome
		reason     string
	}{
		{"right", smallCase, Pass, ""},
		{"a wrong verdict", replace(`"2.33"`, `"3.33"`), Fail, "1 of 20 connections differ"},
		{"truth_cilium wins", replace(`"probes"`, `"truth_cilium":[[".333","3.33","23..","33.."],[".333","0.33","23..","33.."]],"probes"`), Fail, "1 of 20"},
		{"must be rejected and is not", replace(`"probes"`, `"error":"no such kind","probes"`), Fail, "must be rejected: no such kind"},
		{"is rejected and must not be", replace(`"port":"http"`, `"port":70000`), Fail, "spec.ingress[0].ports[0].port"},
		{"rejected", strings.Replace(replace(`"port":"http"`, `"port":70000`), `"probes"`, `"error":"bad port","probes"`, 1), Pass, ""},
		{"refused", replace(`"kind":"NetworkPolicy"`, `"kind":"AdminNetworkPolicy"`), Refused, "AdminNetworkPolicy"},
		{"not JSON", `{"id":`, Fail, "not a policy test case"},
		{"no case", `{"hello":"world"}`, Fail, "neither policies nor an FQDN pattern"},
		{"a short row", replace(`"2.33"`, `"2.3"`), Fail, "truth[1][1]"},
		{"a row too few", replace(`"2.33",`, ``), Fail, "truth[1] has 3 rows for 4 endpoints"},
		{"a foreign character", replace(`"2.33"`, `"2.34"`), Fail, "truth[1][1]"},
		{"a probe without truth", replace(`{"port":80,"proto":"TCP"}]`, `{"port":80,"proto":"TCP"},{"port":1,"proto":"TCP"}]`), Fail, "2 matrices for 3 probes"},
		{"an unknown protocol", replace(`{"port":80,"proto":"TCP"}`, `{"port":80,"proto":"GRE"}`), Fail, `"GRE"`},
		{"an unknown entity", replace(`["host"]`, `["moon"]`), Fail, "health, host, ingress"},
		{"a pod without address", replace(`"ip":"10.0.0.2",`, ``), Fail, "default/client has no ip"},
		{"two pods of one address", replace(`10.0.0.2`, `10.0.0.1`), Fail, "pod default/client"},
		{"an FQDN pattern", `{"kind":"matchPattern","pattern":"*.x.io","names":["a.x.io","x.io","A.X.IO.","a.b.x.io"],"matches":["a.x.io","A.X.IO."]}`, Pass, ""},
		{"a pattern that matches too much", `{"kind":"matchPattern","pattern":"*","names":["a.x.io"],"matches":[]}`, Fail, "1 of 1 names"},
		{"a pattern with names beside", `{"kind":"matchName","pattern":"cilium.io","names":35,"matches":["cilium.io.","cilium.io","CILIUM.IO."]}`, Pass, ""},
		{"a pattern to be rejected", `{"kind":"matchName","pattern":"*.io","names":35,"error":"bad"}`, Pass, ""},
		{"a pattern that is not rejected", `{"kind":"matchName","pattern":"x.io","names":35,"error":"bad"}`, Fail, "must be rejected: bad"},
		{"a pattern that the schema refuses", `{"kind":"matchPattern","pattern":"a..io","crd_pattern_ok":true,"names":35}`, Fail, "schema"},
		{"a pattern of no kind", `{"kind":"matchAll","pattern":"x.io","names":35}`, Fail, "neither matchName nor matchPattern"},
	} {
		report := run(t, Options{}, write(t, c.line))
		if len(report.Results) != 1 {
			t.Fatalf("%s: %d results", c.name, len(report.Results))
		}
		r := report.Results[0]
		if r.Outcome != c.want || !strings.Contains(r.Reason, c.reason) {
			t.Errorf("%s: %s (%s), want %s (%s)", c.name, r.Outcome, r.Reason, c.want, c.reason)
		}
		if c.want == Fail && strings.HasPrefix(c.line, `{"kind":"matchPattern","pattern":"*"`) && !strings.Contains(r.Difference, `matches "a.x.io" and must not`) {
			t.Errorf("%s: difference %q", c.name, r.Difference)
		}
		if r.Outcome == Refused && len(r.Fields) == 0 {
			t.Errorf("%s: no field", c.name)
		}
	}
}

func TestDifferenceIsForPeople(t *testing.T) {
	spoilt := strings.Replace(smallCase, `"2.33"`, `"3.03"`, 1)
	spoilt = strings.Replace(spoilt, `"23..","33.."]]`, `"23..","01.."]]`, 1)
	got := run(t, Options{}, write(t, spoilt)).Results[0].Difference
	want := `80/TCP (1 ingress allowed, 2 egress allowed; a row for each source, a column for each destination)
                    want  got   differ
  1 default/server  .333  .333  ....
  2 default/client  3.03  2.33  x.x.
  3 203.0.113.1     23..  23..  ....
  4 host            01..  33..  xx..
  default/client to default/server, 80/TCP: ingress denied: no rule allows it
  default/client to 203.0.113.1, 80/TCP: egress allowed: no policy isolates it
  default/client to 203.0.113.1, 80/TCP: ingress allowed: it is no pod, so nothing can deny it
  host to default/server, 80/TCP: egress allowed: it is no pod, so nothing can deny it
  host to default/server, 80/TCP: ingress allowed: by allow-localhost
  host to default/client, 80/TCP: egress allowed: it is no pod, so nothing can deny it
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// contrary is the tables engine, wrong about one port.
type contrary struct{ Engine }

func (contrary) Name() string { return "contrary" }

func (e contrary) Load(ctx context.Context, t *projections.Tables) (Judge, error) {
	j, err := e.Engine.Load(ctx, t)
	return contraryJudge{j}, err
}

type contraryJudge struct{ Judge }

func (j contraryJudge) Allows(q Question) (bool, error) {
	allow, err := j.Judge.Allows(q)
	return allow != (q.Port == 80), err
}

// Engines that disagree fail a case, and it can be seen who is wrong.
func TestEnginesMustAgree(t *testing.T) {
	r := run(t, Options{Engines: []Engine{Tables, contrary{Tables}}}, write(t, smallCase))
	if r.Engine != "tables, contrary" || r.Failed != 1 || r.Wrong != 10 || r.Connections != 20 || r.Verdicts != 48 {
		t.Errorf("%+v", r)
	}
	want := `80/TCP (1 ingress allowed, 2 egress allowed; a row for each source, a column for each destination)
                    want  tables  contrary  differ
  1 default/server  .333  .333    .011      .xxx
  2 default/client  2.33  2.33    1.11      x.xx
  3 203.0.113.1     23..  23..    32..      xx..
  4 host            33..  33..    22..      xx..
  default/server to default/client, 80/TCP: egress denied: no policy isolates it (engine contrary only)
`
	if got := r.Results[0].Difference; !strings.HasPrefix(got, want) {
		t.Errorf("difference\n%s", got)
	}
}

func TestReportCountsAndOrder(t *testing.T) {
	wrong := strings.Replace(smallCase, `"2.33"`, `"3.33"`, 1)
	refused := replaceOnce(t, smallCase, `"kind":"NetworkPolicy"`, `"kind":"AdminNetworkPolicy"`)
	plain := write(t, smallCase, "", wrong)
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(refused + "\n" + smallCase + "\n")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	zipped := filepath.Join(t.TempDir(), "zipped")
	if err := os.WriteFile(zipped, z.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}

	last := 0
	report := run(t, Options{Parallel: 3, Progress: func(done, total int) {
		if done != last+1 || total != 4 {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}}, plain, zipped)
	type line struct {
		File    string
		Line    int
		Outcome Outcome
	}
	var got []line
	for _, r := range report.Results {
		got = append(got, line{r.File, r.Line, r.Outcome})
	}
	want := []line{{plain, 1, Pass}, {plain, 3, Fail}, {zipped, 1, Refused}, {zipped, 2, Pass}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	counts := []int{report.Cases, report.Passed, report.Failed, report.Refused, report.Connections, report.Verdicts, report.Wrong}
	if diff := cmp.Diff([]int{4, 2, 1, 1, 60, 72, 1}, counts); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if last != 4 {
		t.Errorf("progress ended at %d", last)
	}
	b, err := json.Marshal(report)
	if err != nil || !bytes.Contains(b, []byte(`"outcome":"refused"`)) {
		t.Errorf("as JSON: %v, %s", err, b)
	}
}

func TestRunErrors(t *testing.T) {
	if _, err := Run(t.Context(), []string{"testdata/absent"}, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want ErrNotExist", err)
	}
	broken := write(t, "\x1f\x8bgarbage")
	if _, err := Run(t.Context(), []string{broken}, Options{}); err == nil || !strings.Contains(err.Error(), broken) {
		t.Errorf("error %v does not name the file", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, []string{write(t, smallCase)}, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
}

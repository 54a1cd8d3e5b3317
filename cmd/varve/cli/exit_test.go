package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	v1c "github.com/varve-net/varve/api/varve/v1/varvev1connect"
)

// TestUsage: what is wrong with a command line is said in one line that names the
// flag or argument, and the exit code is 2. No agent is asked.
func TestUsage(t *testing.T) {
	t.Setenv(api.SocketEnv, filepath.Join(t.TempDir(), "nobody"))
	dir := t.TempDir()
	events := filepath.Join(dir, "events.json")
	if err := os.WriteFile(events, []byte(`{"namespace_set": {"nam": "x"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"nonsense":                                   `unknown command "nonsense"`,
		"endpoint ad":                                `did you mean "add"`,
		"endpoint list extra":                        `argument "extra"`,
		"endpoint get":                               "give one NAME",
		"endpoint get a/b/c":                         "NAMESPACE/NAME",
		"endpoint get shop/x -n other":               "names another namespace",
		"endpoint add web":                           `"netns"`,
		"endpoint add web --netns=":                  "--netns: is empty",
		"endpoint add web --netns x -l app":          `--labels: "app" is not key=value`,
		"endpoint add web --netns x -l a=1,a=2":      `"a" is given twice`,
		"endpoint add web --netns x --port http":     "http=8080/tcp",
		"endpoint add web --netns x --port h=0":      "1 to 65535",
		"endpoint add web --netns x --port h=1/icmp": "tcp, udp, sctp",
		"endpoint label web":                         "at least one label",
		"endpoint label web a=1 a-":                  "both set and removed",
		"endpoint label web -":                       "has no key",
		"status -o xml":                              "table, json, yaml",
		"status --verify=maybe":                      "true or false",
		"status --socket http://x":                   `scheme "http"`,
		"policy apply":                               "no file is given",
		"policy apply " + dir + "/none.yaml":         "no such file",
		"policy delete":                              "no policy is given",
		"policy delete x -f y":                       "not both",
		"policy delete ccnp/shop/x":                  "has no namespace",
		"policy delete a/b/c/d":                      "KIND/NAMESPACE/NAME",
		"policy get xyz/shop/x":                      "np, cnp or ccnp",
		"policy test":                                "at least one FILE",
		"policy test x --engine magic":               "tables",
		"policy test " + dir + "/none":               "no such file",
		"monitor --type drops":                       "drop, new-flow",
		"log read --from 9 --to 3":                   "is after",
		"log read --from -1":                         "whole number",
		"log tail --kind x":                          "policy-set",
		"log append " + events:                       `unknown field "nam"`,
		"log append " + os.DevNull:                   "holds no event",
	} {
		t.Run(args, func(t *testing.T) {
			got := varve(t, nil, "", strings.Fields(args)...)
			if got.code != exitUsage {
				t.Errorf("exit code %d, want %d", got.code, exitUsage)
			}
			if got.stdout != "" {
				t.Errorf("standard output has %q, want nothing", got.stdout)
			}
			if !strings.HasPrefix(got.stderr, "varve: ") || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, want) {
				t.Errorf("standard error is %q, want one line with %q", got.stderr, want)
			}
		})
	}
}

func TestGroupAloneShowsHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"endpoint"}, {"bpf", "ct"}} {
		got := varve(t, nil, "", args...)
		if got.code != exitUsage || got.stdout != "" || !strings.Contains(got.stderr, "Usage:") {
			t.Errorf("%v: %+v, want the help on standard error and exit code %d", args, got, exitUsage)
		}
	}
}

// TestEveryCommandHasHelp also runs each command's construction.
func TestEveryCommandHasHelp(t *testing.T) {
	got := varve(t, nil, "", "help", "endpoint", "add")
	if got.code != exitYes || !strings.Contains(got.stdout, "--netns") || !strings.Contains(got.stdout, "Examples:") {
		t.Errorf("help endpoint add: %+v", got)
	}
}

func TestUnreachable(t *testing.T) {
	for _, command := range []string{"status", "endpoint list", "monitor", "log tail -f", "policy apply -", "log append -"} {
		t.Run(command, func(t *testing.T) {
			args := append(strings.Fields(command), "--socket", filepath.Join(t.TempDir(), "none"))
			got := varve(t, nil, `{"namespace_set": {"name": "x"}}`, args...)
			if got.code != exitBroken {
				t.Errorf("exit code %d, want %d", got.code, exitBroken)
			}
			if !strings.Contains(got.stderr, "no such file or directory; is the agent running? start it with `varve agent` or give --socket") {
				t.Errorf("standard error is %q, want the remedy", got.stderr)
			}
		})
	}
}

func TestExplainPermission(t *testing.T) {
	message, code := explain(t.Context(), connect.NewError(connect.CodeUnavailable, &api.DialError{Address: "/s", Err: fs.ErrPermission}))
	if code != exitBroken || !strings.Contains(message, "root") || !strings.Contains(message, "group varve") {
		t.Errorf("explain: %q, %d; want root or group varve", message, code)
	}
}

// TestRefusals: which exit code the agent's codes lead to, and that its words are
// passed on without the protocol's.
func TestRefusals(t *testing.T) {
	f := startFakeAgent(t)
	for _, tt := range []struct {
		code connect.Code
		exit int
		want string
	}{
		{connect.CodeNotFound, exitNo, "varve: words\n"},
		{connect.CodeAborted, exitNo, "varve: words\n"},
		{connect.CodeFailedPrecondition, exitNo, "varve: words\n"},
		{connect.CodeAlreadyExists, exitNo, "varve: words\n"},
		{connect.CodeInvalidArgument, exitUsage, "varve: words\n"},
		{connect.CodeOutOfRange, exitUsage, "varve: words\n"},
		{connect.CodePermissionDenied, exitBroken, "varve: words\n"},
		{connect.CodeUnimplemented, exitBroken, "varve: words; is the agent of another version? compare `varve version` with `varve status`\n"},
		{connect.CodeUnavailable, exitBroken, "varve: words; `varve status` and the agent's log tell more\n"},
		{connect.CodeResourceExhausted, exitBroken, "varve: words\n"},
		{connect.CodeInternal, exitBroken, "varve: words\n"},
	} {
		t.Run(tt.code.String(), func(t *testing.T) {
			f.fail(v1c.EndpointServiceGetProcedure, tt.code, "words")
			got := varve(t, f, "", "endpoint", "get", "x")
			if got.code != tt.exit || got.stderr != tt.want || got.stdout != "" {
				t.Errorf("got %+v, want exit code %d and %q", got, tt.exit, tt.want)
			}
		})
	}
}

// TestDeleteGoesOn: one failure does not keep the others from being tried, and each
// is told.
func TestDeleteGoesOn(t *testing.T) {
	f := startFakeAgent(t)
	f.fail(v1c.EndpointServiceDeleteProcedure, connect.CodeInternal, "busy")
	got := varve(t, f, "", "endpoint", "delete", "a", "b")
	want := "varve: endpoint default/a: busy\nvarve: endpoint default/b: busy\n"
	if got.code != exitBroken || got.stderr != want {
		t.Errorf("got %+v, want %q", got, want)
	}
}

// TestSeveralFilesAreAllValidatedFirst: none is applied if one is wrong.
func TestSeveralFilesAreAllValidatedFirst(t *testing.T) {
	f := startFakeAgent(t)
	f.on(v1c.PolicyServiceValidateProcedure, &varvev1.ValidatePolicyResponse{Errors: []*varvev1.PolicyError{{Source: "b.yaml", Line: 2, Problem: "bad"}}})
	dir := t.TempDir()
	for _, name := range []string{"a.yaml", "b.yaml", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := varve(t, f, "", "policy", "apply", "-f", dir)
	want := strings.Repeat("varve: b.yaml:2: bad\n", 2)
	if got.code != exitNo || got.stderr != want {
		t.Errorf("got %+v, want exit code %d and %q", got, exitNo, want)
	}
	for _, m := range f.asked {
		if _, ok := m.(*varvev1.ApplyPolicyRequest); ok {
			t.Error("a file was applied although one is wrong")
		}
	}
}

func TestExplainKeepsEveryCause(t *testing.T) {
	message, code := explain(t.Context(), errors.Join(nof("first"), connect.NewError(connect.CodeInternal, errors.New("second"))))
	if message != "first\nsecond" || code != exitBroken {
		t.Errorf("explain = %q, %d", message, code)
	}
}

// What a flag complains about it names once.
func TestMomentOfAFlag(t *testing.T) {
	got := varve(t, startFakeAgent(t), "", "policy", "list", "--at", "+5m")
	if got.code != exitUsage || strings.Count(got.stderr, `"+5m"`) != 1 || !strings.Contains(got.stderr, "--at") {
		t.Errorf("%+v", got)
	}
}

package cli

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// complete returns what a shell is offered for the last word.
func complete(t *testing.T, f *fakeAgent, words ...string) []string {
	t.Helper()
	got := varve(t, nil, "", append([]string{"__complete", "--socket", f.socket}, words...)...)
	if got.code != exitYes {
		t.Fatalf("complete %q: %+v", words, got)
	}
	var out []string
	for _, line := range strings.Split(got.stdout, "\n") {
		if line == "" || strings.HasPrefix(line, ":") {
			continue
		}
		name, _, _ := strings.Cut(line, "\t")
		out = append(out, name)
	}
	return out
}

func TestComplete(t *testing.T) {
	f := everything(t)
	for _, tt := range []struct {
		line string // the words before the cursor; a space at the end begins a new one
		want []string
	}{
		{"endpoint get ", []string{"shop/cart", "web"}},
		{"endpoint get s", []string{"shop/cart"}},
		{"endpoint get web ", nil},
		{"endpoint get -n shop ", []string{"cart"}},
		{"endpoint delete web ", []string{"shop/cart"}},
		{"endpoint list -n ", []string{"default", "shop"}},
		{"policy get ", []string{"ccnp/lockdown", "cnp/default/web", "cnp/shop/twice", "np/shop/twice"}},
		{"policy delete cnp/default/web c", []string{"ccnp/lockdown", "cnp/shop/twice"}},
		{"namespace apply s", []string{"shop"}},
		{"monitor --endpoint d", []string{"default/web"}},
		{"monitor --type ", []string{"drop", "new-flow", "audited", "drift"}},
		{"bpf policy list --endpoint s", []string{"shop/cart"}},
		{"status -o ", []string{"table", "json", "yaml"}},
		{"log tail --stream ", []string{"policy/", "namespace/", "endpoint/", "node/"}},
		{"agent --log-format ", []string{"text", "json"}},
		{"policy test --engine ", []string{"tables", "bpf", "both"}},
	} {
		t.Run(tt.line, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, complete(t, f, strings.Split(tt.line, " ")...)); diff != "" {
				t.Errorf("completions (-want +got):\n%s", diff)
			}
		})
	}
}

// TestCompleteWithoutAgent: a shell is not disturbed.
func TestCompleteWithoutAgent(t *testing.T) {
	got := varve(t, nil, "", "__complete", "--socket", filepath.Join(t.TempDir(), "none"), "endpoint", "get", "")
	if got.code != exitYes || !strings.HasPrefix(got.stdout, ":4\n") {
		t.Errorf("got %+v, want no completions and no file names", got)
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := varve(t, nil, "", "completion", shell); got.code != exitYes || !strings.Contains(got.stdout, "varve") {
			t.Errorf("completion %s: exit code %d, %d bytes", shell, got.code, len(got.stdout))
		}
	}
}

package archtest

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestRepository(t *testing.T) {
	imports, err := Scan(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Pure {
		if !slices.Contains(imports.Packages(), p.Package) {
			t.Errorf("pure package %s is not there: the rule would hold for nothing", p.Package)
		}
	}
	for _, pkg := range imports.Packages() {
		if folderOf(pkg) == "" && !strings.HasPrefix(pkg, "hack") {
			t.Errorf("package %q lies in no folder that a rule knows; add it to folders", pkg)
		}
	}
	for _, breach := range imports.Check(Pure, Forbidden) {
		t.Error(breach)
	}
}

// A rule that cannot fail protects nothing: each kind of breach is found.
func TestCheckFindsBreaches(t *testing.T) {
	file := func(imports ...string) *fstest.MapFile {
		var b strings.Builder
		b.WriteString("package x\n")
		for _, i := range imports {
			b.WriteString("import _ \"" + i + "\"\n")
		}
		return &fstest.MapFile{Data: []byte(b.String())}
	}
	tests := []struct {
		name string
		tree fstest.MapFS
		want string // part of the only breach; empty: none
	}{
		{"clock in a pure package", fstest.MapFS{"fsm/a.go": file("time")}, "fsm/a.go: imports time"},
		{"randomness in a pure package", fstest.MapFS{"log/a.go": file("crypto/rand")}, "log/a.go: imports crypto/rand"},
		{"generated code is exempt", fstest.MapFS{"log/eventpb/a.pb.go": file("time")}, ""},
		{"tests are exempt", fstest.MapFS{"policy/a_test.go": file("os")}, ""},
		{"netip is fine", fstest.MapFS{"policy/a.go": file("net/netip")}, ""},
		{"a subpackage that is not pure", fstest.MapFS{"log/raftlog/a.go": file("time")}, ""},
		{"arrow up", fstest.MapFS{"fsm/a.go": file(Module + "/projections")}, "fsm: imports projections"},
		{"log does not know raftlog", fstest.MapFS{"log/a.go": file(Module + "/log/raftlog")}, "log: imports log/raftlog"},
		{"arrow down", fstest.MapFS{"projections/a.go": file(Module+"/fsm", Module+"/bpf/abi")}, ""},
		{"cluster to dataplane", fstest.MapFS{"cluster/a.go": file(Module + "/dataplane/dns")}, "cluster: imports dataplane/dns"},
		{"dataplane to cluster", fstest.MapFS{"dataplane/dns/a.go": file(Module + "/cluster")}, "dataplane/dns: imports cluster"},
		{
			"through a third",
			fstest.MapFS{"cluster/a.go": file(Module + "/internal/x"), "internal/x/a.go": file(Module + "/dataplane")},
			"(cluster -> internal/x -> dataplane)",
		},
		{"nobody imports the binary", fstest.MapFS{"internal/x/a.go": file(Module + "/cmd/varve")}, "internal/x: imports cmd/varve"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			imports, err := Scan(tt.tree)
			if err != nil {
				t.Fatal(err)
			}
			got := imports.Check(Pure, Forbidden)
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("breaches %q, want none", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
				t.Errorf("breaches %q, want one with %q", got, tt.want)
			}
		})
	}
}

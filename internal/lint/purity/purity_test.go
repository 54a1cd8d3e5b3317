package purity

import (
	"path/filepath"
	"testing"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/analysistest"
	"golang.org/x/tools/go/analysis/checker"
	"golang.org/x/tools/go/packages"

	"github.com/varve-net/varve/internal/archtest"
)

// What breaks a rule is found in each pure package, and what is proven is not: the
// fixtures hold both. A package below a pure one, or elsewhere, is left alone.
func TestFixtures(t *testing.T) {
	patterns := []string{archtest.Module + "/log/raftlog", archtest.Module + "/internal/elsewhere"}
	for _, p := range archtest.Pure {
		patterns = append(patterns, archtest.Module+"/"+p.Package)
	}
	found := map[string]int{}
	for _, result := range analysistest.Run(t, analysistest.TestData(), Analyzer, patterns...) {
		found[result.Action.Package.PkgPath] += len(result.Diagnostics)
	}
	for _, p := range archtest.Pure {
		if found[archtest.Module+"/"+p.Package] == 0 {
			t.Errorf("no fixture under testdata/src shows that a violation in %s is found", p.Package)
		}
	}
}

func TestRules(t *testing.T) {
	for _, p := range archtest.Pure {
		for path := range runtimeImports {
			if _, twice := p.Forbid[path]; twice {
				t.Errorf("archtest forbids %s to import %s already", p.Package, path)
			}
		}
		if _, pure := pureRule(archtest.Module + "/" + p.Package + " [" + archtest.Module + "/" + p.Package + ".test]"); !pure {
			t.Errorf("%s is not pure when compiled for its tests", p.Package)
		}
	}
}

func TestPurePackages(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	for _, p := range archtest.Pure {
		patterns = append(patterns, "./"+p.Package)
	}
	pkgs, err := packages.Load(&packages.Config{Mode: packages.LoadSyntax | packages.NeedModule, Dir: root}, patterns...)
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) != len(patterns) {
		t.Errorf("%d packages for %q", len(pkgs), patterns)
	}
	for _, p := range pkgs {
		for _, err := range p.Errors {
			t.Errorf("%s: %v", p.PkgPath, err)
		}
		if _, pure := pureRule(p.PkgPath); !pure {
			t.Errorf("%s was loaded and not looked at", p.PkgPath)
		}
	}
	graph, err := checker.Analyze([]*analysis.Analyzer{Analyzer}, pkgs, nil) //nolint:misspell // their name
	if err != nil {
		t.Fatal(err)
	}
	for _, act := range graph.Roots {
		if act.Err != nil {
			t.Errorf("%s: %v", act.Package.PkgPath, act.Err)
		}
		for _, d := range act.Diagnostics {
			t.Errorf("%s: %s", act.Package.Fset.Position(d.Pos), d.Message)
		}
	}
}

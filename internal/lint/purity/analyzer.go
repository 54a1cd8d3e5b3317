package purity

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"strings"

	"golang.org/x/tools/go/analysis"

	"github.com/varve-net/varve/internal/archtest"
)

// Analyzer reports nondeterminism in the packages of archtest.Pure, and nothing
// in any other. It has no facts and no flags.
var Analyzer = &analysis.Analyzer{
	Name: "purity",
	Doc:  "report what lets clocks, the scheduler, addresses or map order reach the output of a pure package",
	URL:  "https://pkg.go.dev/" + archtest.Module + "/internal/lint/purity",
	Run:  run,
}

// pureRule is the rule for an import path, if the package is pure.
func pureRule(path string) (archtest.Purity, bool) {
	// go vet names a package that is compiled for its tests "path [path.test]".
	path, _, _ = strings.Cut(path, " ")
	for _, p := range archtest.Pure {
		if path == archtest.Module+"/"+p.Package {
			return p, true
		}
	}
	return archtest.Purity{}, false
}

func exempt(filename string) bool {
	base := filepath.Base(filename)
	return strings.HasSuffix(base, "_test.go") || strings.HasSuffix(base, ".pb.go")
}

func run(pass *analysis.Pass) (any, error) {
	rule, pure := pureRule(pass.Pkg.Path())
	if !pure {
		return nil, nil
	}
	for _, f := range pass.Files {
		if exempt(pass.Fset.File(f.FileStart).Name()) {
			continue
		}
		c := &inspector{pass: pass, file: f, parents: parentsOf(f), directives: directivesOf(pass, f)}
		c.imports(rule)
		ast.Inspect(f, c.visit)
		c.directives.reportIdle(pass)
	}
	return nil, nil
}

// inspector looks at one file.
type inspector struct {
	pass       *analysis.Pass
	file       *ast.File
	parents    map[ast.Node]ast.Node
	directives directives
}

func (c *inspector) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GoStmt:
		c.pass.Reportf(n.Pos(), "a goroutine in a pure package: the scheduler decides what it sees and when; do the work in place, or leave it to the caller")
	case *ast.SelectStmt:
		c.selectStmt(n)
	case *ast.CallExpr:
		c.addresses(n)
	case *ast.RangeStmt:
		c.rangeStmt(n)
	case *ast.Ident:
		c.unordered(n)
	}
	return true
}

// order reports a finding about map order, unless the line before at excuses it.
func (c *inspector) order(at token.Pos, format string, args ...any) {
	if !c.directives.excuse(c.pass.Fset.Position(at).Line) {
		c.pass.Reportf(at, format, args...)
	}
}

func parentsOf(root ast.Node) map[ast.Node]ast.Node {
	parents := map[ast.Node]ast.Node{}
	var open []ast.Node
	ast.Inspect(root, func(n ast.Node) bool {
		if n == nil {
			open = open[:len(open)-1]
			return true
		}
		if len(open) > 0 {
			parents[n] = open[len(open)-1]
		}
		open = append(open, n)
		return true
	})
	return parents
}

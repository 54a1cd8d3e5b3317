package purity

import (
	"go/ast"
	"go/token"
	"strings"

	"golang.org/x/tools/go/analysis"
)

const (
	directivePrefix = "//purity:"
	orderedName     = "ordered"
)

// directives are the //purity: comments of a file, by position.
type directives []*directive

type directive struct {
	pos  token.Pos
	line int
	used bool
}

// directivesOf collects the comments that may excuse a finding, and reports those
// that may not: without a reason, or with a name that means nothing.
func directivesOf(pass *analysis.Pass, f *ast.File) directives {
	var ds directives
	for _, group := range f.Comments {
		for _, comment := range group.List {
			text, ok := strings.CutPrefix(comment.Text, directivePrefix)
			if !ok {
				continue
			}
			name, reason, _ := strings.Cut(text, " ")
			switch {
			case name != orderedName:
				pass.Reportf(comment.Pos(), "%s%s is unknown; the only one is %s%s REASON", directivePrefix, name, directivePrefix, orderedName)
			case strings.TrimSpace(reason) == "":
				pass.Reportf(comment.Pos(), "%s%s needs a reason: say why the order cannot reach the output", directivePrefix, orderedName)
			default:
				ds = append(ds, &directive{pos: comment.Pos(), line: pass.Fset.Position(comment.Pos()).Line})
			}
		}
	}
	return ds
}

// excuse tells whether a directive stands on the line before, and marks it used.
func (ds directives) excuse(line int) bool {
	for _, d := range ds {
		if d.line == line-1 {
			d.used = true
			return true
		}
	}
	return false
}

func (ds directives) reportIdle(pass *analysis.Pass) {
	for _, d := range ds {
		if !d.used {
			pass.Reportf(d.pos, "%s%s excuses nothing on the next line; remove it", directivePrefix, orderedName)
		}
	}
}

package purity

import (
	"go/ast"
	"go/token"
	"go/types"
)

// checkLists: what was appended to in map order is sorted before it is used.
func (l *loop) checkLists(r *ast.RangeStmt) {
	for _, c := range l.cells {
		if c.writes[0].op != opAppend || c.typ != nil || l.problem != nil {
			continue
		}
		for _, w := range c.writes {
			if !l.same(w.to, c.writes[0].to) {
				l.fail(w.pos, "%s and %s may be one", types.ExprString(w.to), c.name())
			}
		}
		if why := l.sortFollows(r, c.writes[0].to); why != "" {
			l.fail(c.writes[0].pos, "%s grows in map order and %s", c.name(), why)
		}
	}
}

// sortFollows tells why the next use of list after the statement from may be
// something else than to sort it; "" if it is sorted. A variable may meanwhile be
// appended to. A field may have other names, so it is sorted in the very next
// statement.
func (c *inspector) sortFollows(from ast.Stmt, list ast.Expr) string {
	if _, label := c.parents[from].(*ast.LabeledStmt); !label && !c.inList(from) {
		return "is not sorted by the next statement"
	}
	id, isIdent := ast.Unparen(list).(*ast.Ident)
	if !isIdent {
		rest := c.after(from)
		if len(rest) > 0 && c.sorts(rest[0], list) {
			return ""
		}
		return "is not sorted by the next statement"
	}
	v, ok := c.pass.TypesInfo.ObjectOf(id).(*types.Var)
	switch {
	case !ok || v.Parent() == c.pass.Pkg.Scope():
		return "is seen from everywhere"
	case c.addressTaken(v):
		return "has its address taken"
	}
	if c.mentionedInClosure(v) {
		return "is named in a function literal"
	}
	var at ast.Node = from
	for {
		for _, s := range c.after(at) {
			if c.sorts(s, list) {
				return ""
			}
			if why := c.passesBy(s, v); why != "" {
				return why
			}
		}
		// No sort in this list of statements: it has to follow around it.
		for {
			at = c.parents[at]
			switch at.(type) {
			case *ast.ForStmt, *ast.RangeStmt:
				if c.passesBy(at, v) != "" {
					return "is used by the loop around it before it is sorted"
				}
			case *ast.BlockStmt, *ast.CaseClause, *ast.IfStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.LabeledStmt:
			default:
				return "is never sorted"
			}
			if c.inList(at) {
				break
			}
		}
	}
}

// after lists the statements that follow n in its list.
func (c *inspector) after(n ast.Node) []ast.Stmt {
	if label, ok := c.parents[n].(*ast.LabeledStmt); ok {
		n = label
	}
	for i, s := range listOf(c.parents[n]) {
		if s == n {
			return listOf(c.parents[n])[i+1:]
		}
	}
	return nil
}

func (c *inspector) inList(n ast.Node) bool {
	for _, s := range listOf(c.parents[n]) {
		if s == n {
			return true
		}
	}
	return false
}

func listOf(n ast.Node) []ast.Stmt {
	switch n := n.(type) {
	case *ast.BlockStmt:
		return n.List
	case *ast.CaseClause:
		return n.Body
	}
	return nil
}

// passesBy tells why s may let the unsorted v be seen; "" if s does no more than
// append to v.
func (c *inspector) passesBy(s ast.Node, v *types.Var) string {
	why := ""
	ast.Inspect(s, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if c.appendsOnly(n, v) {
				return false
			}
		case *ast.Ident:
			if c.pass.TypesInfo.Uses[n] == v {
				why = "is used before it is sorted"
			}
		case *ast.ReturnStmt:
			if len(n.Results) == 0 && c.isResult(v) {
				why = "may be returned before it is sorted"
			}
		case *ast.BranchStmt:
			target := c.branchTarget(n)
			if n.Tok == token.GOTO || n.Tok == token.FALLTHROUGH || target == nil || target.Pos() < s.Pos() || target.End() > s.End() {
				why = "may be jumped past the sort by a " + n.Tok.String()
			}
		}
		return why == ""
	})
	return why
}

// appendsOnly tells whether s is v = append(v, ...) of values that do not name v.
func (c *inspector) appendsOnly(s *ast.AssignStmt, v *types.Var) bool {
	if len(s.Lhs) != 1 || len(s.Rhs) != 1 || s.Tok != token.ASSIGN || !c.isVar(s.Lhs[0], v) {
		return false
	}
	call, ok := ast.Unparen(s.Rhs[0]).(*ast.CallExpr)
	if !ok || len(call.Args) == 0 || !c.isVar(call.Args[0], v) {
		return false
	}
	fn, ok := ast.Unparen(call.Fun).(*ast.Ident)
	if !ok {
		return false
	}
	if b, ok := c.pass.TypesInfo.Uses[fn].(*types.Builtin); !ok || b.Name() != "append" {
		return false
	}
	named := false
	for _, arg := range call.Args[1:] {
		ast.Inspect(arg, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && c.pass.TypesInfo.Uses[id] == v {
				named = true
			}
			return !named
		})
	}
	return !named
}

func (c *inspector) isVar(e ast.Expr, v *types.Var) bool {
	id, ok := ast.Unparen(e).(*ast.Ident)
	return ok && c.pass.TypesInfo.ObjectOf(id) == v
}

// sorts tells whether s is a call that sorts list.
func (c *inspector) sorts(s ast.Stmt, list ast.Expr) bool {
	stmt, ok := s.(*ast.ExprStmt)
	if !ok {
		return false
	}
	call, ok := ast.Unparen(stmt.X).(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return false
	}
	fn := calleeOf(c.pass.TypesInfo, call)
	if fn == nil {
		return false
	}
	switch fn.Origin().FullName() {
	case "slices.Sort", "sort.Strings", "sort.Ints":
		return c.same(call.Args[0], list) && totalOrder(elemOf(c.pass.TypesInfo.TypeOf(list)))
	case "slices.SortFunc", "slices.SortStableFunc", "sort.Slice", "sort.SliceStable":
		return c.same(call.Args[0], list)
	case "sort.Sort", "sort.Stable":
		return c.same(c.unwrap(call.Args[0]), list)
	}
	return false
}

// unwrap takes conversions and sort.Reverse off a sort.Interface.
func (c *inspector) unwrap(e ast.Expr) ast.Expr {
	for {
		e = ast.Unparen(e)
		call, ok := e.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return e
		}
		fn := calleeOf(c.pass.TypesInfo, call)
		if !c.pass.TypesInfo.Types[call.Fun].IsType() && (fn == nil || fn.FullName() != "sort.Reverse") {
			return e
		}
		e = call.Args[0]
	}
}

// mentionedInClosure tells whether a function literal names v, other than as the
// comparison that sorts it.
func (c *inspector) mentionedInClosure(v *types.Var) bool {
	for _, use := range c.uses(v) {
		for at := c.parents[use]; at != nil; at = c.parents[at] {
			lit, ok := at.(*ast.FuncLit)
			if !ok || v.Pos() >= lit.Pos() && v.Pos() < lit.End() {
				continue
			}
			call, ok := c.parents[lit].(*ast.CallExpr)
			if !ok {
				return true
			}
			stmt, ok := c.parents[call].(*ast.ExprStmt)
			if !ok || !c.sorts(stmt, call.Args[0]) || !c.isVar(call.Args[0], v) {
				return true
			}
		}
	}
	return false
}

package purity

import (
	"go/ast"
	"go/token"
	"go/types"
)

// inside tells whether obj is declared within the loop: each iteration has its own.
func (l *loop) inside(obj types.Object) bool {
	return l.node.Pos() <= obj.Pos() && obj.Pos() < l.node.End()
}

// local tells whether an assignment to e stays inside one iteration.
func (l *loop) local(e ast.Expr) bool {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		if e.Name == "_" {
			return true
		}
		obj := l.pass.TypesInfo.ObjectOf(e)
		return obj != nil && l.inside(obj)
	case *ast.SelectorExpr:
		selection := l.pass.TypesInfo.Selections[e]
		switch {
		case selection == nil:
			return false
		case selection.Indirect(): // through e.X itself, not through a pointer embedded in what it points to
			return len(selection.Index()) == 1 && l.freshLocal(e.X)
		}
		return l.local(e.X)
	case *ast.IndexExpr:
		if _, array := l.pass.TypesInfo.TypeOf(e.X).Underlying().(*types.Array); array {
			return l.local(e.X)
		}
		return l.freshLocal(e.X)
	case *ast.StarExpr:
		return l.freshLocal(e.X)
	}
	return false
}

// freshLocal tells whether e is a variable of the iteration that points to what
// the iteration made itself.
func (l *loop) freshLocal(e ast.Expr) bool {
	id, ok := ast.Unparen(e).(*ast.Ident)
	if !ok {
		return false
	}
	v, ok := l.pass.TypesInfo.ObjectOf(id).(*types.Var)
	return ok && l.inside(v) && l.fresh(v)
}

// readTarget reads what an assignment to e evaluates.
func (l *loop) readTarget(e ast.Expr) {
	switch e := ast.Unparen(e).(type) {
	case *ast.SelectorExpr:
		l.readTarget(e.X)
	case *ast.IndexExpr:
		l.readTarget(e.X)
		l.read(e.Index)
	case *ast.StarExpr:
		l.readTarget(e.X)
	}
}

// scope is the outermost function that holds n, or its file.
func (c *inspector) scope(n ast.Node) ast.Node {
	for at := n; at != nil; at = c.parents[at] {
		if fn, ok := at.(*ast.FuncDecl); ok {
			return fn
		}
	}
	return c.file
}

// definitions are all values that v is given: by declaration, assignment or, as
// nil entries, in a way that has no expression of its own.
func (l *loop) definitions(v *types.Var) []ast.Expr {
	var defs []ast.Expr
	found := false
	ast.Inspect(l.scope(l.node), func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i, to := range n.Lhs {
				id, ok := ast.Unparen(to).(*ast.Ident)
				if !ok || l.pass.TypesInfo.ObjectOf(id) != v {
					continue
				}
				found = true
				if len(n.Lhs) == len(n.Rhs) && (n.Tok == token.ASSIGN || n.Tok == token.DEFINE) {
					defs = append(defs, n.Rhs[i])
				} else {
					defs = append(defs, nil)
				}
			}
		case *ast.ValueSpec:
			for i, id := range n.Names {
				if l.pass.TypesInfo.Defs[id] != v {
					continue
				}
				found = true
				switch {
				case len(n.Values) == len(n.Names):
					defs = append(defs, n.Values[i])
				case len(n.Values) > 0:
					defs = append(defs, nil)
				}
			}
		case *ast.RangeStmt:
			for _, to := range []ast.Expr{n.Key, n.Value} {
				if id, ok := to.(*ast.Ident); ok && l.pass.TypesInfo.ObjectOf(id) == v {
					found = true
					defs = append(defs, nil)
				}
			}
		}
		return true
	})
	if !found { // a parameter, a result, the variable of a type switch
		defs = append(defs, nil)
	}
	return defs
}

// assignments are the definitions of v but for the one that declares it.
func (l *loop) assignments(v *types.Var) []ast.Node {
	var nodes []ast.Node
	ast.Inspect(l.scope(l.node), func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, to := range n.Lhs {
				if id, ok := ast.Unparen(to).(*ast.Ident); ok && l.pass.TypesInfo.Uses[id] == v {
					nodes = append(nodes, n)
				}
			}
		case *ast.IncDecStmt:
			if id, ok := ast.Unparen(n.X).(*ast.Ident); ok && l.pass.TypesInfo.Uses[id] == v {
				nodes = append(nodes, n)
			}
		case *ast.RangeStmt:
			for _, to := range []ast.Expr{n.Key, n.Value} {
				if id, ok := to.(*ast.Ident); ok && l.pass.TypesInfo.Uses[id] == v {
					nodes = append(nodes, n)
				}
			}
		}
		return true
	})
	return nodes
}

// onlyDefinition is the value of a variable of the iteration that is given one.
func (l *loop) onlyDefinition(id *ast.Ident) ast.Expr {
	v, ok := l.pass.TypesInfo.Uses[id].(*types.Var)
	if !ok || !l.inside(v) || v == l.key || l.addressTaken(v) || len(l.assignments(v)) > 0 {
		return nil
	}
	defs := l.definitions(v)
	if len(defs) != 1 {
		return nil
	}
	return defs[0]
}

// fresh tells whether v only ever points to what its function has made for it.
func (l *loop) fresh(v *types.Var) bool {
	for _, def := range l.definitions(v) {
		if def == nil || !l.freshValue(def, v) {
			return false
		}
	}
	return !l.addressTaken(v)
}

// freshValue tells whether e yields memory that nothing else points to; self may
// appear as the slice that is appended to.
func (l *loop) freshValue(e ast.Expr, self *types.Var) bool {
	e = ast.Unparen(e)
	if l.pass.TypesInfo.Types[e].IsNil() {
		return true
	}
	switch e := e.(type) {
	case *ast.CompositeLit:
		return true
	case *ast.UnaryExpr:
		_, lit := ast.Unparen(e.X).(*ast.CompositeLit)
		return e.Op == token.AND && lit
	case *ast.CallExpr:
		switch l.builtin(e) {
		case "make", "new":
			return true
		case "append":
			id, ok := ast.Unparen(e.Args[0]).(*ast.Ident)
			return ok && self != nil && l.pass.TypesInfo.ObjectOf(id) == self || l.freshValue(e.Args[0], self)
		case "":
		default:
			return false
		}
		if l.pass.TypesInfo.Types[e.Fun].IsType() { // []T(nil)
			return len(e.Args) == 1 && l.freshValue(e.Args[0], nil)
		}
		if fn := calleeOf(l.pass.TypesInfo, e); fn != nil {
			switch fn.Origin().FullName() {
			case "slices.Clone", "maps.Clone", "bytes.Clone", "slices.Collect", "slices.Sorted", "maps.Collect":
				return true
			}
		}
	}
	return false
}

// unaliased is the local map variable that e names, if no other name for its map
// exists while the loop runs, else nil.
func (l *loop) unaliased(e ast.Expr) *types.Var {
	id, ok := ast.Unparen(e).(*ast.Ident)
	if !ok {
		return nil
	}
	v, ok := l.pass.TypesInfo.ObjectOf(id).(*types.Var)
	if !ok || v.Parent() == l.pass.Pkg.Scope() || v.IsField() || l.isResult(v) || !l.fresh(v) || l.inClosure(v) {
		return nil
	}
	end := l.node.End()
	for at := l.parents[l.node]; at != nil; at = l.parents[at] {
		switch at.(type) {
		case *ast.ForStmt, *ast.RangeStmt:
			end = at.End()
		case *ast.FuncDecl, *ast.FuncLit:
			at = l.file
		}
	}
	for _, use := range l.uses(v) {
		if use.Pos() < end && !l.keepsToItself(use) {
			return nil
		}
	}
	return v
}

// keepsToItself tells whether a mention of a map gives it no second name.
func (l *loop) keepsToItself(id *ast.Ident) bool {
	at, parent := l.up(id)
	switch p := parent.(type) {
	case *ast.IndexExpr:
		return p.X == at
	case *ast.RangeStmt:
		return true
	case *ast.ReturnStmt, *ast.BinaryExpr:
		return true
	case *ast.AssignStmt:
		for _, to := range p.Lhs {
			if to == at {
				return true
			}
		}
	case *ast.CallExpr:
		switch l.builtin(p) {
		case "len", "delete", "clear":
			return true
		}
		if fn := calleeOf(l.pass.TypesInfo, p); fn != nil {
			switch fn.Origin().FullName() {
			case "maps.Keys", "maps.Values", "maps.All":
				return true
			}
		}
	}
	return false
}

// uses are all mentions of v.
func (c *inspector) uses(v *types.Var) []*ast.Ident {
	var ids []*ast.Ident
	ast.Inspect(c.file, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && c.pass.TypesInfo.Uses[id] == v {
			ids = append(ids, id)
		}
		return true
	})
	return ids
}

// addressTaken tells whether something else may come to point to v: &v, v[:] of
// an array, or a method of its address.
func (c *inspector) addressTaken(v *types.Var) bool {
	for _, use := range c.uses(v) {
		var at ast.Node = use
		for at != nil {
			parent := c.parents[at]
			switch p := parent.(type) {
			case *ast.UnaryExpr:
				if p.Op == token.AND {
					return true
				}
			case *ast.SliceExpr:
				if _, array := c.pass.TypesInfo.TypeOf(p.X).Underlying().(*types.Array); array && p.X == at {
					return true
				}
			case *ast.SelectorExpr:
				if s := c.pass.TypesInfo.Selections[p]; s != nil && s.Kind() == types.MethodVal && !isPointer(s.Recv()) &&
					isPointer(s.Obj().(*types.Func).Signature().Recv().Type()) {
					return true
				}
				if s := c.pass.TypesInfo.Selections[p]; s != nil && s.Kind() == types.FieldVal && !s.Indirect() {
					at = p
					continue
				}
			case *ast.IndexExpr:
				if _, array := c.pass.TypesInfo.TypeOf(p.X).Underlying().(*types.Array); array && p.X == at {
					at = p
					continue
				}
			case *ast.ParenExpr:
				at = p
				continue
			}
			break
		}
	}
	return false
}

func isPointer(t types.Type) bool {
	_, ok := t.Underlying().(*types.Pointer)
	return ok
}

// inClosure tells whether a function literal names a variable declared outside it.
func (c *inspector) inClosure(v *types.Var) bool {
	for _, use := range c.uses(v) {
		for at := c.parents[use]; at != nil; at = c.parents[at] {
			if lit, ok := at.(*ast.FuncLit); ok && (v.Pos() < lit.Pos() || v.Pos() >= lit.End()) {
				return true
			}
		}
	}
	return false
}

// isResult tells whether v is a named result of some function of the file.
func (c *inspector) isResult(v *types.Var) bool {
	found := false
	ast.Inspect(c.file, func(n ast.Node) bool {
		if t, ok := n.(*ast.FuncType); ok && t.Results != nil {
			found = found || t.Results.Pos() <= v.Pos() && v.Pos() < t.Results.End()
		}
		return !found
	})
	return found
}

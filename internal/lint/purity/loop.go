package purity

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
)

// loop is a range over a map whose body is to be proven indifferent to order.
//
// The body is walked once. What it does inside one iteration is passed over; each
// effect that outlives an iteration becomes a write, each expression whose value
// matters a read, each way out of the loop an exit. Then the writes are sorted
// into cells (cells.go) and every read is checked against them (values.go).
type loop struct {
	*inspector
	node    ast.Node       // what is declared inside belongs to one iteration
	body    *ast.BlockStmt // nil for a callback
	over    ast.Expr       // the map
	key     *types.Var     // the range key, nil if it has no name
	writes  []write
	reads   []ast.Expr
	bases   []ast.Expr // of which a part is read or written
	exits   []ast.Stmt
	cells   []*cell
	problem *problem // the first found
}

type problem struct {
	pos token.Pos
	why string
}

// rangeStmt reports a range in map order whose body is not proven.
func (c *inspector) rangeStmt(r *ast.RangeStmt) {
	over, hasKey := c.mapIterator(r.X)
	if over == nil {
		return
	}
	l := &loop{inspector: c, node: r, body: r.Body, over: over}
	for _, v := range []ast.Expr{r.Key, r.Value} {
		id, ok := v.(*ast.Ident)
		if v == nil || ok && id.Name == "_" {
			continue
		}
		if r.Tok == token.ASSIGN {
			l.fail(v.Pos(), "%s keeps what the last iteration left", types.ExprString(v))
		} else if v == r.Key && hasKey {
			l.key, _ = c.pass.TypesInfo.Defs[id].(*types.Var)
		}
	}
	l.block(r.Body)
	l.formCells()
	l.checkReads()
	l.checkExits()
	l.checkLists(r)
	if l.problem != nil {
		c.order(r.For, "map order can reach the output: %s (line %d): "+remedy,
			l.problem.why, c.pass.Fset.Position(l.problem.pos).Line, types.ExprString(over))
	}
}

func (l *loop) fail(pos token.Pos, format string, args ...any) {
	if l.problem == nil {
		l.problem = &problem{pos, fmt.Sprintf(format, args...)}
	}
}

func (l *loop) read(e ast.Expr) {
	if e != nil {
		l.reads = append(l.reads, e)
	}
}

func (l *loop) block(b *ast.BlockStmt) {
	if b != nil {
		l.list(b.List)
	}
}

func (l *loop) list(stmts []ast.Stmt) {
	for _, s := range stmts {
		l.stmt(s)
	}
}

func (l *loop) stmt(s ast.Stmt) {
	switch s := s.(type) {
	case nil, *ast.EmptyStmt:
	case *ast.BlockStmt:
		l.block(s)
	case *ast.LabeledStmt:
		l.stmt(s.Stmt)
	case *ast.DeclStmt:
		l.decl(s)
	case *ast.ExprStmt:
		l.exprStmt(s)
	case *ast.IncDecStmt:
		l.update(s.X, opSum, nil, s.TokPos)
	case *ast.AssignStmt:
		l.assign(s)
	case *ast.IfStmt:
		l.ifStmt(s)
	case *ast.ForStmt:
		l.stmt(s.Init)
		l.read(s.Cond)
		l.stmt(s.Post)
		l.block(s.Body)
	case *ast.RangeStmt:
		l.innerRange(s)
	case *ast.SwitchStmt:
		l.stmt(s.Init)
		l.read(s.Tag)
		l.block(s.Body)
	case *ast.TypeSwitchStmt:
		l.stmt(s.Init)
		l.stmt(s.Assign)
		l.block(s.Body)
	case *ast.CaseClause:
		for _, e := range s.List {
			if tv := l.pass.TypesInfo.Types[e]; !tv.IsType() {
				l.read(e)
			}
		}
		l.list(s.Body)
	case *ast.BranchStmt:
		l.branch(s)
	case *ast.ReturnStmt:
		l.exits = append(l.exits, s)
		for _, e := range s.Results {
			l.read(e)
		}
	default: // go, defer, select, send
		l.fail(s.Pos(), "what it starts, defers or sends follows the order of the iterations")
	}
}

func (l *loop) decl(s *ast.DeclStmt) {
	decl, ok := s.Decl.(*ast.GenDecl)
	if !ok || decl.Tok != token.VAR {
		return
	}
	for _, spec := range decl.Specs {
		for _, v := range spec.(*ast.ValueSpec).Values {
			l.read(v)
		}
	}
}

func (l *loop) exprStmt(s *ast.ExprStmt) {
	call, ok := ast.Unparen(s.X).(*ast.CallExpr)
	if ok {
		switch l.builtin(call) {
		case "delete":
			l.write(&ast.IndexExpr{X: call.Args[0], Lbrack: call.Lparen, Index: call.Args[1], Rbrack: call.Rparen}, opDelete, nil, s.Pos())
			return
		case "panic":
			l.exits = append(l.exits, s)
			l.read(call.Args[0])
			return
		}
	}
	l.read(s.X)
}

// builtin is the name of the builtin function that is called, or "".
func (l *loop) builtin(call *ast.CallExpr) string {
	if id, ok := ast.Unparen(call.Fun).(*ast.Ident); ok {
		if b, ok := l.pass.TypesInfo.Uses[id].(*types.Builtin); ok {
			return b.Name()
		}
	}
	return ""
}

func (l *loop) assign(s *ast.AssignStmt) {
	switch {
	case s.Tok == token.DEFINE:
		for _, e := range s.Rhs {
			l.read(e)
		}
	case s.Tok != token.ASSIGN:
		op, ok := assignOps[s.Tok]
		if !ok {
			op = opOther
		}
		l.update(s.Lhs[0], op, s.Rhs[0], s.TokPos)
	case len(s.Lhs) == len(s.Rhs):
		for i := range s.Lhs {
			l.assignOne(s.Lhs[i], s.Rhs[i])
		}
	default:
		l.read(s.Rhs[0])
		for _, to := range s.Lhs {
			if !l.local(to) {
				l.fail(to.Pos(), "%s keeps what the last iteration left", types.ExprString(to))
			}
			l.readTarget(to)
		}
	}
}

// assignOne takes to = value apart: x = append(x, ...), x = max(x, ...) and
// x = x + ... are updates of x.
func (l *loop) assignOne(to, value ast.Expr) {
	if l.local(to) {
		l.readTarget(to)
		l.read(value)
		return
	}
	switch v := ast.Unparen(value).(type) {
	case *ast.CallExpr:
		name := l.builtin(v)
		op, ok := updateCalls[name]
		if !ok {
			break
		}
		if name == "append" && (len(v.Args) == 0 || !l.same(v.Args[0], to)) {
			break
		}
		self := -1
		for i, arg := range v.Args {
			if l.same(arg, to) {
				self = i
				break
			}
		}
		if self < 0 {
			break
		}
		for i, arg := range v.Args {
			if i != self {
				l.read(arg)
			}
		}
		l.write(to, op, nil, v.Pos())
		return
	case *ast.BinaryExpr:
		op, ok := binaryOps[v.Op]
		switch {
		case ok && l.same(v.X, to):
			l.update(to, op, v.Y, v.OpPos)
			return
		case ok && v.Op != token.SUB && l.same(v.Y, to):
			l.update(to, op, v.X, v.OpPos)
			return
		}
	}
	l.read(value)
	l.write(to, opSet, value, to.Pos())
}

// update is to op= value; a nil value stands for a constant.
func (l *loop) update(to ast.Expr, op op, value ast.Expr, pos token.Pos) {
	l.read(value)
	if l.local(to) {
		l.readTarget(to)
		l.read(to)
		return
	}
	l.write(to, op, nil, pos)
}

// ifStmt knows if x > best { best = x }; any other if is what its parts are.
func (l *loop) ifStmt(s *ast.IfStmt) {
	l.stmt(s.Init)
	if !l.extreme(s) {
		l.read(s.Cond)
		l.block(s.Body)
		l.stmt(s.Else)
	}
}

func (l *loop) extreme(s *ast.IfStmt) bool {
	if s.Else != nil || len(s.Body.List) != 1 {
		return false
	}
	set, ok := s.Body.List[0].(*ast.AssignStmt)
	if !ok || set.Tok != token.ASSIGN || len(set.Lhs) != 1 || len(set.Rhs) != 1 || l.local(set.Lhs[0]) {
		return false
	}
	to, value := set.Lhs[0], set.Rhs[0]
	var guard ast.Expr
	cond := ast.Unparen(s.Cond)
	if and, ok := cond.(*ast.BinaryExpr); ok && and.Op == token.LAND {
		guard, cond = and.X, ast.Unparen(and.Y)
	}
	cmp, ok := cond.(*ast.BinaryExpr)
	if !ok {
		return false
	}
	var greater bool // value is greater than to
	switch cmp.Op {
	case token.GTR, token.GEQ:
		greater = true
	case token.LSS, token.LEQ:
	default:
		return false
	}
	switch {
	case l.same(cmp.X, value) && l.same(cmp.Y, to):
	case l.same(cmp.X, to) && l.same(cmp.Y, value):
		greater = !greater
	default:
		return false
	}
	if !totalOrder(l.pass.TypesInfo.TypeOf(to)) {
		return false
	}
	l.read(guard)
	l.read(value)
	if greater {
		l.write(to, opMax, nil, set.Pos())
	} else {
		l.write(to, opMin, nil, set.Pos())
	}
	return true
}

func (l *loop) innerRange(s *ast.RangeStmt) {
	if over, _ := l.mapIterator(s.X); over != nil {
		l.read(over) // its order is the inner loop's own to prove
	} else {
		l.read(s.X)
	}
	if s.Tok == token.ASSIGN {
		for _, v := range []ast.Expr{s.Key, s.Value} {
			if v == nil {
				continue
			}
			if !l.local(v) {
				l.fail(v.Pos(), "%s keeps what the last iteration left", types.ExprString(v))
			}
			l.readTarget(v)
		}
	}
	if _, ok := l.pass.TypesInfo.TypeOf(s.X).Underlying().(*types.Chan); ok {
		l.fail(s.X.Pos(), "it receives from a channel")
	}
	l.function(s.X)
	l.block(s.Body)
}

// branch notes the ways out of the loop.
func (l *loop) branch(s *ast.BranchStmt) {
	switch s.Tok {
	case token.FALLTHROUGH:
	case token.GOTO:
		l.fail(s.Pos(), "goto is not followed")
	default:
		target := l.branchTarget(s)
		if target == nil {
			l.fail(s.Pos(), "%s leaves for a place that was not found", s.Tok)
			return
		}
		inside := target.Pos() > l.node.Pos() && target.End() <= l.node.End()
		if !inside && (target != l.node || s.Tok == token.BREAK) {
			l.exits = append(l.exits, s)
		}
	}
}

// branchTarget is the statement that a break or continue leaves or goes on with.
func (c *inspector) branchTarget(s *ast.BranchStmt) ast.Node {
	for at := c.parents[s]; at != nil; at = c.parents[at] {
		switch at.(type) {
		case *ast.ForStmt, *ast.RangeStmt:
		case *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt:
			if s.Tok == token.CONTINUE {
				continue
			}
		default:
			continue
		}
		if s.Label == nil {
			return at
		}
		if label, ok := c.parents[at].(*ast.LabeledStmt); ok && label.Label.Name == s.Label.Name {
			return at
		}
	}
	return nil
}

// checkExits: whether the loop is left, and with what, may not depend on which
// iteration comes first; neither may what was done until then.
func (l *loop) checkExits() {
	if len(l.exits) == 0 || l.problem != nil {
		return
	}
	first := l.exits[0]
	for _, s := range l.exits {
		for _, e := range exitValues(s) {
			if !l.invariant(e) {
				l.fail(s.Pos(), "which iteration leaves the loop first decides that the result is %s", types.ExprString(e))
			}
		}
		if l.exitText(s) != l.exitText(first) {
			l.fail(s.Pos(), "it leaves the loop in several ways, and which comes first is left to the map")
		}
	}
	if _, isBreak := first.(*ast.BranchStmt); !isBreak {
		for _, c := range l.cells {
			if !l.diesOnReturn(c) {
				l.fail(c.writes[0].pos, "%s is written by as many iterations as ran before the loop was left", c.name())
			}
		}
		return
	}
	for _, w := range l.writes {
		if w.op != opSet || len(l.exits) > 1 || l.parents[w.stmt(l)] != l.parents[first] {
			l.fail(w.pos, "%s is written by as many iterations as ran before the loop was left", types.ExprString(w.to))
		}
	}
}

func exitValues(s ast.Stmt) []ast.Expr {
	switch s := s.(type) {
	case *ast.ReturnStmt:
		return s.Results
	case *ast.ExprStmt: // panic
		return s.X.(*ast.CallExpr).Args
	}
	return nil
}

func (l *loop) exitText(s ast.Stmt) string {
	text := fmt.Sprintf("%T", s)
	if b, ok := s.(*ast.BranchStmt); ok {
		text += b.Tok.String()
		if b.Label != nil {
			text += b.Label.Name
		}
	}
	for _, e := range exitValues(s) {
		text += ";" + l.text(e)
	}
	return text
}

// stmt is the statement that makes the write.
func (w write) stmt(l *loop) ast.Node {
	at := l.parents[w.to]
	for at != nil {
		if s, ok := at.(ast.Stmt); ok {
			return s
		}
		at = l.parents[at]
	}
	return nil
}

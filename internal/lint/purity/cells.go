package purity

import (
	"fmt"
	"go/ast"
	"go/printer"
	"go/token"
	"go/types"
	"strings"
)

// op is how a write changes what it writes to. Writes of one op to one cell may
// be made in any order; opSet only if all set the same, and opOther never.
type op int

const (
	opSet op = iota
	opSum
	opProduct
	opOr
	opAnd
	opXor
	opAll // &&=
	opAny // ||=
	opMax
	opMin
	opAppend
	opDelete
	opOther
)

var assignOps = map[token.Token]op{
	token.ADD_ASSIGN: opSum, token.SUB_ASSIGN: opSum, token.MUL_ASSIGN: opProduct,
	token.OR_ASSIGN: opOr, token.AND_ASSIGN: opAnd, token.AND_NOT_ASSIGN: opAnd, token.XOR_ASSIGN: opXor,
}

var binaryOps = map[token.Token]op{
	token.ADD: opSum, token.SUB: opSum, token.MUL: opProduct,
	token.OR: opOr, token.AND: opAnd, token.XOR: opXor, token.LAND: opAll, token.LOR: opAny,
}

// updateCalls are the builtin functions in x = f(x, ...).
var updateCalls = map[string]op{"append": opAppend, "max": opMax, "min": opMin}

// write is an effect that outlives an iteration.
type write struct {
	to    ast.Expr
	op    op
	value ast.Expr // of opSet
	pos   token.Pos
}

// cell is a place that the body writes, as coarse as aliases make it: a local
// variable, a field of whatever object, the elements of one local map that has no
// other name, or the elements of all maps of one type.
type cell struct {
	obj    *types.Var // variable, field or map variable; nil if typ stands for all
	typ    types.Type // of a map whose elements are written, else nil
	writes []write
	keyed  string // if each iteration writes under its own key only: that key's text
}

func (c *cell) name() string { return types.ExprString(c.writes[0].to) }

// write adds an effect to the cell it belongs to.
func (l *loop) write(to ast.Expr, op op, value ast.Expr, pos token.Pos) {
	w := write{ast.Unparen(to), op, value, pos}
	c := &cell{}
	switch to := w.to.(type) {
	case *ast.Ident:
		v, ok := l.pass.TypesInfo.ObjectOf(to).(*types.Var)
		switch {
		case !ok:
			l.fail(pos, "%s is not followed", to.Name)
			return
		case v.Parent() == l.pass.Pkg.Scope():
			l.fail(pos, "%s is seen from everywhere", to.Name)
			return
		case l.addressTaken(v):
			l.fail(pos, "%s has its address taken", to.Name)
			return
		}
		c.obj = v
	case *ast.SelectorExpr:
		selection := l.pass.TypesInfo.Selections[to]
		if selection == nil || selection.Kind() != types.FieldVal {
			l.fail(pos, "%s is seen from everywhere", types.ExprString(to))
			return
		}
		c.obj = selection.Obj().(*types.Var).Origin()
		l.read(to.X)
	case *ast.IndexExpr:
		t := l.pass.TypesInfo.TypeOf(to.X)
		if _, ok := t.Underlying().(*types.Map); !ok {
			l.fail(pos, "%s is an element of a slice, and the place may depend on order", types.ExprString(to))
			return
		}
		c.typ = t.Underlying()
		l.read(to.Index)
		switch ast.Unparen(to.X).(type) {
		case *ast.Ident, *ast.SelectorExpr:
		default:
			l.fail(pos, "%s is not followed", types.ExprString(to.X))
			return
		}
		l.bases = append(l.bases, to.X)
		c.obj = l.unaliased(to.X)
	default:
		l.fail(pos, "%s is not followed", types.ExprString(to))
		return
	}
	l.writes = append(l.writes, w)
	for _, old := range l.cells {
		if old.obj == c.obj && (old.typ == nil) == (c.typ == nil) && (c.typ == nil || types.Identical(old.typ, c.typ)) {
			old.writes = append(old.writes, w)
			return
		}
	}
	c.writes = []write{w}
	l.cells = append(l.cells, c)
}

// formCells decides for each cell whether its writes may come in any order.
func (l *loop) formCells() {
	for _, c := range l.cells {
		l.formCell(c)
	}
}

func (l *loop) formCell(c *cell) {
	if c.typ != nil {
		c.keyed = l.keyOf(c)
		if l.mayBeRanged(c) {
			l.formRanged(c)
			return
		}
		if c.keyed != "" {
			return
		}
	}
	first := c.writes[0]
	for _, w := range c.writes {
		name := types.ExprString(w.to)
		if w.op != first.op {
			l.fail(w.pos, "%s is written in several ways that do not commute", name)
			return
		}
		t := l.pass.TypesInfo.TypeOf(w.to)
		switch w.op {
		case opSet:
			if !l.invariant(w.value) {
				l.fail(w.pos, "%s keeps what the last iteration left", name)
			} else if l.text(w.value) != l.text(first.value) {
				l.fail(w.pos, "%s is set to different values, and the last one stays", name)
			}
		case opSum, opProduct, opOr, opAnd, opXor:
			if b, ok := t.Underlying().(*types.Basic); !ok || b.Info()&types.IsInteger == 0 {
				l.fail(w.pos, "%s is a %s, for which the result depends on order", name, t)
			}
		case opMax, opMin:
			if b, ok := t.Underlying().(*types.Basic); !ok || b.Info()&types.IsOrdered == 0 {
				l.fail(w.pos, "%s is a %s, for which the result depends on order", name, t)
			}
		case opAppend:
			if c.typ != nil {
				l.fail(w.pos, "%s grows in the order of the iterations", name)
			}
		case opOther:
			l.fail(w.pos, "%s is written in a way that does not commute", name)
		}
	}
}

// formRanged is for elements of what may be the map that is ranged over: a new one
// may or may not be visited, and so may one that is deleted. Only the element at
// hand may be touched, and it may not be brought back.
func (l *loop) formRanged(c *cell) {
	for _, w := range c.writes {
		index := w.to.(*ast.IndexExpr).Index
		switch {
		case l.key == nil || !l.isKey(index):
			l.fail(w.pos, "%s may be an element of the map that is ranged over, and whether it is still visited is left to the map", types.ExprString(w.to))
		case w.op != c.writes[0].op && (w.op == opDelete || c.writes[0].op == opDelete):
			l.fail(w.pos, "%s may be deleted and set again, and whether it is visited again is left to the map", types.ExprString(w.to))
		}
	}
}

// mayBeRanged tells whether c's map may be the one that the loop goes through.
func (l *loop) mayBeRanged(c *cell) bool {
	if l.over == nil {
		return false
	}
	id, isIdent := ast.Unparen(l.over).(*ast.Ident)
	if c.obj != nil {
		return isIdent && l.pass.TypesInfo.ObjectOf(id) == c.obj
	}
	if l.unaliased(l.over) != nil {
		return false
	}
	t := l.pass.TypesInfo.TypeOf(l.over).Underlying()
	_, concrete := t.(*types.Map)
	return !concrete || types.Identical(t, c.typ)
}

// keyOf is the text of the index under which all writes to c stand, if each
// iteration's is its own.
func (l *loop) keyOf(c *cell) string {
	text := ""
	for _, w := range c.writes {
		index := w.to.(*ast.IndexExpr).Index
		if !l.injective(index) || text != "" && text != l.indexText(index) {
			return ""
		}
		text = l.indexText(index)
	}
	return text
}

// indexText is equal for two indexes only if they are made of the same variables
// in the same way.
func (l *loop) indexText(e ast.Expr) string {
	text := l.text(e)
	ast.Inspect(e, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			if obj := l.pass.TypesInfo.Uses[id]; obj != nil && l.inside(obj) {
				text += fmt.Sprintf(";%d", obj.Pos())
			}
		}
		return true
	})
	return text
}

// injective tells whether e differs between any two iterations: it is the range
// key, a conversion of it that loses nothing, or a composite that has it as a part.
func (l *loop) injective(e ast.Expr) bool {
	e = ast.Unparen(e)
	switch e := e.(type) {
	case *ast.Ident:
		if l.isKey(e) {
			return true
		}
		def := l.onlyDefinition(e)
		return def != nil && l.injective(def)
	case *ast.CallExpr:
		if len(e.Args) != 1 || !l.pass.TypesInfo.Types[e.Fun].IsType() {
			return false
		}
		return l.lossless(l.pass.TypesInfo.TypeOf(e.Args[0]), l.pass.TypesInfo.TypeOf(e)) && l.injective(e.Args[0])
	case *ast.CompositeLit:
		switch l.pass.TypesInfo.TypeOf(e).Underlying().(type) {
		case *types.Struct, *types.Array:
		default:
			return false
		}
		for _, part := range e.Elts {
			if kv, ok := part.(*ast.KeyValueExpr); ok {
				part = kv.Value
			}
			if l.injective(part) {
				return true
			}
		}
	}
	return false
}

// isKey tells whether e is the range key, still holding what the range gave it.
func (l *loop) isKey(e ast.Expr) bool {
	id, ok := ast.Unparen(e).(*ast.Ident)
	return ok && l.key != nil && l.pass.TypesInfo.Uses[id] == l.key && len(l.assignments(l.key)) == 0 && !l.addressTaken(l.key)
}

// lossless tells whether a conversion keeps different values different.
func (l *loop) lossless(from, to types.Type) bool {
	if types.Identical(from.Underlying(), to.Underlying()) {
		_, iface := to.Underlying().(*types.Interface)
		return !iface
	}
	f, ok1 := from.Underlying().(*types.Basic)
	t, ok2 := to.Underlying().(*types.Basic)
	return ok1 && ok2 && f.Info()&types.IsInteger != 0 && t.Info()&types.IsInteger != 0 &&
		l.pass.TypesSizes.Sizeof(t) >= l.pass.TypesSizes.Sizeof(f)
}

// invariant tells whether e is the same in every iteration: it names nothing that
// belongs to one. Calls and writes are checked with the reads.
func (l *loop) invariant(e ast.Expr) bool {
	ok := true
	ast.Inspect(e, func(n ast.Node) bool {
		if id, isIdent := n.(*ast.Ident); isIdent {
			if obj := l.pass.TypesInfo.Uses[id]; obj != nil && l.inside(obj) {
				ok = false
			}
		}
		return ok
	})
	return ok
}

// diesOnReturn tells whether nobody sees the cell once the function has returned
// a value that does not mention it.
func (l *loop) diesOnReturn(c *cell) bool {
	if c.obj == nil || c.obj.IsField() || l.isResult(c.obj) || l.inClosure(c.obj) {
		return false
	}
	if c.typ != nil {
		return true // unaliased
	}
	return c.writes[0].op != opAppend || l.fresh(c.obj)
}

// text is e as it is written, in full.
func (c *inspector) text(e ast.Expr) string {
	var b strings.Builder
	if err := printer.Fprint(&b, c.pass.Fset, e); err != nil {
		return ""
	}
	return b.String()
}

// same tells whether a and b are one variable or one path of fields and indexes.
func (c *inspector) same(a, b ast.Expr) bool {
	a, b = ast.Unparen(a), ast.Unparen(b)
	text := c.text(a)
	return text != "" && text == c.text(b) && types.Identical(c.pass.TypesInfo.TypeOf(a), c.pass.TypesInfo.TypeOf(b)) && c.sameRoot(a, b)
}

func (c *inspector) sameRoot(a, b ast.Expr) bool {
	x, y := rootOf(a), rootOf(b)
	return x == nil || y == nil || c.pass.TypesInfo.ObjectOf(x) == c.pass.TypesInfo.ObjectOf(y)
}

// rootOf is the variable that a path of fields, indexes and dereferences starts at.
func rootOf(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.ParenExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		default:
			return nil
		}
	}
}

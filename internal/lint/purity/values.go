package purity

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// pureCalls are the functions that a body may call: they depend on what they are
// given, look no deeper into it than its static type shows, and change nothing.
// A nil list stands for all functions of the package but those that refusedPrefix
// names.
var pureCalls = map[string][]string{
	"bytes":         nil,
	"cmp":           nil,
	"crypto/sha256": {"Sum256", "Sum224"},
	"encoding/hex":  {"EncodeToString", "DecodeString"},
	"errors":        {"Is", "Join", "New", "Unwrap"},
	"fmt":           {"Errorf", "Sprint", "Sprintf", "Sprintln"},
	"maps":          {"All", "Clone", "Collect", "Equal", "Keys", "Values"},
	"math":          nil,
	"math/bits":     nil,
	"net/netip":     nil,
	"path":          nil,
	"slices":        {"All", "Backward", "BinarySearch", "Clone", "Collect", "Compare", "Concat", "Contains", "Equal", "Index", "IsSorted", "Max", "Min", "Repeat", "Sorted", "Values"},
	"strconv":       nil,
	"strings":       nil,
	"unicode":       nil,
	"unicode/utf16": nil,
	"unicode/utf8":  nil,
}

// refusedPrefix begins the names of functions that write into an argument.
var refusedPrefix = []string{"Append", "Encode", "Unmarshal"}

// pureBuiltins may stand in an expression; append has its own rule.
var pureBuiltins = []string{"cap", "complex", "imag", "len", "make", "max", "min", "new", "real"}

func pureFunction(fn *types.Func) bool {
	fn = fn.Origin()
	if fn.Pkg() == nil {
		return false
	}
	pkg := fn.Pkg().Path()
	names, known := pureCalls[pkg]
	if recv := fn.Signature().Recv(); recv != nil {
		if pkg == "net/netip" {
			return !isPointer(recv.Type()) && !refused(fn.Name())
		}
		return getter(fn)
	}
	return known && (names == nil && !refused(fn.Name()) || slices.Contains(names, fn.Name()))
}

func refused(name string) bool {
	return slices.ContainsFunc(refusedPrefix, func(p string) bool { return strings.HasPrefix(name, p) })
}

// getter tells whether fn is the getter of a field of a generated message.
func getter(fn *types.Func) bool {
	sig := fn.Signature()
	if !strings.HasPrefix(fn.Name(), "Get") || sig.Params().Len() > 0 || sig.Results().Len() != 1 {
		return false
	}
	reflects, _, _ := types.LookupFieldOrMethod(sig.Recv().Type(), true, fn.Pkg(), "ProtoReflect")
	_, isMethod := reflects.(*types.Func)
	return isMethod
}

// checkReads goes through every expression whose value matters.
func (l *loop) checkReads() {
	for _, e := range l.reads {
		l.value(e)
	}
	for _, e := range l.bases {
		l.base(e)
	}
}

// value checks that e depends on the iteration alone and changes nothing.
func (l *loop) value(e ast.Expr) {
	if e == nil || l.problem != nil {
		return
	}
	if tv := l.pass.TypesInfo.Types[e]; tv.IsType() || tv.Value != nil || tv.IsNil() {
		return
	}
	switch e := e.(type) {
	case *ast.BasicLit:
	case *ast.ParenExpr:
		l.value(e.X)
	case *ast.Ident:
		l.object(e, e)
	case *ast.SelectorExpr:
		l.selector(e)
	case *ast.CallExpr:
		l.call(e)
	case *ast.CompositeLit:
		_, isStruct := l.pass.TypesInfo.TypeOf(e).Underlying().(*types.Struct)
		for _, part := range e.Elts {
			if kv, ok := part.(*ast.KeyValueExpr); ok {
				if !isStruct {
					l.value(kv.Key)
				}
				part = kv.Value
			}
			l.value(part)
		}
	case *ast.UnaryExpr:
		if e.Op == token.ARROW {
			l.fail(e.Pos(), "it receives from a channel")
			return
		}
		l.value(e.X)
	case *ast.BinaryExpr:
		l.value(e.X)
		l.value(e.Y)
	case *ast.StarExpr:
		l.value(e.X)
		l.whole(e)
	case *ast.IndexExpr:
		l.index(e)
	case *ast.SliceExpr:
		l.value(e.X)
		l.value(e.Low)
		l.value(e.High)
		l.value(e.Max)
	case *ast.TypeAssertExpr:
		l.value(e.X)
		l.whole(e)
	default: // function literals, instantiated function values
		l.fail(e.Pos(), "%s is not followed", types.ExprString(e))
	}
}

// object checks the mention id, which e is or ends in.
func (l *loop) object(id *ast.Ident, e ast.Expr) {
	switch obj := l.pass.TypesInfo.ObjectOf(id).(type) {
	case *types.Var:
		for _, c := range l.cells {
			if c.obj == obj.Origin() {
				l.fail(id.Pos(), "%s is read here while it is being written", c.name())
				return
			}
		}
		l.whole(e)
	case *types.Func:
		if !pureFunction(obj) {
			l.fail(id.Pos(), "%s is a function that is not shown to have no effects", obj.Name())
		}
	}
}

// whole checks e as a value of its type: it may not be a map that is written, nor
// a struct with a field that is.
func (l *loop) whole(e ast.Expr) {
	t := l.pass.TypesInfo.TypeOf(e)
	if t == nil {
		return
	}
	for _, c := range l.cells {
		switch {
		case c.typ == nil && c.obj.IsField() && hasField(t, c.obj):
			l.fail(e.Pos(), "%s holds %s, which is being written", types.ExprString(e), c.name())
		case c.typ != nil && c.obj == nil && mayBeMap(t, c.typ) && l.unaliased(e) == nil:
			l.fail(e.Pos(), "%s may be the map of %s, which is being written", types.ExprString(e), c.name())
		case c.typ == nil && c.writes[0].op == opAppend && (c.obj.IsField() || !l.fresh(c.obj)) && sharesElements(t, c.obj.Type()):
			l.fail(e.Pos(), "%s may share memory with %s, which is being written", types.ExprString(e), c.name())
		}
	}
}

func mayBeMap(t, written types.Type) bool {
	u := t.Underlying()
	if _, param := t.(*types.TypeParam); param {
		return true
	}
	return types.Identical(u, written)
}

// hasField tells whether a value of type t holds the field, not behind a pointer.
func hasField(t types.Type, field *types.Var) bool {
	switch u := t.Underlying().(type) {
	case *types.Array:
		return hasField(u.Elem(), field)
	case *types.Struct:
		for i := range u.NumFields() {
			if u.Field(i).Origin() == field || hasField(u.Field(i).Type(), field) {
				return true
			}
		}
	}
	return false
}

// sharesElements tells whether a slice of type list may lie in what t holds.
func sharesElements(t, list types.Type) bool {
	elem := elemOf(list)
	switch u := t.Underlying().(type) {
	case *types.Slice:
		return types.Identical(u.Elem(), elem)
	case *types.Array:
		return types.Identical(u.Elem(), elem)
	case *types.Pointer:
		a, ok := u.Elem().Underlying().(*types.Array)
		return ok && types.Identical(a.Elem(), elem)
	}
	return false
}

func (l *loop) selector(e *ast.SelectorExpr) {
	selection := l.pass.TypesInfo.Selections[e]
	if selection == nil { // of a package
		l.object(e.Sel, e)
		return
	}
	if selection.Kind() != types.FieldVal {
		l.fail(e.Pos(), "%s is a function that is not shown to have no effects", types.ExprString(e))
		return
	}
	l.base(e.X)
	l.object(e.Sel, e)
}

// base checks an operand of which only a part is read.
func (l *loop) base(e ast.Expr) {
	switch x := ast.Unparen(e).(type) {
	case *ast.Ident:
		for _, c := range l.cells {
			if obj := l.pass.TypesInfo.ObjectOf(x); c.typ == nil && obj == c.obj {
				l.fail(e.Pos(), "%s is read here while it is being written", c.name())
			}
		}
	case *ast.SelectorExpr:
		l.selectorBase(x)
	case *ast.StarExpr:
		l.value(x.X)
	default:
		l.value(e)
	}
}

func (l *loop) selectorBase(x *ast.SelectorExpr) {
	selection := l.pass.TypesInfo.Selections[x]
	if selection == nil || selection.Kind() != types.FieldVal {
		l.value(x)
		return
	}
	for _, c := range l.cells {
		if c.typ == nil && selection.Obj().(*types.Var).Origin() == c.obj {
			l.fail(x.Pos(), "%s is read here while it is being written", c.name())
		}
	}
	l.base(x.X)
}

// index checks e.X[e.Index]; an element that only this iteration touches is its own.
func (l *loop) index(e *ast.IndexExpr) {
	l.value(e.Index)
	if l.own(e) {
		l.base(e.X)
	} else {
		l.value(e.X)
	}
}

// own tells whether e is an element of a map that is written, and all writes to
// such maps are made under this iteration's key, as e is.
func (l *loop) own(e *ast.IndexExpr) bool {
	t := l.pass.TypesInfo.TypeOf(e.X)
	if rootOf(e.X) == nil || !isMap(t) {
		return false
	}
	own := false
	for _, c := range l.cells {
		if c.typ == nil || !mayBeMap(t, c.typ) || c.obj != nil && !l.isVar(e.X, c.obj) {
			continue
		}
		if c.keyed == "" || c.keyed != l.indexText(e.Index) || !l.injective(e.Index) {
			return false
		}
		own = true
	}
	return own
}

// function checks that e, if it is one, is a function that may be called. What a
// call returns has been checked with the call.
func (l *loop) function(e ast.Expr) {
	if _, fn := l.pass.TypesInfo.TypeOf(e).Underlying().(*types.Signature); !fn {
		return
	}
	if _, call := ast.Unparen(e).(*ast.CallExpr); call {
		return
	}
	if fn := l.named(e); fn == nil || !pureFunction(fn) {
		l.fail(e.Pos(), "%s is a function that is not shown to have no effects", types.ExprString(e))
	}
}

func (l *loop) call(e *ast.CallExpr) {
	if l.pass.TypesInfo.Types[e.Fun].IsType() { // a conversion
		l.value(e.Args[0])
		return
	}
	if name := l.builtin(e); name != "" {
		switch {
		case name == "append":
			id, _ := ast.Unparen(e.Args[0]).(*ast.Ident)
			if !l.freshValue(e.Args[0], nil) && (id == nil || !l.freshLocal(id)) {
				l.fail(e.Pos(), "append may write into what %s shares with others; clone it first", types.ExprString(e.Args[0]))
			}
		case !slices.Contains(pureBuiltins, name):
			l.fail(e.Pos(), "%s changes its argument", name)
		}
		for _, arg := range e.Args {
			l.value(arg)
		}
		return
	}
	fn := calleeOf(l.pass.TypesInfo, e)
	if fn == nil || !pureFunction(fn) {
		l.fail(e.Pos(), "it calls %s, which is not shown to have no effects", types.ExprString(e.Fun))
		return
	}
	if sel, ok := ast.Unparen(e.Fun).(*ast.SelectorExpr); ok && l.pass.TypesInfo.Selections[sel] != nil {
		l.value(sel.X)
		l.getterRead(fn)
	}
	for _, arg := range e.Args {
		l.value(arg)
		l.function(arg)
		if fn.Pkg().Path() == "fmt" && !shallow(l.pass.TypesInfo.TypeOf(arg)) {
			l.fail(arg.Pos(), "fmt looks into %s, which may lead to what is being written; print its parts", types.ExprString(arg))
		}
	}
}

// getterRead: GetX reads the field X of the message, and fields are cells.
func (l *loop) getterRead(fn *types.Func) {
	name := strings.TrimPrefix(fn.Name(), "Get")
	for _, c := range l.cells {
		if c.typ == nil && c.obj.IsField() && c.obj.Name() == name {
			l.fail(c.writes[0].pos, "%s is read by %s while it is being written", c.name(), fn.Name())
		}
	}
	t := fn.Signature().Results().At(0).Type()
	for _, c := range l.cells {
		if c.typ != nil && c.obj == nil && mayBeMap(t, c.typ) {
			l.fail(c.writes[0].pos, "%s may give the map of %s, which is being written", fn.Name(), c.name())
		}
	}
}

// shallow tells whether a value of type t leads nowhere else.
func shallow(t types.Type) bool {
	if named, ok := t.(*types.Named); ok {
		if pkg := named.Obj().Pkg(); pkg != nil && pkg.Path() == "net/netip" {
			return true
		}
	}
	if types.Identical(t, types.Universe.Lookup("error").Type()) {
		return true
	}
	switch u := t.Underlying().(type) {
	case *types.Basic:
		return u.Kind() != types.UnsafePointer
	case *types.Array:
		return shallow(u.Elem())
	case *types.Struct:
		for i := range u.NumFields() {
			if !shallow(u.Field(i).Type()) {
				return false
			}
		}
		return true
	}
	return false
}

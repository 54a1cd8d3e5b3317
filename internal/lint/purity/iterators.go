package purity

import (
	"go/ast"
	"go/types"
)

// unorderedMethods go through elements in an order of the runtime's choosing.
// The key is types.Func.FullName.
var unorderedMethods = map[string]bool{
	"(*sync.Map).Range":        true,
	"(reflect.Value).MapKeys":  true,
	"(reflect.Value).MapRange": true,
	"(reflect.Value).Seq":      true,
	"(reflect.Value).Seq2":     true,
	"(google.golang.org/protobuf/reflect/protoreflect.Message).Range": true,
	"(google.golang.org/protobuf/reflect/protoreflect.Map).Range":     true,
}

const remedy = "collect the keys and sort them, or iterate slices.Sorted(maps.Keys(%s))"

// unordered reports every mention of a source of map order, but for a call of
// maps.Keys, maps.Values or maps.All that is consumed where order is lost.
func (c *inspector) unordered(id *ast.Ident) {
	fn, ok := c.pass.TypesInfo.Uses[id].(*types.Func)
	if !ok {
		return
	}
	name := fn.Origin().FullName()
	if unorderedMethods[name] {
		c.order(id.Pos(), "%s has no fixed order: collect the keys and sort them", name)
		return
	}
	switch name {
	case "maps.Keys", "maps.Values", "maps.All", "golang.org/x/exp/maps.Keys", "golang.org/x/exp/maps.Values":
	case "maps.DeleteFunc", "maps.EqualFunc":
		c.callback(id, name)
		return
	default:
		return
	}
	call := c.callOf(id)
	if call == nil {
		c.order(id.Pos(), "%s is used as a value, and whoever calls it gets map order: "+remedy, name, "m")
		return
	}
	if len(call.Args) != 1 || c.consumed(call) {
		return
	}
	c.order(id.Pos(), "%s gives map order: "+remedy, name, types.ExprString(call.Args[0]))
}

// callback reports functions that maps calls for each element, in map order.
func (c *inspector) callback(id *ast.Ident, name string) {
	call := c.callOf(id)
	if call != nil && len(call.Args) > 0 {
		fn := ast.Unparen(call.Args[len(call.Args)-1])
		if lit, ok := fn.(*ast.FuncLit); ok && len(lit.Body.List) == 1 {
			if ret, ok := lit.Body.List[0].(*ast.ReturnStmt); ok {
				l := &loop{inspector: c, node: lit}
				for _, r := range ret.Results {
					l.read(r)
				}
				l.checkReads()
				if l.problem == nil {
					return
				}
			}
		}
		if used := c.named(fn); used != nil && pureFunction(used) {
			return
		}
	}
	c.order(id.Pos(), "%s calls a function in map order, and that is not shown to have no effects: give it a literal of one return, or sort the keys", name)
}

// named is the function that e names, or nil.
func (c *inspector) named(e ast.Expr) *types.Func {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		fn, _ := c.pass.TypesInfo.Uses[e].(*types.Func)
		return fn
	case *ast.SelectorExpr:
		fn, _ := c.pass.TypesInfo.Uses[e.Sel].(*types.Func)
		return fn
	}
	return nil
}

// callOf is the call whose function is id, or nil.
func (c *inspector) callOf(id *ast.Ident) *ast.CallExpr {
	var at ast.Node = id
	for {
		parent := c.parents[at]
		switch p := parent.(type) {
		case *ast.SelectorExpr, *ast.IndexExpr, *ast.IndexListExpr, *ast.ParenExpr:
			at = p
		case *ast.CallExpr:
			if p.Fun == at {
				return p
			}
			return nil
		default:
			return nil
		}
	}
}

// consumed tells whether the elements that call yields end where order is lost.
// A range over it is rangeStmt's to judge.
func (c *inspector) consumed(call *ast.CallExpr) bool {
	fn := calleeOf(c.pass.TypesInfo, call)
	at, parent := c.up(call)
	if r, ok := parent.(*ast.RangeStmt); ok && r.X == at {
		return true
	}
	if fn.Pkg().Path() != "maps" { // x/exp: a slice, not an iterator
		return c.sortedNext(call)
	}
	outer, ok := parent.(*ast.CallExpr)
	if !ok {
		return false
	}
	taker := calleeOf(c.pass.TypesInfo, outer)
	if taker == nil {
		return false
	}
	switch taker.Origin().FullName() {
	case "slices.Sorted":
		return totalOrder(elemOf(c.pass.TypesInfo.TypeOf(outer)))
	case "slices.SortedFunc", "slices.SortedStableFunc", "maps.Collect", "maps.Insert":
		return true
	case "slices.Collect", "slices.AppendSeq":
		return c.sortedNext(outer)
	}
	return false
}

// sortedNext tells whether the slice that e yields is assigned to a variable
// whose next use is to be sorted.
func (c *inspector) sortedNext(e ast.Expr) bool {
	at, parent := c.up(e)
	assign, ok := parent.(*ast.AssignStmt)
	if !ok || len(assign.Lhs) != 1 || len(assign.Rhs) != 1 || assign.Rhs[0] != at {
		return false
	}
	return c.sortFollows(assign, assign.Lhs[0]) == ""
}

// up is the parent of e, past parentheses, and the child of it that holds e.
func (c *inspector) up(e ast.Expr) (ast.Expr, ast.Node) {
	for {
		parent := c.parents[e]
		paren, ok := parent.(*ast.ParenExpr)
		if !ok {
			return e, parent
		}
		e = paren
	}
}

// mapIterator is the map that e ranges over in map order, or nil. key tells
// whether the first variable of the range is the map's key.
func (c *inspector) mapIterator(e ast.Expr) (m ast.Expr, key bool) {
	e = ast.Unparen(e)
	if t := c.pass.TypesInfo.TypeOf(e); t != nil && isMap(t) {
		return e, true
	}
	call, ok := e.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return nil, false
	}
	fn := calleeOf(c.pass.TypesInfo, call)
	if fn == nil {
		return nil, false
	}
	switch fn.Origin().FullName() {
	case "maps.Keys", "maps.All":
		return call.Args[0], true
	case "maps.Values":
		return call.Args[0], false
	case "golang.org/x/exp/maps.Keys", "golang.org/x/exp/maps.Values":
		return call.Args[0], false
	}
	return nil, false
}

// isMap tells whether a range over a value of type t goes through a map. A type
// parameter counts if any type of its set does.
func isMap(t types.Type) bool {
	switch u := t.Underlying().(type) {
	case *types.Map:
		return true
	case *types.Interface:
		if _, param := t.(*types.TypeParam); !param {
			return false
		}
		for i := range u.NumEmbeddeds() {
			switch e := u.EmbeddedType(i).(type) {
			case *types.Union:
				for j := range e.Len() {
					if isMap(e.Term(j).Type()) {
						return true
					}
				}
			default:
				if isMapConstraint(e) {
					return true
				}
			}
		}
	}
	return false
}

func isMapConstraint(t types.Type) bool {
	if u, ok := t.Underlying().(*types.Interface); ok {
		for i := range u.NumEmbeddeds() {
			if e, ok := u.EmbeddedType(i).(*types.Union); ok {
				for j := range e.Len() {
					if isMap(e.Term(j).Type()) {
						return true
					}
				}
			} else if isMapConstraint(u.EmbeddedType(i)) {
				return true
			}
		}
		return false
	}
	return isMap(t)
}

func elemOf(t types.Type) types.Type {
	if s, ok := t.Underlying().(*types.Slice); ok {
		return s.Elem()
	}
	return types.Typ[types.Invalid]
}

// totalOrder tells whether < tells any two different values of type t apart. It
// does not for floats: 0 and -0.
func totalOrder(t types.Type) bool {
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&(types.IsInteger|types.IsString) != 0
}

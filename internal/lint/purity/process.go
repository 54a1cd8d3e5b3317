package purity

import (
	"go/ast"
	"go/constant"
	"go/types"
	"regexp"
	"strconv"
	"strings"

	"github.com/varve-net/varve/internal/archtest"
)

// runtimeImports are packages whose results differ between two runs of one
// process. Effects on the world outside are archtest's to list.
var runtimeImports = map[string]string{
	"hash/maphash":  "its seed differs between processes; use a hash with a fixed one, as SHA-256",
	"runtime":       "the scheduler, the heap and the machine differ between replicas",
	"runtime/debug": "the scheduler, the heap and the machine differ between replicas",
	"unsafe":        "an address differs between runs",
	"weak":          "the garbage collector decides when a weak pointer turns nil",
}

func (c *inspector) imports(rule archtest.Purity) {
	for _, spec := range c.file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the type checker has said so
		}
		reason, bad := rule.Forbid[path]
		if !bad {
			reason, bad = runtimeImports[path]
		}
		if bad {
			c.pass.Reportf(spec.Pos(), "pure package %s imports %s: %s", rule.Package, path, reason)
		}
	}
}

func (c *inspector) selectStmt(s *ast.SelectStmt) {
	if len(s.Body.List) > 1 {
		c.pass.Reportf(s.Pos(), "a select of several cases in a pure package: of those that are ready one is picked at random; receive in a fixed order")
	}
}

// pointerVerb is %p with its flags, width, precision and argument index.
var pointerVerb = regexp.MustCompile(`%[-+# 0]*(\[\d+\])?(\d+|\*)?(\.(\[\d+\])?(\d+|\*)?)?(\[\d+\])?p`)

// addresses reports calls that print where an object lies.
func (c *inspector) addresses(call *ast.CallExpr) {
	fn := calleeOf(c.pass.TypesInfo, call)
	if fn == nil {
		return
	}
	if strings.HasSuffix(fn.Name(), "f") {
		for _, arg := range call.Args {
			v := c.pass.TypesInfo.Types[arg].Value
			if v == nil || v.Kind() != constant.String {
				continue
			}
			if pointerVerb.MatchString(strings.ReplaceAll(constant.StringVal(v), "%%", "")) {
				c.pass.Reportf(arg.Pos(), "%%p prints an address, which differs between runs; print what identifies the object")
				return
			}
		}
	}
	if fn.Pkg() == nil || fn.Pkg().Path() != "fmt" || strings.Contains(strings.ToLower(fn.Name()), "scan") {
		return
	}
	for _, arg := range call.Args {
		if t := c.pass.TypesInfo.TypeOf(arg); t != nil && printsAddress(t) {
			c.pass.Reportf(arg.Pos(), "fmt prints a %s as an address, which differs between runs; print what identifies the object", t)
		}
	}
}

// printsAddress tells whether fmt's %v of a value of type t is its address.
func printsAddress(t types.Type) bool {
	for _, method := range []string{"String", "Error", "Format"} {
		if obj, _, _ := types.LookupFieldOrMethod(t, false, nil, method); obj != nil {
			return false
		}
	}
	switch u := t.Underlying().(type) {
	case *types.Chan, *types.Signature:
		return true
	case *types.Basic:
		return u.Kind() == types.UnsafePointer
	case *types.Pointer:
		switch u.Elem().Underlying().(type) {
		case *types.Struct, *types.Array, *types.Slice, *types.Map:
			return false // printed as &{...}
		}
		return true
	}
	return false
}

// calleeOf is the function or method that is called by name, or nil.
func calleeOf(info *types.Info, call *ast.CallExpr) *types.Func {
	fun := ast.Unparen(call.Fun)
	switch index := fun.(type) { // explicit type arguments
	case *ast.IndexExpr:
		fun = index.X
	case *ast.IndexListExpr:
		fun = index.X
	}
	var id *ast.Ident
	switch fun := fun.(type) {
	case *ast.Ident:
		id = fun
	case *ast.SelectorExpr:
		id = fun.Sel
	default:
		return nil
	}
	fn, _ := info.Uses[id].(*types.Func)
	return fn
}

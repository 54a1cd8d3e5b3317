package policy

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds on what Parse reads.
const (
	maxInput = 16 << 20
	maxTree  = 1 << 20 // values in one input, with aliases expanded
	maxDepth = 64
	maxKey   = 512 // bytes; YAML cannot hold a flow key of over 1024
)

type valueKind uint8

const (
	kindNull valueKind = iota
	kindBool
	kindInt
	kindFloat
	kindString
	kindList
	kindMap
)

func (k valueKind) String() string {
	return [...]string{"null", "a boolean", "a number", "a number", "a string", "a list", "a mapping"}[k]
}

// value is a YAML or JSON value with its aliases expanded and its place kept.
type value struct {
	kind   valueKind
	line   int
	text   string // of a scalar: a string as it is, other kinds in JSON's notation
	plain  bool   // a scalar without quotes
	items  []*value
	fields []field
}

type field struct {
	key  string
	line int
	val  *value
}

// errTooLarge stops the reading: what follows could be without end.
var errTooLarge = errors.New("too large")

// tree converts YAML nodes within the bounds above.
type tree struct {
	w    *walker
	left int
}

func (t *tree) value(n *yaml.Node, at *place, depth int) (*value, error) {
	t.left--
	if t.left < 0 {
		t.w.invalid(n.Line, at.path(), fmt.Sprintf("over %d values with aliases expanded", maxTree), "split the input")
		return nil, errTooLarge
	}
	if depth > maxDepth {
		t.w.invalid(n.Line, at.path(), fmt.Sprintf("nested over %d levels, or an alias within its own anchor", maxDepth), "")
		return nil, errTooLarge
	}
	switch n.Kind {
	case yaml.AliasNode:
		if n.Alias == nil {
			t.w.invalid(n.Line, at.path(), "an alias without anchor", "")
			return &value{line: n.Line}, nil
		}
		return t.value(n.Alias, at, depth+1)
	case yaml.DocumentNode:
		if len(n.Content) == 0 {
			return &value{line: n.Line}, nil
		}
		return t.value(n.Content[0], at, depth)
	case yaml.SequenceNode:
		v := &value{kind: kindList, line: n.Line}
		for i, c := range n.Content {
			item, err := t.value(c, &place{parent: at, index: i}, depth+1)
			if err != nil {
				return nil, err
			}
			v.items = append(v.items, item)
		}
		return v, nil
	case yaml.MappingNode:
		return t.mapping(n, at, depth)
	case yaml.ScalarNode:
		return t.scalar(n, at), nil
	}
	return &value{line: n.Line}, nil
}

func (t *tree) mapping(n *yaml.Node, at *place, depth int) (*value, error) {
	v := &value{kind: kindMap, line: n.Line}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind == yaml.AliasNode && k.Alias != nil {
			k = k.Alias
		}
		switch {
		case k.Kind != yaml.ScalarNode:
			t.w.invalid(k.Line, at.path(), "a key that is no string", "")
			continue
		case k.ShortTag() == "!!merge":
			t.w.unsupported(k.Line, at.path(), "the YAML merge key << is not supported", "write its fields out")
			continue
		case len(k.Value) > maxKey:
			t.w.invalid(k.Line, at.path(), fmt.Sprintf("a key of over %d bytes", maxKey), "")
			continue
		}
		sub := &place{parent: at, key: k.Value}
		if first, ok := seen[k.Value]; ok {
			t.w.invalid(k.Line, sub.path(), fmt.Sprintf("the key stands twice, first on line %d", first), "remove one")
			continue
		}
		seen[k.Value] = k.Line
		val, err := t.value(n.Content[i+1], sub, depth+1)
		if err != nil {
			return nil, err
		}
		v.fields = append(v.fields, field{k.Value, k.Line, val})
	}
	return v, nil
}

func (t *tree) scalar(n *yaml.Node, at *place) *value {
	v := &value{kind: kindString, line: n.Line, text: n.Value}
	v.plain = n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	ok := true
	switch tag := n.ShortTag(); tag {
	case "!!str", "!!timestamp":
	case "!!null":
		v.kind, v.text = kindNull, "null"
	case "!!bool":
		v.kind, v.text = kindBool, strings.ToLower(n.Value)
		ok = v.text == "true" || v.text == "false"
	case "!!int":
		v.kind = kindInt
		v.text, ok = canonicalInt(n.Value)
		if digits := strings.TrimLeft(n.Value, "+-"); len(digits) > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9' {
			t.w.invalid(n.Line, at.path(), n.Value+" has a leading zero and may be read as octal", "remove it, or put it in quotes")
		}
	case "!!float":
		v.kind = kindFloat
		v.text, ok = canonicalFloat(n.Value)
	default:
		t.w.unsupported(n.Line, at.path(), fmt.Sprintf("the YAML tag %s is not supported", tag), "write a plain string, number or boolean")
		return &value{line: n.Line}
	}
	if !ok {
		t.w.invalid(n.Line, at.path(), fmt.Sprintf("%q is not %s", n.Value, v.kind), "")
		return &value{line: n.Line}
	}
	return v
}

func canonicalInt(s string) (string, bool) {
	s = strings.TrimPrefix(strings.ReplaceAll(s, "_", ""), "+")
	if i, err := strconv.ParseInt(s, 0, 64); err == nil {
		return strconv.FormatInt(i, 10), true
	}
	if u, err := strconv.ParseUint(s, 0, 64); err == nil {
		return strconv.FormatUint(u, 10), true
	}
	return "", false
}

func canonicalFloat(s string) (string, bool) {
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		return "", false
	}
	if f == 0 {
		return "0", true
	}
	return strconv.FormatFloat(f, 'g', -1, 64), true
}

// place is a path that becomes a string only if a problem is found there: with
// aliases expanded there can be many more places than bytes of input.
type place struct {
	parent *place
	key    string // or, if empty, index
	index  int
}

func (p *place) path() string {
	switch {
	case p == nil:
		return ""
	case p.key != "":
		return join(p.parent.path(), p.key)
	}
	return index(p.parent.path(), p.index)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

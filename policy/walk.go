package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxErrors is where Parse stops to collect.
const maxErrors = 100

// walker collects what is wrong while the values are read.
type walker struct {
	source   string
	document int
	cluster  string
	errs     []error
	warnings []Warning

	ports []portUse // of the section that is being read
}

func (w *walker) add(class error, line int, path, problem, remedy string) {
	switch {
	case len(w.errs) > maxErrors:
		return
	case len(w.errs) == maxErrors:
		path, problem, remedy = "", "too many problems, the rest is left out", ""
	}
	w.errs = append(w.errs, &FieldError{
		Source: w.source, Line: line, Document: w.document,
		Path: path, Problem: problem, Remedy: remedy, class: class,
	})
}

func (w *walker) invalid(line int, path, problem, remedy string) {
	w.add(ErrInvalid, line, path, problem, remedy)
}

func (w *walker) unsupported(line int, path, problem, remedy string) {
	w.add(ErrUnsupported, line, path, problem, remedy)
}

func (w *walker) warn(line int, path, text, remedy string) {
	w.warnings = append(w.warnings, Warning{w.source, line, w.document, path, text, remedy})
}

// schema is the fields of one mapping.
type schema struct {
	fields      []string
	unsupported map[string]refusal
	hints       map[string]string // unknown, but often written: where it belongs
}

// refusal is why a field that Cilium knows is not supported, and what to do
// instead.
type refusal struct{ reason, remedy string }

// object is a mapping that was held against its schema.
type object struct {
	path string
	v    *value
}

// object checks that v is a mapping and that each of its fields is known. A field
// that is null is as good as absent, here as in Kubernetes, if it is known.
func (w *walker) object(v *value, path string, s schema) (object, bool) {
	if v.kind != kindMap {
		w.invalid(v.line, path, "must be a mapping, is "+v.kind.String(), "")
		return object{}, false
	}
	for _, f := range v.fields {
		if slices.Contains(s.fields, f.key) {
			continue
		}
		why, known := s.unsupported[f.key]
		switch {
		case known && f.val.kind == kindNull:
		case known:
			w.unsupported(f.line, join(path, f.key), "field "+f.key+" is not supported: "+why.reason, why.remedy)
		default:
			w.unsupported(f.line, join(path, f.key), "unknown field "+strconv.Quote(f.key)+", not supported", s.suggest(f.key))
		}
	}
	return object{path, v}, true
}

// get is the field's value and path; nil if it is absent or null.
func (o object) get(name string) (*value, string) {
	for _, f := range o.v.fields {
		if f.key == name && f.val.kind != kindNull {
			return f.val, join(o.path, name)
		}
	}
	return nil, join(o.path, name)
}

func (s schema) suggest(key string) string {
	if hint := s.hints[key]; hint != "" {
		return hint
	}
	best, bestDistance := "", 3
	for _, name := range s.fields {
		d := distance(strings.ToLower(key), strings.ToLower(name))
		if d < bestDistance {
			best, bestDistance = name, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "known here: " + strings.Join(s.fields, ", ")
}

// distance is Levenshtein's.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// list is the items of v; a null item is refused, since it would silently be an
// empty one.
func (w *walker) list(v *value, path string, most int) []*value {
	if v.kind != kindList {
		w.invalid(v.line, path, "must be a list, is "+v.kind.String(), "")
		return nil
	}
	if len(v.items) > most {
		w.invalid(v.line, path, fmt.Sprintf("%d entries, the most is %d", len(v.items), most), "")
		return nil
	}
	for i, item := range v.items {
		if item.kind == kindNull {
			w.invalid(item.line, index(path, i), "an entry that is null", "remove it or write it out")
			return nil
		}
	}
	return v.items
}

// str is a string. YAML 1.1, which kubectl reads, takes a bare yes or off for a
// boolean: that is refused here as it would be there.
func (w *walker) str(v *value, path string) (string, bool) {
	if v.kind != kindString {
		w.invalid(v.line, path, "must be a string, is "+v.kind.String(), "put it in quotes")
		return "", false
	}
	if v.plain {
		switch strings.ToLower(v.text) {
		case "y", "n", "yes", "no", "on", "off":
			w.invalid(v.line, path, "a bare "+v.text+" is a boolean to Kubernetes", "put it in quotes")
			return "", false
		}
	}
	return v.text, true
}

func (w *walker) boolean(v *value, path string) (_, ok bool) {
	if v.kind != kindBool {
		w.invalid(v.line, path, "must be true or false", "")
		return false, false
	}
	return v.text == "true", true
}

func (w *walker) integer(v *value, path string, low, high int64) (int64, bool) {
	i, err := strconv.ParseInt(v.text, 10, 64)
	if v.kind != kindInt || err != nil || i < low || i > high {
		w.invalid(v.line, path, fmt.Sprintf("must be a number from %d to %d", low, high), "")
		return 0, false
	}
	return i, true
}

// stringMap checks that v maps strings to strings.
func (w *walker) stringMap(v *value, path string) {
	if v.kind != kindMap {
		w.invalid(v.line, path, "must be a mapping, is "+v.kind.String(), "")
		return
	}
	for _, f := range v.fields {
		if f.val.kind != kindNull {
			w.str(f.val, join(path, f.key))
		}
	}
}

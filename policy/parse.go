package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/varve-net/varve/log/eventpb"
)

// Options of Parse.
type Options struct {
	// Cluster is the name of the local cluster, to which selectors of peers are
	// kept unless they name one. Empty is "default".
	Cluster string
}

// Parse reads policies from YAML or JSON: any number of documents, each a
// CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy (cilium.io/v2), a
// NetworkPolicy (networking.k8s.io/v1) or a v1 List of them. source names the
// input in errors, e.g. a file's name.
//
// It returns every policy, in order, with all defaults made explicit; each passes
// Compile. Or it returns none and every problem found, as FieldErrors joined,
// each an ErrInvalid or an ErrUnsupported. Whatever it does not understand it
// refuses. Warnings come in both cases.
func Parse(source string, data []byte, opt Options) ([]*eventpb.PolicySet, []Warning, error) {
	w := &walker{source: source, cluster: cmp.Or(opt.Cluster, DefaultNamed)}
	sets := w.documents(data)
	if len(w.errs) > 0 {
		return nil, w.warnings, errors.Join(w.errs...)
	}
	return sets, w.warnings, nil
}

func (w *walker) documents(data []byte) []*eventpb.PolicySet {
	if len(data) > maxInput {
		w.invalid(0, "", fmt.Sprintf("%d bytes, the most is %d", len(data), maxInput), "split the input")
		return nil
	}
	var sets []*eventpb.PolicySet
	lines := make(map[Ref]int)
	found := false
	t := tree{w: w, left: maxTree}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		w.document++
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			line, problem := syntaxError(err)
			w.invalid(line, "", problem, "")
			return nil
		}
		v, err := t.value(&doc, nil, 0)
		if err != nil {
			return nil
		}
		if v.kind == kindNull {
			continue
		}
		found = true
		w.resource(v, "", func(set *eventpb.PolicySet, v *value, path string) {
			ref := Ref{set.Ref.Kind, set.Ref.Namespace, set.Ref.Name}
			if line, ok := lines[ref]; ok {
				w.invalid(v.line, path, fmt.Sprintf("%s is given twice, first on line %d", ref, line), "remove one")
			}
			lines[ref] = v.line
			sets = append(sets, set)
		})
	}
	if !found && len(w.errs) == 0 {
		w.invalid(0, "", "no policy in it", "give at least one CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy")
	}
	return sets
}

// syntaxError takes the line out of a "yaml: line 7: did not find ..." message.
func syntaxError(err error) (line int, problem string) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if number, after, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				return n, "not YAML: " + after
			}
		}
	}
	return 0, "not YAML: " + msg
}

// resource reads one object and calls emit for each policy in it.
func (w *walker) resource(v *value, path string, emit func(*eventpb.PolicySet, *value, string)) {
	if v.kind != kindMap {
		w.invalid(v.line, path, "must be a mapping, is "+v.kind.String(), "start with apiVersion, kind, metadata and spec")
		return
	}
	o := object{path, v}
	apiVersion, kind := w.required(o, "apiVersion"), w.required(o, "kind")
	if apiVersion == "" || kind == "" {
		w.object(v, path, policySchema) // a misspelt one is the likely cause
		return
	}
	if apiVersion == "v1" && kind == "List" {
		w.listOf(v, path, emit)
		return
	}
	for _, k := range kinds {
		if k.name != kind {
			continue
		}
		if k.apiVersion != apiVersion {
			_, p := o.get("apiVersion")
			w.unsupported(v.line, p, fmt.Sprintf("%s of %q is not supported", kind, apiVersion), "write "+k.apiVersion)
			return
		}
		if set := w.policy(v, path, k.kind); set != nil {
			emit(set, v, path)
		}
		return
	}
	_, p := o.get("kind")
	w.unsupported(v.line, p, fmt.Sprintf("kind %q of %q is not supported", kind, apiVersion),
		"use CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy, NetworkPolicy or List")
}

func (w *walker) required(o object, name string) string {
	v, path := o.get(name)
	if v == nil {
		w.invalid(o.v.line, path, "missing", "add it")
		return ""
	}
	s, ok := w.str(v, path)
	if ok && s == "" {
		w.invalid(v.line, path, "empty", "")
	}
	return s
}

func (w *walker) listOf(v *value, path string, emit func(*eventpb.PolicySet, *value, string)) {
	o, _ := w.object(v, path, schema{fields: []string{"apiVersion", "kind", "metadata", "items"}})
	items, p := o.get("items")
	if items == nil {
		w.invalid(v.line, p, "missing", "")
		return
	}
	for i, item := range w.list(items, p, maxTree) {
		if k, _ := (object{"", item}).get("kind"); item.kind == kindMap && k != nil && k.text == "List" {
			w.invalid(item.line, index(p, i), "a List within a List", "put its items into the outer one")
			continue
		}
		w.resource(item, index(p, i), emit)
	}
}

var (
	policySchema = schema{
		fields: []string{"apiVersion", "kind", "metadata", "spec", "specs", "status"},
		hints:  map[string]string{"description": "move it to spec.description"},
	}
	npSchema       = schema{fields: []string{"apiVersion", "kind", "metadata", "spec", "status"}}
	metadataSchema = schema{
		fields: []string{
			"name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation",
			"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
			"ownerReferences", "finalizers", "managedFields", "selfLink", "generateName",
		},
		hints: map[string]string{"description": "move it to spec.description"},
	}
)

// ref reads metadata. The second result is false if a problem was reported.
func (w *walker) ref(o object, kind Kind) (Ref, bool) {
	r := Ref{Kind: kind}
	before := len(w.errs)
	v, path := o.get("metadata")
	if v == nil {
		w.invalid(o.v.line, path, "missing", "give metadata.name")
		return r, false
	}
	m, ok := w.object(v, path, metadataSchema)
	if !ok {
		return r, false
	}
	if r.Name = w.required(m, "name"); r.Name != "" {
		if problem := checkSubdomain(r.Name); problem != "" {
			v, p := m.get("name")
			w.invalid(v.line, p, fmt.Sprintf("%q %s", r.Name, problem), "")
		}
	}
	if KindNamespaced(kind) {
		r.Namespace = DefaultNamed
	}
	if v, p := m.get("namespace"); v != nil {
		ns, ok := w.str(v, p)
		switch {
		case !ok || ns == "":
		case !KindNamespaced(kind):
			w.invalid(v.line, p, "a "+KindName(kind)+" has no namespace", "remove it, or write a CiliumNetworkPolicy")
		default:
			r.Namespace = ns
			if problem := checkDNSLabel(ns); problem != "" {
				w.invalid(v.line, p, fmt.Sprintf("%q %s", ns, problem), "")
			}
		}
	}
	for _, name := range []string{"labels", "annotations"} {
		if v, p := m.get(name); v != nil {
			w.stringMap(v, p)
		}
	}
	return r, len(w.errs) == before
}

// Annotations of a policy that mean something here. Others of the prefix are refused.
const (
	annotationPrefix = "policy.varve.net/"
	// AnnotationAuditMode, set to Enabled, lets pass, and reports, what this policy
	// alone would drop.
	AnnotationAuditMode = annotationPrefix + "audit-mode"
)

// auditMode reads the annotation of that name.
func (w *walker) auditMode(o object) (on bool) {
	metadata, path := o.get("metadata")
	if metadata == nil || metadata.kind != kindMap {
		return false
	}
	annotations, path := (object{path, metadata}).get("annotations")
	if annotations == nil || annotations.kind != kindMap {
		return false
	}
	for _, f := range annotations.fields {
		p := join(path, f.key)
		switch {
		case !strings.HasPrefix(f.key, annotationPrefix):
		case f.key != AnnotationAuditMode:
			w.unsupported(f.line, p, "unknown annotation", "did you mean "+AnnotationAuditMode+"?")
		case strings.EqualFold(f.val.text, "enabled"):
			on = true
		case !strings.EqualFold(f.val.text, "disabled"):
			w.invalid(f.val.line, p, fmt.Sprintf("%q is no mode", f.val.text), "write Enabled or Disabled")
		}
	}
	return on
}

// policy reads one policy; nil if it has a problem.
func (w *walker) policy(v *value, path string, kind Kind) *eventpb.PolicySet {
	before := len(w.errs)
	s := policySchema
	if kind == KindNetworkPolicy {
		s = npSchema
	}
	o, _ := w.object(v, path, s)
	ref, _ := w.ref(o, kind)
	set := &eventpb.PolicySet{Ref: ref.PB()}
	if kind == KindNetworkPolicy {
		set.Specs = w.networkPolicy(o, ref)
	} else {
		set.Specs = w.ciliumSpecs(o, ref)
	}
	if w.auditMode(o) {
		for _, s := range set.Specs {
			s.Audit = true
		}
	}
	var ok bool
	if set.Manifest, ok = manifest(v, maxManifest); !ok {
		w.invalid(v.line, path, fmt.Sprintf("over %d bytes as JSON", maxManifest), "split the policy")
	}
	if len(w.errs) > before {
		return nil
	}
	if _, err := Compile(set); err != nil {
		w.invalid(v.line, path, err.Error(), "")
		return nil
	}
	return set
}

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

var (
	selectorSchema    = schema{fields: []string{"matchLabels", "matchExpressions"}}
	requirementSchema = schema{fields: []string{"key", "operator", "values"}}
)

var operators = map[string]eventpb.Requirement_Operator{
	"In":           eventpb.Requirement_IN,
	"NotIn":        eventpb.Requirement_NOT_IN,
	"Exists":       eventpb.Requirement_EXISTS,
	"DoesNotExist": eventpb.Requirement_DOES_NOT_EXIST,
}

// term is a requirement and where it was written.
type term struct {
	source, key string
	fromLabels  bool // of matchLabels
	op          eventpb.Requirement_Operator
	values      []string
	line        int
	path        string
}

// terms is what a label selector says, before any scope is added to it.
type terms []term

// keyReader turns a key as written into source and key. problem is "" if it is
// well formed.
type keyReader func(key string) (source, rest, problem string)

// sourceUnspec selects as SourceAny does, but a namespace or cluster named with
// it does not move the scope of a selector.
const sourceUnspec = "unspec"

// ciliumKey reads a key with an optional source. A '.' ends no source: a pod can
// have a label reserved.x.
func ciliumKey(key string) (source, rest, problem string) {
	source, rest, ok := strings.Cut(key, ":")
	if !ok {
		source, rest = SourceAny, key
	}
	return source, rest, cmp.Or(checkSource(source), checkSelectorKey(rest))
}

// k8sKey reads a key of a Kubernetes selector of pods.
func k8sKey(key string) (source, rest, problem string) {
	return SourceK8s, key, checkLabelKey(key)
}

// namespaceKey reads a key of a Kubernetes selector of namespaces.
func namespaceKey(key string) (source, rest, problem string) {
	return SourceK8s, KeyNamespaceLabelPrefix + key, checkLabelKey(key)
}

// sourcesOfOthers are sources of labels that identities have in Cilium and not
// here, so that selecting by them would be misunderstood.
var sourcesOfOthers = []string{"cidr", "cidrgroup", "fqdn", "node", "group"}

func (w *walker) selector(v *value, path string, read keyReader) (terms, bool) {
	before := len(w.errs)
	o, ok := w.object(v, path, selectorSchema)
	if !ok {
		return nil, false
	}
	var ts terms
	if labels, p := o.get("matchLabels"); labels != nil {
		ts = append(ts, w.matchLabels(labels, p, read)...)
	}
	if exprs, p := o.get("matchExpressions"); exprs != nil {
		for i, e := range w.list(exprs, p, maxRequirements) {
			if t, ok := w.matchExpression(e, index(p, i), read); ok {
				ts = append(ts, t)
			}
		}
	}
	return ts, len(w.errs) == before
}

func (w *walker) matchLabels(v *value, path string, read keyReader) terms {
	if v.kind != kindMap {
		w.invalid(v.line, path, "must be a mapping, is "+v.kind.String(), "")
		return nil
	}
	var ts terms
	seen := make(map[string]bool)
	for _, f := range v.fields {
		p := join(path, f.key)
		t := term{op: eventpb.Requirement_IN, fromLabels: true, line: f.line, path: p}
		if !w.key(&t, f.key, read) {
			continue
		}
		if f.val.kind == kindNull {
			w.invalid(f.line, p, "null", `write "" for the empty value`)
			continue
		}
		s, ok := w.labelValue(f.val, p)
		if !ok {
			continue
		}
		t.values = []string{s}
		if full := t.source + ":" + t.key; seen[full] {
			w.invalid(f.line, p, "names the label "+full+" a second time", "remove one")
		} else {
			seen[full] = true
		}
		ts = append(ts, t)
	}
	return ts
}

func (w *walker) key(t *term, key string, read keyReader) bool {
	var problem string
	t.source, t.key, problem = read(key)
	if problem != "" {
		w.invalid(t.line, t.path, fmt.Sprintf("key %q: %s", key, problem), "")
		return false
	}
	switch {
	case slices.Contains(sourcesOfOthers, t.source):
		w.unsupported(t.line, t.path, fmt.Sprintf("labels of source %q are not supported", t.source), "")
		return false
	case !slices.Contains([]string{SourceK8s, SourceAny, SourceReserved, sourceUnspec}, t.source):
		w.warn(t.line, t.path, fmt.Sprintf("no endpoint has labels of source %q", t.source), "use k8s: or any:, or no source")
	}
	return true
}

func (w *walker) labelValue(v *value, path string) (string, bool) {
	s, ok := w.str(v, path)
	if !ok {
		return "", false
	}
	if problem := checkLabelValue(s); problem != "" {
		w.invalid(v.line, path, strconv.Quote(s)+": "+problem, "")
		return "", false
	}
	return s, true
}

func (w *walker) matchExpression(v *value, path string, read keyReader) (term, bool) {
	t := term{line: v.line, path: path}
	o, ok := w.object(v, path, requirementSchema)
	if !ok {
		return t, false
	}
	key := w.required(o, "key")
	operator := w.required(o, "operator")
	if key == "" || operator == "" || !w.key(&t, key, read) {
		return t, false
	}
	if t.op, ok = operators[operator]; !ok {
		v, p := o.get("operator")
		w.invalid(v.line, p, fmt.Sprintf("unknown operator %q", operator), "use In, NotIn, Exists or DoesNotExist")
		return t, false
	}
	values, p := o.get("values")
	if values != nil {
		for i, item := range w.list(values, p, maxValues) {
			if s, ok := w.labelValue(item, index(p, i)); ok {
				t.values = append(t.values, s)
			}
		}
	}
	takes := t.op == eventpb.Requirement_IN || t.op == eventpb.Requirement_NOT_IN
	switch {
	case takes && (values == nil || len(values.items) == 0):
		w.invalid(v.line, p, operator+" needs at least one value", "")
		return t, false
	case !takes && len(t.values) > 0:
		w.invalid(v.line, p, operator+" takes no values", "remove them, or use In or NotIn")
		return t, false
	}
	return t, true
}

// names tells whether any term is about the key, under one of the sources.
func (ts terms) names(key string, sources ...string) bool {
	return slices.ContainsFunc(ts, func(t term) bool {
		return t.key == key && slices.Contains(sources, t.source)
	})
}

func (ts terms) require(key string, values ...string) terms {
	op := eventpb.Requirement_IN
	if len(values) == 0 {
		op = eventpb.Requirement_EXISTS
	}
	return append(ts, term{source: SourceK8s, key: key, op: op, values: values})
}

// pb is the selector in canonical order.
func (ts terms) pb() *eventpb.Selector {
	s := &eventpb.Selector{}
	for _, t := range ts {
		values := slices.Clone(t.values)
		slices.Sort(values)
		source := t.source
		if source == sourceUnspec {
			source = SourceAny
		}
		s.Requirements = append(s.Requirements, &eventpb.Requirement{
			Key: source + ":" + t.key, Operator: t.op, Values: slices.Compact(values),
		})
	}
	compare := func(a, b *eventpb.Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
	}
	slices.SortFunc(s.Requirements, compare)
	s.Requirements = slices.CompactFunc(s.Requirements, func(a, b *eventpb.Requirement) bool { return compare(a, b) == 0 })
	return s
}

// ciliumSubject scopes an endpointSelector. In a namespace, matchLabels cannot
// move it elsewhere: the policy's own namespace takes the place of what they say.
func (w *walker) ciliumSubject(ts terms, ref Ref) *eventpb.Selector {
	if ref.Namespace == "" {
		return ts.pb()
	}
	var kept terms
	for _, t := range ts {
		if t.source == SourceK8s && t.key == KeyNamespace && t.fromLabels {
			if t.values[0] != ref.Namespace {
				w.warn(t.line, t.path, "the policy selects in its own namespace, "+ref.Namespace+", only", "remove the namespace, or write a CiliumClusterwideNetworkPolicy")
			}
			continue
		}
		if t.source == SourceAny && t.key == KeyNamespace && t.fromLabels && t.values[0] != ref.Namespace {
			w.warn(t.line, t.path, "selects nothing: the policy selects in its own namespace, "+ref.Namespace+", only", "remove the namespace, or write a CiliumClusterwideNetworkPolicy")
		}
		kept = append(kept, t)
	}
	return kept.require(KeyNamespace, ref.Namespace).pb()
}

// ciliumPeer scopes a selector of from- or toEndpoints.
//
//	a reserved: key is named         nothing is added
//	a namespace is named             that is the scope
//	a namespace's label is named     CNP: all namespaces; CCNP: any pod
//	none of these                    CNP: its own namespace; CCNP: any pod
//
// and, but for the first, the local cluster, unless a cluster is named.
// subjectInit says that the subject selects endpoints under initialisation, whose
// policy is not narrowed to pods.
func (w *walker) ciliumPeer(ts terms, ref Ref, subjectInit bool) *eventpb.Selector {
	if slices.ContainsFunc(ts, func(t term) bool { return t.source == SourceReserved }) {
		return ts.pb()
	}
	namesNamespaceLabel := slices.ContainsFunc(ts, func(t term) bool {
		return (t.source == SourceK8s || t.source == SourceAny) && strings.HasPrefix(t.key, KeyNamespaceLabelPrefix)
	})
	if !ts.names(KeyNamespace, SourceK8s, SourceAny) {
		switch {
		case ref.Namespace == "" && !subjectInit:
			ts = ts.require(KeyNamespace)
		case ref.Namespace != "" && !namesNamespaceLabel:
			ts = ts.require(KeyNamespace, ref.Namespace)
		}
	}
	return w.localCluster(ts).pb()
}

func (w *walker) localCluster(ts terms) terms {
	if ts.names(KeyCluster, SourceK8s, SourceAny) {
		return ts
	}
	return ts.require(KeyCluster, w.cluster)
}

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Sources of labels.
const (
	SourceK8s      = "k8s"      // what the workload, its namespace or its cluster says
	SourceReserved = "reserved" // what varve says; no workload can have one
	SourceAny      = "any"      // in selectors only: whichever source
)

// Keys of the labels that every endpoint has, all of source k8s.
const (
	KeyNamespace            = "io.kubernetes.pod.namespace"
	KeyCluster              = "io.cilium.k8s.policy.cluster"
	KeyServiceAccount       = "io.cilium.k8s.policy.serviceaccount"
	KeyNamespaceLabelPrefix = "io.cilium.k8s.namespace.labels."

	ownKeyPrefix = "io.cilium.k8s."
)

// DefaultNamed is the cluster, namespace or service account of who names none.
const DefaultNamed = "default"

// NewLabels sorts labels and drops repeats. Of two labels with one source and
// key the last given stays.
func NewLabels(labels ...Label) Labels {
	out := slices.Clone(labels)
	slices.SortStableFunc(out, compareKey)
	n := 0
	for i := range out {
		if n > 0 && compareKey(out[n-1], out[i]) == 0 {
			out[n-1] = out[i]
			continue
		}
		out[n] = out[i]
		n++
	}
	return Labels(out[:n:n])
}

func compareKey(a, b Label) int {
	if c := cmp.Compare(a.Source, b.Source); c != 0 {
		return c
	}
	return cmp.Compare(a.Key, b.Key)
}

// ParseLabel is the inverse of Label.String for labels whose key holds no '='.
// The error is an ErrInvalid.
func ParseLabel(s string) (Label, error) {
	source, rest, ok := strings.Cut(s, ":")
	if !ok || source == "" {
		return Label{}, fmt.Errorf("label %q: %w: no source; write it like k8s:app=web", s, ErrInvalid)
	}
	key, value, _ := strings.Cut(rest, "=")
	if key == "" {
		return Label{}, fmt.Errorf("label %q: %w: no key; write it like k8s:app=web", s, ErrInvalid)
	}
	return Label{Source: source, Key: key, Value: value}, nil
}

// String is the label as Cilium writes it: "k8s:app=web", "reserved:host".
func (l Label) String() string {
	if l.Value == "" && l.Source == SourceReserved {
		return l.Source + ":" + l.Key
	}
	return l.Source + ":" + l.Key + "=" + l.Value
}

// String is the labels in their order, joined by commas.
func (ls Labels) String() string {
	var b strings.Builder
	for i, l := range ls {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.String())
	}
	return b.String()
}

// Strings is each label's String, in order.
func (ls Labels) Strings() []string {
	out := make([]string, len(ls))
	for i, l := range ls {
		out[i] = l.String()
	}
	return out
}

// Get returns the value of the label with this source and key. With SourceAny
// it is the first in order that has the key.
func (ls Labels) Get(source, key string) (string, bool) {
	if source == SourceAny {
		for i := range ls {
			if ls[i].Key == key {
				return ls[i].Value, true
			}
		}
		return "", false
	}
	i, ok := ls.find(source, key)
	if !ok {
		return "", false
	}
	return ls[i].Value, true
}

// find is a binary search that does not allocate.
func (ls Labels) find(source, key string) (int, bool) {
	lo, hi := 0, len(ls)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		l := &ls[mid]
		if l.Source < source || l.Source == source && l.Key < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(ls) && ls[lo].Source == source && ls[lo].Key == key
}

// Equal tells whether both hold the same labels.
func (ls Labels) Equal(other Labels) bool { return slices.Equal(ls, other) }

// EndpointLabels is the security labels of a workload. Every one has source k8s,
// so that no workload's label is ever a reserved one. The keys that say where a
// workload belongs are set here: a workload's own label of such a key is left
// out. An empty cluster, namespace or service account is "default".
func EndpointLabels(cluster, namespace string, nsLabels, podLabels map[string]string, serviceAccount string) Labels {
	out := make([]Label, 0, len(podLabels)+len(nsLabels)+3)
	//purity:ordered no two labels come to have one key, and NewLabels sorts by it
	for k, v := range podLabels {
		if k == KeyNamespace || strings.HasPrefix(k, ownKeyPrefix) {
			continue
		}
		out = append(out, Label{SourceK8s, k, v})
	}
	//purity:ordered no two labels come to have one key, and NewLabels sorts by it
	for k, v := range nsLabels {
		out = append(out, Label{SourceK8s, KeyNamespaceLabelPrefix + k, v})
	}
	out = append(out,
		Label{SourceK8s, KeyNamespace, cmp.Or(namespace, DefaultNamed)},
		Label{SourceK8s, KeyCluster, cmp.Or(cluster, DefaultNamed)},
		Label{SourceK8s, KeyServiceAccount, cmp.Or(serviceAccount, DefaultNamed)},
	)
	return NewLabels(out...)
}

package policy

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

// Kinds.
const (
	KindNetworkPolicy                  = eventpb.PolicyKind_NETWORK_POLICY
	KindCiliumNetworkPolicy            = eventpb.PolicyKind_CILIUM_NETWORK_POLICY
	KindCiliumClusterwideNetworkPolicy = eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY
)

var kinds = []struct {
	kind       Kind
	name       string
	short      string
	apiVersion string
	namespaced bool
}{
	{KindNetworkPolicy, "NetworkPolicy", "np", "networking.k8s.io/v1", true},
	{KindCiliumNetworkPolicy, "CiliumNetworkPolicy", "cnp", "cilium.io/v2", true},
	{KindCiliumClusterwideNetworkPolicy, "CiliumClusterwideNetworkPolicy", "ccnp", "cilium.io/v2", false},
}

// KindName is the kind as a manifest writes it, or "" for an unknown one.
func KindName(k Kind) string {
	for _, e := range kinds {
		if e.kind == k {
			return e.name
		}
	}
	return ""
}

// KindShort is the kind as kubectl abbreviates it: np, cnp or ccnp; "" for an
// unknown one.
func KindShort(k Kind) string {
	for _, e := range kinds {
		if e.kind == k {
			return e.short
		}
	}
	return ""
}

// KindNamespaced tells whether policies of this kind live in a namespace.
func KindNamespaced(k Kind) bool {
	return k == KindNetworkPolicy || k == KindCiliumNetworkPolicy
}

// ParseKind takes a kind's name or abbreviation, case aside. The error is an
// ErrUnsupported.
func ParseKind(s string) (Kind, error) {
	for _, e := range kinds {
		if strings.EqualFold(s, e.name) || strings.EqualFold(s, e.short) {
			return e.kind, nil
		}
	}
	return 0, fmt.Errorf("policy kind %q: %w; use np, cnp or ccnp", s, ErrUnsupported)
}

// RefFromPB checks and converts a reference. The error is an ErrInvalid.
func RefFromPB(pb *eventpb.PolicyRef) (Ref, error) {
	if pb == nil {
		return Ref{}, fmt.Errorf("policy reference: %w: missing", ErrInvalid)
	}
	r := Ref{Kind: pb.Kind, Namespace: pb.Namespace, Name: pb.Name}
	return r, r.Check()
}

// PB is the reference as events hold it.
func (r Ref) PB() *eventpb.PolicyRef {
	return &eventpb.PolicyRef{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
}

// Check tells what is wrong with r. The error is an ErrInvalid.
func (r Ref) Check() error {
	if KindName(r.Kind) == "" {
		return fmt.Errorf("policy %s: %w: unknown kind %d", r.Name, ErrInvalid, r.Kind)
	}
	if problem := checkSubdomain(r.Name); problem != "" {
		return fmt.Errorf("policy name %q: %w: %s", r.Name, ErrInvalid, problem)
	}
	if !KindNamespaced(r.Kind) {
		if r.Namespace != "" {
			return fmt.Errorf("policy %s: %w: a %s has no namespace", r.Name, ErrInvalid, KindName(r.Kind))
		}
		return nil
	}
	if problem := checkDNSLabel(r.Namespace); problem != "" {
		return fmt.Errorf("policy %s: namespace %q: %w: %s", r.Name, r.Namespace, ErrInvalid, problem)
	}
	return nil
}

// String is "cnp/default/web", or "ccnp/web" for a cluster-wide kind.
func (r Ref) String() string {
	short := KindShort(r.Kind)
	if short == "" {
		short = "unknown"
	}
	if KindNamespaced(r.Kind) {
		return short + "/" + r.Namespace + "/" + r.Name
	}
	return short + "/" + r.Name
}

// ParseRef is the inverse of String. The error is an ErrInvalid.
func ParseRef(s string) (Ref, error) {
	parts := strings.Split(s, "/")
	var r Ref
	for _, e := range kinds {
		if parts[0] == e.short {
			r.Kind = e.kind
		}
	}
	switch {
	case KindNamespaced(r.Kind) && len(parts) == 3:
		r.Namespace, r.Name = parts[1], parts[2]
	case r.Kind == KindCiliumClusterwideNetworkPolicy && len(parts) == 2:
		r.Name = parts[1]
	default:
		return Ref{}, fmt.Errorf("policy reference %q: %w; write np/NAMESPACE/NAME, cnp/NAMESPACE/NAME or ccnp/NAME", s, ErrInvalid)
	}
	return r, r.Check()
}

const streamPrefix = "policy/"

// Stream is the name of the policy's stream in the log: "policy/" and String.
func (r Ref) Stream() string { return streamPrefix + r.String() }

// ParseStream is the inverse of Stream. The error is an ErrInvalid.
func ParseStream(stream string) (Ref, error) {
	s, ok := strings.CutPrefix(stream, streamPrefix)
	if !ok {
		return Ref{}, fmt.Errorf("stream %q: %w: not a policy's", stream, ErrInvalid)
	}
	return ParseRef(s)
}

// Compare orders references by kind, namespace and name.
func (r Ref) Compare(o Ref) int {
	return cmp.Or(
		cmp.Compare(r.Kind, o.Kind),
		cmp.Compare(r.Namespace, o.Namespace),
		cmp.Compare(r.Name, o.Name),
	)
}

// String is the direction in lower case.
func (d Direction) String() string {
	switch d {
	case Egress:
		return "egress"
	case Ingress:
		return "ingress"
	}
	return "unknown"
}

var sectionNames = [...]string{
	SectionIngress: "ingress", SectionEgress: "egress",
	SectionIngressDeny: "ingressDeny", SectionEgressDeny: "egressDeny",
}

// String is the section as users write it.
func (s Section) String() string {
	if s == 0 || int(s) >= len(sectionNames) {
		return "unknown"
	}
	return sectionNames[s]
}

// Direction is the side of the subject that the section guards.
func (s Section) Direction() Direction {
	if s == SectionIngress || s == SectionIngressDeny {
		return Ingress
	}
	return Egress
}

// Denies tells whether the section's rules deny.
func (s Section) Denies() bool { return s == SectionIngressDeny || s == SectionEgressDeny }

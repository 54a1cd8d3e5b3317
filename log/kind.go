package log

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/varve-net/varve/log/eventpb"
)

// Kind is the sort of an event: the field number of its payload. Numbers are for
// ever, names are what people see.
type Kind uint32

// Kinds.
const (
	KindPolicySet        Kind = 16
	KindPolicyDeleted    Kind = 17
	KindNamespaceSet     Kind = 20
	KindNamespaceDeleted Kind = 21
	KindEndpointCreated  Kind = 32
	KindEndpointUpdated  Kind = 33
	KindEndpointDeleted  Kind = 34
	KindNodeJoined       Kind = 40
	KindNodeUpdated      Kind = 41
	KindNodeLeft         Kind = 42
	KindDNSObserved      Kind = 56
	KindDNSCollected     Kind = 57

	KindSnapshotStaged    Kind = 104
	KindSnapshotRestored  Kind = 105
	KindSnapshotAbandoned Kind = 106
)

// firstKind is the lowest field number of a payload; those below belong to the
// envelope.
const firstKind = 16

// kindInfo is what holds for every event of a kind.
type kindInfo struct {
	kind Kind
	name string
	// role may append it, and no other.
	role eventpb.Role
	// stream is the subject of the event, from the payload.
	stream func(*eventpb.Event) (subject, error)
	// owner is the node that the payload names, which must be the event's origin.
	// Nil where the payload names none.
	owner func(*eventpb.Event) string
}

// kinds is the table of all kinds, by number. To add one: a field in
// event.proto, a row here, a case in fsm.
var kinds = [...]kindInfo{
	{
		KindPolicySet, "policy-set", eventpb.Role_ROLE_ADMIN,
		func(e *eventpb.Event) (subject, error) { return policyStream(e.GetPolicySet().GetRef()) }, nil,
	},
	{
		KindPolicyDeleted, "policy-deleted", eventpb.Role_ROLE_ADMIN,
		func(e *eventpb.Event) (subject, error) { return policyStream(e.GetPolicyDeleted().GetRef()) }, nil,
	},
	{
		KindNamespaceSet, "namespace-set", eventpb.Role_ROLE_ADMIN,
		func(e *eventpb.Event) (subject, error) { return stream("namespace", e.GetNamespaceSet().GetName()) }, nil,
	},
	{
		KindNamespaceDeleted, "namespace-deleted", eventpb.Role_ROLE_ADMIN,
		func(e *eventpb.Event) (subject, error) {
			return stream("namespace", e.GetNamespaceDeleted().GetName())
		}, nil,
	},
	{
		KindEndpointCreated, "endpoint-created", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return endpointStream(e.GetEndpointCreated().GetRef()) },
		func(e *eventpb.Event) string { return e.GetEndpointCreated().GetNode() },
	},
	{
		KindEndpointUpdated, "endpoint-updated", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return endpointStream(e.GetEndpointUpdated().GetRef()) }, nil,
	},
	{
		KindEndpointDeleted, "endpoint-deleted", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return endpointStream(e.GetEndpointDeleted().GetRef()) }, nil,
	},
	{
		KindNodeJoined, "node-joined", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return stream("node", e.GetNodeJoined().GetName()) },
		func(e *eventpb.Event) string { return e.GetNodeJoined().GetName() },
	},
	{
		KindNodeUpdated, "node-updated", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return stream("node", e.GetNodeUpdated().GetName()) },
		func(e *eventpb.Event) string { return e.GetNodeUpdated().GetName() },
	},
	{
		KindNodeLeft, "node-left", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return stream("node", e.GetNodeLeft().GetName()) },
		func(e *eventpb.Event) string { return e.GetNodeLeft().GetName() },
	},
	{
		KindDNSObserved, "dns-observed", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return dnsStream(e.GetDnsObserved().GetRef()) },
		func(e *eventpb.Event) string { return e.GetDnsObserved().GetNode() },
	},
	{
		KindDNSCollected, "dns-collected", eventpb.Role_ROLE_NODE,
		func(e *eventpb.Event) (subject, error) { return dnsStream(e.GetDnsCollected().GetRef()) },
		func(e *eventpb.Event) string { return e.GetDnsCollected().GetNode() },
	},
	{
		KindSnapshotStaged, "snapshot-staged", eventpb.Role_ROLE_RESTORER,
		func(e *eventpb.Event) (subject, error) { return stream("restore", e.GetSnapshotStaged().GetRestore()) }, nil,
	},
	{
		KindSnapshotRestored, "snapshot-restored", eventpb.Role_ROLE_RESTORER,
		func(e *eventpb.Event) (subject, error) {
			return stream("restore", e.GetSnapshotRestored().GetRestore())
		}, nil,
	},
	{
		KindSnapshotAbandoned, "snapshot-abandoned", eventpb.Role_ROLE_RESTORER,
		func(e *eventpb.Event) (subject, error) {
			return stream("restore", e.GetSnapshotAbandoned().GetRestore())
		}, nil,
	},
}

// byKind finds a kind's row by number; nil where this version knows none.
var byKind = func() (t [128]*kindInfo) {
	for i := range kinds {
		t[kinds[i].kind] = &kinds[i]
	}
	return t
}()

func (k Kind) info() *kindInfo {
	if int(k) >= len(byKind) {
		return nil
	}
	return byKind[k]
}

// Kinds returns every kind that this version knows, by number.
func Kinds() []Kind {
	out := make([]Kind, len(kinds))
	for i := range kinds {
		out[i] = kinds[i].kind
	}
	return out
}

// String is the kind's name, e.g. "policy-set".
func (k Kind) String() string {
	if info := k.info(); info != nil {
		return info.name
	}
	return fmt.Sprintf("kind-%d", uint32(k))
}

// ParseKind is the inverse of Kind.String for the kinds that this version knows.
func ParseKind(name string) (Kind, error) {
	for i := range kinds {
		if kinds[i].name == name {
			return kinds[i].kind, nil
		}
	}
	return 0, fmt.Errorf("kind %.80q: unknown, want e.g. %q", name, kinds[0].name)
}

// IsNodeFact reports whether the kind states facts that only a node may state
// about itself. Only these carry a journal sequence number.
func (k Kind) IsNodeFact() bool {
	info := k.info()
	return info != nil && info.role == eventpb.Role_ROLE_NODE
}

// IsDNSFact reports whether the kind is a fact of a node's DNS proxy. Their sequence
// numbers are the proxy's, apart from those of all other facts of the node.
func (k Kind) IsDNSFact() bool { return k == KindDNSObserved || k == KindDNSCollected }

// KindOf returns the kind of an event's payload: ErrUpgradeNeeded if it is of a
// kind that this version does not know, ErrInvalid if there is none.
func KindOf(e *eventpb.Event) (Kind, error) {
	if e == nil {
		return 0, fmt.Errorf("%w: nil", ErrInvalid)
	}
	if unknown := e.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		for len(unknown) > 0 {
			num, _, n := protowire.ConsumeField(unknown)
			if n < 0 {
				return 0, corruptf("event: %v", protowire.ParseError(n))
			}
			if num >= firstKind {
				return 0, fmt.Errorf("event kind %d is unknown to this version: %w", num, ErrUpgradeNeeded)
			}
			unknown = unknown[n:]
		}
	}
	var k Kind
	var empty bool
	switch p := e.Payload.(type) {
	case *eventpb.Event_PolicySet:
		k, empty = KindPolicySet, p.PolicySet == nil
	case *eventpb.Event_PolicyDeleted:
		k, empty = KindPolicyDeleted, p.PolicyDeleted == nil
	case *eventpb.Event_NamespaceSet:
		k, empty = KindNamespaceSet, p.NamespaceSet == nil
	case *eventpb.Event_NamespaceDeleted:
		k, empty = KindNamespaceDeleted, p.NamespaceDeleted == nil
	case *eventpb.Event_EndpointCreated:
		k, empty = KindEndpointCreated, p.EndpointCreated == nil
	case *eventpb.Event_EndpointUpdated:
		k, empty = KindEndpointUpdated, p.EndpointUpdated == nil
	case *eventpb.Event_EndpointDeleted:
		k, empty = KindEndpointDeleted, p.EndpointDeleted == nil
	case *eventpb.Event_NodeJoined:
		k, empty = KindNodeJoined, p.NodeJoined == nil
	case *eventpb.Event_NodeUpdated:
		k, empty = KindNodeUpdated, p.NodeUpdated == nil
	case *eventpb.Event_NodeLeft:
		k, empty = KindNodeLeft, p.NodeLeft == nil
	case *eventpb.Event_DnsObserved:
		k, empty = KindDNSObserved, p.DnsObserved == nil
	case *eventpb.Event_DnsCollected:
		k, empty = KindDNSCollected, p.DnsCollected == nil
	case *eventpb.Event_SnapshotStaged:
		k, empty = KindSnapshotStaged, p.SnapshotStaged == nil
	case *eventpb.Event_SnapshotRestored:
		k, empty = KindSnapshotRestored, p.SnapshotRestored == nil
	case *eventpb.Event_SnapshotAbandoned:
		k, empty = KindSnapshotAbandoned, p.SnapshotAbandoned == nil
	default:
		empty = true
	}
	if empty {
		return 0, fmt.Errorf("%w: payload: none is set", ErrInvalid)
	}
	return k, nil
}

// StreamOf derives the name of an event's stream from its payload:
//
//	policy/np/NAMESPACE/NAME, policy/cnp/NAMESPACE/NAME, policy/ccnp/NAME
//	namespace/NAME
//	endpoint/NAMESPACE/NAME
//	node/NAME
//	dns/NAMESPACE/NAME, of the endpoint that asked
//	restore/ID, of a snapshot
//
// The error is ErrInvalid where a part of the name is missing or holds a slash,
// otherwise as of KindOf.
func StreamOf(e *eventpb.Event) (string, error) {
	k, err := KindOf(e)
	if err != nil {
		return "", err
	}
	s, err := k.info().stream(e)
	if err != nil {
		return "", err
	}
	return s.String(), nil
}

// CheckStream checks that an event is of the stream that StreamOf gives.
func CheckStream(e *eventpb.Event) error {
	k, err := KindOf(e)
	if err != nil {
		return err
	}
	s, err := k.info().stream(e)
	if err != nil {
		return err
	}
	if !s.is(e.Stream) {
		return fmt.Errorf("stream: %.300q, but the payload is of stream %.300q", e.Stream, s)
	}
	return nil
}

// subject is the name of a stream in its parts. Only the last may be empty.
type subject struct{ prefix, first, second string }

func (s subject) String() string {
	if s.second == "" {
		return s.prefix + "/" + s.first
	}
	return s.prefix + "/" + s.first + "/" + s.second
}

// is tells whether String gives a name, without making it.
func (s subject) is(name string) bool {
	rest, ok := strings.CutPrefix(name, s.prefix)
	for _, part := range [...]string{s.first, s.second} {
		if part == "" {
			break
		}
		ok = ok && strings.HasPrefix(rest, "/") && strings.HasPrefix(rest[1:], part)
		if !ok {
			return false
		}
		rest = rest[1+len(part):]
	}
	return ok && rest == ""
}

func policyStream(ref *eventpb.PolicyRef) (subject, error) {
	switch ref.GetKind() {
	case eventpb.PolicyKind_NETWORK_POLICY:
		return stream("policy/np", ref.GetNamespace(), ref.GetName())
	case eventpb.PolicyKind_CILIUM_NETWORK_POLICY:
		return stream("policy/cnp", ref.GetNamespace(), ref.GetName())
	case eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY:
		if ref.GetNamespace() != "" {
			return subject{}, fmt.Errorf("%w: ref.namespace: must be empty for a cluster-wide policy", ErrInvalid)
		}
		return stream("policy/ccnp", ref.GetName())
	default:
		return subject{}, fmt.Errorf("%w: ref.kind: %v is no kind of policy", ErrInvalid, ref.GetKind())
	}
}

func endpointStream(ref *eventpb.EndpointRef) (subject, error) {
	return stream("endpoint", ref.GetNamespace(), ref.GetName())
}

func dnsStream(ref *eventpb.EndpointRef) (subject, error) {
	return stream("dns", ref.GetNamespace(), ref.GetName())
}

func stream(prefix string, parts ...string) (subject, error) {
	for _, p := range parts {
		if p == "" || strings.IndexByte(p, '/') >= 0 {
			return subject{}, fmt.Errorf("%w: stream %s: name %.80q must be neither empty nor hold a slash", ErrInvalid, prefix, p)
		}
	}
	s := subject{prefix: prefix, first: parts[0]}
	if len(parts) > 1 {
		s.second = parts[1]
	}
	return s, nil
}

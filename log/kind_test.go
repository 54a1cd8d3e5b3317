package log

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/varve-net/varve/log/eventpb"
)

// A kind that is in event.proto but not in the table would be rejected for ever.
func TestKindsAreThoseOfTheProto(t *testing.T) {
	payloads := (&eventpb.Event{}).ProtoReflect().Descriptor().Oneofs().ByName("payload").Fields()
	if payloads.Len() != len(kinds) {
		t.Errorf("event.proto has %d kinds, the table %d", payloads.Len(), len(kinds))
	}
	for i := range payloads.Len() {
		field := payloads.Get(i)
		event := new(eventpb.Event)
		event.ProtoReflect().Set(field, protoreflect.ValueOfMessage(event.ProtoReflect().NewField(field).Message()))
		k, err := KindOf(event)
		if err != nil || k != Kind(field.Number()) {
			t.Errorf("%s: kind %d, %v; want %d", field.Name(), k, err, field.Number())
			continue
		}
		if got, err := ParseKind(k.String()); err != nil || got != k || Kinds()[i] != k {
			t.Errorf("%s: name %q is parsed as %v, %v", field.Name(), k, got, err)
		}
	}
	if _, err := ParseKind("policy-sat"); err == nil {
		t.Error("an unknown name is taken for a kind")
	}
	if s := Kind(200).String(); s != "kind-200" || Kind(200).IsNodeFact() {
		t.Errorf("unknown kind: %q", s)
	}
}

func TestKindOfRefuses(t *testing.T) {
	unknown := func(num protowire.Number) *eventpb.Event {
		e := new(eventpb.Event)
		e.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), 1))
		return e
	}
	beside := unknown(60)
	beside.Payload = &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: "n"}}
	cut := new(eventpb.Event)
	cut.ProtoReflect().SetUnknown([]byte{0x80})
	for name, c := range map[string]struct {
		event *eventpb.Event
		want  error
	}{
		"nil":                    {nil, ErrInvalid},
		"no payload":             {&eventpb.Event{}, ErrInvalid},
		"empty payload":          {&eventpb.Event{Payload: &eventpb.Event_NodeLeft{}}, ErrInvalid},
		"lowest unknown kind":    {unknown(18), ErrUpgradeNeeded},
		"unknown beside known":   {beside, ErrUpgradeNeeded},
		"unknown envelope field": {unknown(15), ErrInvalid},
		"broken unknown":         {cut, ErrCorrupt},
	} {
		if _, err := KindOf(c.event); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func policySet(kind eventpb.PolicyKind, namespace, name string) *eventpb.Event {
	return &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{
		Ref: &eventpb.PolicyRef{Kind: kind, Namespace: namespace, Name: name},
	}}}
}

func TestStreamOf(t *testing.T) {
	const (
		np   = eventpb.PolicyKind_NETWORK_POLICY
		cnp  = eventpb.PolicyKind_CILIUM_NETWORK_POLICY
		ccnp = eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY
	)
	ref := &eventpb.EndpointRef{Namespace: "default", Name: "web"}
	for _, c := range []struct {
		event *eventpb.Event
		want  string // empty: ErrInvalid
	}{
		{policySet(np, "default", "web"), "policy/np/default/web"},
		{policySet(cnp, "default", "web"), "policy/cnp/default/web"},
		{policySet(ccnp, "", "web"), "policy/ccnp/web"},
		{policySet(ccnp, "default", "web"), ""},
		{policySet(cnp, "", "web"), ""},
		{policySet(cnp, "default", ""), ""},
		{policySet(cnp, "a/b", "web"), ""},
		{policySet(9, "default", "web"), ""},
		{policySet(0, "default", "web"), ""},
		{&eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{}}}, ""},
		{&eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{
			Ref: &eventpb.PolicyRef{Kind: np, Namespace: "a", Name: "b"},
		}}}, "policy/np/a/b"},
		{&eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "a"}}}, "namespace/a"},
		{&eventpb.Event{Payload: &eventpb.Event_NamespaceDeleted{NamespaceDeleted: &eventpb.NamespaceDeleted{Name: "a"}}}, "namespace/a"},
		{&eventpb.Event{Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{Ref: ref}}}, "endpoint/default/web"},
		{&eventpb.Event{Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{Ref: ref}}}, "endpoint/default/web"},
		{&eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{Ref: ref}}}, "endpoint/default/web"},
		{&eventpb.Event{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{}}}, ""},
		{&eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "n"}}}, "node/n"},
		{&eventpb.Event{Payload: &eventpb.Event_NodeUpdated{NodeUpdated: &eventpb.NodeUpdated{Name: "n"}}}, "node/n"},
		{&eventpb.Event{Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: "n"}}}, "node/n"},
		{&eventpb.Event{Payload: &eventpb.Event_DnsObserved{DnsObserved: &eventpb.DnsObserved{Ref: ref}}}, "dns/default/web"},
		{&eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: &eventpb.DnsCollected{Ref: ref}}}, "dns/default/web"},
		{&eventpb.Event{Payload: &eventpb.Event_DnsCollected{DnsCollected: &eventpb.DnsCollected{}}}, ""},
		{&eventpb.Event{Payload: &eventpb.Event_SnapshotStaged{SnapshotStaged: &eventpb.SnapshotStaged{Restore: "r"}}}, "restore/r"},
		{&eventpb.Event{Payload: &eventpb.Event_SnapshotRestored{SnapshotRestored: &eventpb.SnapshotRestored{Restore: "r"}}}, "restore/r"},
		{&eventpb.Event{Payload: &eventpb.Event_SnapshotAbandoned{SnapshotAbandoned: &eventpb.SnapshotAbandoned{Restore: "r"}}}, "restore/r"},
		{&eventpb.Event{Payload: &eventpb.Event_SnapshotAbandoned{SnapshotAbandoned: &eventpb.SnapshotAbandoned{}}}, ""},
	} {
		got, err := StreamOf(c.event)
		if got != c.want || (c.want == "") != errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %q, %v; want %q", c.event, got, err, c.want)
		}
	}
}

// The whole matrix: role by kind by origin.
func TestAuthorize(t *testing.T) {
	ref := &eventpb.EndpointRef{Namespace: "default", Name: "web"}
	node := map[string]*eventpb.Event{
		"endpoint-created": {Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{Ref: ref, Node: "n1"}}},
		"endpoint-updated": {Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{Ref: ref}}},
		"endpoint-deleted": {Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{Ref: ref}}},
		"node-joined":      {Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "n1"}}},
		"node-updated":     {Payload: &eventpb.Event_NodeUpdated{NodeUpdated: &eventpb.NodeUpdated{Name: "n1"}}},
		"node-left":        {Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: "n1"}}},
		"dns-observed":     {Payload: &eventpb.Event_DnsObserved{DnsObserved: &eventpb.DnsObserved{Ref: ref, Node: "n1"}}},
		"dns-collected":    {Payload: &eventpb.Event_DnsCollected{DnsCollected: &eventpb.DnsCollected{Ref: ref, Node: "n1"}}},
	}
	admin := map[string]*eventpb.Event{
		"policy-set":        policySet(1, "default", "web"),
		"policy-deleted":    {Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{}}},
		"namespace-set":     {Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{}}},
		"namespace-deleted": {Payload: &eventpb.Event_NamespaceDeleted{NamespaceDeleted: &eventpb.NamespaceDeleted{}}},
	}
	restorer := map[string]*eventpb.Event{
		"snapshot-staged":    {Payload: &eventpb.Event_SnapshotStaged{SnapshotStaged: &eventpb.SnapshotStaged{}}},
		"snapshot-restored":  {Payload: &eventpb.Event_SnapshotRestored{SnapshotRestored: &eventpb.SnapshotRestored{}}},
		"snapshot-abandoned": {Payload: &eventpb.Event_SnapshotAbandoned{SnapshotAbandoned: &eventpb.SnapshotAbandoned{}}},
	}
	if n := len(node) + len(admin) + len(restorer); n != len(kinds) {
		t.Fatalf("%d kinds are tested of %d", n, len(kinds))
	}
	check := func(name string, e *eventpb.Event, role eventpb.Role, origin string, want bool) {
		e.Actor, e.Origin = &eventpb.Actor{Role: role}, &eventpb.Origin{Node: origin}
		err := Authorize(e)
		if (err == nil) != want || err != nil && !errors.Is(err, ErrForbidden) {
			t.Errorf("%s by %v of %q: %v, want allowed %v", name, role, origin, err, want)
		}
	}
	for _, role := range []eventpb.Role{0, eventpb.Role_ROLE_ADMIN, eventpb.Role_ROLE_NODE, eventpb.Role_ROLE_READER, eventpb.Role_ROLE_RESTORER, 17} {
		for _, origin := range []string{"", "n1", "n2"} {
			for name, e := range admin {
				check(name, e, role, origin, role == eventpb.Role_ROLE_ADMIN)
			}
			for name, e := range restorer {
				check(name, e, role, origin, role == eventpb.Role_ROLE_RESTORER)
			}
			for name, e := range node {
				// The owner of a live endpoint only the state knows.
				named := name != "endpoint-updated" && name != "endpoint-deleted"
				own := origin == "n1" || origin == "n2" && !named
				check(name, e, role, origin, role == eventpb.Role_ROLE_NODE && own)
			}
		}
	}
	if err := Authorize(policySet(1, "a", "b")); !errors.Is(err, ErrForbidden) {
		t.Errorf("without actor: %v", err)
	}
	if err := Authorize(&eventpb.Event{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("without payload: %v", err)
	}
}

func TestCheckStreamIsStreamOf(t *testing.T) {
	for _, e := range []*eventpb.Event{
		{Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: "a"}}},
		{Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{Ref: &eventpb.EndpointRef{Namespace: "a", Name: "b"}}}},
		{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_CLUSTERWIDE_NETWORK_POLICY, Name: "a"}}}},
		{Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: "a/b"}}},
		{Payload: &eventpb.Event_NodeLeft{}},
		{},
	} {
		want, wantErr := StreamOf(e)
		for _, name := range []string{
			"node/a", "node/a/", "node/ab", "node/", "node", "nod", "", "node/a/b", "node//a",
			"endpoint/a/b", "endpoint/a", "endpoint/ab", "endpoint/a/b/", "endpoint/a/bc", "endpoint/aa/b", "endpointa/b",
			"policy/ccnp/a", "policy/ccnp/", "policy/cnp/a",
		} {
			e.Stream = name
			if err := CheckStream(e); (err == nil) != (wantErr == nil && name == want) {
				t.Errorf("%q of an event of %q (%v): %v", name, want, wantErr, err)
			}
		}
	}
}

package apiserver

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

func namespaceSet(name, label string) *eventpb.Event {
	return &eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: name, Labels: map[string]string{"l": label}}}}
}

func (k *kit) append(t *testing.T, events ...*eventpb.Event) []*varvev1.AppendResult {
	t.Helper()
	resp, err := k.Log.Append(t.Context(), connect.NewRequest(&varvev1.AppendRequest{Events: events}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg.Results
}

func TestAppendOutcomes(t *testing.T) {
	k := newKit(t)
	first := namespaceSet("shop", "a")
	first.RequestId = "once"
	applied := k.append(t, first)[0]
	if applied.Outcome != varvev1.Outcome_OUTCOME_APPLIED || applied.Revision != 2 {
		t.Fatalf("first append: %v", applied)
	}
	if r := k.append(t, first)[0]; r.Outcome != varvev1.Outcome_OUTCOME_REPEAT || r.Revision != applied.Revision {
		t.Errorf("the same request again: %v, want a repeat of revision %d", r, applied.Revision)
	}
	stale := namespaceSet("shop", "b")
	stale.ExpectedRevision = proto.Uint64(1)
	if r := k.append(t, stale)[0]; r.Outcome != varvev1.Outcome_OUTCOME_CONFLICT || r.Revision != applied.Revision {
		t.Errorf("stale expected revision: %v, want a conflict at %d", r, applied.Revision)
	}
	fresh := namespaceSet("shop", "b")
	fresh.ExpectedRevision = proto.Uint64(applied.Revision)
	if r := k.append(t, fresh)[0]; r.Outcome != varvev1.Outcome_OUTCOME_APPLIED {
		t.Errorf("right expected revision: %v", r)
	}
	if r := k.append(t, &eventpb.Event{Payload: &eventpb.Event_NamespaceDeleted{NamespaceDeleted: &eventpb.NamespaceDeleted{Name: "nowhere"}}})[0]; r.Outcome != varvev1.Outcome_OUTCOME_REJECTED || r.Reason == "" || r.Revision != 4 {
		t.Errorf("deletion of nothing: %v, want a recorded rejection at revision 4", r)
	}
}

func TestAppendTakesNoAuthorityFromTheClient(t *testing.T) {
	k := newKit(t)
	forged := namespaceSet("shop", "a")
	forged.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "somebody else"}
	forged.Origin = &eventpb.Origin{Cluster: "other", Node: "other"}
	forged.Stream, forged.TimeUnixNs, forged.JournalSeq = "policy/cnp/default/x", 1, 99
	k.append(t, forged)
	var got *eventpb.Event
	stream, err := k.Log.Read(t.Context(), connect.NewRequest(&varvev1.ReadRequest{First: 2}))
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		got = stream.Msg().Event
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if got.Actor.Role != eventpb.Role_ROLE_ADMIN || !strings.HasPrefix(got.Actor.Name, "unix:uid=") || got.Origin.Node != testNode ||
		got.Stream != "namespace/shop" || got.TimeUnixNs == 1 || got.JournalSeq != 0 {
		t.Errorf("recorded %v", got)
	}
}

func TestUsersAppendNoFactsOfNodes(t *testing.T) {
	k := newKit(t)
	for name, e := range map[string]*eventpb.Event{
		"endpoint created": {Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{Ref: &eventpb.EndpointRef{Namespace: "default", Name: "x"}, Node: testNode}}},
		"endpoint deleted": {Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{Ref: &eventpb.EndpointRef{Namespace: "default", Name: "x"}}}},
		"node joined":      {Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: testNode}}},
		"node left":        {Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: testNode}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k.Log.Append(t.Context(), connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{e}}))
			codeIs(t, err, connect.CodePermissionDenied)
		})
	}
	if head, _ := k.log.Head(); head != 1 {
		t.Errorf("head is %d, want 1: refused events leave no trace", head)
	}
}

func TestAppendRefusesWhatIsNoEvent(t *testing.T) {
	k := newKit(t)
	for name, req := range map[string]*varvev1.AppendRequest{
		"nothing":    {},
		"no payload": {Events: []*eventpb.Event{{RequestId: "x"}}},
		"long id":    {Events: []*eventpb.Event{{RequestId: strings.Repeat("x", maxRequestIDBytes+1), Payload: namespaceSet("a", "b").Payload}}},
		"bad policy": {Events: []*eventpb.Event{{Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{Manifest: "kind: Nonsense"}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := k.Log.Append(t.Context(), connect.NewRequest(req))
			codeIs(t, err, connect.CodeInvalidArgument)
		})
	}
}

func TestReadRangesAndFilters(t *testing.T) {
	k := newKit(t)
	for _, n := range []string{"a", "b", "c"} {
		k.append(t, namespaceSet(n, "x"))
	}
	for _, tt := range []struct {
		name string
		req  *varvev1.ReadRequest
		want []uint64
	}{
		{"all", &varvev1.ReadRequest{}, []uint64{1, 2, 3, 4}},
		{"from", &varvev1.ReadRequest{First: 3}, []uint64{3, 4}},
		{"to", &varvev1.ReadRequest{Last: 2}, []uint64{1, 2}},
		{"beyond the head", &varvev1.ReadRequest{First: 4, Last: 100}, []uint64{4}},
		{"after the head", &varvev1.ReadRequest{First: 9}, nil},
		{"backwards", &varvev1.ReadRequest{First: 3, Last: 2}, nil},
		{"one kind", &varvev1.ReadRequest{Filter: &varvev1.Filter{Kinds: []string{"node-joined"}}}, []uint64{1}},
		{"one stream", &varvev1.ReadRequest{Filter: &varvev1.Filter{StreamPrefixes: []string{"namespace/b"}}}, []uint64{3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stream, err := k.Log.Read(t.Context(), connect.NewRequest(tt.req))
			if err != nil {
				t.Fatal(err)
			}
			var got []uint64
			for stream.Receive() {
				got = append(got, stream.Msg().Revision)
			}
			if err := stream.Err(); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
	stream, err := k.Log.Read(t.Context(), connect.NewRequest(&varvev1.ReadRequest{Filter: &varvev1.Filter{Kinds: []string{"policyset"}}}))
	if err == nil {
		stream.Receive()
		err = stream.Err()
	}
	codeIs(t, err, connect.CodeInvalidArgument)
}

func TestSubscribeGivesThePastAndThenThePresent(t *testing.T) {
	k := newKit(t)
	k.append(t, namespaceSet("before", "x"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := k.Log.Subscribe(ctx, connect.NewRequest(&varvev1.SubscribeRequest{Tail: proto.Uint64(1)}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for i, name := range []string{"before", "during", "later"} {
		if i > 0 {
			k.append(t, namespaceSet(name, "x"))
		}
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		if got := stream.Msg().Event.GetNamespaceSet().GetName(); got != name {
			t.Fatalf("record %d is of namespace %q, want %q", i, got, name)
		}
	}
}

func TestVerifyReplaysFromZero(t *testing.T) {
	k := newKit(t)
	k.endpoint(t, "web", "web", "10.1.0.2", 2)
	for _, n := range []string{"a", "b", "default"} {
		k.append(t, namespaceSet(n, "x"))
	}
	resp, err := k.Log.Verify(t.Context(), connect.NewRequest(&varvev1.VerifyRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	v := resp.Msg
	if v.Problem != "" || v.First != 1 || v.Last != 5 || !cmp.Equal(v.ReplayDigest, v.StateDigest) || len(v.StateDigest) != 32 {
		t.Errorf("%v", v)
	}
}

package apiserver

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

func TestStreamAnswersInOrder(t *testing.T) {
	k := newKit(t)
	a := k.NewAppender(t.Context())
	var pending []*api.PendingAppend
	for i := range 1000 {
		p, err := a.Begin(t.Context(), namespaceSet(fmt.Sprintf("ns-%d", i%7), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, p)
	}
	for i, p := range pending {
		answer, err := p.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Revision 1 is the kit's own.
		if r := answer.Results[0]; r.Outcome != varvev1.Outcome_OUTCOME_APPLIED || r.Revision != uint64(i)+2 || answer.Head != r.Revision {
			t.Fatalf("group %d: %v", i, answer)
		}
	}
	if err := a.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := a.Append(t.Context(), namespaceSet("late", "x")); err == nil {
		t.Error("a closed appender took a group")
	}
	if head, _ := k.log.Head(); head != 1001 {
		t.Errorf("head is %d, want 1001", head)
	}
}

// Each group is answered as Append would have, and none disturbs another.
func TestStreamAnswersAsAppend(t *testing.T) {
	k := newKit(t)
	once := namespaceSet("shop", "a")
	once.RequestId = "once"
	stale := namespaceSet("shop", "b")
	stale.ExpectedRevision = proto.Uint64(1)
	long := namespaceSet("shop", "c")
	long.RequestId = strings.Repeat("x", 65)
	fact := &eventpb.Event{Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: testNode}}}
	bad := &eventpb.Event{Payload: &eventpb.Event_PolicySet{PolicySet: &eventpb.PolicySet{Manifest: "kind: CiliumNetworkPolicy\n"}}}
	a := k.NewAppender(t.Context())
	groups := []struct {
		name    string
		events  []*eventpb.Event
		code    connect.Code
		outcome varvev1.Outcome
	}{
		{"applied", []*eventpb.Event{once}, 0, varvev1.Outcome_OUTCOME_APPLIED},
		{"no events", nil, connect.CodeInvalidArgument, 0},
		{"long request id", []*eventpb.Event{long}, connect.CodeInvalidArgument, 0},
		{"no payload", []*eventpb.Event{{}}, connect.CodeInvalidArgument, 0},
		{"a node's fact", []*eventpb.Event{fact}, connect.CodePermissionDenied, 0},
		{"bad policy", []*eventpb.Event{bad}, connect.CodeInvalidArgument, 0},
		{"not UTF-8", []*eventpb.Event{namespaceSet("shop", "\xff")}, connect.CodeInvalidArgument, 0},
		{"conflict", []*eventpb.Event{stale}, 0, varvev1.Outcome_OUTCOME_CONFLICT},
		{"repeat", []*eventpb.Event{once}, 0, varvev1.Outcome_OUTCOME_REPEAT},
	}
	pending := make([]*api.PendingAppend, len(groups))
	for i, g := range groups {
		var err error
		if pending[i], err = a.Begin(t.Context(), g.events...); err != nil {
			t.Fatal(err)
		}
	}
	for i, g := range groups {
		answer, err := pending[i].Wait(t.Context())
		if g.code != 0 {
			if connect.CodeOf(err) != g.code {
				t.Errorf("%s: %v, want code %s", g.name, err, g.code)
			}
			_, unary := k.Log.Append(t.Context(), connect.NewRequest(&varvev1.AppendRequest{Events: g.events}))
			if unary == nil || unary.Error() != err.Error() {
				t.Errorf("%s: the stream says %v, Append %v", g.name, err, unary)
			}
			if len(api.PolicyErrors(err)) != len(api.PolicyErrors(unary)) {
				t.Errorf("%s: details %v, of Append %v", g.name, api.PolicyErrors(err), api.PolicyErrors(unary))
			}
			continue
		}
		if err != nil || answer.Results[0].Outcome != g.outcome {
			t.Errorf("%s: %v, %v", g.name, answer, err)
		}
	}
	if err := a.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStreamTakesNoAuthorityFromTheClient(t *testing.T) {
	k := newKit(t)
	forged := namespaceSet("shop", "a")
	forged.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "somebody else"}
	forged.Origin = &eventpb.Origin{Cluster: "other", Node: "other"}
	forged.JournalSeq = 99
	a := k.NewAppender(t.Context())
	if _, err := a.Append(t.Context(), forged); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(t.Context()); err != nil {
		t.Error(err)
	}
	stream, err := k.Log.Read(t.Context(), connect.NewRequest(&varvev1.ReadRequest{First: 2}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	if e := stream.Msg().Event; e.Actor.Role != eventpb.Role_ROLE_ADMIN || e.Origin.Node != testNode || e.JournalSeq != 0 {
		t.Errorf("recorded %v", e)
	}
}

func TestStreamIsShared(t *testing.T) {
	k := newKit(t)
	a := k.NewAppender(t.Context())
	var wait sync.WaitGroup
	for client := range 20 {
		wait.Go(func() {
			for i := range 50 {
				e := namespaceSet(fmt.Sprintf("ns-%d", client), fmt.Sprint(i))
				e.GetNamespaceSet().Labels["pad"] = strings.Repeat("x", 40)
				if _, err := a.Append(t.Context(), e); err != nil {
					t.Errorf("client %d: %v", client, err)
					return
				}
			}
		})
	}
	wait.Wait()
	if err := a.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if head, _ := k.log.Head(); head != 1001 {
		t.Errorf("head is %d, want 1001", head)
	}
}

// Calls of Append at the same time share a stream: their answers are still their own.
func TestAppendsAtTheSameTime(t *testing.T) {
	k := newKit(t)
	var wait sync.WaitGroup
	var applied sync.Map
	for client := range 20 {
		wait.Go(func() {
			for i := range 30 {
				e := namespaceSet(fmt.Sprintf("ns-%d", client), fmt.Sprint(i))
				if i%7 == 3 {
					e.ExpectedRevision = proto.Uint64(1) // the stream is at another one
				}
				resp, err := k.Log.Append(t.Context(), connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{e}}))
				if err != nil {
					t.Errorf("client %d: %v", client, err)
					return
				}
				r := resp.Msg.Results[0]
				if i%7 == 3 {
					if r.Outcome != varvev1.Outcome_OUTCOME_CONFLICT {
						t.Errorf("client %d, event %d: %v, want a conflict", client, i, r)
					}
					continue
				}
				if _, twice := applied.LoadOrStore(r.Revision, e); twice || r.Outcome != varvev1.Outcome_OUTCOME_APPLIED {
					t.Errorf("client %d, event %d: %v", client, i, r)
				}
			}
		})
	}
	wait.Wait()
	stream, err := k.Log.Read(t.Context(), connect.NewRequest(&varvev1.ReadRequest{First: 2}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		want, _ := applied.LoadAndDelete(stream.Msg().Revision)
		if e, _ := want.(*eventpb.Event); e == nil || !proto.Equal(stream.Msg().Event.GetNamespaceSet(), e.GetNamespaceSet()) {
			t.Errorf("revision %d is %v, its caller appended %v", stream.Msg().Revision, stream.Msg().Event, want)
		}
	}
	if err := stream.Err(); err != nil {
		t.Error(err)
	}
	applied.Range(func(revision, _ any) bool {
		t.Errorf("revision %d was acknowledged and is not there", revision)
		return true
	})
}

// An idle stream does not hold up an agent that stops.
func TestStreamEndsWithTheServer(t *testing.T) {
	k := newKit(t)
	a := k.NewAppender(context.Background())
	if _, err := a.Append(t.Context(), namespaceSet("shop", "a")); err != nil {
		t.Fatal(err)
	}
	k.stop()
	if err := a.Close(t.Context()); connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "the agent stops") {
		t.Errorf("close: %v", err)
	}
}

func TestStreamEndsWithItsContext(t *testing.T) {
	k := newKit(t)
	ctx, cancel := context.WithCancel(t.Context())
	a := k.NewAppender(ctx)
	if _, err := a.Append(ctx, namespaceSet("shop", "a")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := a.Close(t.Context()); connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("close: %v", err)
	}
	if _, err := a.Append(t.Context(), namespaceSet("shop", "b")); err == nil {
		t.Error("an appender whose context has ended took a group")
	}
}

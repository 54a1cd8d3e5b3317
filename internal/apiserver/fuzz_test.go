package apiserver

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// methods are the unary calls whose bodies are fuzzed.
var methods = []string{
	"LogService/Append", "PolicyService/Apply", "PolicyService/Validate", "PolicyService/Get", "PolicyService/Delete",
	"NamespaceService/Apply", "EndpointService/Add", "EndpointService/SetLabels", "EndpointService/Configure", "EndpointService/Get", "EndpointService/Delete",
	"DatapathService/Dump", "IdentityService/List",
}

// FuzzRequest posts any body to any unary method, as protobuf and as JSON: the
// server answers (a panic would break the connection), never with an internal
// error, and what gets into the log has the actor, origin and stream that the
// server gave it.
func FuzzRequest(f *testing.F) {
	forged := namespaceSet("shop", "a")
	forged.Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "somebody else"}
	forged.Origin = &eventpb.Origin{Cluster: "other", Node: "other"}
	forged.Stream, forged.TimeUnixNs, forged.JournalSeq = "node/n1", 1, 99
	joined := &eventpb.Event{Actor: forged.Actor, Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{Name: "evil"}}}
	for i, m := range map[int]proto.Message{
		0: &varvev1.AppendRequest{Events: []*eventpb.Event{forged, joined}},
		1: &varvev1.ApplyPolicyRequest{Manifest: "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec: {endpointSelector: {}}\n", RequestId: "r"},
		5: &varvev1.ApplyNamespaceRequest{Name: "shop", Labels: map[string]string{"a": "b"}},
		6: &varvev1.AddEndpointRequest{Name: "x", Netns: "/proc/1/ns/net"},
	} {
		binary, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		text, err := protojson.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), false, binary)
		f.Add(uint8(i), true, text)
		f.Add(uint8(i), false, binary[:len(binary)/2])
		f.Add(uint8(i), true, text[:len(text)/2])
	}
	f.Add(uint8(0), true, []byte(`{"events":[null,{}]}`))
	f.Add(uint8(0), true, []byte(`{"events":[{"namespaceSet":null,"expectedRevision":"-1"}]}`))

	f.Fuzz(func(t *testing.T, method uint8, asJSON bool, body []byte) {
		// A log of its own: what a body does must not hang on the ones before it.
		k := newKit(t)
		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", k.socket)
		}}}
		defer client.CloseIdleConnections()
		before, _ := k.log.Head()
		kind := "application/proto"
		if asJSON {
			kind = "application/json"
		}
		name := methods[int(method)%len(methods)]
		resp, err := client.Post("http://varve/varve.v1."+name, kind, bytes.NewReader(body))
		if err != nil {
			t.Fatalf("%s: no answer: %v", name, err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusInternalServerError {
			t.Fatalf("%s: an internal error: %s", name, answer)
		}
		after, _ := k.log.Head()
		if after == before {
			return
		}
		err = k.log.Read(t.Context(), before+1, after, func(r log.Record) error {
			var e eventpb.Event
			if err := proto.Unmarshal(r.Event, &e); err != nil {
				return err
			}
			stream, err := log.StreamOf(&e)
			if err != nil {
				return err
			}
			if e.Actor.GetRole() != eventpb.Role_ROLE_ADMIN || !strings.HasPrefix(e.Actor.GetName(), "unix:uid=") ||
				e.Origin.GetCluster() != testCluster || e.Origin.GetNode() != testNode || e.Stream != stream || e.JournalSeq != 0 {
				t.Errorf("%s recorded %v", name, &e)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

package log

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/log/eventpb"
)

func endpointEvents() []*eventpb.Event {
	ref := func(name string) *eventpb.EndpointRef { return &eventpb.EndpointRef{Namespace: "shop", Name: name} }
	expected := uint64(7)
	return []*eventpb.Event{
		{
			TimeUnixNs: 1, Actor: &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "node:a"}, Origin: &eventpb.Origin{Cluster: "c", Node: "a"},
			RequestId: "r", Stream: "endpoint/shop/cart", ExpectedRevision: &expected, JournalSeq: 3,
			Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
				Ref: ref("cart"), Incarnation: 2, Node: "a", Labels: map[string]string{"app": "cart", "tier": "web"}, ServiceAccount: "robot",
				Addresses: [][]byte{{10, 0, 0, 1}, {11: 1, 15: 2}}, Mac: []byte{2, 0, 0, 0, 0, 1}, NamedPorts: []*eventpb.NamedPort{{Name: "http", Protocol: 6, Port: 80}},
				HostInterface: "vv1", Netns: "/run/netns/x", ContainerInterface: "eth0", NetnsId: "4:1", PolicyAuditMode: true, Mtu: 9000, BigTcp: true,
			}},
		},
		{
			Actor: &eventpb.Actor{Role: eventpb.Role_ROLE_NODE}, Origin: &eventpb.Origin{Cluster: "c", Node: "b"}, Stream: "endpoint/shop/till",
			Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{
				Ref: ref("till"), Incarnation: 1, Labels: map[string]string{"app": "till"}, ServiceAccount: "other",
				NamedPorts: []*eventpb.NamedPort{{Name: "dns", Protocol: 17, Port: 53}}, PolicyAuditMode: true, Mtu: 1400, BigTcp: true,
			}},
		},
		{Stream: "x", Payload: &eventpb.Event_EndpointUpdated{EndpointUpdated: &eventpb.EndpointUpdated{Ref: ref("bare")}}},
		{Stream: "y", Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{Ref: ref("bare")}}},
		{Stream: "z", Payload: &eventpb.Event_EndpointDeleted{EndpointDeleted: &eventpb.EndpointDeleted{Ref: ref("cart"), Incarnation: 2}}},
		{Stream: "node/a", Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: "a"}}},
	}
}

// A Decoder gives what Unmarshal gives, whatever it decoded before. What was absent is
// an empty message, which says the same.
func sameDecoded(t *testing.T, d *Decoder, b []byte) {
	t.Helper()
	want, wantErr := Unmarshal(b)
	got, err := d.Unmarshal(b)
	if (err == nil) != (wantErr == nil) || errors.Is(err, ErrCorrupt) != errors.Is(wantErr, ErrCorrupt) || errors.Is(err, ErrUpgradeNeeded) != errors.Is(wantErr, ErrUpgradeNeeded) {
		t.Fatalf("%x: error %v, Unmarshal's is %v", b, err, wantErr)
	}
	if err != nil {
		return
	}
	got, want = proto.CloneOf(got), proto.CloneOf(want)
	for _, e := range []*eventpb.Event{got, want} {
		if e.Actor == nil {
			e.Actor = new(eventpb.Actor)
		}
		if e.Origin == nil {
			e.Origin = new(eventpb.Origin)
		}
		switch p := e.Payload.(type) {
		case *eventpb.Event_EndpointCreated:
			if p.EndpointCreated.Ref == nil {
				p.EndpointCreated.Ref = new(eventpb.EndpointRef)
			}
		case *eventpb.Event_EndpointUpdated:
			if p.EndpointUpdated.Ref == nil {
				p.EndpointUpdated.Ref = new(eventpb.EndpointRef)
			}
		case *eventpb.Event_EndpointDeleted:
			if p.EndpointDeleted.Ref == nil {
				p.EndpointDeleted.Ref = new(eventpb.EndpointRef)
			}
		}
	}
	if !proto.Equal(got, want) {
		t.Fatalf("%x: %v, Unmarshal gives %v", b, got, want)
	}
}

func TestDecoderIsUnmarshal(t *testing.T) {
	var d Decoder
	events := endpointEvents()
	for _, first := range events {
		for _, then := range events {
			for _, e := range []*eventpb.Event{first, then} {
				b, err := Marshal(e)
				if err != nil {
					t.Fatal(err)
				}
				sameDecoded(t, &d, b)
				sameDecoded(t, &d, b[:len(b)-1])
			}
		}
	}
	sameDecoded(t, &d, bytes.Repeat([]byte{0x80}, MaxEventBytes+1))
	b, err := Marshal(events[0])
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := d.Unmarshal(b); err != nil {
			t.Fatal(err)
		}
	}); n > 4 { // the expected revision, and a named port with its list
		t.Errorf("%v allocations for an event about an endpoint", n)
	}
}

func FuzzDecoder(f *testing.F) {
	for _, e := range endpointEvents() {
		b, err := Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var d Decoder
		sameDecoded(t, &d, a)
		sameDecoded(t, &d, b)
	})
}

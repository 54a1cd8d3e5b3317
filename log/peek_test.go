package log

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/varve-net/varve/log/eventpb"
)

func TestPeekStream(t *testing.T) {
	expected := uint64(4)
	b, err := Marshal(&eventpb.Event{
		TimeUnixNs: 17, Actor: &eventpb.Actor{Name: "unix:uid=0"}, RequestId: "r", Stream: "node/one", ExpectedRevision: &expected,
		Payload: &eventpb.Event_NodeLeft{NodeLeft: &eventpb.NodeLeft{Name: "one"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	last := protowire.AppendString(protowire.AppendTag(protowire.AppendVarint(protowire.AppendTag(nil, 7, protowire.VarintType), 1), 5, protowire.BytesType), "node/two")
	for _, c := range []struct {
		name, want string
		event      []byte
	}{
		{"as marshalled", "node/one", b},
		{"out of order", "node/two", last},
		{"cut short", "", b[:len(b)-30]},
		{"no event", "", []byte{0xff, 0xff}},
		{"empty", "", nil},
	} {
		if got := string(PeekStream(c.event)); got != c.want && c.want != "" {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for cut := range len(b) {
		if got := string(PeekStream(b[:cut])); got != "" && got != "node/one" {
			t.Errorf("cut at %d: %q", cut, got)
		}
	}
}

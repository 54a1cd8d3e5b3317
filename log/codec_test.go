package log

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/log/eventpb"
)

func labelled(labels map[string]string) *eventpb.Event {
	return &eventpb.Event{
		TimeUnixNs: 1_700_000_000_000_000_000,
		Actor:      &eventpb.Actor{Role: eventpb.Role_ROLE_NODE, Name: "unix:uid=0,gid=0,pid=1"},
		Origin:     &eventpb.Origin{Cluster: "c", Node: "n1"},
		RequestId:  "r1",
		Stream:     "endpoint/default/web",
		JournalSeq: 7,
		Payload: &eventpb.Event_EndpointCreated{EndpointCreated: &eventpb.EndpointCreated{
			Ref: &eventpb.EndpointRef{Namespace: "default", Name: "web"}, Incarnation: 1, Node: "n1", Labels: labels,
		}},
	}
}

func TestMarshalRoundTripIsCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := rapid.MapOfN(rapid.StringMatching(`[a-z]{1,9}`), rapid.String(), 0, 12).Draw(t, "labels")
		e := labelled(labels)
		b, err := Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Marshal(proto.Clone(e).(*eventpb.Event))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, again) {
			t.Fatalf("two encodings of one event:\n%x\n%x", b, again)
		}
		got, err := Unmarshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, e) {
			t.Fatalf("got %v, want %v", got, e)
		}
		// The order of map entries, which protobuf leaves open, is no part of a request.
		loose, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if Fingerprint(loose, e) != Fingerprint(b, e) {
			t.Fatal("the fingerprint depends on the order of map entries")
		}
	})
}

func TestFingerprintCoversTheRequestOnly(t *testing.T) {
	fingerprint := func(change func(*eventpb.Event)) Hash {
		e := labelled(map[string]string{"app": "web"})
		change(e)
		b, err := Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return Fingerprint(b, e)
	}
	base := fingerprint(func(*eventpb.Event) {})
	for name, c := range map[string]struct {
		change func(*eventpb.Event)
		same   bool
	}{
		"time":     {func(e *eventpb.Event) { e.TimeUnixNs++ }, true},
		"pid":      {func(e *eventpb.Event) { e.Actor.Name = "unix:uid=0,gid=0,pid=2" }, true},
		"taken by": {func(e *eventpb.Event) { e.Origin.Node = "n2" }, true},
		"role":     {func(e *eventpb.Event) { e.Actor.Role = eventpb.Role_ROLE_ADMIN }, false},
		"stream":   {func(e *eventpb.Event) { e.Stream = "x" }, false},
		"expected": {func(e *eventpb.Event) { e.ExpectedRevision = new(uint64) }, false},
		"sequence": {func(e *eventpb.Event) { e.JournalSeq++ }, false},
		"payload":  {func(e *eventpb.Event) { e.GetEndpointCreated().Labels["app"] = "db" }, false},
	} {
		if same := fingerprint(c.change) == base; same != c.same {
			t.Errorf("%s: same fingerprint is %v, want %v", name, same, c.same)
		}
	}
}

func TestUnmarshalIsStrict(t *testing.T) {
	valid, err := Marshal(labelled(map[string]string{"app": "web"}))
	if err != nil {
		t.Fatal(err)
	}
	field := func(num protowire.Number, body ...byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), body)
	}
	number := func(num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
	}
	with := func(b []byte) []byte { return append(bytes.Clone(valid), b...) }
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"valid":                       {valid, nil},
		"empty":                       {nil, nil},
		"unknown kind":                {field(48, 1, 2), ErrUpgradeNeeded},
		"unknown kind beside a known": {with(field(111)), ErrUpgradeNeeded},
		"unknown envelope field":      {with(number(8, 1)), ErrUpgradeNeeded},
		"unknown number far off":      {with(number(1<<28, 1)), ErrUpgradeNeeded},
		"unknown field in an actor":   {field(2, number(3, 1)...), ErrUpgradeNeeded},
		"unknown field deep inside":   {field(16, field(2, field(4, number(9, 1)...)...)...), ErrUpgradeNeeded},
		"unknown, then cut off":       {append(field(48), 0x0a), ErrCorrupt},
		"cut off":                     {valid[:len(valid)-1], ErrCorrupt},
		"group":                       {[]byte{0x43, 0x44}, ErrCorrupt},
		"wire type":                   {number(2, 1), ErrCorrupt},
		"tag 0":                       {[]byte{0x00, 0x00}, ErrCorrupt},
		"field twice":                 {with(number(7, 1)), ErrCorrupt},
		"two payloads":                {with(field(16)), ErrCorrupt},
		"not UTF-8":                   {field(4, 0xff), ErrCorrupt},
		"role out of range":           {field(2, number(1, 1<<32+1)...), ErrCorrupt},
		"number out of range":         {field(32, field(8, number(3, 1<<32+80)...)...), ErrCorrupt},
		"bool out of range":           {field(40, number(4, 2)...), ErrCorrupt},
		"overlong varint":             {[]byte{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, ErrCorrupt},
		"too long":                    {make([]byte, MaxEventBytes+1), ErrCorrupt},
	} {
		if _, err := Unmarshal(c.in); !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestMarshalRefusesWhatCannotBeRead(t *testing.T) {
	large := labelled(nil)
	large.GetEndpointCreated().Netns = string(make([]byte, MaxEventBytes))
	unknown := labelled(nil)
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 50, protowire.VarintType), 1))
	binary := labelled(nil)
	binary.RequestId = "\xff"
	for name, c := range map[string]struct {
		event *eventpb.Event
		want  error
	}{
		"nil":           {nil, ErrInvalid},
		"too large":     {large, ErrTooLarge},
		"unknown field": {unknown, ErrUpgradeNeeded},
		"not UTF-8":     {binary, ErrInvalid},
	} {
		if _, err := Marshal(c.event); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// FuzzUnmarshal holds the strict decoder against protobuf's own: what it takes,
// that one takes too and finds no unknown field in.
func FuzzUnmarshal(f *testing.F) {
	b, err := Marshal(labelled(map[string]string{"app": "web", "tier": "front"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Unmarshal(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUpgradeNeeded) {
				t.Fatalf("unclassified error: %v", err)
			}
			return
		}
		want := new(eventpb.Event)
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, want); err != nil {
			t.Fatalf("protobuf refuses what was taken: %v", err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("got %v, protobuf has %v", got, want)
		}
		canonical, err := Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Unmarshal(canonical)
		if err != nil || !proto.Equal(again, got) {
			t.Fatalf("after re-encoding: %v, %v", again, err)
		}
		Fingerprint(b, got)
	})
}

func BenchmarkUnmarshal(b *testing.B) {
	event, err := Marshal(labelled(map[string]string{"app": "web", "tier": "front"}))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Unmarshal(event); err != nil {
			b.Fatal(err)
		}
	}
}

// AppendEvent leaves what is there, adds what Marshal gives, and with an error nothing.
func TestAppendEvent(t *testing.T) {
	event := endpointEvents()[0]
	want, err := Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	before := []byte("before")
	got, err := AppendEvent(bytes.Clone(before), event)
	if err != nil || !bytes.Equal(got, append(bytes.Clone(before), want...)) {
		t.Errorf("appended %x, %v; want %x behind %x", got, err, want, before)
	}
	bad := proto.CloneOf(event)
	bad.Stream = "\xff"
	long := proto.CloneOf(event)
	long.RequestId = strings.Repeat("x", MaxEventBytes)
	for name, tc := range map[string]struct {
		event *eventpb.Event
		want  error
	}{"nil": {nil, ErrInvalid}, "not UTF-8": {bad, ErrInvalid}, "too long": {long, ErrTooLarge}} {
		got, err := AppendEvent(before, tc.event)
		if !errors.Is(err, tc.want) || !bytes.Equal(got, before) {
			t.Errorf("%s: %v, want %v; %q is left", name, err, tc.want, got)
		}
	}
}

// Maps larger than what the sorter keeps memory for are sorted as well, and leave
// nothing to the next one.
func TestMarshalSortsLargeMaps(t *testing.T) {
	for _, n := range []int{3, 2 * maxSorter, 2, 0} {
		labels := map[string]string{}
		for i := range n {
			labels[fmt.Sprintf("key-%04d", (i*7919)%10000)] = "v"
		}
		event := &eventpb.Event{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "a", Labels: labels}}}
		b, err := Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		if !eventSchema.mapsSorted(b) {
			t.Errorf("%d entries are not sorted", n)
		}
		if again, err := Unmarshal(b); err != nil || !proto.Equal(again, event) {
			t.Errorf("%d entries: decoded %v, %v", n, again, err)
		}
	}
}

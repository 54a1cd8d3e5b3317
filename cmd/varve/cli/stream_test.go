package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	v1c "github.com/varve-net/varve/api/varve/v1/varvev1connect"
)

// TestMonitorUntilInterrupted: Ctrl-C is the usual end of a stream.
func TestMonitorUntilInterrupted(t *testing.T) {
	f := startFakeAgent(t)
	f.answer(v1c.DatapathServiceMonitorProcedure, answer{messages: datapathEvents(), hang: true})
	until := "lost"
	got := varveUntil(t.Context(), t, f, "", &until, "monitor", "--type", "drop", "--endpoint", "web,shop/cart")
	golden(t, "monitor", got)
	want := &varvev1.MonitorRequest{Types: []string{"drop"}, Endpoints: []string{"default/web", "shop/cart"}}
	if diff := cmp.Diff(want, last[*varvev1.MonitorRequest](t, f), protocmp.Transform()); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestMonitorJSONIsOneLineAnEvent(t *testing.T) {
	f := startFakeAgent(t)
	f.answer(v1c.DatapathServiceMonitorProcedure, answer{messages: datapathEvents(), hang: true})
	until := `"type":"lost"`
	got := varveUntil(t.Context(), t, f, "", &until, "monitor", "-o", "json")
	lines := strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
	if len(lines) != len(datapathEvents()) {
		t.Fatalf("%d lines for %d events", len(lines), len(datapathEvents()))
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}

// TestStreamEndedByAgent: that is no answer.
func TestStreamEndedByAgent(t *testing.T) {
	f := startFakeAgent(t)
	f.on(v1c.DatapathServiceMonitorProcedure, datapathEvents()...)
	got := varve(t, f, "", "monitor")
	if got.code != exitBroken || !strings.Contains(got.stderr, "the agent ended the stream") {
		t.Errorf("got %+v, want exit code %d and the reason", got, exitBroken)
	}
}

// TestTail: the newest records are read up to the head, and followed from it on,
// so that none is missed and none comes twice.
func TestTail(t *testing.T) {
	for _, tt := range []struct {
		name      string
		args      []string
		shown     []string
		read      *varvev1.ReadRequest
		subscribe *varvev1.SubscribeRequest
	}{
		{
			name: "all", args: []string{"-n", "5"}, shown: []string{"16", "17"},
			read: &varvev1.ReadRequest{Last: 42, Tail: 5, Filter: &varvev1.Filter{}},
		},
		{
			name: "more than there are", args: []string{"-n", "100"}, shown: []string{"16", "17"},
			read: &varvev1.ReadRequest{Last: 42, Tail: 100, Filter: &varvev1.Filter{}},
		},
		{
			name: "filtered", args: []string{"-n", "1", "--kind", "policy-set"}, shown: []string{"17"},
			read: &varvev1.ReadRequest{Last: 42, Filter: &varvev1.Filter{Kinds: []string{"policy-set"}}},
		},
		{
			name: "follow", args: []string{"-f", "-n", "1", "--stream", "policy/"}, shown: []string{"17", "43"},
			read:      &varvev1.ReadRequest{Last: 42, Filter: &varvev1.Filter{StreamPrefixes: []string{"policy/"}}},
			subscribe: &varvev1.SubscribeRequest{After: 42, Filter: &varvev1.Filter{StreamPrefixes: []string{"policy/"}}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := everything(t)
			next := proto.Clone(records()[0]).(*varvev1.Record)
			next.Revision = 43
			f.answer(v1c.LogServiceSubscribeProcedure, answer{messages: []proto.Message{next}, hang: true})
			until := "\n43 "
			got := varveUntil(t.Context(), t, f, "", &until, append([]string{"log", "tail"}, tt.args...)...)
			if got.code != exitYes {
				t.Fatalf("got %+v", got)
			}
			var shown []string
			for _, line := range strings.Split(strings.TrimSpace(got.stdout), "\n")[1:] {
				shown = append(shown, strings.Fields(line)[0])
			}
			if diff := cmp.Diff(tt.shown, shown); diff != "" {
				t.Errorf("revisions (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.read, last[*varvev1.ReadRequest](t, f), protocmp.Transform()); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
			if tt.subscribe != nil {
				if diff := cmp.Diff(tt.subscribe, last[*varvev1.SubscribeRequest](t, f), protocmp.Transform()); diff != "" {
					t.Errorf("subscribe (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestTailOfAnEmptyLog(t *testing.T) {
	f := startFakeAgent(t)
	f.on(v1c.AgentServiceStatusProcedure, &varvev1.StatusResponse{})
	if got := varve(t, f, "", "log", "tail"); got.code != exitYes || got.stdout != "" {
		t.Errorf("got %+v, want nothing", got)
	}
}

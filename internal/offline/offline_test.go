package offline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/mix"
	"github.com/varve-net/varve/internal/offline"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/history"
	"github.com/varve-net/varve/projections"
	"github.com/varve-net/varve/verdict"
)

const events = 2000

// directory makes a state directory with a history, and returns every View.
func directory(t *testing.T) (string, []fsm.View) {
	t.Helper()
	dir := t.TempDir()
	h, err := history.Open(filepath.Join(dir, "log", "history"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m := mix.Mix{Seed: 3, Cluster: "bench", Events: events, Nodes: 3, Namespaces: 4, Endpoints: 60, Apps: 5, Policies: 20}
	s := fsm.New(m.Cluster)
	views := []fsm.View{s.View()}
	for event, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := s.Apply(event)
		if err == nil {
			err = h.Append([]log.Record{r})
		}
		if err != nil {
			t.Fatal(err)
		}
		views = append(views, s.View())
	}
	if err := h.WriteCheckpoint(500, views[500].WriteSnapshot); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, views
}

func serve(t *testing.T, path string) *api.Client {
	t.Helper()
	s, err := offline.Serve(t.Context(), offline.Config{Path: path, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func export(t *testing.T, c *api.Client, req *varvev1.ReadRequest) string {
	t.Helper()
	stream, err := c.Log.Export(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var b bytes.Buffer
	for stream.Receive() {
		b.Write(stream.Msg().Data)
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "export.varve")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func digests(t *testing.T, c *api.Client, at int, view fsm.View) {
	t.Helper()
	got, err := c.Audit.At(t.Context(), connect.NewRequest(&varvev1.AuditAtRequest{At: fmt.Sprint(at), Summary: true}))
	if err != nil {
		t.Fatal(err)
	}
	digest, chain := view.Digest(), view.Chain()
	if !bytes.Equal(got.Msg.StateDigest, digest[:]) || !bytes.Equal(got.Msg.Chain, chain[:]) {
		t.Errorf("revision %d: digest %x, want %s", at, got.Msg.StateDigest, digest)
	}
}

// A directory, an export of all and one of a part lead to the digests that a
// replay beside them has.
func TestArchives(t *testing.T) {
	dir, views := directory(t)
	whole := serve(t, dir)
	part := serve(t, export(t, whole, &varvev1.ReadRequest{First: 701, Last: 1600}))
	again := serve(t, export(t, part, &varvev1.ReadRequest{First: 1000}))
	for _, tt := range []struct {
		name        string
		c           *api.Client
		first, last int
	}{{"directory", whole, 0, events}, {"state directory, exported", serve(t, export(t, whole, &varvev1.ReadRequest{})), 0, events}, {"part", part, 700, 1600}, {"part of the part", again, 999, 1600}} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := tt.c.Log.Verify(t.Context(), connect.NewRequest(&varvev1.VerifyRequest{}))
			if err != nil || v.Msg.Problem != "" || int(v.Msg.ReplayedFrom) != tt.first || int(v.Msg.Last) != tt.last || !bytes.Equal(v.Msg.ReplayDigest, v.Msg.StateDigest) || len(v.Msg.ReplayDigest) != 32 {
				t.Errorf("verify: %v, %v", v, err)
			}
			for at := tt.first; at <= tt.last; at += 83 {
				digests(t, tt.c, at, views[at])
			}
			if tt.first > 0 {
				_, err := tt.c.Audit.At(t.Context(), connect.NewRequest(&varvev1.AuditAtRequest{At: fmt.Sprint(tt.first - 1)}))
				if connect.CodeOf(err) != connect.CodeOutOfRange {
					t.Errorf("before the first: %v", err)
				}
			}
			list, err := tt.c.Policies.List(t.Context(), connect.NewRequest(&varvev1.ListPoliciesRequest{}))
			if err != nil || int(list.Msg.At.GetRevision()) != tt.last || len(list.Msg.Policies) == 0 {
				t.Errorf("the present of an archive: %v, %v", list.Msg.GetAt(), err)
			}
		})
	}
}

// An archive gives the verdict of the tables that there were.
func TestVerdicts(t *testing.T) {
	dir, views := directory(t)
	c := serve(t, export(t, serve(t, dir), &varvev1.ReadRequest{First: 501}))
	outcomes := map[bool]int{}
	for at := 550; at <= events; at += 150 {
		view := views[at]
		var pods []fsm.EndpointRef
		for e := range view.Endpoints() {
			if pods = append(pods, e.Ref); len(pods) == 4 {
				break
			}
		}
		for _, from := range pods {
			for _, to := range pods {
				question := verdict.Question{Protocol: 6, Port: 80}
				var err [2]error
				question.From, err[0] = verdict.ParseParty(view, from.String())
				question.To, err[1] = verdict.ParseParty(view, to.String())
				want, asked := verdict.Ask(view, verdict.Projected(view, projections.Options{}), question)
				if err := errors.Join(err[0], err[1], asked); err != nil {
					t.Fatal(err)
				}
				got, answered := c.Policies.Verdict(t.Context(), connect.NewRequest(&varvev1.VerdictRequest{From: from.String(), To: to.String(), Port: "80/tcp", At: fmt.Sprint(at)}))
				if answered != nil {
					t.Fatal(answered)
				}
				if got.Msg.Allowed != want.Allowed() || got.Msg.Egress.Reason != string(want.Egress.Reason) || got.Msg.Ingress.Reason != string(want.Ingress.Reason) || int(got.Msg.At.GetRevision()) != at {
					t.Errorf("%s to %s at %d: %v, want %+v", from, to, at, got.Msg, want)
				}
				outcomes[want.Allowed()]++
			}
		}
	}
	if outcomes[true] == 0 || outcomes[false] == 0 {
		t.Errorf("outcomes %v: the test wants both", outcomes)
	}
}

func TestFilteredExport(t *testing.T) {
	dir, _ := directory(t)
	c := serve(t, export(t, serve(t, dir), &varvev1.ReadRequest{Filter: &varvev1.Filter{Kinds: []string{"policy-set"}}}))
	v, err := c.Log.Verify(t.Context(), connect.NewRequest(&varvev1.VerifyRequest{}))
	if err != nil || v.Msg.Problem != "" || v.Msg.Last != events || len(v.Msg.ReplayDigest) != 0 {
		t.Errorf("verify: %v, %v", v, err)
	}
	stream, err := c.Log.Read(t.Context(), connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	n := 0
	for stream.Receive() {
		if n++; stream.Msg().Kind != "policy-set" {
			t.Fatalf("%v", stream.Msg())
		}
	}
	if err := stream.Err(); err != nil || n < 20 {
		t.Errorf("%d records, %v", n, err)
	}
	if _, err := c.Audit.At(t.Context(), connect.NewRequest(&varvev1.AuditAtRequest{At: "now"})); err == nil || !strings.Contains(err.Error(), "left out") {
		t.Errorf("a state out of a filtered export: %v", err)
	}
}

func TestArchiveIsOnlyRead(t *testing.T) {
	dir, _ := directory(t)
	c := serve(t, dir)
	ctx := t.Context()
	_, append := c.Log.Append(ctx, connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{{Payload: &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "a"}}}}}))
	_, add := c.Endpoints.Add(ctx, connect.NewRequest(&varvev1.AddEndpointRequest{Name: "web", Netns: "x"}))
	_, counters := c.Datapath.Counters(ctx, connect.NewRequest(&varvev1.CountersRequest{}))
	_, policies := c.Policies.Delete(ctx, connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: &eventpb.PolicyRef{Kind: 2, Namespace: "a", Name: "b"}, RequestId: "r"}))
	for what, err := range map[string]error{"append": append, "add": add, "counters": counters, "delete": policies} {
		if err == nil || !strings.Contains(err.Error(), "archive") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := offline.Serve(context.Background(), offline.Config{Path: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("an empty directory was opened")
	}
	if _, err := offline.Serve(context.Background(), offline.Config{Path: filepath.Join(dir, "none"), Logger: slog.New(slog.DiscardHandler)}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

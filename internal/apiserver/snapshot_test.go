package apiserver

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

func (k *kit) save(t *testing.T, at string) []byte {
	t.Helper()
	stream, err := k.Snapshots.Save(t.Context(), connect.NewRequest(&varvev1.SaveSnapshotRequest{At: at}))
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
	return b.Bytes()
}

func (k *kit) restore(t *testing.T, file []byte, dryRun bool) (*varvev1.RestoreSnapshotResponse, error) {
	t.Helper()
	stream := k.Snapshots.Restore(t.Context())
	for i := 0; i <= len(file); i += 300 { // in pieces
		if err := stream.Send(&varvev1.RestoreSnapshotRequest{Data: file[i:min(i+300, len(file))], DryRun: dryRun}); err != nil {
			break
		}
	}
	resp, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// contents are what a restore is about.
func (k *kit) contents() string {
	var out []string
	for n := range k.log.View().Namespaces() {
		out = append(out, fmt.Sprint(n.Name, n.Labels))
	}
	for p := range k.log.View().Policies() {
		out = append(out, fmt.Sprint(p.Set))
	}
	return strings.Join(out, "\n")
}

func (k *kit) applyPolicy(t *testing.T, name, app string) {
	t.Helper()
	_, err := k.Policies.Apply(t.Context(), connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: fmt.Sprintf(
		`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":%q},"spec":{"endpointSelector":{"matchLabels":{"app":%q}},"ingress":[{}]}}`, name, app)}))
	if err != nil {
		t.Fatal(err)
	}
}

// A restore brings policies and namespaces back by one event, leaves endpoints alone,
// and is done when it is done.
func TestRestore(t *testing.T) {
	k := newKit(t)
	k.append(t, namespaceSet("shop", "a"), namespaceSet("mail", "a"))
	k.applyPolicy(t, "stays", "web")
	k.applyPolicy(t, "changes", "web")
	k.applyPolicy(t, "goes", "web")
	was := k.contents()
	saved, _ := k.log.Head()
	file := k.save(t, "")

	k.endpoint(t, "web", "web", "10.1.0.2", 2)
	k.applyPolicy(t, "changes", "db")
	k.applyPolicy(t, "new", "db")
	k.append(t, namespaceSet("shop", "b"), namespaceSet("later", "b"),
		&eventpb.Event{Payload: &eventpb.Event_NamespaceDeleted{NamespaceDeleted: &eventpb.NamespaceDeleted{Name: "mail"}}},
		&eventpb.Event{Payload: &eventpb.Event_PolicyDeleted{PolicyDeleted: &eventpb.PolicyDeleted{Ref: &eventpb.PolicyRef{Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "goes"}}}},
	)
	changed := k.contents()
	head, _ := k.log.Head()
	if again := k.save(t, fmt.Sprint(saved)); len(again) == 0 {
		t.Error("no snapshot of the past")
	}

	dry, err := k.restore(t, file, true)
	if now, _ := k.log.Head(); err != nil || len(dry.Streams) != 6 || now != head || k.contents() != changed {
		t.Fatalf("dry run: %v, %v, head %d, was %d", dry, err, now, head)
	}
	done, err := k.restore(t, file, false)
	if err != nil || len(done.Streams) != 6 || uint64(saved) != done.SnapshotRevision {
		t.Fatalf("%v, %v", done, err)
	}
	if got := k.contents(); got != was {
		t.Errorf("restored to\n%s\nwant\n%s", got, was)
	}
	if _, ok := k.log.View().Endpoint(fsm.EndpointRef{Namespace: "default", Name: "web"}); !ok {
		t.Error("the endpoint is gone")
	}
	var kinds []log.Kind
	if err := k.log.Read(t.Context(), head+1, log.Revision(done.Revision), func(r log.Record) error {
		e, err := log.Unmarshal(r.Event)
		if err != nil {
			return err
		}
		kind, err := log.KindOf(e)
		kinds = append(kinds, kind)
		if e.Actor.Role != eventpb.Role_ROLE_RESTORER || e.Stream != "restore/"+done.Restore {
			t.Errorf("revision %d: by %v in stream %s", r.Revision, e.Actor, e.Stream)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(kinds, []log.Kind{log.KindSnapshotStaged, log.KindSnapshotRestored}) {
		t.Errorf("events: %v", kinds)
	}
	again, err := k.restore(t, file, false)
	if now, _ := k.log.Head(); err != nil || len(again.Streams) != 0 || again.Restore != "" || uint64(now) != done.Revision {
		t.Errorf("again: %v, %v", again, err)
	}
}

// A restore that the state would not take is refused before anything is recorded, and
// so is one beside another.
func TestRestoreRehearses(t *testing.T) {
	k := newKit(t)
	k.applyPolicy(t, "p", "web")
	file := k.save(t, "")
	k.applyPolicy(t, "p", "db")
	// Another node's, which is under way.
	parts := k.log.View().Restoring("elsewhere", 1)
	parts[0].Actor = &eventpb.Actor{Role: eventpb.Role_ROLE_RESTORER, Name: "test"}
	parts[0].Origin, parts[0].Stream = &eventpb.Origin{Cluster: testCluster, Node: "n2"}, "restore/elsewhere"
	if r, err := k.log.Append(t.Context(), parts[0]); err != nil || r[0].Outcome != log.OutcomeApplied {
		t.Fatalf("%v, %v", r, err)
	}
	before, _ := k.log.Head()
	_, err := k.restore(t, file, false)
	if now, _ := k.log.Head(); err == nil || !strings.Contains(err.Error(), "restore elsewhere of node n2") || !strings.Contains(err.Error(), "nothing was changed") || now != before {
		t.Errorf("%v, head %d, was %d", err, now, before)
	}
}

// The events of a restore are no one's to append as they are.
func TestRestoreByAppend(t *testing.T) {
	k := newKit(t)
	for _, e := range k.log.View().Restoring("mine", 1) {
		_, err := k.Log.Append(t.Context(), connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{e}}))
		codeIs(t, err, connect.CodePermissionDenied)
	}
}

// What is damaged, cut off, of another log or of a later format is refused, and
// nothing has changed.
func TestRestoreRefuses(t *testing.T) {
	k, other := newKit(t), newKit(t)
	for _, k := range []*kit{k, other} {
		k.applyPolicy(t, "p", "web")
	}
	other.append(t, namespaceSet("only", "there"))
	file := k.save(t, "")
	k.append(t, namespaceSet("shop", "a"), namespaceSet("shop", "b"))
	before := k.contents()
	flipped, newer := bytes.Clone(file), bytes.Clone(file)
	flipped[len(flipped)/2] ^= 0x10
	newer[8] = 9
	for name, tt := range map[string]struct {
		file []byte
		want string
	}{
		"flipped": {flipped, "refused"}, "cut": {file[:len(file)-5], "cut off"}, "empty": {nil, "refused"}, "no snapshot": {bytes.Repeat([]byte("x"), 1000), "refused"},
		"another log": {other.save(t, ""), "not of this log"}, "newer": {newer, "refused"},
	} {
		if _, err := k.restore(t, tt.file, false); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if k.contents() != before {
		t.Error("something was changed")
	}
}

package fsm

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/policy"
)

// drawEvent makes an event from a universe so small that events meet: names,
// addresses, request ids, sequence numbers and incarnations repeat. Some are
// wrong. Most of those about endpoints are about one that is there.
func drawEvent(t *rapid.T, v View) *eventpb.Event {
	pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(t, name) }
	small := func(name string, most int) uint64 { return uint64(rapid.IntRange(0, most).Draw(t, name)) }
	someLabels := func() map[string]string {
		return rapid.MapOfN(rapid.SampledFrom([]string{"app", "tier", "x"}), rapid.SampledFrom([]string{"", "a", "b"}), 0, 2).Draw(t, "labels")
	}
	audited := func() bool { return small("audited", 3) == 3 }
	node := pick("node", "n1", "n2", "n3")
	namespace := pick("namespace", "a", "b", "default")
	name := pick("name", "w", "x", "y", "z")
	incarnation := small("incarnation", 5)
	if live := slices.Collect(v.Endpoints()); len(live) > 0 && small("stray", 4) != 4 {
		e := rapid.SampledFrom(live).Draw(t, "live")
		namespace, name, node, incarnation = e.Ref.Namespace, e.Ref.Name, e.Node, e.Incarnation
	}
	ref := cnp(namespace, name)
	if namespace == "default" {
		ref = &eventpb.PolicyRef{Kind: policy.KindCiliumClusterwideNetworkPolicy, Name: name}
	}
	var e *eventpb.Event
	switch rapid.IntRange(0, 23).Draw(t, "kind") {
	case 0, 1:
		e = setPolicy(ref, pick("app", "a", "b"))
		e.GetPolicySet().Specs[0].Audit = audited()
	case 2:
		e = deletePolicy(ref)
	case 3, 4:
		e = setNamespace(namespace, someLabels())
	case 5:
		e = deleteNamespace(namespace)
	case 6, 7, 8, 9, 10:
		// Another name, or the same once more, on whichever node.
		name, node = pick("new", "w", "x", "y", "z"), pick("on", "n1", "n1", "n2", "n3")
		e = create(node, namespace, name, incarnation+small("later", 1), "", someLabels())
		c := e.GetEndpointCreated()
		if n := small("address", 12); n > 0 {
			c.Addresses = [][]byte{ip(addr(int(n)))}
		}
		for i := range small("ports", 2) {
			c.NamedPorts = append(c.NamedPorts, &eventpb.NamedPort{Name: fmt.Sprintf("P%d", 2-i), Protocol: 6, Port: uint32(80 + i)})
		}
		c.PolicyAuditMode = audited()
		c.HostInterface, c.Netns = pick("interface", "", "eth0", "a/b"), "/run/netns/x"
	case 11, 12:
		e = update(node, namespace, name, incarnation, someLabels())
		e.GetEndpointUpdated().PolicyAuditMode = audited()
	case 13:
		e = deleteEndpoint(node, namespace, name, incarnation)
	case 14:
		e = join(node, nil)
		if small("addressed", 1) == 1 {
			e = join(node, []string{addr(int(small("address", 3)) + 1)})
		}
		e.GetNodeJoined().PolicyAuditMode = audited()
	case 16, 17, 18:
		told := map[string]int64{}
		for range small("told", 2) + 1 {
			told[addr(int(small("answer", 5)))] = int64(small("expires", 9))
		}
		e = observe(node, namespace, name, incarnation, pick("asked", "a.io.", "b.io.", "B"), told)
	case 19:
		e = collected(node, namespace, name, incarnation, pick("asked", "a.io.", "b.io."), []string{addr(int(small("answer", 5)))})
	case 15:
		e = updateNode(node, nil, []string{"10.0.0.0/24"})
		e.GetNodeUpdated().PolicyAuditMode = audited()
	case 20, 21, 22:
		e = drawRestore(t, v)
	default:
		if e = leave(node); small("stay", 2) != 2 {
			e = join(node, nil)
		}
	}
	e.TimeUnixNs = v.TimeNS() + (int64(small("minutes", 9))-1)*60*second
	if small("request", 2) == 2 {
		e.RequestId = fmt.Sprint("r", small("id", 30))
	}
	if small("expect", 7) == 7 {
		rev := uint64(v.StreamRevision(e.Stream)) + small("off", 1)
		e.ExpectedRevision = &rev
	}
	if e.Actor.Role == eventpb.Role_ROLE_NODE && small("journal", 1) == 1 {
		if n, ok := v.Node(e.Origin.Node); ok {
			kind, err := log.KindOf(e)
			if err != nil {
				t.Fatal(err)
			}
			e.JournalSeq = *n.seqOf(kind) + small("sequence", 2)
		}
	}
	if small("forge", 15) == 15 {
		e.Origin.Node = "n2"
	}
	return e
}

// drawRestore makes the next event of a restore, mostly: of what is there under other
// labels and without some policies.
func drawRestore(t *rapid.T, v View) *eventpb.Event {
	id, next := fmt.Sprint("restore-", v.Revision()), 0
	if s, ok := v.Staging(); ok && rapid.IntRange(0, 7).Draw(t, "stray") != 7 {
		id, next = s.Restore, int(s.Parts)
	}
	want := New(testCluster)
	for n := range v.Namespaces() {
		if keep := rapid.IntRange(0, 2).Draw(t, "keep"); keep > 0 {
			row := Namespace{Name: n.Name, Labels: map[string]string{labelNamespaceName: n.Name, "tier": fmt.Sprint(keep)}}
			want.putNamespace(row)
		}
	}
	for p := range v.Policies() {
		if rapid.IntRange(0, 1).Draw(t, "keep") == 1 {
			want.putPolicy(*p)
		}
	}
	// Its parts so far were of another draw: most restores that end are made anew.
	if next > 0 && rapid.IntRange(0, 3).Draw(t, "end") > 0 {
		return restorer(endOf(v))
	}
	events := want.View().Restoring(id, 200)
	if rapid.IntRange(0, 5).Draw(t, "abandon") == 5 {
		return abandon(id)
	}
	return restorer(events[min(next, len(events)-1)])
}

// endOf is the event that puts in force what was staged.
func endOf(v View) *eventpb.Event {
	s := Resume(v)
	sum := s.staged.digest.Sum()
	return &eventpb.Event{Payload: &eventpb.Event_SnapshotRestored{SnapshotRestored: &eventpb.SnapshotRestored{
		Restore: s.staged.Restore, Parts: s.staged.Parts, Digest: sum[:],
		Source: &eventpb.SnapshotSource{Revision: 1, Chain: make([]byte, 32), Digest: make([]byte, 32)},
	}}}
}

func drawHistory(t *rapid.T) [][]byte {
	shadow := New(testCluster)
	var history [][]byte
	add := func(e *eventpb.Event) {
		b, err := log.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := shadow.Apply(b); err != nil {
			t.Fatal(err)
		}
		history = append(history, b)
	}
	// Nodes first, so that most endpoints find theirs.
	add(join("n1", nil))
	add(join("n2", nil))
	for range rapid.IntRange(20, 120).Draw(t, "events") {
		add(drawEvent(t, shadow.View()))
		if rapid.IntRange(0, 15).Draw(t, "retry") == 15 {
			history = append(history, history[rapid.IntRange(0, len(history)-1).Draw(t, "of")])
		}
	}
	return history
}

// answer is what Apply returned.
type answer struct {
	Record log.Record
	Result log.Result
}

func applyAll(t *rapid.T, s *State, history [][]byte) []answer {
	var out []answer
	for _, b := range history {
		record, result, err := s.Apply(b)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, answer{record, result})
	}
	return out
}

// One history, replayed from zero; and again with Views taken at other points,
// through batches, and over a snapshot at a random cut.
func TestReplayIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := drawHistory(t)
		cut := rapid.IntRange(0, len(history)).Draw(t, "cut")

		zero := New(testCluster)
		want := applyAll(t, zero, history)

		one := New(testCluster)
		var answers []answer
		for i := 0; i < cut; {
			n := rapid.IntRange(1, 16).Draw(t, "batch")
			batch, err := log.DecodeBatch(log.EncodeBatch(history[i:min(i+n, cut)]))
			if err != nil {
				t.Fatal(err)
			}
			answers = append(answers, applyAll(t, one, batch)...)
			one.View()
			i += len(batch)
		}
		var file, again bytes.Buffer
		if err := one.View().WriteSnapshot(&file); err != nil {
			t.Fatal(err)
		}
		two, err := ReadSnapshot(bytes.NewReader(file.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		sameViews(t, "after a restore", two.View(), one.View())
		if err := two.View().WriteSnapshot(&again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(file.Bytes(), again.Bytes()) {
			t.Fatal("a snapshot of a restored state is another file")
		}
		answers = append(answers, applyAll(t, two, history[cut:])...)
		if diff := cmp.Diff(want, answers); diff != "" {
			t.Fatalf("answers (-from zero +snapshot and tail):\n%s", diff)
		}
		sameViews(t, "snapshot and tail", two.View(), zero.View())
		if !maps.Equal(two.owners, zero.owners) || !maps.Equal(two.byLabels, zero.byLabels) || two.requestIndex.used != zero.requestIndex.used {
			t.Fatalf("indexes: owners %v and %v, labels %v and %v", two.owners, zero.owners, two.byLabels, zero.byLabels)
		}
		if got := digestFromScratch(zero.View()); got != zero.sum() {
			t.Fatalf("digest %s, of all rows anew %s", zero.sum(), got)
		}
		checkChain(t, want, zero.View())
	})
}

func checkChain(t *rapid.T, answers []answer, v View) {
	var chain log.Hash
	var rev log.Revision
	var time int64
	for _, a := range answers {
		takes := a.Result.Outcome == log.OutcomeApplied || a.Result.Outcome == log.OutcomeRejected
		if !takes {
			if a.Record.Revision != 0 || a.Result.Head != rev {
				t.Fatalf("%+v: takes no revision", a)
			}
			continue
		}
		rev++
		chain = log.Next(chain, log.Leaf(a.Record.Event))
		if a.Record.Revision != rev || a.Result.Revision != rev || a.Result.Head != rev || a.Record.Chain != chain || a.Record.TimeNS < time {
			t.Fatalf("%+v: want revision %d, chain %s, time from %d", a, rev, chain, time)
		}
		time = a.Record.TimeNS
	}
	if v.Revision() != rev || v.Chain() != chain || v.TimeNS() != time {
		t.Fatalf("the view is at revision %d, chain %s, time %d", v.Revision(), v.Chain(), v.TimeNS())
	}
}

// naiveIdentities allocates by looking at everything, each time.
type naiveIdentities struct {
	next uint32
	row  map[uint32]naiveIdentity
}

type naiveIdentity struct {
	labels   string
	refs     int
	released log.Revision
	time     int64
}

// observe is shown the state after each applied event. An event makes no more
// than the endpoints of one namespace ask for a number, in the order of names.
func (n *naiveIdentities) observe(rev log.Revision, now int64, after View) {
	want := func(v View, e *Endpoint) string {
		nsLabels := map[string]string{labelNamespaceName: e.Ref.Namespace}
		if ns, ok := v.Namespace(e.Ref.Namespace); ok {
			nsLabels = ns.Labels
		}
		return policy.EndpointLabels(testCluster, e.Ref.Namespace, nsLabels, e.Labels, e.ServiceAccount).String()
	}
	uses := map[string]int{}
	for e := range after.Endpoints() {
		labels := want(after, e)
		uses[labels]++
		found := false
		for _, row := range n.row {
			found = found || row.labels == labels
		}
		if !found {
			for n.row[n.next].labels != "" {
				n.next++
			}
			n.row[n.next] = naiveIdentity{labels: labels}
			n.next++
		}
	}
	for id, row := range n.row {
		row.refs = uses[row.labels]
		switch {
		case row.refs > 0:
			row.released, row.time = 0, 0
		case row.released == 0:
			row.released, row.time = rev, now
		}
		n.row[id] = row
		if row.refs == 0 && rev-row.released >= graceRevisions && now-row.time >= graceNS {
			delete(n.row, id)
		}
	}
}

func TestIdentitiesAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(testCluster)
		naive := &naiveIdentities{next: minIdentity, row: map[uint32]naiveIdentity{}}
		for _, b := range drawHistory(t) {
			if rapid.IntRange(0, 7).Draw(t, "jump") == 7 {
				// Revisions pass, as rejected events would make them.
				s.revision += graceRevisions / 2
			}
			record, result, err := s.Apply(b)
			if err != nil {
				t.Fatal(err)
			}
			if result.Outcome != log.OutcomeApplied {
				continue
			}
			after := s.View()
			naive.observe(record.Revision, record.TimeNS, after)

			got := map[uint32]naiveIdentity{}
			for i := range after.Identities() {
				got[i.ID] = naiveIdentity{i.Labels.String(), i.Refs, i.ReleasedRevision, i.ReleasedTimeNS}
			}
			if diff := cmp.Diff(naive.row, got, cmp.AllowUnexported(naiveIdentity{})); diff != "" {
				t.Fatalf("revision %d (-naive +fsm):\n%s", record.Revision, diff)
			}
			for e := range after.Endpoints() {
				i, ok := after.Identity(e.Identity)
				if !ok || i.Refs == 0 {
					t.Fatalf("endpoint %s has identity %d, which is not in use", e.Ref, e.Identity)
				}
			}
		}
	})
}

// Views do not see what is applied after them. Readers run all the while, for
// the race detector.
func TestViewsAreFrozen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := drawHistory(t)
		s := New(testCluster)
		var group sync.WaitGroup
		var views []View
		var files [][]byte
		for i, b := range history {
			if _, _, err := s.Apply(b); err != nil {
				t.Fatal(err)
			}
			if i%7 != 0 {
				continue
			}
			v := s.View()
			var file bytes.Buffer
			if err := v.WriteSnapshot(&file); err != nil {
				t.Fatal(err)
			}
			views, files = append(views, v), append(files, file.Bytes())
			group.Go(func() {
				for range v.Endpoints() {
					v.Endpoint(EndpointRef{"a", "x"})
				}
				for range v.Identities() {
					v.StreamRevision("node/n1")
				}
				v.Digest()
			})
		}
		group.Wait()
		for i, v := range views {
			var file bytes.Buffer
			if err := v.WriteSnapshot(&file); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(file.Bytes(), files[i]) {
				t.Fatalf("the view of revision %d changed", v.Revision())
			}
			if got := digestFromScratch(v); got != v.Digest() {
				t.Fatalf("the view of revision %d has digest %s, its rows %s", v.Revision(), v.Digest(), got)
			}
		}
	})
}

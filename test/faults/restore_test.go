package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// cli runs a command on the node's agent.
func (n *node) cli(args ...string) (string, error) {
	return output(append(args, "--socket", filepath.Join(n.dir, "varve.sock"))...)
}

func (n *node) mustCLI(args ...string) string {
	n.t.Helper()
	out, err := n.cli(args...)
	if err != nil {
		n.t.Fatalf("%v: %v", args, err)
	}
	return out
}

// apply sets a policy of a name that lets an app into another, with a text of some size.
func (n *node) apply(name, of, from string, size int) {
	n.t.Helper()
	manifest := fmt.Sprintf(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":%q},"spec":{"description":%q,
		"endpointSelector":{"matchLabels":{"app":%q}},"ingress":[{"fromEndpoints":[{"matchLabels":{"app":%q}}]}]}}`,
		name, strings.Repeat("x", size), of, from)
	if _, err := n.client.Policies.Apply(context.Background(), connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: manifest})); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) policies() string {
	n.t.Helper()
	resp, err := n.client.Policies.List(context.Background(), connect.NewRequest(&varvev1.ListPoliciesRequest{}))
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, p := range resp.Msg.Policies {
		names = append(names, fmt.Sprintf("%s %s", p.Ref.Name, p.Specs[0].Ingress[0].Peers))
	}
	return strings.Join(names, "\n")
}

// restored are the records of kinds of a restore.
func (n *node) restored() (staged, done, abandoned []uint64) {
	n.t.Helper()
	stream, err := n.client.Log.Read(context.Background(), connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		n.t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		r := stream.Msg()
		switch {
		case r.Event.GetSnapshotStaged() != nil:
			staged = append(staged, r.Revision)
		case r.Event.GetSnapshotRestored() != nil:
			done = append(done, r.Revision)
		case r.Event.GetSnapshotAbandoned() != nil:
			abandoned = append(abandoned, r.Revision)
		}
	}
	if err := stream.Err(); err != nil {
		n.t.Fatal(err)
	}
	return staged, done, abandoned
}

// What both states allow goes on while snapshots are restored, packet by packet, and
// what both deny stays denied. Followers see one event, which audits can tell.
func TestRestoreUnderTraffic(t *testing.T) {
	n := newNode(t)
	a := n.start()
	tr := n.traffic()
	for i := range 30 {
		n.apply(fmt.Sprintf("other-%d", i), "server", fmt.Sprintf("peer-%d", i), 20_000)
	}
	one, two := filepath.Join(n.dir, "one.varve"), filepath.Join(n.dir, "two.varve")
	n.mustCLI("snapshot", "save", "-f", one)
	was := n.policies()
	for i := range 20 {
		n.apply(fmt.Sprintf("other-%d", i), "server", fmt.Sprintf("another-%d", i), 20_000)
	}
	n.apply("new", "friend", "server", 10)
	n.mustCLI("policy", "delete", "other-29")
	is := n.policies()
	n.mustCLI("snapshot", "save", "-f", two)

	follow, stop := context.WithCancel(t.Context())
	defer stop()
	tail, err := n.client.Log.Subscribe(follow, connect.NewRequest(&varvev1.SubscribeRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan *varvev1.Record, 1024)
	go func() {
		defer close(seen)
		for tail.Receive() {
			seen <- tail.Msg()
		}
	}()

	var trips, dials, denied atomic.Int64
	var done atomic.Bool
	var traffic sync.WaitGroup
	loop := func(fn func() error, count *atomic.Int64, want bool, what string) {
		traffic.Go(func() {
			for !done.Load() {
				if err := fn(); (err == nil) != want {
					t.Errorf("%s: %v", what, err)
					return
				}
				count.Add(1)
			}
		})
	}
	loop(tr.trip, &trips, true, "an open connection")
	loop(func() error { return tr.friend.ExchangeTCP(tr.server, patience) }, &dials, true, "a new connection that both states allow")
	loop(func() error { return tr.stranger.ExchangeTCP(tr.server, strangerTries) }, &denied, false, "a connection that both states deny")
	for i, file := range []string{one, two, one, two, one, one} {
		before := trips.Load()
		out := n.mustCLI("snapshot", "restore", file)
		if want := map[string]string{one: was, two: is}[file]; n.policies() != want {
			t.Errorf("restore %d: policies are\n%s\nwant\n%s", i, n.policies(), want)
		}
		if again := i == 5; again != (strings.TrimSpace(out) == "") {
			t.Errorf("restore %d said %q", i, out)
		}
		a.eventually(t, "traffic beside the restores", func() bool {
			return trips.Load() > before+20 && dials.Load() > int64(i) && denied.Load() > int64(i) || t.Failed()
		})
	}
	done.Store(true)
	traffic.Wait()
	t.Logf("%d round trips, %d connections, %d denied", trips.Load(), dials.Load(), denied.Load())

	staged, restored, abandoned := n.restored()
	if len(restored) != 5 || len(abandoned) != 0 || len(staged) < 10 {
		t.Fatalf("staged %v, restored %v, abandoned %v", staged, restored, abandoned)
	}
	last := uint64(0)
	for r := range seen {
		if last != 0 && r.Revision != last+1 {
			t.Errorf("a follower saw revision %d after %d", r.Revision, last)
		}
		if last = r.Revision; last == restored[4] {
			break
		}
	}
	stop()
	at := fmt.Sprint(restored[4])
	diff, _ := n.cli("audit", "diff", fmt.Sprint(restored[4]-1), at)
	if !strings.Contains(diff, "restores policies and namespaces as of revision") || !strings.Contains(diff, "cnp/default/other-3") || strings.Contains(diff, "policy    cnp/default/p ") {
		t.Errorf("audit diff:\n%s", diff)
	}
	if err := n.holds(nil); err != nil {
		t.Error(err)
	}
	if out, err := n.cli("audit", "verify"); err != nil {
		t.Errorf("audit verify: %s %v", out, err)
	}
	tr.goesOn("afterwards")
	n.stop(a)
	n.start()
	if n.policies() != was {
		t.Errorf("after a restart policies are\n%s", n.policies())
	}
	tr.goesOn("after a restart")
}

// Whenever the agent is killed while a snapshot is restored, policies are all as they
// were or all as the snapshot has them, nothing that was acknowledged is lost, and
// restoring again works.
func TestKillDuringRestore(t *testing.T) {
	n := newNode(t)
	a := n.start()
	const policies = 24
	for i := range policies {
		n.apply(fmt.Sprintf("p-%02d", i), "server", "saved", 120_000)
	}
	file := filepath.Join(n.dir, "saved.varve")
	n.mustCLI("snapshot", "save", "-f", file)
	saved := n.policies()
	rnd := rand.New(rand.NewPCG(*seed, 7))
	acked := map[string]uint64{}
	took := 400 * time.Millisecond
	const rounds = 6
	applied := 0
	for round := range rounds {
		for i := range policies {
			n.apply(fmt.Sprintf("p-%02d", i), "server", fmt.Sprintf("of-round-%d", round), 20)
		}
		before := n.policies()
		restore := exec.Command(binary, "snapshot", "restore", file, "--socket", filepath.Join(n.dir, "varve.sock"))
		if err := restore.Start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- restore.Wait() }()
		appends, cancel := context.WithCancel(t.Context())
		var beside sync.WaitGroup
		var mu sync.Mutex
		beside.Go(func() {
			for i := 0; appends.Err() == nil; i++ {
				id := fmt.Sprintf("round-%d-%d", round, i)
				if rev, err := n.append(appends, id); err == nil {
					mu.Lock()
					acked[id] = rev
					mu.Unlock()
				}
			}
		})
		if round == 0 { // how long it takes if nobody kills it
			if err := <-ended; err != nil {
				t.Fatalf("%v\n%s", err, a.log())
			}
			took = time.Since(began)
		} else {
			time.Sleep(time.Duration(rnd.Int64N(int64(took))))
			a.kill()
			<-ended
			a = n.start()
		}
		cancel()
		beside.Wait()
		switch now := n.policies(); {
		case now == saved:
			applied++
		case now != before || round == 0:
			t.Fatalf("round %d: policies are\n%s\nwere\n%s", round, now, before)
		}
		if err := n.holds(acked); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		n.mustCLI("snapshot", "restore", file)
		if n.policies() != saved {
			t.Fatalf("round %d: restored again, policies are\n%s", round, n.policies())
		}
	}
	staged, done, abandoned := n.restored()
	t.Logf("%d of %d restores applied by the time of the kill; %d parts, %d restores and %d abandoned in the log", applied, rounds, len(staged), len(done), len(abandoned))
	n.mustCLI("status", "--verify")
}

// A file that is not a snapshot of this log leaves everything as it is; a member of
// the agent's group alone may look, but not restore.
func TestRestoreRefusals(t *testing.T) {
	n := newNode(t)
	a := n.launch("--group", group)
	if !n.up(a) {
		t.Fatal(a.log())
	}
	n.apply("p", "server", "friend", 10)
	file := filepath.Join(n.dir, "saved.varve")
	n.mustCLI("snapshot", "save", "-f", file)
	n.apply("p", "server", "stranger", 10)
	before, head := n.policies(), n.mustCLI("log", "tail", "-n", "1", "-o", "json")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(n.dir, "bad.varve")
	for name, change := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)-7] },
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"newer":   func(b []byte) []byte { b[8] = 77; return b },
		"foreign": func([]byte) []byte { return []byte("SQLite format 3\x00 and so on") },
	} {
		if err := os.WriteFile(bad, change(append([]byte(nil), whole...)), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := n.cli("snapshot", "restore", bad)
		if err == nil || !strings.Contains(err.Error(), "refused, nothing was changed") {
			t.Errorf("%s: %s, %v", name, out, err)
		}
	}
	if now := n.mustCLI("log", "tail", "-n", "1", "-o", "json"); n.policies() != before || now != head {
		t.Errorf("something was recorded: %s, was %s", now, head)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string // that the answer holds
		ok   bool
	}{
		{[]string{"policy", "list"}, "p", true},
		{[]string{"snapshot", "restore", file, "--dry-run"}, "set", true},
		{[]string{"snapshot", "restore", file}, "--restore-group", false},
	} {
		out, err := n.asMember(tt.args...)
		if (err == nil) != tt.ok || !strings.Contains(out, tt.want) {
			t.Errorf("%v by a member of the group: %v, %s", tt.args, err, out)
		}
	}
	if n.policies() != before {
		t.Error("a member of the group restored")
	}
	n.stop(a)
	a = n.launch("--group", group, "--restore-group", group)
	if !n.up(a) {
		t.Fatal(a.log())
	}
	if out, err := n.asMember("snapshot", "restore", file); err != nil || n.policies() == before {
		t.Errorf("a member of the group of restorers: %v, %s", err, out)
	}
}

// group is one that is there on every system, and nobody's.
const group, nobody = "nogroup", 65534

// asMember runs a command as somebody in that group, who may go where the binary and the
// socket are, whatever umask the tests run under.
func (n *node) asMember(args ...string) (string, error) {
	for _, path := range []string{binary, filepath.Dir(binary), n.dir, filepath.Dir(n.dir)} {
		if err := os.Chmod(path, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, append(args, "--socket", filepath.Join(n.dir, "varve.sock"))...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Package kill holds the promise of the log against SIGKILL: the real binary is
// killed at random moments while several clients append, and after every start
// each acknowledged event is there, revisions are dense, the chain verifies, and
// the digests of a replay from zero, of snapshot and tail, and of the kernel's
// maps are equal.
package kill

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testns"
)

var (
	rounds  = flag.Int("rounds", 10, "how often the agent is killed")
	clients = flag.Int("clients", 6, "how many clients append at once")
	varve   = flag.String("varve", "", "the binary to test; empty: built from this tree")
	seed    = flag.Uint64("seed", 0, "of the random moments; 0: a new one")
)

const (
	// killAfterMax is the longest that an agent lives once it answers.
	killAfterMax = 250 * time.Millisecond
	// patience is how long what must happen may take on a loaded machine.
	patience = 3 * time.Minute
)

func TestAcknowledgedEventsSurviveSIGKILL(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	rnd := rand.New(rand.NewPCG(*seed, 1))
	h := newHarness(t)

	for i := range *clients {
		h.spawn(func(ctx context.Context) { h.appendPolicies(ctx, i) })
	}
	h.spawn(h.relabel)
	for round := range *rounds {
		a := h.start()
		if round == 0 {
			h.addEndpoints(4)
		}
		// The clients run on while this compares: status settles on one revision.
		h.check(round)
		<-time.After(time.Duration(rnd.Int64N(int64(killAfterMax))))
		if err := a.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = a.Wait()
	}
	h.stopClients()
	h.start()
	h.check(*rounds)
	h.checkAcknowledged()
	if len(h.acked) < *rounds {
		t.Errorf("only %d appends were acknowledged in %d rounds: the test tests nothing", len(h.acked), *rounds)
	}
	t.Logf("%d rounds, %d acknowledged appends", *rounds, len(h.acked))
}

type harness struct {
	t      *testing.T
	dir    string
	binary string
	node   *testns.NS
	pods   []*testns.NS
	client *api.Client
	stop   context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup

	mu    sync.Mutex
	acked map[string]uint64 // request id -> revision
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, dir: t.TempDir(), acked: map[string]uint64{}}
	if h.binary = *varve; h.binary == "" {
		h.binary = filepath.Join(h.dir, "varve")
		build := exec.Command("go", "build", "-o", h.binary, "github.com/varve-net/varve/cmd/varve")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	var err error
	if h.node, err = testns.New("node"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.node.Close() })
	if h.client, err = api.New(filepath.Join(h.dir, "varve.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.Close)
	h.ctx, h.stop = context.WithCancel(context.Background())
	t.Cleanup(h.stopClients)
	// The agent mounts its bpffs here.
	t.Cleanup(func() { _ = exec.Command("umount", filepath.Join(h.dir, "bpf")).Run() })
	return h
}

func (h *harness) spawn(fn func(context.Context)) {
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		fn(h.ctx)
	}()
}

func (h *harness) stopClients() {
	h.stop()
	h.wg.Wait()
}

// start starts the agent and returns once it enforces.
func (h *harness) start() *exec.Cmd {
	h.t.Helper()
	logFile, err := os.OpenFile(filepath.Join(h.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer logFile.Close()
	cmd := exec.Command(h.binary, "agent",
		"--state-dir", filepath.Join(h.dir, "state"), "--socket", filepath.Join(h.dir, "varve.sock"),
		"--bpf-root", filepath.Join(h.dir, "bpf"), "--node-name", "node",
		// Small enough that snapshots and compaction happen between kills.
		"--snapshot-threshold", "64", "--dns-proxy", "off")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := h.node.Do(cmd.Start); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := h.client.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{}))
		cancel()
		if err == nil {
			return cmd
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(filepath.Join(h.dir, "agent.log"))
			h.t.Fatalf("the agent does not answer: %v\n%s", err, text[max(0, len(text)-4000):])
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (h *harness) addEndpoints(n int) {
	h.t.Helper()
	for i := range n {
		ns, err := testns.New(fmt.Sprintf("pod%d", i))
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { ns.Close() })
		h.pods = append(h.pods, ns)
		_, err = h.client.Endpoints.Add(context.Background(), connect.NewRequest(&varvev1.AddEndpointRequest{
			Name: fmt.Sprintf("pod%d", i), Netns: ns.Path(), Labels: map[string]string{"app": fmt.Sprintf("app%d", i%2)},
		}))
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

// appendPolicies sets and deletes policies for as long as ctx lasts, retrying each
// with its request id until it is acknowledged.
func (h *harness) appendPolicies(ctx context.Context, client int) {
	for n := 0; ctx.Err() == nil; n++ {
		id := fmt.Sprintf("c%d-%d", client, n)
		manifest := fmt.Sprintf(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"p%d-%d"},
			"spec":{"endpointSelector":{"matchLabels":{"app":"app%d"}},"ingress":[{"fromEndpoints":[{"matchLabels":{"app":"app%d"}}],
			"toPorts":[{"ports":[{"port":"%d","protocol":"TCP"}]}]}]}}`, client, n%5, n%2, (n+1)%2, 1000+n%1000)
		for ctx.Err() == nil {
			resp, err := h.client.Policies.Apply(ctx, connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: manifest, RequestId: id}))
			if err == nil {
				h.ack(id, resp.Msg.Policies[0].Revision)
				break
			}
			if code := connect.CodeOf(err); ctx.Err() == nil && code != connect.CodeUnavailable && code != connect.CodeCanceled && !isBroken(err) {
				h.t.Errorf("%s: %v", id, err)
				return
			}
			<-time.After(2 * time.Millisecond)
		}
	}
}

// isBroken tells an agent that died under a call from one that refused it.
func isBroken(err error) bool {
	var refused *connect.Error
	return !errors.As(err, &refused) || refused.Code() == connect.CodeUnknown || refused.Code() == connect.CodeInternal && strings.Contains(err.Error(), "EOF")
}

func (h *harness) ack(id string, revision uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked[id] = revision
}

// relabel gives endpoints and their namespace other labels all the time.
func (h *harness) relabel(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		// Both fail while the agent is down or has no endpoint yet.
		_, _ = h.client.Endpoints.SetLabels(ctx, connect.NewRequest(&varvev1.SetEndpointLabelsRequest{
			Name: fmt.Sprintf("pod%d", n%4), Set: map[string]string{"version": fmt.Sprint(n % 7)},
		}))
		_, _ = h.client.Namespaces.Apply(ctx, connect.NewRequest(&varvev1.ApplyNamespaceRequest{
			Name: "default", Labels: map[string]string{"n": fmt.Sprint(n % 3)},
		}))
		<-time.After(3 * time.Millisecond)
	}
}

// check compares log, state, replay and kernel of a running agent.
func (h *harness) check(round int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	verify, err := h.client.Log.Verify(ctx, connect.NewRequest(&varvev1.VerifyRequest{}))
	if err != nil {
		h.t.Fatalf("round %d: verify: %v", round, err)
	}
	v := verify.Msg
	if v.Problem != "" || v.First != 1 && v.Last != 0 {
		h.t.Fatalf("round %d: log of revisions %d to %d: bad at %d: %s", round, v.First, v.Last, v.BadRevision, v.Problem)
	}
	if string(v.ReplayDigest) != string(v.StateDigest) && v.Last != 0 {
		h.t.Fatalf("round %d: replay from zero gives state %x, snapshot and tail %x", round, v.ReplayDigest, v.StateDigest)
	}
	status, err := h.client.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{Verify: true}))
	if err != nil {
		h.t.Fatalf("round %d: status: %v", round, err)
	}
	s := status.Msg
	for _, d := range s.Differences {
		h.t.Errorf("round %d: %s: %s %s: want %s, have %s", round, d.Table, d.Kind, d.Key, d.Want, d.Have)
	}
	if string(s.TablesDigest) != string(s.KernelDigest) {
		h.t.Errorf("round %d: tables have digest %x, the kernel %x", round, s.TablesDigest, s.KernelDigest)
	}
	for _, c := range s.Checks {
		if !c.Ok {
			h.t.Errorf("round %d: %s: %s", round, c.Name, c.Message)
		}
	}
	if h.t.Failed() {
		h.t.FailNow()
	}
}

// checkAcknowledged reads the whole log and looks for every acknowledged event.
func (h *harness) checkAcknowledged() {
	h.t.Helper()
	stream, err := h.client.Log.Read(context.Background(), connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stream.Close()
	found := map[string]uint64{}
	next := uint64(1)
	for stream.Receive() {
		r := stream.Msg()
		if r.Revision != next {
			h.t.Fatalf("revision %d follows %d", r.Revision, next-1)
		}
		next++
		if id := r.Event.GetRequestId(); id != "" {
			if old, ok := found[id]; ok {
				h.t.Errorf("%s was applied twice, at revisions %d and %d", id, old, r.Revision)
			}
			found[id] = r.Revision
		}
	}
	if err := stream.Err(); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, rev := range h.acked {
		switch got, ok := found[id]; {
		case !ok:
			h.t.Errorf("%s was acknowledged at revision %d and is lost", id, rev)
		case got != rev:
			h.t.Errorf("%s was acknowledged at revision %d and is at %d", id, rev, got)
		}
	}
}

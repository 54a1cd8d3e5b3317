// Package faults holds the real binary to what it promises when its disk fails
// it: a full or read-only disk, flipped bits, truncated and missing files, a
// second agent on the same directory. Either the service is correct, with every
// acknowledged event, or there is an error that names the object and the remedy.
package faults

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testbin"
	"github.com/varve-net/varve/internal/testns"
	"github.com/varve-net/varve/log/eventpb"
)

var (
	flips = flag.Int("flips", 2, "how many places of each file of the state directory have a bit flipped")
	seed  = flag.Uint64("seed", 0, "of the random places; 0: a new one")
)

// patience is how long what must happen may take on a loaded or an emulated machine.
const patience = 3 * time.Minute

// binary is the agent under test, built once.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "varve-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary, err = testbin.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// node is a place in which agents run, one after the other.
type node struct {
	t      *testing.T
	dir    string
	state  string
	ns     *testns.NS
	client *api.Client
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir()}
	n.state = filepath.Join(n.dir, "state")
	var err error
	if n.ns, err = testns.New("node"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.ns.Close() })
	if n.client, err = api.New(filepath.Join(n.dir, "varve.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.client.Close)
	// The agent mounts its bpffs here.
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(n.dir, "bpf"), 0) })
	return n
}

// tmpfs mounts one of a size in bytes at the state directory.
func (n *node) tmpfs(size int) {
	n.t.Helper()
	if err := os.MkdirAll(n.state, 0o750); err != nil {
		n.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.state, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		n.t.Fatal(err)
	}
	// Lazily, because an agent may not have ended yet where a test failed.
	n.t.Cleanup(func() { _ = unix.Unmount(n.state, unix.MNT_DETACH) })
}

// agent is one run of the binary.
type agent struct {
	cmd    *exec.Cmd
	mu     sync.Mutex
	output bytes.Buffer
	ended  chan struct{} // closed once the process is gone
}

// Write implements io.Writer for the process's output.
func (a *agent) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.output.Write(b)
}

func (a *agent) log() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.output.String()
}

// launch starts an agent with the node's directories, or others given by args,
// and does not wait for it.
func (n *node) launch(args ...string) *agent {
	n.t.Helper()
	a := &agent{ended: make(chan struct{})}
	a.cmd = exec.Command(binary, append([]string{
		"agent", "--state-dir", n.state,
		"--socket", filepath.Join(n.dir, "varve.sock"), "--bpf-root", filepath.Join(n.dir, "bpf"),
		"--node-name", "node", "--snapshot-threshold", "32", "--dns-proxy", "off",
	}, args...)...)
	a.cmd.Stdout, a.cmd.Stderr = a, a
	if err := n.ns.Do(a.cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		defer close(a.ended)
		_ = a.cmd.Wait()
	}()
	n.t.Cleanup(func() {
		a.kill()
		for _, bad := range []string{"panic", "fatal error", "goroutine "} {
			if strings.Contains(a.log(), bad) {
				n.t.Errorf("the agent's output has %q:\n%s", bad, a.log())
			}
		}
	})
	return a
}

func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	<-a.ended
}

// stop ends an agent as an init system does.
func (n *node) stop(a *agent) {
	n.t.Helper()
	_ = a.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(patience):
		n.t.Fatalf("the agent does not stop:\n%s", a.log())
	}
}

// up waits until an agent answers, or has ended.
func (n *node) up(a *agent) bool {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := n.client.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{}))
		cancel()
		if err == nil {
			return true
		}
		select {
		case <-a.ended:
			return false
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the agent neither answers nor ends: %v\n%s", err, a.log())
		}
	}
}

func (n *node) start() *agent {
	n.t.Helper()
	a := n.launch()
	if !n.up(a) {
		n.t.Fatalf("the agent ended:\n%s", a.log())
	}
	return a
}

// refused waits for an agent to end and wants every part in what it said.
func (n *node) refused(a *agent, parts ...string) {
	n.t.Helper()
	select {
	case <-a.ended:
	case <-time.After(patience):
		n.t.Fatalf("the agent runs:\n%s", a.log())
	}
	if a.cmd.ProcessState.Success() {
		n.t.Error("the agent ended without an error")
	}
	for _, part := range parts {
		if !strings.Contains(a.log(), part) {
			n.t.Errorf("the agent's output lacks %q:\n%s", part, a.log())
		}
	}
}

// append records one event under a request id and returns its revision.
func (n *node) append(ctx context.Context, id string) (uint64, error) {
	resp, err := n.client.Log.Append(ctx, connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{{
		RequestId: id,
		Payload:   &eventpb.Event_NamespaceSet{NamespaceSet: &eventpb.NamespaceSet{Name: "shop", Labels: map[string]string{"id": id}}},
	}}}))
	if err != nil {
		return 0, err
	}
	return resp.Msg.Results[0].Revision, nil
}

// appendMany appends n events and returns what was acknowledged.
func (n *node) appendMany(prefix string, count int) map[string]uint64 {
	n.t.Helper()
	acked := map[string]uint64{}
	for i := range count {
		id := fmt.Sprintf("%s-%d", prefix, i)
		rev, err := n.append(context.Background(), id)
		if err != nil {
			n.t.Fatal(err)
		}
		acked[id] = rev
	}
	return acked
}

// holds reports what is wrong with a running agent's log: the chain must verify
// and every acknowledged event be at its revision.
func (n *node) holds(acked map[string]uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	verify, err := n.client.Log.Verify(ctx, connect.NewRequest(&varvev1.VerifyRequest{}))
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if v := verify.Msg; v.Problem != "" || v.First != 1 || string(v.ReplayDigest) != string(v.StateDigest) {
		return fmt.Errorf("verify: revisions %d to %d, bad at %d: %q; replay %x, state %x", v.First, v.Last, v.BadRevision, v.Problem, v.ReplayDigest, v.StateDigest)
	}
	stream, err := n.client.Log.Read(ctx, connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		return err
	}
	defer stream.Close()
	found := map[string]uint64{}
	for stream.Receive() {
		if id := stream.Msg().Event.GetRequestId(); id != "" {
			found[id] = stream.Msg().Revision
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	var lost []error
	for id, rev := range acked {
		if found[id] != rev {
			lost = append(lost, fmt.Errorf("%s was acknowledged at revision %d and is at %d", id, rev, found[id]))
		}
	}
	return errors.Join(lost...)
}

// Package docs runs what documents show on the real binary, with real packets, and
// holds the documents to what the commands print.
package docs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testbin"
	"github.com/varve-net/varve/internal/testns"
)

// limit is how long what must happen may take on a loaded machine.
const limit = 3 * time.Minute

// stage is a node with an agent and two pods.
type stage struct {
	t      *testing.T
	dir    string
	binary string
	node   *testns.NS
	pods   map[string]*testns.NS
	agent  *exec.Cmd
	output bytes.Buffer
	client *api.Client

	divided bool // what belongs together is in two blocks of the flow record
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, dir: t.TempDir(), pods: map[string]*testns.NS{}}
	var err error
	if s.binary, err = testbin.Build(filepath.Join(s.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	s.node = s.space("node")
	if s.client, err = api.New(s.socket()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(s.dir, "bpf"), 0) })
	return s
}

func (s *stage) socket() string { return filepath.Join(s.dir, "varve.sock") }

func (s *stage) space(name string) *testns.NS {
	s.t.Helper()
	ns, err := testns.New(name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// start starts the agent. It makes a Raft snapshot every few entries, so that what is
// asked about is no longer in the Raft log.
func (s *stage) start() {
	s.t.Helper()
	s.agent = exec.Command(s.binary, "agent", "--config", os.DevNull, "--dns-proxy", "off", "--state-dir", filepath.Join(s.dir, "state"), "--socket", s.socket(),
		"--bpf-root", filepath.Join(s.dir, "bpf"), "--node-name", "node-1", "--node-ip", "192.0.2.1", "--enable-ipv6=false", "--snapshot-threshold", "4")
	s.agent.Stdout, s.agent.Stderr = &s.output, &s.output
	if err := s.node.Do(s.agent.Start); err != nil {
		s.t.Fatal(err)
	}
	agent := s.agent
	s.t.Cleanup(func() {
		_ = agent.Process.Kill()
		_ = agent.Wait()
		if s.t.Failed() {
			s.t.Logf("agent:\n%s", s.output.String())
		}
	})
	s.eventually("the agent answers", func() error {
		_, err := s.client.Agent.Status(s.t.Context(), connect.NewRequest(&varvev1.StatusRequest{}))
		return err
	})
}

func (s *stage) eventually(what string, try func() error) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		if err = try(); err == nil {
			return
		}
		select {
		case <-s.t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.t.Fatalf("%s: %v", what, err)
}

// add connects a pod in a network namespace of its own.
func (s *stage) add(name, addr string, labels map[string]string, ports ...*varvev1.NamedPort) {
	s.t.Helper()
	s.pods[name] = s.space(name)
	_, err := s.client.Endpoints.Add(s.t.Context(), connect.NewRequest(&varvev1.AddEndpointRequest{
		Namespace: "shop", Name: name, Labels: labels, Netns: s.pods[name].Path(), Addresses: []string{addr}, NamedPorts: ports,
	}))
	if err != nil {
		s.t.Fatal(err)
	}
}

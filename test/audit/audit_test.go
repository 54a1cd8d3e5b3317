// Package audit runs the incident of docs/audit.md on the real binary, with real
// packets, and holds the document to what the commands print.
package audit

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testbin"
	"github.com/varve-net/varve/internal/testns"
)

var update = flag.Bool("update", false, "write what the commands print into the documents")

const limit = 60 * time.Second

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

var database = netip.MustParseAddrPort("10.244.0.6:5432")

// steps are what happens between the commands of the document.
var steps = map[string]func(*stage){
	"pods": func(s *stage) {
		s.start()
		s.add("web", "10.244.0.5", map[string]string{"app": "web"})
		s.add("db", database.Addr().String(), map[string]string{"app": "db"}, &varvev1.NamedPort{Name: "postgres", Protocol: "TCP", Port: uint32(database.Port())})
		echo, err := s.pods["db"].EchoTCP(database)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = echo.Close() })
	},
	"traffic": func(s *stage) {
		for range 3 {
			s.eventually("web reaches db", func() error { return s.pods["web"].ExchangeTCP(database, 5*time.Second) })
		}
		s.seen("FORWARDED", 3)
	},
	"relabel": func(s *stage) {
		_, err := s.client.Endpoints.SetLabels(s.t.Context(), connect.NewRequest(&varvev1.SetEndpointLabelsRequest{Namespace: "shop", Name: "web", Set: map[string]string{"app": "web-v2"}}))
		if err != nil {
			s.t.Fatal(err)
		}
		if err := s.pods["web"].ExchangeTCP(database, 300*time.Millisecond); err == nil {
			s.t.Fatal("web still reaches db")
		}
		s.seen("DROPPED", 1)
	},
	"replace": func(s *stage) {
		if _, err := s.client.Endpoints.Delete(s.t.Context(), connect.NewRequest(&varvev1.DeleteEndpointRequest{Namespace: "shop", Name: "web"})); err != nil {
			s.t.Fatal(err)
		}
		s.add("worker", "10.244.0.5", map[string]string{"app": "worker"})
	},
	"crash": func(s *stage) {
		s.written()
		_ = s.agent.Process.Kill()
		_ = s.agent.Wait()
		s.start()
	},
}

// seen waits until the flow record has seen a verdict some times.
func (s *stage) seen(verdict string, times uint64) {
	s.t.Helper()
	s.eventually("flows "+verdict, func() error {
		stream, err := s.client.Flows.Observe(s.t.Context(), connect.NewRequest(&varvev1.ObserveRequest{Filter: &varvev1.FlowFilter{Verdicts: []string{verdict}}}))
		if err != nil {
			return err
		}
		defer stream.Close()
		var n uint64
		for stream.Receive() {
			n += stream.Msg().GetFlow().GetCount()
		}
		if n < times {
			return fmt.Errorf("seen %d times, want %d", n, times)
		}
		return stream.Err()
	})
}

// written waits until the flow record has written what it has seen until now: a
// killed agent loses the last seconds.
func (s *stage) written() {
	s.t.Helper()
	size := func() (uint64, error) {
		st, err := s.client.Agent.Status(s.t.Context(), connect.NewRequest(&varvev1.StatusRequest{}))
		if err != nil {
			return 0, err
		}
		return st.Msg.GetFlows().GetBytes(), nil
	}
	before, err := size()
	if err != nil {
		s.t.Fatal(err)
	}
	s.eventually("a block of flows is written", func() error {
		now, err := size()
		if err == nil && now <= before {
			err = fmt.Errorf("%d bytes, as before", now)
		}
		return err
	})
}

// run is what a command of the document prints, as a shell would show it.
func (s *stage) run(line string) string {
	s.t.Helper()
	line, code := strings.CutSuffix(line, "; echo $?")
	words := strings.Fields(line)
	if len(words) == 0 || words[0] != "varve" {
		s.t.Fatalf("the document has the command %q, and the test runs varve alone", line)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	args := words[1:]
	if !strings.Contains(line, "--log ") {
		args = append([]string{"--socket", s.socket()}, args...)
	}
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%s: %v", line, err)
	}
	if code {
		out = fmt.Appendf(out, "%d\n", cmd.ProcessState.ExitCode())
	} else if cmd.ProcessState.ExitCode() > 1 {
		s.t.Errorf("%s: exit code %d\n%s", line, cmd.ProcessState.ExitCode(), out)
	}
	return string(out)
}

var (
	fence  = regexp.MustCompile("^```(\\w*)$")
	stepRE = regexp.MustCompile(`^<!-- step: (\w+) -->$`)
)

// play goes through a document: it takes its steps, writes its files, runs its
// commands, and returns it with what they printed.
func (s *stage) play(doc string) string {
	s.t.Helper()
	var out strings.Builder
	var inside string // the language of the block
	var file []string
	for line := range strings.Lines(doc) {
		text := strings.TrimSuffix(line, "\n")
		if m := stepRE.FindStringSubmatch(text); m != nil {
			step, ok := steps[m[1]]
			if !ok {
				s.t.Fatalf("unknown step %s", m[1])
			}
			step(s)
		}
		if m := fence.FindStringSubmatch(text); m != nil {
			if inside == "yaml" && text == "```" {
				name, ok := strings.CutPrefix(file[0], "# ")
				if !ok {
					s.t.Fatalf("a block of yaml begins with no name: %q", file[0])
				}
				if err := os.WriteFile(filepath.Join(s.dir, name), []byte(strings.Join(file, "\n")+"\n"), 0o600); err != nil {
					s.t.Fatal(err)
				}
			}
			file = nil
			if inside != "" {
				inside = ""
			} else {
				inside = m[1]
			}
			out.WriteString(line)
			continue
		}
		switch inside {
		case "yaml":
			file = append(file, text)
		case "console":
			command, ok := strings.CutPrefix(text, "$ ")
			if !ok {
				continue // of a former run
			}
			out.WriteString(line)
			out.WriteString(s.run(command))
			continue
		}
		out.WriteString(line)
	}
	return out.String()
}

// vary is what differs from run to run.
var vary = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "TIME"},
	{regexp.MustCompile(`pid=\d+`), "pid=N"},
	{regexp.MustCompile(`\b(\d+h)?(\d+m)?\d+(\.\d+)?(ms|µs|s)\b`), "DURATION"},
	{regexp.MustCompile(`[0-9a-f]{2}(:[0-9a-f]{2}){5}`), "MAC"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "ID"}, // stands for content, which a later version words otherwise
	{regexp.MustCompile(`x\d+(/DURATION)?`), "xN"},
	{regexp.MustCompile(`(seen|SEEN) \d+ times`), "seen N times"},
	{regexp.MustCompile(`[ \t]+`), " "},
}

func normal(s string) string {
	for _, v := range vary {
		s = v.re.ReplaceAllString(s, v.to)
	}
	return s
}

func TestTheIncidentOfTheDocument(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "audit.md")
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := newStage(t).play(string(doc))
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(normal(string(doc)), normal(got)); diff != "" {
		t.Errorf("run with -update and look at what changed (-document +now):\n%s", diff)
	}
}

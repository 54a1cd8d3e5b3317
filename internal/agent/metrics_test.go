package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/internal/testns"
)

// agentDirectory, if set in the environment, makes this test binary an agent in
// that directory: an agent needs a network namespace of its own for all its
// threads, and so a process.
const agentDirectory = "VARVE_TEST_AGENT_DIRECTORY"

const metricsAddress = "127.0.0.1:9962"

// patience is how long what must happen may take on a loaded machine.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	dir := os.Getenv(agentDirectory)
	if dir == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	err := Run(ctx, Config{
		StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "varve.sock"), BPFRoot: filepath.Join(dir, "bpf"),
		Cluster: "test", Node: "n1", NodeAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		IPv4Range: DefaultIPv4Range, IPv6Range: DefaultIPv6Range, PrometheusServeAddr: metricsAddress,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A whole agent on the kernel: what it serves from its start to its end.
func TestMetricsOfAnAgent(t *testing.T) {
	ns, err := testns.New("metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if _, err := ns.Output(t.Context(), "ip", "link", "set", "lo", "up"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	defer unix.Unmount(filepath.Join(dir, "bpf"), unix.MNT_DETACH)

	var said bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentDirectory+"="+dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = ns.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}}
	get := func(path string) (int, string, error) {
		resp, err := client.Get("http://" + metricsAddress + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	deadline := time.After(patience)
	for {
		code, body, err := get("/healthz")
		if code == http.StatusOK {
			break
		}
		if err == nil && code != http.StatusServiceUnavailable {
			t.Fatalf("healthz: %d %s", code, body)
		}
		select {
		case err := <-ended:
			t.Fatalf("the agent ended: %v\n%s", err, &said)
		case <-deadline:
			_ = cmd.Process.Kill()
			t.Fatalf("not healthy: %d %s, %v\n%s", code, body, err, &said)
		case <-time.After(5 * time.Millisecond):
		}
	}

	code, body, err := get("/metrics")
	if code != http.StatusOK || err != nil {
		t.Fatalf("metrics: %d, %v", code, err)
	}
	for _, line := range []string{
		`varve_log_revision 1`, `varve_log_apply_lag 0`, `varve_nodes_all_num 1`, `varve_policy 0`,
		`varve_endpoint_state{endpoint_state="ready"} 0`, `varve_endpoint_regenerations_total{outcome="success"} 1`,
		`varve_log_append_total{outcome="applied"} 1`, `varve_log_commit_seconds_count 1`,
		`varve_agent_bootstrap_seconds_count{outcome="success",scope="overall"} 1`,
		`varve_bpf_map_pressure{map_name="policy"} 0`, `varve_drop_count_total{direction="EGRESS",reason="policy denied"} 0`,
	} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if t.Failed() {
		t.Log(body)
	}

	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the agent: %v\n%s", err, &said)
		}
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		t.Error("the agent does not end")
	}
	if _, _, err := get("/healthz"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after its end: %v", err)
	}
}

func TestStatesHaveFewWords(t *testing.T) {
	n := newNode(t)
	ref := func(name string) fsm.EndpointRef { return fsm.EndpointRef{Namespace: "default", Name: name} }
	for name, state := range map[string]string{
		"a": "not activated: no route to the host", "b": "no interface: vv12 is gone",
		"c": "disconnected, but still recorded: log: no space left", "d": "upside down", "e": stateReady,
	} {
		n.eps.setState(ref(name), state)
	}
	want := map[fsm.EndpointRef]string{ref("a"): "not-activated", ref("b"): "no-interface", ref("c"): "disconnected", ref("d"): "invalid"}
	if got := n.eps.unready(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

package cli

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/internal/agent"
)

// runAgentWith returns the Config with which a command line runs the agent.
func runAgentWith(t *testing.T, args ...string) (agent.Config, result) {
	t.Helper()
	var cfg agent.Config
	defer func(run func(context.Context, agent.Config) error) { runAgent = run }(runAgent)
	runAgent = func(_ context.Context, c agent.Config) error {
		cfg = c
		return nil
	}
	got := varve(t, nil, "", append([]string{"agent"}, args...)...)
	return cfg, got
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func defaultAgentConfig() agent.Config {
	return agent.Config{
		StateDir: agent.DefaultStateDir, Socket: agent.DefaultSocket, Group: agent.DefaultGroup, BPFRoot: agent.DefaultBPFRoot,
		Cluster: agent.DefaultCluster, IPv4Range: agent.DefaultIPv4Range, IPv6Range: agent.DefaultIPv6Range, MTU: agent.DefaultMTU,
		DriftInterval: agent.DefaultDriftInterval, SnapshotThreshold: agent.DefaultSnapshotThreshold, CheckpointEvents: agent.DefaultCheckpointEvents,
		DNSProxy: agent.DNSProxyChild, FlowStoreMaxBytes: flows.DefaultMaxBytes, FlowStoreMaxAge: flows.DefaultMaxAge,
	}
}

func TestAgentConfig(t *testing.T) {
	file := writeConfig(t, `
state-dir: /from/file
mtu: 9000
node-ip: [192.0.2.1, "2001:db8::1"]
enable-ipv6: false
bpf-ct-max: 1000
`)
	for _, tt := range []struct {
		name string
		env  map[string]string
		args []string
		want func(*agent.Config)
	}{
		{name: "defaults", want: func(*agent.Config) {}},
		{
			name: "flags", args: []string{"--ipv4-range", "10.1.0.0/16", "--enable-ipv6=false", "--node-ip", "::ffff:192.0.2.9", "--log-format", "json", "--kube-apiserver", "--prometheus-serve-addr", "127.0.0.1:9962"},
			want: func(c *agent.Config) {
				c.IPv4Range, c.IPv6Range = netip.MustParsePrefix("10.1.0.0/16"), netip.Prefix{}
				c.NodeAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
				c.KubeAPIServer = true
				c.PrometheusServeAddr = "127.0.0.1:9962"
				c.DNSProxyArgs = []string{"--log-format=json"}
			},
		},
		{
			name: "of the DNS proxy", env: map[string]string{"VARVE_TOFQDNS_MIN_TTL": "60"},
			args: []string{"--dns-socket", "/dns.sock", "--tofqdns-dns-reject-response-code", "nameError", "--tofqdns-proxy-response-max-delay", "1s"},
			want: func(c *agent.Config) {
				c.DNSSocket = "/dns.sock"
				c.DNSProxyArgs = []string{"--tofqdns-min-ttl=60", "--tofqdns-dns-reject-response-code=nameError", "--tofqdns-proxy-response-max-delay=1s"}
			},
		},
		{
			name: "map sizes", args: []string{"--bpf-ct-global-tcp-max", "1000", "--bpf-ct-global-any-max", "500", "--bpf-policy-map-max", "10", "--bpf-map-max", "classes=20,events=4096", "--bpf-fragments-map-max", "7"},
			want: func(c *agent.Config) {
				c.ConntrackMax, c.PolicyMax, c.FragmentsMax = 1500, 10, 7
				c.MapMax = map[string]uint32{"classes": 20, "events": 4096}
			},
		},
		{
			name: "file", args: []string{"--config", file},
			want: func(c *agent.Config) {
				c.StateDir, c.MTU, c.IPv6Range, c.ConntrackMax = "/from/file", 9000, netip.Prefix{}, 1000
				c.NodeAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
			},
		},
		{
			name: "flag before environment before file",
			env:  map[string]string{"VARVE_CONFIG": file, "VARVE_STATE_DIR": "/from/env", "VARVE_MTU": "1400", "VARVE_NODE_IP": "192.0.2.7", "VARVE_SOCKET": "/env.sock"},
			args: []string{"--mtu", "1300"},
			want: func(c *agent.Config) {
				c.StateDir, c.MTU, c.IPv6Range, c.ConntrackMax, c.Socket = "/from/env", 1300, netip.Prefix{}, 1000, "/env.sock"
				c.NodeAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
			},
		},
		{
			name: "empty and unknown environment", env: map[string]string{"VARVE_STATE_DIR": "", "VARVE_SOMETHING": "x"},
			want: func(*agent.Config) {},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			cfg, got := runAgentWith(t, tt.args...)
			if got.code != exitYes {
				t.Fatalf("got %+v", got)
			}
			if cfg.Logger == nil || cfg.Version == "" {
				t.Error("no logger or no version")
			}
			want := defaultAgentConfig()
			tt.want(&want)
			if diff := cmp.Diff(want, cfg, cmpopts.IgnoreFields(agent.Config{}, "Logger", "Version"),
				cmp.Comparer(func(x, y netip.Addr) bool { return x == y }), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAgentConfigRefused: what is wrong is named with its place, before anything
// starts.
func TestAgentConfigRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		file string
		env  map[string]string
		args []string
		want string
	}{
		{name: "unknown key", file: "statedir: x", want: "config.yaml: statedir: is no setting; known are state-dir"},
		{name: "near key", file: "State_Dir: x", want: `State_Dir: is no setting; did you mean "state-dir"?`},
		{name: "nested key", file: "bpf: {root: x}", want: "bpf.root: is no setting"},
		{name: "dotted key", file: "bpf.root: x", want: "bpf.root: is no setting"},
		{name: "flag of the command line", file: "no-color: true", want: "no-color: is no setting"},
		{name: "itself", file: "config: x", want: "config: is not read from the file"},
		{name: "type in file", file: "mtu: big", want: `config.yaml: mtu: "big" is not a whole number`},
		{name: "list for one", file: "mtu: [1, 2]", want: "mtu: is a list"},
		{name: "no value", file: "mtu:", want: "mtu: has no value"},
		{name: "no mapping", file: "just text", want: "config.yaml: "},
		{name: "no YAML", file: "a: [", want: "config.yaml: "},
		{name: "missing file", args: []string{"--config", "/nonexistent/x.yaml"}, want: "no such file"},
		{name: "environment", env: map[string]string{"VARVE_ENABLE_IPV4": "maybe"}, want: `VARVE_ENABLE_IPV4: "maybe" is not true or false`},
		{name: "range", args: []string{"--ipv4-range", "10.0.0.0"}, want: `ipv4-range: "10.0.0.0" is no range`},
		{name: "address", args: []string{"--node-ip", "host"}, want: `node-ip: "host" is no address`},
		{name: "size", args: []string{"--bpf-ct-max", "-1"}, want: "bpf-ct-max: -1"},
		{name: "code of a rejection", args: []string{"--tofqdns-dns-reject-response-code", "drop"}, want: `tofqdns-dns-reject-response-code: "drop" is none of refused, nameError`},
		{name: "what is not bounded here", args: []string{"--tofqdns-max-deferred-connection-deletes", "10000"}, want: "a live connection is never taken away"},
		{name: "what would open an address to all", file: "tofqdns-pre-cache: /x.json", want: "tofqdns-pre-cache: "},
		{name: "map size", args: []string{"--bpf-map-max", "classes"}, want: `bpf-map-max: "classes"; give MAP=ENTRIES`},
		{name: "map of no size", args: []string{"--bpf-map-max", "classes=0"}, want: `bpf-map-max: "classes=0"; give MAP=ENTRIES`},
		{name: "conntrack twice", args: []string{"--bpf-ct-max", "5", "--bpf-ct-global-any-max", "5"}, want: "bpf-ct-max: goes without"},
		{name: "level", args: []string{"--log-level", "loud"}, want: "debug, info, warn, error"},
		{name: "format", args: []string{"--log-format", "xml"}, want: "text, json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			args := tt.args
			if tt.file != "" {
				args = append(args, "--config", writeConfig(t, tt.file))
			}
			cfg, got := runAgentWith(t, args...)
			if got.code != exitUsage || strings.Count(got.stderr, "\n") != 1 || !strings.Contains(got.stderr, tt.want) {
				t.Errorf("got %+v, want exit code %d and one line with %q", got, exitUsage, tt.want)
			}
			if cfg.Logger != nil {
				t.Error("the agent was run")
			}
		})
	}
}

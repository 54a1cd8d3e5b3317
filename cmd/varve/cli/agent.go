package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/varve-net/varve/dataplane/dns"
	"github.com/varve-net/varve/flows"
	"github.com/varve-net/varve/internal/agent"
	"github.com/varve-net/varve/internal/version"
)

// agentFlags are the settings of `varve agent` that agent.Config holds in
// another form.
type agentFlags struct {
	config     string
	nodeIPs    []string
	ipv4, ipv6 bool
	ipv4Range  string
	ipv6Range  string
	logLevel   string
	mapMax     []string
	ctTCP      int
	ctAny      int
	logFormat  string
}

func (a *app) agentCommand() *cobra.Command {
	var f agentFlags
	var df dnsProxyFlags
	var proxy dns.Config
	cfg := agent.Config{Version: version.String()}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this node",
		Long: strings.TrimSpace(`
Run the agent of this node until it is told to stop. Traffic and policy go on
while no agent runs; its start writes only what differs.

Each setting is taken from the first place that has it: the flag, the environment
(VARVE_STATE_DIR for --state-dir, and so on), the file given by --config, where
keys are named as the flags are, and the default.`),
		Example: strings.Trim(`
  varve agent
  varve agent --state-dir /tmp/varve --socket /tmp/varve.sock --bpf-root /sys/fs/bpf/mine
  VARVE_LOG_LEVEL=debug varve agent --ipv4-range 10.1.2.0/24 --enable-ipv6=false`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := loadConfig(cmd.Flags()); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			if err := errors.Join(f.fill(&cfg, a.stderr), df.check(&proxy)); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			cfg.DNSProxyArgs = df.passOn(cmd.Flags())
			err := runAgent(cmd.Context(), cfg)
			if errors.Is(err, agent.ErrConfig) {
				return &exitError{code: exitUsage, err: err}
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.config, configFlag, a.agentConfig, "YAML file of settings; the default one may be missing")
	flags.StringVar(&cfg.StateDir, "state-dir", agent.DefaultStateDir, "directory of the log, its history and snapshots")
	flags.StringVar(&cfg.Socket, "socket", agent.DefaultSocket, "unix socket to answer on")
	flags.StringVar(&cfg.DNSProxy, "dns-proxy", agent.DNSProxyChild, "who runs the DNS proxy: child (the agent), external (another service, such as systemd's), off (there is none)")
	flags.StringVar(&cfg.DNSSocket, "dns-socket", "", "unix socket of the DNS proxy (default dns.sock beside the agent's)")
	flags.StringVar(&cfg.Group, "group", agent.DefaultGroup, "members of this group may use the socket beside root; empty: nobody")
	flags.StringVar(&cfg.RestoreGroup, "restore-group", "", "those of --group who are in this group too may restore snapshots beside root; empty: nobody")
	flags.StringVar(&cfg.BPFRoot, "bpf-root", agent.DefaultBPFRoot, "directory of the BPF pins, on a bpffs or where one may be mounted")
	flags.StringVar(&cfg.Cluster, "cluster-name", agent.DefaultCluster, "name of the cluster")
	flags.StringVar(&cfg.Node, "node-name", "", "name of this node (default the host's name)")
	flags.StringSliceVar(&f.nodeIPs, "node-ip", nil, "address of the local host, repeatable (default those of its interfaces)")
	flags.BoolVar(&cfg.KubeAPIServer, "kube-apiserver", false, "the Kubernetes API server runs on this host")
	flags.BoolVar(&cfg.PolicyAuditMode, "policy-audit-mode", false, "let pass, and report, what policy would drop of this node's endpoints")
	flags.BoolVar(&f.ipv4, "enable-ipv4", true, "give endpoints IPv4 addresses")
	flags.BoolVar(&f.ipv6, "enable-ipv6", true, "give endpoints IPv6 addresses")
	flags.StringVar(&f.ipv4Range, "ipv4-range", agent.DefaultIPv4Range.String(), "range of the endpoints' IPv4 addresses; its first is the gateway")
	flags.StringVar(&f.ipv6Range, "ipv6-range", agent.DefaultIPv6Range.String(), "range of the endpoints' IPv6 addresses; its first is the gateway")
	flags.IntVar(&cfg.MTU, "mtu", agent.DefaultMTU, "MTU of the endpoints' interfaces, in bytes")
	flags.BoolVar(&cfg.IPv4BigTCP, "enable-ipv4-big-tcp", false, "let IPv4 TCP packets between endpoints grow to 192 KiB (Linux 6.3)")
	flags.BoolVar(&cfg.IPv6BigTCP, "enable-ipv6-big-tcp", false, "let IPv6 TCP packets between endpoints grow to 192 KiB")
	flags.IntVar(&cfg.ConntrackMax, "bpf-ct-max", 0, "entries of each of the conntrack maps, one for IPv4 and one for IPv6 (0: the built-in size)")
	flags.IntVar(&f.ctTCP, "bpf-ct-global-tcp-max", 0, "as in Cilium; all protocols share the conntrack maps, so the two of this name are added up")
	flags.IntVar(&f.ctAny, "bpf-ct-global-any-max", 0, "see --bpf-ct-global-tcp-max")
	flags.IntVar(&cfg.PolicyMax, "bpf-policy-map-max", 0, "entries of the policy map (0: the built-in size)")
	flags.IntVar(&cfg.FragmentsMax, "bpf-fragments-map-max", 0, "entries of the map of fragmented datagrams (0: the built-in size)")
	flags.StringSliceVar(&f.mapMax, "bpf-map-max", nil, "entries of any map, as MAP=ENTRIES, repeatable: classes=1048576; `varve status` lists maps")
	flags.Uint64Var(&cfg.SnapshotThreshold, "snapshot-threshold", agent.DefaultSnapshotThreshold, "Raft entries between two snapshots")
	flags.Int64Var(&cfg.FlowStoreMaxBytes, "flow-store-max-bytes", flows.DefaultMaxBytes, "size of the flow record that `varve observe` reads (0: record no flows)")
	flags.DurationVar(&cfg.FlowStoreMaxAge, "flow-store-max-age", flows.DefaultMaxAge, "how long the flow record is kept")
	flags.Uint64Var(&cfg.CheckpointEvents, "checkpoint-events", agent.DefaultCheckpointEvents, "events between two checkpoints of the history, from which the past is replayed")
	flags.DurationVar(&cfg.HistoryMaxAge, "history-max-age", 0, "let go of events that are older (0: keep them)")
	flags.Int64Var(&cfg.HistoryMaxBytes, "history-max-bytes", 0, "let go of the oldest events where the history exceeds so many bytes (0: keep them)")
	flags.DurationVar(&cfg.DriftInterval, "drift-interval", agent.DefaultDriftInterval, "how often to look for what others changed in the kernel, and repair it")
	flags.StringVar(&cfg.PrometheusServeAddr, "prometheus-serve-addr", "", "TCP address of /metrics and /healthz, without authentication, such as 127.0.0.1:9962 (empty: none)")
	df.fqdnFlags(flags, &proxy)
	flags.StringVar(&f.logLevel, "log-level", "info", "least severe level to log: debug, info, warn, error")
	flags.StringVar(&f.logFormat, "log-format", "text", "form of the agent's own log: text, json")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	_ = cmd.MarkFlagDirname("state-dir")
	_ = cmd.MarkFlagDirname("bpf-root")
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// fill puts the settings into cfg. Its errors name the setting.
func (f *agentFlags) fill(cfg *agent.Config, stderr io.Writer) error {
	for _, s := range f.nodeIPs {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("node-ip: %q is no address; give one such as 192.0.2.1 or 2001:db8::1", s)
		}
		cfg.NodeAddresses = append(cfg.NodeAddresses, addr.Unmap())
	}
	for _, r := range []struct {
		name, value string
		on          bool
		to          *netip.Prefix
	}{
		{"ipv4-range", f.ipv4Range, f.ipv4, &cfg.IPv4Range},
		{"ipv6-range", f.ipv6Range, f.ipv6, &cfg.IPv6Range},
	} {
		if !r.on {
			continue
		}
		p, err := netip.ParsePrefix(r.value)
		if err != nil {
			return fmt.Errorf("%s: %q is no range; give one such as %s or %s", r.name, r.value, agent.DefaultIPv4Range, agent.DefaultIPv6Range)
		}
		*r.to = p
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"bpf-ct-max", cfg.ConntrackMax}, {"bpf-ct-global-tcp-max", f.ctTCP}, {"bpf-ct-global-any-max", f.ctAny},
		{"bpf-policy-map-max", cfg.PolicyMax}, {"bpf-fragments-map-max", cfg.FragmentsMax},
	} {
		if n.value < 0 || n.value > math.MaxInt32 {
			return fmt.Errorf("%s: %d; give a number of entries, or 0 for the built-in one", n.name, n.value)
		}
	}
	if both := f.ctTCP + f.ctAny; both > 0 {
		if cfg.ConntrackMax > 0 {
			return errors.New("bpf-ct-max: goes without bpf-ct-global-tcp-max and bpf-ct-global-any-max; give one or the others")
		}
		cfg.ConntrackMax = both
	}
	if len(f.mapMax) > 0 {
		cfg.MapMax = make(map[string]uint32, len(f.mapMax))
	}
	for _, s := range f.mapMax {
		name, digits, _ := strings.Cut(s, "=")
		n, err := strconv.ParseUint(digits, 10, 31)
		if err != nil || n == 0 || name == "" {
			return fmt.Errorf("bpf-map-max: %q; give MAP=ENTRIES such as classes=1048576", s)
		}
		cfg.MapMax[name] = uint32(n)
	}
	var err error
	cfg.Logger, err = newLogger(stderr, f.logLevel, f.logFormat)
	return err
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var opts slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log-level: %q is none of debug, info, warn, error", level)
	}
	opts.Level = l
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &opts)), nil
	default:
		return nil, fmt.Errorf("log-format: %q is none of text, json", format)
	}
}

// Package agent wires a node together: the log, the projection loop, the
// dataplane, the workloads' endpoints and the API. It owns the order in which
// they start and stop; every part of it is testable on its own elsewhere.
package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Config is what an agent is started with.
type Config struct {
	// StateDir holds the log, its history, snapshots and the node's identity.
	StateDir string
	// Socket is the path of the API's unix socket; Group may use it beside root.
	Socket string
	Group  string
	// RestoreGroup is those of Group who may restore snapshots beside root; empty:
	// nobody.
	RestoreGroup string
	// BPFRoot is a directory on a bpffs, or one where the agent mounts its own. All
	// pins are below it, so two agents of one machine have two of them.
	BPFRoot string

	// DNSProxy says who runs the node's DNS proxy: DNSProxyChild, DNSProxyExternal or
	// DNSProxyOff. Empty: DNSProxyOff.
	DNSProxy string
	// DNSSocket is where the node's DNS proxy answers; empty: dns.sock beside Socket.
	DNSSocket string
	// DNSProxyArgs are arguments for the DNS proxy that the agent starts.
	DNSProxyArgs []string

	Cluster string
	Node    string
	// NodeAddresses are those of the local host that endpoints may meet; they
	// have the identity "host". Empty: those of the interfaces at start.
	NodeAddresses []netip.Addr
	KubeAPIServer bool
	// PolicyAuditMode lets pass what policy would drop of the node's endpoints, and
	// reports it.
	PolicyAuditMode bool

	// IPv4Range and IPv6Range are where endpoints get their addresses from; the
	// first address of each is the gateway. The zero Prefix turns a family off.
	IPv4Range netip.Prefix
	IPv6Range netip.Prefix
	MTU       int // of the containers' interfaces
	// BIG TCP for endpoints that do not ask for it themselves.
	IPv4BigTCP, IPv6BigTCP bool

	// Sizes of BPF maps, in entries; 0: the default of package bpf. MapMax has those
	// of any map by its name, and wins.
	ConntrackMax int
	PolicyMax    int
	FragmentsMax int
	MapMax       map[string]uint32

	// DriftInterval is how often the kernel is compared with what it should be.
	DriftInterval time.Duration

	// FlowStoreMaxBytes and FlowStoreMaxAge bound the node's flow record; 0 bytes
	// turn it off.
	FlowStoreMaxBytes int64
	FlowStoreMaxAge   time.Duration

	// SnapshotThreshold is the number of Raft entries between snapshots.
	SnapshotThreshold uint64

	// HistoryMaxAge and HistoryMaxBytes bound the history that is kept; 0: none does.
	HistoryMaxAge   time.Duration
	HistoryMaxBytes int64
	// CheckpointEvents is the number of events between two checkpoints.
	CheckpointEvents uint64

	// PrometheusServeAddr is the TCP address of /metrics and /healthz, which ask
	// nobody who he is. Empty: none.
	PrometheusServeAddr string

	Version string
	Logger  *slog.Logger
	// Ready, if set, is closed once the node enforces and the API answers.
	Ready chan<- struct{}
}

// Defaults of Config.
const (
	DefaultStateDir = "/var/lib/varve"
	DefaultSocket   = "/run/varve/varve.sock"
	DefaultDNS      = "/run/varve/dns.sock"
	DefaultGroup    = "varve"
	DefaultBPFRoot  = "/sys/fs/bpf/varve"
	DefaultCluster  = "default"
	DefaultMTU      = 1500

	DefaultSnapshotThreshold = 8192
	DefaultDriftInterval     = 2 * time.Second
	DefaultCheckpointEvents  = 65536
)

// Default ranges of endpoint addresses.
var (
	DefaultIPv4Range = netip.MustParsePrefix("10.244.0.0/24")
	DefaultIPv6Range = netip.MustParsePrefix("fd00:10:244::/64")
)

// gcInterval is how often expired conntrack entries are collected; they are dead
// for the programs from the moment they expire.
const gcInterval = 30 * time.Second

// ErrConfig is returned by Run for a setting that cannot work. The message names it.
var ErrConfig = errors.New("configuration")

// normalize fills what is empty and refuses what cannot work, naming the flag.
func (c *Config) normalize() error {
	if c.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node-name: not given, and the host's name is not known: %w", err)
		}
		c.Node = host
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = DefaultSnapshotThreshold
	}
	if c.CheckpointEvents == 0 {
		c.CheckpointEvents = DefaultCheckpointEvents
	}
	if c.DriftInterval == 0 {
		c.DriftInterval = DefaultDriftInterval
	}
	if c.DNSProxy == "" {
		c.DNSProxy = DNSProxyOff
	}
	if c.DNSSocket == "" {
		c.DNSSocket = filepath.Join(filepath.Dir(c.Socket), filepath.Base(DefaultDNS))
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	var errs []error
	for _, f := range []struct{ flag, value string }{
		{"state-dir", c.StateDir}, {"socket", c.Socket}, {"bpf-root", c.BPFRoot}, {"cluster-name", c.Cluster},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("%s: empty", f.flag))
		}
	}
	if !slices.Contains([]string{DNSProxyChild, DNSProxyExternal, DNSProxyOff}, c.DNSProxy) {
		errs = append(errs, fmt.Errorf("dns-proxy: %q; give %s, %s or %s", c.DNSProxy, DNSProxyChild, DNSProxyExternal, DNSProxyOff))
	}
	if !c.IPv4Range.IsValid() && !c.IPv6Range.IsValid() {
		errs = append(errs, errors.New("enable-ipv4, enable-ipv6: both are off; endpoints need one"))
	}
	if c.IPv4Range.IsValid() && (!c.IPv4Range.Addr().Is4() || c.IPv4Range.Bits() > 30) {
		errs = append(errs, fmt.Errorf("ipv4-range: %s; give an IPv4 prefix of at most 30 bits", c.IPv4Range))
	}
	if c.IPv6Range.IsValid() && (c.IPv6Range.Addr().Is4() || c.IPv6Range.Bits() > 126) {
		errs = append(errs, fmt.Errorf("ipv6-range: %s; give an IPv6 prefix of at most 126 bits", c.IPv6Range))
	}
	if c.MTU < 1280 || c.MTU > 65535 {
		errs = append(errs, fmt.Errorf("mtu: %d; give 1280 to 65535", c.MTU))
	}
	if c.DriftInterval < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("drift-interval: %s; give at least 100ms", c.DriftInterval))
	}
	if c.FlowStoreMaxBytes != 0 && c.FlowStoreMaxBytes < minFlowStoreBytes {
		errs = append(errs, fmt.Errorf("flow-store-max-bytes: %d; give at least %d, or 0 to record no flows", c.FlowStoreMaxBytes, minFlowStoreBytes))
	}
	if c.FlowStoreMaxBytes != 0 && c.FlowStoreMaxAge < time.Minute {
		errs = append(errs, fmt.Errorf("flow-store-max-age: %s; give at least 1m, or set flow-store-max-bytes to 0 to record no flows", c.FlowStoreMaxAge))
	}
	if c.HistoryMaxAge < 0 {
		errs = append(errs, fmt.Errorf("history-max-age: %s; give how long events are kept, or 0 for ever", c.HistoryMaxAge))
	}
	if c.HistoryMaxBytes < 0 {
		errs = append(errs, fmt.Errorf("history-max-bytes: %d; give a number of bytes, or 0 for no limit", c.HistoryMaxBytes))
	}
	if c.PrometheusServeAddr != "" {
		if _, _, err := net.SplitHostPort(c.PrometheusServeAddr); err != nil {
			errs = append(errs, fmt.Errorf("prometheus-serve-addr: %q; give an address and a port such as 127.0.0.1:9962", c.PrometheusServeAddr))
		}
	}
	c.IPv4Range, c.IPv6Range = c.IPv4Range.Masked(), c.IPv6Range.Masked()
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", ErrConfig, errors.Join(errs...))
	}
	return nil
}

// minFlowStoreBytes is the smallest flow record: a sixteenth of it holds the flows
// of a few busy seconds.
const minFlowStoreBytes = 1 << 20

// gateway is the address under which a node's endpoints reach their host: the
// first one of the range.
func gateway(r netip.Prefix) netip.Addr {
	if !r.IsValid() {
		return netip.Addr{}
	}
	return r.Addr().Next()
}

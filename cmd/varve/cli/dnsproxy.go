package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/varve-net/varve/dataplane/dns"
	"github.com/varve-net/varve/dataplane/dns/wire"
	"github.com/varve-net/varve/internal/agent"
	"github.com/varve-net/varve/internal/dnsproxy"
	"github.com/varve-net/varve/internal/version"
)

// dnsProxyFlags are the settings of `varve dns-proxy` that its Config holds in
// another form.
type dnsProxyFlags struct {
	config    string
	stateDir  string
	minTTL    int
	reject    string
	logLevel  string
	logFormat string
}

func (a *app) dnsProxyCommand() *cobra.Command {
	var f dnsProxyFlags
	cfg := dnsproxy.Config{}
	cfg.Version = version.String()
	cmd := &cobra.Command{
		Use:   "dns-proxy",
		Short: "Run the DNS proxy of this node",
		Long: strings.TrimSpace(`
Run the DNS proxy of this node until it is told to stop. The agent starts one and
keeps it running; started by a service manager of its own, it goes on, and starts
again, without the agent.

It takes the questions that containers may ask by policy's DNS rules, asks the servers
in their place, and opens the addresses that are answered to who asked.

Settings come from the same places as those of the agent: the flag, the
environment, the file, the default. Those of the file that are the agent's alone are
left to it.`),
		Example: strings.Trim(`
  varve dns-proxy
  varve dns-proxy --tofqdns-min-ttl 60 --tofqdns-dns-reject-response-code nameError`, "\n"),
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := loadConfig(cmd.Flags(), settingsOf(a.agentCommand())...); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			if err := f.fill(&cfg, a.stderr); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			// The threads that wait for packets are not to keep others from running.
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 4)
			err := runDNSProxy(cmd.Context(), cfg)
			if errors.Is(err, dns.ErrConfig) {
				return &exitError{code: exitUsage, err: err}
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.config, configFlag, a.agentConfig, "YAML file of settings; the default one may be missing")
	flags.StringVar(&f.stateDir, "state-dir", agent.DefaultStateDir, "the agent's state directory; journal, rules and log of questions are in dns below it")
	flags.StringVar(&cfg.Socket, "dns-socket", agent.DefaultDNS, "unix socket to answer the agent on")
	flags.StringVar(&cfg.PinDir, "bpf-root", agent.DefaultBPFRoot, "directory of the BPF pins")
	flags.StringVar(&cfg.Cluster, "cluster-name", agent.DefaultCluster, "name of the cluster")
	flags.StringVar(&cfg.Node, "node-name", "", "name of this node (default the host's name)")
	f.fqdnFlags(flags, &cfg.Config)
	flags.Int64Var(&cfg.LogBytes, "dns-log-max-bytes", dns.DefaultLogBytes, "size of the log of questions")
	flags.StringVar(&cfg.PrometheusServeAddr, "dns-prometheus-serve-addr", "", "TCP address of /metrics and /healthz, without authentication (empty: none)")
	flags.StringVar(&f.logLevel, "log-level", "info", "least severe level to log: debug, info, warn, error")
	flags.StringVar(&f.logFormat, "log-format", "text", "form of the proxy's own log: text, json")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	_ = cmd.MarkFlagDirname("state-dir")
	_ = cmd.MarkFlagDirname("bpf-root")
	return cmd
}

// settingsOf are the names of a command's settings.
func settingsOf(cmd *cobra.Command) (names []string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

// fqdnFlags are those that Cilium has, by its names.
func (f *dnsProxyFlags) fqdnFlags(flags *pflag.FlagSet, cfg *dns.Config) {
	flags.Uint16Var(&cfg.Port, "tofqdns-proxy-port", 0, "port to listen on, of which containers see nothing (0: a free one)")
	flags.IntVar(&f.minTTL, "tofqdns-min-ttl", 0, "seconds that an address is open for at least, whatever its TTL")
	flags.IntVar(&cfg.MaxAddresses, "tofqdns-endpoint-max-ip-per-hostname", dns.DefaultMaxAddresses, "addresses to keep of one name of one endpoint, those in use aside")
	flags.StringVar(&f.reject, "tofqdns-dns-reject-response-code", "refused", "answer to what no rule allows: refused, nameError")
	flags.DurationVar(&cfg.MaxDelay, "tofqdns-proxy-response-max-delay", dns.DefaultMaxDelay, "how long an answer may wait for its addresses to be opened, before it is SERVFAIL")
	flags.DurationVar(&cfg.IdleGrace, "tofqdns-idle-connection-grace-period", 0, "how long an address stays open after its TTL and the end of its last connection")
	flags.BoolVar(&cfg.Compress, "tofqdns-enable-dns-compression", true, "compress an answer that is too long for the client, before cutting it")
	for _, r := range refusedFlags {
		flags.Var(refusedFlag(r), r.name, "refused: "+r.reason)
		_ = flags.MarkHidden(r.name)
	}
}

// passOn is the settings of an agent that are its DNS proxy's, as arguments.
func (f *dnsProxyFlags) passOn(flags *pflag.FlagSet) (args []string) {
	flags.VisitAll(func(x *pflag.Flag) {
		if x.Changed && (strings.HasPrefix(x.Name, "tofqdns-") || x.Name == "log-level" || x.Name == "log-format") {
			args = append(args, "--"+x.Name+"="+x.Value.String())
		}
	})
	return args
}

// check finds values that the proxy would refuse.
func (f *dnsProxyFlags) check(cfg *dns.Config) error {
	if f.minTTL < 0 {
		return fmt.Errorf("tofqdns-min-ttl: %d; give a number of seconds", f.minTTL)
	}
	cfg.MinTTL = time.Duration(f.minTTL) * time.Second
	switch f.reject {
	case "refused":
		cfg.RejectCode = wire.Refused
	case "nameError":
		cfg.RejectCode = wire.NXDomain
	default:
		return fmt.Errorf("tofqdns-dns-reject-response-code: %q is none of refused, nameError", f.reject)
	}
	return nil
}

// refusedFlags are flags of Cilium's that have no meaning here.
var refusedFlags = []refused{
	{"tofqdns-max-deferred-connection-deletes", "an address with a live connection is never taken away, however many there are; leave it out"},
	{"tofqdns-pre-cache", "an address is open only to an endpoint that was itself told it; leave it out"},
}

type refused struct{ name, reason string }

// refusedFlag is a flag that takes no value.
type refusedFlag refused

func (r refusedFlag) String() string   { return "" }
func (r refusedFlag) Type() string     { return "string" }
func (r refusedFlag) Set(string) error { return errors.New(r.reason) }

// fill puts the settings into cfg. Its errors name the setting.
func (f *dnsProxyFlags) fill(cfg *dnsproxy.Config, stderr io.Writer) error {
	if err := f.check(&cfg.Config); err != nil {
		return err
	}
	if f.stateDir == "" {
		return errors.New("state-dir: empty")
	}
	cfg.StateDir = filepath.Join(f.stateDir, dnsproxy.StateDir)
	if cfg.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node-name: not given, and the host's name is not known: %w", err)
		}
		cfg.Node = host
	}
	var err error
	cfg.Logger, err = newLogger(stderr, f.logLevel, f.logFormat)
	return err
}

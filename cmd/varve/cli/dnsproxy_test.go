package cli

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/varve-net/varve/dataplane/dns/wire"
	"github.com/varve-net/varve/internal/dnsproxy"
)

func runDNSProxyWith(t *testing.T, args ...string) (dnsproxy.Config, result) {
	t.Helper()
	var cfg dnsproxy.Config
	defer func(run func(context.Context, dnsproxy.Config) error) { runDNSProxy = run }(runDNSProxy)
	runDNSProxy = func(_ context.Context, c dnsproxy.Config) error {
		cfg = c
		return nil
	}
	got := varve(t, nil, "", append([]string{"dns-proxy"}, args...)...)
	return cfg, got
}

func TestDNSProxyConfig(t *testing.T) {
	// The file of the agent is that of its proxy too.
	file := writeConfig(t, "state-dir: /from/file\nmtu: 9000\ntofqdns-min-ttl: 30\nnode-name: n7\n")
	t.Setenv("VARVE_TOFQDNS_ENDPOINT_MAX_IP_PER_HOSTNAME", "50")
	cfg, got := runDNSProxyWith(t, "--config", file, "--tofqdns-dns-reject-response-code", "nameError", "--tofqdns-proxy-port", "5353", "--tofqdns-idle-connection-grace-period", "5s")
	if got.code != exitYes {
		t.Fatalf("got %+v", got)
	}
	if cfg.StateDir != "/from/file/dns" || cfg.MinTTL != 30*time.Second || cfg.Node != "n7" || cfg.MaxAddresses != 50 || cfg.RejectCode != wire.NXDomain ||
		cfg.Port != 5353 || cfg.IdleGrace != 5*time.Second || !cfg.Compress || cfg.MaxDelay != 100*time.Millisecond {
		t.Errorf("config %+v", cfg)
	}
	for want, args := range map[string][]string{
		"tofqdns-min-ttl: -1":                     {"--tofqdns-min-ttl", "-1"},
		"state-dir: empty":                        {"--state-dir", ""},
		"tofqdns-pre-cache":                       {"--tofqdns-pre-cache", "x"},
		"mtu-size: is no setting":                 {"--config", writeConfig(t, "mtu-size: 1")},
		"a live connection is never taken away":   {"--tofqdns-max-deferred-connection-deletes=1"},
		`"yes" is none of refused, nameError`:     {"--tofqdns-dns-reject-response-code", "yes"},
		"log-level: \"x\" is none of debug, info": {"--log-level", "x"},
	} {
		_, got := runDNSProxyWith(t, args...)
		if got.code != exitUsage || !strings.Contains(got.stderr, want) {
			t.Errorf("%q: %+v, want %q", args, got, want)
		}
	}
}

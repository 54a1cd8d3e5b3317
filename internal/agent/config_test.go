package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestConfigRefusesWhatCannotWork(t *testing.T) {
	good := Config{StateDir: "s", Socket: "k", BPFRoot: "b", Cluster: "c", Node: "n", IPv4Range: DefaultIPv4Range, IPv6Range: DefaultIPv6Range}
	if c := good; c.normalize() != nil || c.MTU != DefaultMTU || c.SnapshotThreshold != DefaultSnapshotThreshold {
		t.Errorf("%+v: %v", c, c.normalize())
	}
	for _, tt := range []struct {
		name  string
		spoil func(*Config)
		want  string // flag
	}{
		{"no family", func(c *Config) { c.IPv4Range, c.IPv6Range = netip.Prefix{}, netip.Prefix{} }, "enable-ipv4"},
		{"too small", func(c *Config) { c.IPv4Range = netip.MustParsePrefix("10.0.0.0/31") }, "ipv4-range"},
		{"wrong family", func(c *Config) { c.IPv6Range = DefaultIPv4Range }, "ipv6-range"},
		{"mtu", func(c *Config) { c.MTU = 100 }, "mtu"},
		{"no port", func(c *Config) { c.PrometheusServeAddr = "127.0.0.1" }, "prometheus-serve-addr"},
		{"no directory", func(c *Config) { c.StateDir = "" }, "state-dir"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.spoil(&c)
			if err := c.normalize(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want one about %s", err, tt.want)
			}
		})
	}
}

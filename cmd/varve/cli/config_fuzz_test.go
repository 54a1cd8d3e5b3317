package cli

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// FuzzConfig reads a file of settings of any bytes: no panic, and an error names
// the file.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		"", "mtu: 9000\nnode-ip: [192.0.2.1, \"2001:db8::1\"]\nenable-ipv6: false\n", "just text", "mtu: big", "statedir: x",
		"mtu: {a: 1}", "mtu: [1, 2]", "config: x", "mtu:", "a: &a [*a]", "a: &a {b: *a}", "mtu: 1\nmtu: 2", "? [x]\n: y", "1: 2", "\x00", "mtu: 1e99",
		"node-ip: [[1], {a: b}, null]", "log-level: !!binary aGk=", "drift-interval: 2001-01-01",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := writeConfig(t, string(text))
		flags := pflag.NewFlagSet("agent", pflag.ContinueOnError)
		flags.String(configFlag, path, "")
		flags.Int("mtu", 1500, "")
		flags.StringSlice("node-ip", nil, "")
		flags.Bool("enable-ipv6", true, "")
		flags.String("log-level", "info", "")
		flags.Duration("drift-interval", 0, "")
		if err := loadConfig(flags); err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("the error does not name the file: %v", err)
		}
	})
}

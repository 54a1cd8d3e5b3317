package dns

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/varve-net/varve/dataplane/dns/wire"
)

// Config is what a proxy is started with. Flags are named in brackets.
type Config struct {
	Cluster string
	Node    string
	Version string
	// StateDir holds the journal and the log of questions.
	StateDir string
	// Rules is the file that the agent writes.
	Rules string
	// PinDir is where the agent has pinned the maps.
	PinDir string

	// Port to listen on; 0: a free one. [tofqdns-proxy-port]
	Port uint16
	// MinTTL is the least time that an address is open for. [tofqdns-min-ttl]
	MinTTL time.Duration
	// MaxAddresses of one name of one endpoint. Those with live connections are
	// kept beyond. [tofqdns-endpoint-max-ip-per-hostname]
	MaxAddresses int
	// RejectCode is wire.Refused or wire.NXDomain. [tofqdns-dns-reject-response-code]
	RejectCode int
	// MaxDelay is how long an answer may wait to be applied. [tofqdns-proxy-response-max-delay]
	MaxDelay time.Duration
	// IdleGrace is how long an address stays open after its TTL once the last
	// connection to it has ended. [tofqdns-idle-connection-grace-period]
	IdleGrace time.Duration
	// Compress answers that are too long for the client. [tofqdns-enable-dns-compression]
	Compress bool
	// Timeout is how long a server may take.
	Timeout time.Duration

	// CollectInterval is how often expired addresses are looked for.
	CollectInterval time.Duration
	// LogBytes bounds the log of questions.
	LogBytes int64

	Logger *slog.Logger
}

// Defaults of Config, which are Cilium's where it has them.
const (
	DefaultMaxAddresses    = 1000
	DefaultMaxDelay        = 100 * time.Millisecond
	DefaultTimeout         = 10 * time.Second
	DefaultCollectInterval = 5 * time.Second
	DefaultLogBytes        = 64 << 20
)

// ErrConfig is returned for a setting that cannot work. The message names it.
var ErrConfig = errors.New("configuration")

// normalize fills what is empty and refuses what cannot work, naming the flag.
func (c *Config) normalize() error {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.CollectInterval == 0 {
		c.CollectInterval = DefaultCollectInterval
	}
	if c.LogBytes == 0 {
		c.LogBytes = DefaultLogBytes
	}
	var errs []error
	for _, f := range []struct{ flag, value string }{
		{"state-dir", c.StateDir}, {"bpf-root", c.PinDir}, {"cluster-name", c.Cluster}, {"node-name", c.Node},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("%s: empty", f.flag))
		}
	}
	if c.Rules == "" {
		c.Rules = filepath.Join(c.StateDir, "rules")
	}
	if c.MinTTL < 0 {
		errs = append(errs, fmt.Errorf("tofqdns-min-ttl: %s; give a number of seconds", c.MinTTL))
	}
	if c.MaxAddresses < 1 {
		errs = append(errs, fmt.Errorf("tofqdns-endpoint-max-ip-per-hostname: %d; give at least 1", c.MaxAddresses))
	}
	if c.MaxDelay <= 0 {
		errs = append(errs, fmt.Errorf("tofqdns-proxy-response-max-delay: %s; give more than 0", c.MaxDelay))
	}
	if c.IdleGrace < 0 {
		errs = append(errs, fmt.Errorf("tofqdns-idle-connection-grace-period: %s; give 0 or more", c.IdleGrace))
	}
	if c.RejectCode != wire.Refused && c.RejectCode != wire.NXDomain {
		errs = append(errs, fmt.Errorf("tofqdns-dns-reject-response-code: %d; give refused or nameError", c.RejectCode))
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", ErrConfig, errors.Join(errs...))
	}
	return nil
}

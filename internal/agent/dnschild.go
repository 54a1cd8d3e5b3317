package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/dnslink"
)

// How a node's DNS proxy is run.
const (
	DNSProxyChild    = "child"    // the agent starts it, and again when it ends
	DNSProxyExternal = "external" // somebody else does, such as systemd
	DNSProxyOff      = "off"      // there is none: questions that rules look at are dropped
)

const (
	// childPatience is how long a proxy may take to end before it is killed.
	childPatience = 3 * time.Second
	// childBackoff is the longest pause before a proxy that keeps failing is
	// started again.
	childBackoff = 5 * time.Second
	// childPoll is how soon a watch sees that it is to end.
	childPoll = 100 * time.Millisecond
)

// dnsChild runs the node's DNS proxy as a child of the agent. One that an agent
// which was killed has left behind goes on, and is taken over as it is.
type dnsChild struct {
	args    []string
	version string
	cluster string
	node    string
	proxy   dnslink.Proxy
	logger  *slog.Logger
}

func newDNSChild(cfg *Config, proxy dnslink.Proxy) *dnsChild {
	args := append([]string{
		"dns-proxy", "--state-dir", cfg.StateDir, "--bpf-root", cfg.BPFRoot, "--cluster-name", cfg.Cluster, "--node-name", cfg.Node,
		"--dns-socket", cfg.DNSSocket,
	}, cfg.DNSProxyArgs...)
	return &dnsChild{args: args, version: cfg.Version, cluster: cfg.Cluster, node: cfg.Node, proxy: proxy, logger: cfg.Logger}
}

// run keeps a proxy going until ctx ends, and then ends it.
func (d *dnsChild) run(ctx context.Context) {
	pause := 50 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		if pid := d.left(ctx); pid > 0 {
			d.watch(ctx, pid)
		} else if err := d.start(ctx); err != nil && ctx.Err() == nil {
			d.logger.Error("the DNS proxy ended; it is started again", "error", err)
		}
		if time.Since(began) > childBackoff {
			pause = 50 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, childBackoff)
	}
}

// left is the process that answers as this node's proxy already, 0 if none does.
func (d *dnsChild) left(ctx context.Context) int {
	wait, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := d.proxy.Status(wait)
	if err != nil || s.Cluster != d.cluster || s.Node != d.node || s.PID <= 0 {
		return 0
	}
	return s.PID
}

// watch waits until a proxy that is no child of ours ends. One of another version
// is told to end, so that its successor is of this.
func (d *dnsChild) watch(ctx context.Context, pid int) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(process)
	end := func() { _ = unix.PidfdSendSignal(process, unix.SIGTERM, nil, 0) }
	d.logger.Info("the DNS proxy of an earlier agent goes on", "pid", pid)
	replace := false
	if s, err := d.proxy.Status(ctx); err == nil && s.Version != d.version {
		replace = true
		end()
	}
	for ctx.Err() == nil {
		if hasEnded(process, childPoll) {
			return
		}
	}
	if !replace {
		end()
	}
}

// hasEnded waits until a process has ended, also if nobody has waited for it yet, but no
// longer than it may.
func hasEnded(pidfd int, atMost time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(atMost.Milliseconds()))
	return err == nil && n > 0
}

// start runs a proxy to its end.
func (d *dnsChild) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("the agent's own binary: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, d.args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// In a session of its own no signal to the agent's terminal reaches it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = childPatience
	if err := cmd.Start(); err != nil {
		return err
	}
	d.logger.Info("DNS proxy started", "pid", cmd.Process.Pid)
	return cmd.Wait()
}

// dnsDir is where the DNS proxy's files are: what the agent tells it, and what it
// keeps itself.
func dnsDir(stateDir string) string { return filepath.Join(stateDir, "dns") }

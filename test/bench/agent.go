package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// startLimit bounds an agent's start.
const startLimit = 60 * time.Second

// agent is the varve binary as an agent.
type agent struct {
	server
	socket string
	logs   string        // its file
	took   time.Duration // from its start to enforcing
}

// startAgent starts an agent with its state in dir. Without a namespace's name it
// gets one of its own, and mounts of its own, so that nothing of it is left.
func (p *plan) startAgent(ctx context.Context, dir, namespace string, more ...string) (*agent, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "agent.yaml") // empty: no settings of this machine
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		return nil, err
	}
	a := &agent{socket: filepath.Join(dir, "s"), logs: filepath.Join(dir, "agent.log")}
	args := append([]string{
		p.varve, "agent", "--config", config, "--state-dir", filepath.Join(dir, "state"), "--socket", a.socket,
		"--bpf-root", filepath.Join(dir, "bpf"), "--node-name", benchNode, "--cluster-name", benchCluster, "--log-level", "warn", "--dns-proxy", "off",
	}, more...)
	attr := &syscall.SysProcAttr{}
	if namespace == "" {
		attr.Unshareflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS
	} else {
		args = append([]string{"nsenter", "--net=/run/netns/" + namespace}, args...)
	}
	logs, err := os.OpenFile(a.logs, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	a.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	a.cmd.Stdout, a.cmd.Stderr, a.cmd.SysProcAttr = logs, logs, attr
	a.cmd.Cancel = func() error { return a.cmd.Process.Signal(syscall.SIGTERM) }
	a.cmd.WaitDelay = stopGrace
	began := time.Now()
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	if err := a.awaitReady(ctx); err != nil {
		text, _ := os.ReadFile(a.logs)
		_ = a.stop()
		return nil, fmt.Errorf("agent: %w\n%s", err, text)
	}
	a.took = time.Since(began)
	return a, nil
}

const (
	benchNode    = "bench-1"
	benchCluster = "bench"
)

// awaitReady returns once the agent enforces all that its log says.
func (a *agent) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		s, err := a.status(ctx, false)
		if err == nil && s.AppliedRevision == s.Revision {
			return nil
		}
		if serr := sleep(ctx, 2*time.Millisecond); serr != nil {
			return fmt.Errorf("not ready after %s: %w", startLimit, err)
		}
	}
}

func (a *agent) status(ctx context.Context, verify bool) (*varvev1.StatusResponse, error) {
	c, err := api.New(a.socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	resp, err := c.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{Verify: verify}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// Limits for what the agent does in well under a second on an idle machine.
const (
	startLimit = time.Minute
	stopLimit  = 30 * time.Second
)

// agent is the varve binary running as an agent inside the node's namespace.
type agent struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed after err is set
	err    error
}

func (s *stage) socket() string  { return filepath.Join(s.dir, "varve.sock") }
func (s *stage) logFile() string { return filepath.Join(s.dir, "agent.log") }

// configFile is empty, so that no settings of this machine reach the demo;
// for the same reason its environment has none.
func (s *stage) configFile() string { return filepath.Join(s.dir, "agent.yaml") }

// agentArgs are the same for every start: what the agent knows besides, it has
// from its log.
func (s *stage) agentArgs() []string {
	return []string{
		"agent",
		"--config", s.configFile(),
		"--state-dir", filepath.Join(s.dir, "state"),
		"--socket", s.socket(),
		"--bpf-root", filepath.Join(s.dir, "bpf"),
		"--node-name", "demo",
		"--node-ip", nodeAddr[v4].Addr().String(),
		"--node-ip", nodeAddr[v6].Addr().String(),
		"--ipv4-range", podRange[v4].String(),
		"--ipv6-range", podRange[v6].String(),
	}
}

// startAgent starts the agent and returns when it answers and enforces.
func (s *stage) startAgent(ctx context.Context) (*varvev1.StatusResponse, error) {
	logFile, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(s.self, s.agentArgs()...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "VARVE_") })
	// A group of its own: Ctrl-C is for the demo, which then stops the agent.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A child is in the namespace of the thread that made it.
	if err := s.node.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a := &agent{cmd: cmd, exited: make(chan struct{})}
	s.agent = a
	go func() {
		a.err = cmd.Wait()
		close(a.exited)
	}()
	if s.client == nil {
		if s.client, err = api.New(s.socket()); err != nil {
			return nil, err
		}
	}
	return s.awaitAgent(ctx, a)
}

func (s *stage) awaitAgent(ctx context.Context, a *agent) (*varvev1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := s.status(ctx, false)
		if err == nil && status.AppliedRevision == status.Revision {
			return status, nil
		}
		select {
		case <-a.exited:
			return nil, fmt.Errorf("agent: ended at its start: %w\n%s", a.err, s.logTail(8))
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("revision %d is in force, %d in the log", status.AppliedRevision, status.Revision)
			}
			return nil, fmt.Errorf("agent: not ready after %s: %w\n%s", startLimit, err, s.logTail(8))
		case <-tick.C:
		}
	}
}

func (s *stage) status(ctx context.Context, verify bool) (*varvev1.StatusResponse, error) {
	resp, err := s.client.Agent.Status(ctx, connect.NewRequest(&varvev1.StatusRequest{Verify: verify}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// kill ends the agent with SIGKILL and returns when it is gone.
func (a *agent) kill() error {
	if err := a.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("agent: SIGKILL: %w", err)
	}
	select {
	case <-a.exited:
		return nil
	case <-time.After(stopLimit):
		return fmt.Errorf("agent: still there %s after SIGKILL", stopLimit)
	}
}

// stop ends the agent with SIGTERM, or with SIGKILL if that does not do. Stopping
// an agent that has ended is no error.
func (a *agent) stop() error {
	select {
	case <-a.exited:
		return nil
	default:
	}
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("agent: SIGTERM: %w", err)
	}
	select {
	case <-a.exited:
		if a.err != nil {
			return fmt.Errorf("agent: after SIGTERM: %w", a.err)
		}
		return nil
	case <-time.After(stopLimit):
		return errors.Join(fmt.Errorf("agent: still running %s after SIGTERM", stopLimit), a.kill())
	}
}

// logTail is the last lines of the agent's log.
func (s *stage) logTail(lines int) string {
	text, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return "  | " + strings.Join(strings.Split(string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))), "\n"), "\n  | ")
}

// saveLog copies the agent's log out of the scratch directory.
func (s *stage) saveLog() error {
	text, err := os.ReadFile(s.logFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	name := filepath.Join(os.TempDir(), s.id+"-agent.log")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		return err
	}
	s.savedLog = name
	return nil
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// readyLine is what a server of this program prints once it answers.
const readyLine = "ready"

// stopGrace is how long a server may take to end before it is killed.
const stopGrace = 10 * time.Second

// server is a process that runs until it is stopped.
type server struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

// startSelf starts a command of this program and waits until it is ready.
func startSelf(ctx context.Context, args ...string) (*server, error) {
	return startSelfUnder(ctx, nil, args...)
}

// startSelfUnder is startSelf by way of a program such as nsenter.
func startSelfUnder(ctx context.Context, under []string, args ...string) (*server, error) {
	all, err := selfCommand(under, args)
	if err != nil {
		return nil, err
	}
	s := &server{cmd: exec.CommandContext(ctx, all[0], all[1:]...)}
	s.cmd.Stderr = &s.stderr
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = stopGrace
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != readyLine {
		_ = s.stop()
		return nil, fmt.Errorf("%s: said %q, %w: %s", args[0], line, errNotReady(err), s.stderr.String())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return s, nil
}

func errNotReady(err error) error {
	if err == nil {
		return fmt.Errorf("want %q", readyLine)
	}
	return err
}

func selfCommand(under, args []string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return slices.Concat(under, []string{self}, args), nil
}

// kill ends a process that holds nothing.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// stop ends the process and waits for it.
func (s *server) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(stopGrace, func() { _ = s.cmd.Process.Kill() })
	defer kill.Stop()
	return s.cmd.Wait()
}

// runSelf runs a command of this program and decodes what it prints.
func runSelf(ctx context.Context, into any, args ...string) error {
	return runSelfUnder(ctx, nil, into, args...)
}

// runSelfUnder is runSelf by way of a program such as nsenter.
func runSelfUnder(ctx context.Context, under []string, into any, args ...string) error {
	all, err := selfCommand(under, args)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}

// outputOf runs a command and returns what it prints.
func outputOf(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// pid is the process's number: nsenter runs the program in its own place.
func (s *server) pid() int { return s.cmd.Process.Pid }

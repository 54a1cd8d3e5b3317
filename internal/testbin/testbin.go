// Package testbin builds the real binary and runs it for tests, inside network
// namespaces.
package testbin

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/varve-net/varve/internal/testns"
)

// Env names, in a machine that has no Go (test/vm), the binary that was built for it.
const Env = "VARVE_TEST_BINARY"

// Build builds the binary into a directory and returns its path; or that of the one
// which Env names.
func Build(dir string) (string, error) {
	if binary := os.Getenv(Env); binary != "" {
		return binary, nil
	}
	binary := filepath.Join(dir, "varve")
	build := exec.Command("go", "build", "-o", binary, "github.com/varve-net/varve/cmd/varve")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return binary, nil
}

// Process is a run of a program.
type Process struct {
	Cmd *exec.Cmd
	// Ended is closed once the process is gone.
	Ended chan struct{}

	mu     sync.Mutex
	output bytes.Buffer
}

// Start starts a program inside a namespace, without the settings of varve that the
// environment may have.
func Start(ns *testns.NS, name string, args ...string) (*Process, error) {
	p := &Process{Cmd: exec.Command(name, args...), Ended: make(chan struct{})}
	p.Cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "VARVE_") })
	// Through pipes of our own rather than Cmd's: a child that outlives the process
	// keeps its output open, and that must not keep Wait from returning.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.Cmd.Stdout, p.Cmd.Stderr = w, w
	err = ns.Do(p.Cmd.Start)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("%s in %s: %w", name, ns.Name(), err)
	}
	go func() {
		defer r.Close()
		buf := make([]byte, 1<<16)
		for {
			n, err := r.Read(buf)
			p.mu.Lock()
			p.output.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(p.Ended)
		_ = p.Cmd.Wait()
	}()
	return p, nil
}

// PID of the process.
func (p *Process) PID() int { return p.Cmd.Process.Pid }

// Log is what the process, and those that it started, have printed until now.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.Ended
}

// Stop asks the process to end with SIGTERM and waits until it is gone.
func (p *Process) Stop() {
	_ = p.Cmd.Process.Signal(syscall.SIGTERM)
	<-p.Ended
}

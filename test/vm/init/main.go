// Command init is the first and only program of a test machine: it mounts what a
// system has, loads the modules that it was given, runs the test binaries one
// after the other and switches the machine off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/internal/testbin"
	"github.com/varve-net/varve/test/vm/guest"
	"github.com/varve-net/varve/test/vm/wire"
)

func main() {
	// Whatever happens, the machine goes down: its host waits for that.
	defer func() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }()
	if err := guest.MountAll(); err != nil {
		fmt.Println("init:", err)
		return
	}
	port, err := guest.OpenPort()
	if err != nil {
		fmt.Println("init:", err)
		return
	}
	if err := run(context.Background(), port); err != nil {
		io.WriteString(port, wire.Message{Kind: wire.Broke, Text: err.Error()}.Line())
	} else {
		io.WriteString(port, wire.Message{Kind: wire.Done}.Line())
	}
	_ = drain(port)
}

// drain waits until the host has all that was written.
func drain(f *os.File) error { return unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) }

func run(ctx context.Context, port io.Writer) error {
	if err := guest.LoadModules(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	plan, err := readPlan()
	if err != nil {
		return err
	}
	for _, job := range plan.Jobs {
		if err := test(ctx, port, job, plan.Timeout); err != nil {
			return err
		}
	}
	return nil
}

func loopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return h.LinkSetUp(lo)
}

func readPlan() (plan wire.Plan, err error) {
	data, err := os.ReadFile(wire.PlanFile)
	if err != nil {
		return plan, err
	}
	if err := json.Unmarshal(data, &plan); err != nil {
		return plan, fmt.Errorf("%s: %w", wire.PlanFile, err)
	}
	return plan, nil
}

// test runs one binary. That tests fail is no error.
func test(ctx context.Context, port io.Writer, job wire.Job, timeout time.Duration) error {
	if _, err := io.WriteString(port, wire.Message{Kind: wire.Start, Package: job.Package}.Line()); err != nil {
		return err
	}
	dir := filepath.Join("/src", job.Package)
	args := append([]string{"-test.v=test2json", "-test.timeout=" + timeout.String()}, job.Args...)
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "test"), args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp", testbin.Env + "=/bin/varve", fmt.Sprintf("GOMAXPROCS=%d", runtime.NumCPU())}
	cmd.Stdout, cmd.Stderr = port, port
	started := time.Now()
	err := cmd.Run()
	end := wire.Message{Kind: wire.End, Package: job.Package, Took: time.Since(started).Round(10 * time.Millisecond)}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		end.Code = max(exit.ExitCode(), 1)
	} else if err != nil {
		return fmt.Errorf("tests of %s: %w", job.Package, err)
	}
	// A line of its own, even if a binary was killed within one.
	_, err = io.WriteString(port, "\n"+end.Line())
	return err
}

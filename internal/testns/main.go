package testns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

const insideEnv = "VARVE_TEST_NETNS"

// Main is a TestMain for packages whose sockets are made by whatever thread comes by:
// it runs the whole test binary again inside a network namespace of its own, with
// the loopback up, and returns the exit code.
func Main(m *testing.M, name string) int {
	if os.Getenv(insideEnv) != "" {
		return m.Run()
	}
	code, err := runInside(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func runInside(name string) (code int, err error) {
	ns, err := New(name)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	ctx := context.Background()
	if _, err := ns.Output(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		return 1, err
	}
	cmd := ns.Command(ctx, os.Args[0], os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

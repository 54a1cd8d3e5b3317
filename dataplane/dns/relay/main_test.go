package relay

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/varve-net/varve/internal/testns"
)

const inside = "VARVE_TEST_INSIDE"

// TestMain runs the whole binary again in a network namespace of its own: the
// sockets under test are made by whatever thread comes by.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	os.Exit(again())
}

func again() int {
	ns, err := testns.New("relay")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer ns.Close()
	ctx := context.Background()
	if _, err := ns.Output(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := ns.Command(ctx, os.Args[0], os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	if err := cmd.Run(); err != nil {
		if e, ok := err.(*exec.ExitError); ok {
			return e.ExitCode()
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

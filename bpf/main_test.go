package bpf

import (
	"fmt"
	"os"
	"testing"
)

// pins is a bpffs that the whole test run shares; each test has a directory on it.
var pins string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "varve-bpf-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if _, err := MountBPFFS(dir); err != nil {
		fmt.Fprintln(os.Stderr, "these tests load BPF programs and need root:", err)
		return 1
	}
	defer func() {
		if err := UnmountBPFFS(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	pins = dir
	return m.Run()
}

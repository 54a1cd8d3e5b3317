package bpf

import (
	"strings"
	"testing"
)

// Under /sys/fs/bpf where nothing is mounted, as anywhere in sysfs, no folder can be
// made: the error says which, by what flag it was given and what to do.
func TestNoBPFFSThere(t *testing.T) {
	const dir = "/sys/kernel/varve"
	mounted, err := MountBPFFS(dir)
	if err == nil || mounted {
		t.Fatalf("mounted %t, %v", mounted, err)
	}
	for _, part := range []string{dir, "--bpf-root", "mount -t bpf"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
}

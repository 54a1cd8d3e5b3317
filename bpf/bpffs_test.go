package bpf

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// Where nobody has mounted the machine's bpffs, whoever pins below it does.
func TestMountBPFFSBelowSysfs(t *testing.T) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // until it ends, with the mounts of its own
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return os.NewSyscallError("mount", err)
			}
			for unix.Unmount(systemBPFFS, unix.MNT_DETACH) == nil { // until it is sysfs
			}
			for range 2 {
				mounted, err := MountBPFFS(systemBPFFS + "/varve-test/a")
				if err != nil {
					return err
				}
				if ok, err := onBPFFS(systemBPFFS + "/varve-test/a"); mounted || !ok || err != nil {
					t.Errorf("mounted %v; on a bpffs: %v, %v", mounted, ok, err)
				}
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

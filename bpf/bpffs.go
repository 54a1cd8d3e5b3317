package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// systemBPFFS is where every tool looks for the machine's bpffs. The kernel makes this
// folder of sysfs for it, and nobody can make another below or beside it.
const systemBPFFS = "/sys/fs/bpf"

// MountBPFFS makes dir if need be and mounts a bpffs there, readable by root
// only, unless dir is on one already. It reports whether it mounted. A dir below
// /sys/fs/bpf needs one there, which is the machine's: if there is none it is mounted,
// and does not count.
func MountBPFFS(dir string) (mounted bool, err error) {
	if err := mountSystemBPFFS(dir); err != nil {
		return false, err
	}
	if ok, err := onBPFFS(dir); err == nil && ok {
		return false, os.MkdirAll(dir, 0o700)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("bpffs: %w; mount one on a folder above it that is there (mount -t bpf bpf /sys/fs/bpf), or give by --bpf-root a folder that can be made", err)
	}
	if ok, err := onBPFFS(dir); err != nil || ok {
		return false, err
	}
	if err := mountBPFFS(dir); err != nil {
		return false, err
	}
	return true, nil
}

func mountBPFFS(dir string) error {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME)
	if err := unix.Mount("bpffs", dir, "bpf", flags, "mode=0700"); err != nil {
		return fmt.Errorf("bpffs: mount %s: %w", dir, err)
	}
	return nil
}

// mountSystemBPFFS mounts the machine's bpffs if dir is to be below it and there is none.
func mountSystemBPFFS(dir string) error {
	if !strings.HasPrefix(filepath.Clean(dir), systemBPFFS+"/") {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(systemBPFFS, &st); err != nil {
		return fmt.Errorf("bpffs: statfs %s: %w; mount sysfs on /sys, or choose another folder for the pins", systemBPFFS, err)
	}
	if int64(st.Type) != unix.SYSFS_MAGIC { //nolint:unconvert // 32 bits on other architectures
		return nil
	}
	return mountBPFFS(systemBPFFS)
}

// UnmountBPFFS unmounts what MountBPFFS mounted on dir, and with it every pin
// there: links detach, maps go once nobody uses them.
func UnmountBPFFS(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("bpffs: unmount %s: %w", dir, err)
	}
	return nil
}

// onBPFFS tells whether dir, or where it does not exist its nearest parent, is on
// a bpffs.
func onBPFFS(dir string) (bool, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Type) == unix.BPF_FS_MAGIC, nil //nolint:unconvert // 32 bits on other architectures
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return false, fmt.Errorf("bpffs: statfs %s: %w", dir, err)
		}
		dir = parent
	}
}

// RemoveAll takes everything pinned below pinDir, of any layout, out of the
// kernel: programs are detached first, ways out of containers before ways in,
// then maps are unpinned. Containers lose their network. Call it, like Attach, in
// the interfaces' network namespace. It is no error if there is nothing. Other
// files in pinDir are left alone.
func RemoveAll(pinDir string) error {
	layouts, err := os.ReadDir(pinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	for _, l := range layouts {
		if _, ok := isLayout(l.Name()); !ok || !l.IsDir() {
			continue
		}
		if err := removeLayout(filepath.Join(pinDir, l.Name())); err != nil {
			return fmt.Errorf("pins: %w", err)
		}
	}
	return nil
}

func removeLayout(dir string) error {
	for _, h := range []hook{hookFrom, hookTo} {
		paths, err := filepath.Glob(filepath.Join(dir, "links", "*-"+h.suffix))
		if err != nil {
			return err
		}
		for _, path := range paths {
			p, err := parsePin(path)
			if err != nil {
				return err
			}
			if err := removePin(p.path, p.ifindex, p.hook); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return os.RemoveAll(dir)
}

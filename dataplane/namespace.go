package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is an open network namespace with a netlink handle of its own. The
// global handle of package netlink is never used: it belongs to whatever
// namespace its first caller's thread was in.
type namespace struct {
	path   string // for errors
	file   *os.File
	handle *netlink.Handle
}

// openNamespace opens the namespace at path; "" is the calling process's.
// ErrNoNamespace if there is none.
func openNamespace(path string) (*namespace, error) {
	file := path
	if path == "" {
		file, path = "/proc/self/ns/net", "of this process"
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s: %w: start the container first, or delete the endpoint", path, ErrNoNamespace)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || int64(st.Type) != unix.NSFS_MAGIC { //nolint:unconvert // 32 bits on other architectures
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w: the file is no namespace (its bind mount may be gone)", path, ErrNoNamespace), f.Close())
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: netlink: %w", path, err), f.Close())
	}
	return &namespace{path: path, file: f, handle: h}, nil
}

func (n *namespace) close() error {
	n.handle.Close()
	return n.file.Close()
}

// do runs fn on a thread inside the namespace. The thread ends with fn. What fn
// opens below /proc/sys/net is the namespace's: the kernel looks at the thread
// that opens (net_ctl_root_lookup), not at the process.
func (n *namespace) do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("network namespace %s: setns: %w", n.path, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// sysctl is a file below /proc/sys/net and what to write there.
type sysctl struct{ file, value string }

// setSysctls writes those that differ, inside the namespace.
func (n *namespace) setSysctls(settings []sysctl) error {
	return n.do(func() error {
		for _, s := range settings {
			path := filepath.Join("/proc/sys/net", s.file)
			if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == s.value {
				continue
			}
			if err := os.WriteFile(path, []byte(s.value), 0o644); err != nil {
				return fmt.Errorf("network namespace %s: sysctl %s=%s: %w", n.path, strings.ReplaceAll(s.file, "/", "."), s.value, err)
			}
		}
		return nil
	})
}

// link finds an interface by name; nil without error if there is none.
func (n *namespace) link(name string) (netlink.Link, error) {
	l, err := n.handle.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s in %s: %w", name, n.path, err)
	}
	return l, nil
}

// dump repeats a netlink dump until the kernel says that it was not interrupted:
// an interrupted one may lack anything.
func dump[T any](ctx context.Context, fn func() ([]T, error)) ([]T, error) {
	for {
		items, err := fn()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// NetnsID names the namespace that path leads to now, as "device:inode". Two
// paths of one namespace have one id. ErrNoNamespace if there is none.
func NetnsID(path string) (string, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("network namespace %s: %w", path, ErrNoNamespace)
	}
	if err != nil {
		return "", fmt.Errorf("network namespace %s: %w", path, err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

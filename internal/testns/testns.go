// Package testns makes network namespaces for tests and demonstrations, runs
// functions and commands inside them, and has small servers and clients to send
// real packets between them. It needs root.
package testns

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// NS is a network namespace that lives until Close, kept by a bind mount in a
// private directory, so that it is in nobody's way: not in `ip netns list`, and
// never of the same name as another. Safe for concurrent use except Close.
type NS struct {
	name string
	dir  string
	path string
}

// New makes an empty namespace whose loopback is down. The name appears in its
// path, for people; it need not be unique.
func New(name string) (*NS, error) {
	if name == "" || filepath.Base(name) != name {
		return nil, fmt.Errorf("network namespace %q: the name must be one path element", name)
	}
	dir, err := os.MkdirTemp("", "varve-netns-")
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	n := &NS{name: name, dir: dir, path: filepath.Join(dir, name)}
	if err := n.create(); err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %w", name, err), os.RemoveAll(dir))
	}
	return n, nil
}

func (n *NS) create() error {
	f, err := os.OpenFile(n.path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// The thread is not unlocked: it is in the new namespace and ends with the
	// goroutine.
	return onThread(func() error {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount(threadNS(), n.path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %w", err)
		}
		return nil
	})
}

// Name is the name given to New.
func (n *NS) Name() string { return n.name }

// Path can be opened, mounted and given to setns for as long as n is open.
func (n *NS) Path() string { return n.path }

// Do runs fn on a thread that is inside the namespace and returns its error.
// Sockets that fn makes stay in the namespace; goroutines that it starts do not
// run there. Files of /proc/sys/net that fn opens are the namespace's own.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		runtime.LockOSThread()
		target, err := os.Open(n.path)
		if err != nil {
			return fmt.Errorf("network namespace %s: %w", n.name, err)
		}
		defer target.Close()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace %s: setns: %w", n.name, err)
		}
		return fn()
	})
}

// Command is exec.CommandContext inside the namespace, through nsenter(1). Unlike
// `ip netns exec` it leaves mounts alone.
func (n *NS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.path, "--", name}, args...)...)
}

// Output runs a command inside the namespace and returns what it printed; the
// error holds both output streams.
func (n *NS) Output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s %v: %w: %s", n.name, name, args, err, out)
	}
	return string(out), nil
}

// Close removes the namespace's name. The kernel ends it once no process or
// socket is inside. Closing twice is no error.
func (n *NS) Close() error {
	err := unix.Unmount(n.path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // not mounted, or closed before
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}

// onThread runs fn on a goroutine of its own and waits. If fn locks it to its
// thread, the thread ends with it, whatever fn did to it.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	return <-done
}

func threadNS() string {
	return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
}

// Suffix is a random string of 8 hex digits for names that must be unique on the
// machine, such as interfaces.
func Suffix() string {
	var b [4]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

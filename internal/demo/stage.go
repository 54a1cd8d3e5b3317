package demo

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/api"
	"github.com/varve-net/varve/internal/testns"
)

// stage is everything a run makes, and what it found.
type stage struct {
	opts Options
	out  *printer
	self string
	id   string // unique to this run; begins the name of whatever it makes
	dir  string // scratch

	actors map[string]*actor
	spaces []*testns.NS
	node   *testns.NS
	agent  *agent
	client *api.Client
	watch  *watcher

	mu       sync.Mutex
	undo     []undoing // in the order of their making
	claimed  int
	failures []string
	crashed  error // of a goroutine
	savedLog string

	flows  []*flow // that run through the kill
	before *photo  // of the agent before the kill
	killed killTimes
}

// undoing takes back one thing.
type undoing struct {
	what string
	do   func() error
}

func newStage(o Options) (*stage, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces and BPF need root: run it as root")
	}
	self := o.Self
	if self == "" {
		var err error
		if self, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("own executable: %w", err)
		}
	}
	random := make([]byte, 3)
	rand.Read(random) // never fails (crypto/rand)
	id := "varvedemo" + hex.EncodeToString(random)
	dir, err := os.MkdirTemp("", id+"-")
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	s := &stage{opts: o, out: newPrinter(o.Out, o.NoColor), self: self, id: id, dir: dir, actors: map[string]*actor{}}
	s.later("files in "+dir, func() error { return os.RemoveAll(dir) })
	s.later("mounts below "+dir, func() error { return unmountBelow(dir) })
	if err := os.WriteFile(s.configFile(), nil, 0o600); err != nil {
		return nil, errors.Join(err, s.takeBack())
	}
	return s, nil
}

// later remembers how to take something back.
func (s *stage) later(what string, do func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.undo = append(s.undo, undoing{what, do})
}

// takeBack undoes everything, the newest first, whatever fails.
func (s *stage) takeBack() error {
	s.mu.Lock()
	undo := s.undo
	s.undo = nil
	s.mu.Unlock()
	var errs []error
	for _, u := range slices.Backward(undo) {
		if err := u.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.what, err))
		}
	}
	return errors.Join(errs...)
}

// claim records whether something held, and prints it.
func (s *stage) claim(ok bool, format string, args ...any) bool {
	text := fmt.Sprintf(format, args...)
	s.record(ok, text)
	s.out.printf(" %s %s\n", s.out.mark(ok), text)
	return ok
}

// record is claim without a line of its own.
func (s *stage) record(ok bool, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claimed++
	if !ok {
		s.failures = append(s.failures, text)
	}
}

func (s *stage) claims() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claimed
}

func (s *stage) failed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.failures)
}

// spawn runs fn beside the story and closes the channel at its end. A panic in it
// becomes the story's error, since it would otherwise end the process before
// anything is cleaned up.
func (s *stage) spawn(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.crashed = errors.Join(s.crashed, fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
			}
		}()
		fn()
	}()
	return done
}

func (s *stage) background() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.crashed
}

// mountsBelow lists the mount points in a directory, the deepest first.
func mountsBelow(dir string) ([]string, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []string
	for line := range strings.Lines(string(info)) {
		// proc_pid_mountinfo(5): the fifth field is the mount point.
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			mounts = append(mounts, f[4])
		}
	}
	slices.SortFunc(mounts, func(a, b string) int { return len(b) - len(a) })
	return mounts, nil
}

func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// leftovers names everything of this run that still exists.
func (s *stage) leftovers() []string {
	var left []string
	if _, err := os.Lstat(s.dir); err == nil {
		left = append(left, s.dir)
	}
	if mounts, err := mountsBelow(s.dir); err != nil || len(mounts) > 0 {
		left = append(left, mounts...)
	}
	for _, pattern := range []string{"/run/netns/*" + s.id + "*", "/sys/fs/bpf/*" + s.id + "*"} {
		found, err := filepath.Glob(pattern)
		if err == nil {
			left = append(left, found...)
		}
	}
	for _, ns := range s.spaces {
		if _, err := os.Lstat(ns.Path()); err == nil && !slices.Contains(left, ns.Path()) {
			left = append(left, ns.Path())
		}
	}
	return append(left, processesOf(s.dir)...)
}

// processesOf names processes that were started with a path below dir.
func processesOf(dir string) []string {
	var found []string
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		cmdline, err := os.ReadFile(e)
		if err == nil && strings.Contains(string(cmdline), dir+"/") {
			found = append(found, "process "+filepath.Base(filepath.Dir(e)))
		}
	}
	return found
}

// Command vm runs the tests that need the kernel on Debian's kernels, in virtual
// machines with software emulation, so that neither /dev/kvm nor a reboot is
// needed. It prints what `go test -json` would, with a package named after its
// kernel, for hack/testreport to judge.
//
//	go run ./test/vm -kernels bookworm,trixie | go run ./hack/testreport
//
// A machine has no disk and no network: its root is an initramfs of the test
// binaries, an init (package init here) and the few modules that they need. With
// -crash it has a disk, and is killed while it appends to the log there.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// config is what the flags say.
type config struct {
	cache    string
	suites   []string // of Debian, whose kernels are booted at once
	jobs     []job
	run      string // of the tests: the flags of the same names
	skip     string
	timeout  time.Duration
	boot     time.Duration
	memoryMB int
	cpus     int
	icount   bool
	keep     bool
	crash    int // kill a machine that appends so many times, instead of testing
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "varve-vm-")
	if err != nil {
		return err
	}
	defer func() {
		if !c.keep {
			_ = os.RemoveAll(work)
		}
	}()
	if c.crash > 0 {
		return runCrash(ctx, c, work, stderr)
	}
	tell(stderr, c.jobs)
	if err := build(ctx, work, c.jobs); err != nil {
		return err
	}
	// Tests mostly wait for one processor of their machine at a time.
	out, said := &lines{out: stdout}, &lines{out: stderr}
	errs := make([]error, len(c.suites))
	var wait sync.WaitGroup
	for i, suite := range c.suites {
		wait.Go(func() {
			if err := test(ctx, c, suite, work, out.writer(), said.writer()); err != nil {
				err = fmt.Errorf("kernel of %s: %w", suite, err)
				errs[i] = errors.Join(err, reportFailure(out.writer(), suite, err))
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	fs := flag.NewFlagSet("vm", flag.ContinueOnError)
	fs.SetOutput(stderr)
	suites := fs.String("kernels", "bookworm,trixie", "Debian's suites whose kernels are booted")
	packages := fs.String("packages", "", "directories of the packages to test; empty: every one of test/vm/jobs.go")
	quick := fs.Bool("quick", false, "only tests that load every program and send packets along every path")
	fs.StringVar(&c.cache, "cache", "", "where unpacked kernels are kept; empty: varve/vm in the user's cache directory. Remove it to get newer ones")
	fs.StringVar(&c.run, "run", "", "only tests that match")
	fs.StringVar(&c.skip, "skip", "", "no tests that match")
	fs.DurationVar(&c.timeout, "timeout", time.Hour, "for all of a kernel's tests, and by the machine's clock for each package; with -icount all of them have this much of the host's processor time")
	fs.DurationVar(&c.boot, "boot-timeout", 10*time.Minute, "until the first test starts; with -icount of the host's processor time")
	fs.IntVar(&c.memoryMB, "memory", 1536, "of a machine, in MiB")
	fs.IntVar(&c.cpus, "cpus", 1, "of a machine; with more, emulation lets a kernel panic now and then that changes its own code while another processor runs it")
	fs.BoolVar(&c.icount, "icount", false, "let a machine's clock count its instructions, so that a busy host makes it slow but no test late")
	fs.IntVar(&c.crash, "crash", 0, "run no tests, but kill a machine of the first kernel so many times while it appends to its disk")
	fs.BoolVar(&c.keep, "keep", false, "keep initramfs and console output, and say where")
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	c.suites = strings.Split(*suites, ",")
	var err error
	if c.jobs, err = choose(strings.FieldsFunc(*packages, func(r rune) bool { return r == ',' }), *quick); err != nil {
		return c, err
	}
	if c.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return c, fmt.Errorf("%w: give one by -cache", err)
		}
		c.cache = filepath.Join(dir, "varve", "vm")
	}
	return c, os.MkdirAll(c.cache, 0o755)
}

// test boots one kernel and passes on what its tests say.
func test(ctx context.Context, c config, suite, work string, stdout, stderr io.Writer) error {
	k, err := fetch(ctx, c.cache, suite)
	if err != nil {
		return err
	}
	m := machine{
		config: c, kernel: k,
		initrd:  filepath.Join(work, "initrd-"+suite),
		console: filepath.Join(work, "console-"+suite),
	}
	if err := writeInitramfs(m.initrd, k, work, contents{jobs: c.jobs, plan: plan(c.jobs, c.timeout, c.run, c.skip), modules: wanted}); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	if c.keep {
		fmt.Fprintf(stderr, "vm: %s, %s\n", m.initrd, m.console)
	}
	fmt.Fprintf(stderr, "vm: booting Linux %s\n", k.version)
	started := time.Now()
	used, err := m.run(ctx, stdout)
	if err != nil {
		fmt.Fprintf(stderr, "vm: the end of the console of Linux %s:\n%s\n", k.version, tail(m.console, 60))
		return err
	}
	fmt.Fprintf(stderr, "vm: Linux %s done after %s, with %s of processor time\n",
		k.version, time.Since(started).Round(time.Second), used.Round(time.Second))
	return nil
}

// event is a line of `go test -json`.
type event struct {
	Action  string
	Package string
	Output  string `json:",omitempty"`
}

func emit(w io.Writer, e event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// reportFailure makes the report fail, also if it is read by another process
// that does not see this one's exit status.
func reportFailure(w io.Writer, suite string, err error) error {
	return errors.Join(
		emit(w, event{Action: "output", Package: suite, Output: "FAIL\t" + suite + ": " + err.Error() + "\n"}),
		emit(w, event{Action: "fail", Package: suite}))
}

func tail(file string, lines int) []byte {
	b, err := os.ReadFile(file)
	if err != nil {
		return []byte(err.Error())
	}
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}

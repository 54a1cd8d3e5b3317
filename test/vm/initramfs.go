package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/varve-net/varve/test/vm/wire"
)

// guestTag is the build tag of tests that only a machine runs, since they would harm
// the one that they run on: they set its clock.
const guestTag = "guest"

// build compiles the init, the jobs' tests and, if one wants it, the real binary, static
// and without symbols, into dir.
func build(ctx context.Context, dir string, jobs []job) error {
	if err := goBuild(ctx, "build", filepath.Join(dir, "init"), "./test/vm/init"); err != nil {
		return err
	}
	for _, j := range jobs {
		if err := goBuild(ctx, "test", testBinary(dir, j.pkg), "./"+j.pkg); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(jobs, wantsBinary) {
		return goBuild(ctx, "build", filepath.Join(dir, "varve"), "./cmd/varve")
	}
	return nil
}

func wantsBinary(j job) bool { return j.binary }

func goBuild(ctx context.Context, command, out, pkg string) error {
	args := []string{command, "-trimpath", "-ldflags", "-s -w", "-o", out}
	if command == "test" {
		args = append(args, "-c", "-tags", guestTag)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s %s: %w\n%s", command, pkg, err, said)
	}
	return nil
}

// testBinary is where the tests of a package are compiled to.
func testBinary(dir, pkg string) string {
	return filepath.Join(dir, strings.ReplaceAll(pkg, "/", "_")+".test")
}

// contents are what an initramfs has beside its init.
type contents struct {
	jobs    []job
	plan    wire.Plan
	modules []string // without those that they depend on
}

// writeInitramfs packs, not compressed, since to unpack costs an emulated machine
// more than to read:
//
//	/init
//	/plan.json              what it is to do
//	/modules/00-NAME.ko     in the order in which they are loaded
//	/src/PACKAGE/test       and the package's testdata beside it
//	/bin/varve              the real binary
//	/bin/ip ...             of this machine, with the libraries they are linked to
func writeInitramfs(file string, k kernel, dir string, with contents) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriter(f)
	c := newCPIO(buffered)
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "modules"} {
		c.dir(d)
	}
	c.copy("init", 0o755, filepath.Join(dir, "init"))
	ms, err := modules(context.Background(), k, with.modules)
	if err != nil {
		return err
	}
	for i, m := range ms {
		c.file(fmt.Sprintf("modules/%02d-%s.ko", i, m.name), 0o644, m.data)
	}
	plan, err := json.Marshal(with.plan)
	if err != nil {
		return err
	}
	c.file(strings.TrimPrefix(wire.PlanFile, "/"), 0o644, plan)
	var commands []string
	for _, j := range with.jobs {
		c.copy("src/"+j.pkg+"/test", 0o755, testBinary(dir, j.pkg))
		c.tree("src/"+j.pkg+"/testdata", filepath.Join(j.pkg, "testdata"))
		commands = append(append(commands, everyJob...), j.commands...)
	}
	if slices.ContainsFunc(with.jobs, wantsBinary) {
		c.copy("bin/varve", 0o755, filepath.Join(dir, "varve"))
	}
	slices.Sort(commands)
	for _, name := range slices.Compact(commands) {
		if err := addCommand(context.Background(), c, name); err != nil {
			return fmt.Errorf("command %s: %w", name, err)
		}
	}
	if err := c.close(); err != nil {
		return err
	}
	return buffered.Flush()
}

// everyJob are the commands that tests of any package run inside namespaces.
var everyJob = []string{"nsenter", "ip", "ethtool", "cat"}

// library is a line of ldd's: "libc.so.6 => /lib/libc.so.6 (0x7f..)", or only the
// path, for the loader.
var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

func addCommand(ctx context.Context, c *cpio, name string) error {
	file, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	c.copy("bin/"+name, 0o755, file)
	libraries, err := output(ctx, "", nil, "ldd", file)
	if err != nil {
		return err
	}
	for _, m := range library.FindAllSubmatch(libraries, -1) {
		lib := strings.TrimPrefix(string(m[1]), "/")
		if !c.has(lib) {
			c.copy(lib, 0o755, string(m[1]))
		}
	}
	return nil
}

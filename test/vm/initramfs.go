package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// build compiles the init and the packages' tests, static and without symbols,
// into dir.
func build(ctx context.Context, dir string, packages []string) error {
	if err := goBuild(ctx, "build", filepath.Join(dir, "init"), "./test/vm/init"); err != nil {
		return err
	}
	for _, p := range packages {
		if err := goBuild(ctx, "test", testBinary(dir, p), "./"+p); err != nil {
			return err
		}
	}
	return nil
}

func goBuild(ctx context.Context, command, out, pkg string) error {
	args := []string{command, "-trimpath", "-ldflags", "-s -w", "-o", out}
	if command == "test" {
		args = append(args, "-c")
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
	packages []string // whose tests it has
	commands []string // of this machine
	modules  []string // without those that they depend on
}

// writeInitramfs packs, not compressed, since to unpack costs an emulated machine
// more than to read:
//
//	/init
//	/modules/00-NAME.ko     in the order in which they are loaded
//	/src/PACKAGE/test       and the package's testdata beside it
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
	for _, p := range with.packages {
		c.copy("src/"+p+"/test", 0o755, testBinary(dir, p))
		c.tree("src/"+p+"/testdata", filepath.Join(p, "testdata"))
	}
	for _, name := range with.commands {
		if err := addCommand(context.Background(), c, name); err != nil {
			return fmt.Errorf("command %s: %w", name, err)
		}
	}
	if err := c.close(); err != nil {
		return err
	}
	return buffered.Flush()
}

// commands are those that tests run inside namespaces.
var commands = []string{"nsenter", "ip", "ethtool", "cat"}

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

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// kernel is an unpacked kernel package.
type kernel struct {
	version string // as in the names of its files: 6.1.0-56-amd64
	image   string
	modules string // directory lib/modules/VERSION
}

// metaPackage depends on the newest kernel image of a suite.
const metaPackage = "linux-image-amd64"

// keyring holds the keys of every suite of Debian.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// fetch returns the kernel of a suite from the cache, where it is put if it is
// not there. Packages come by apt from the mirror that this machine uses, under
// lists of their own: the machine's sources and package state stay as they are.
func fetch(ctx context.Context, cache, suite string) (kernel, error) {
	dir := filepath.Join(cache, suite)
	if k, err := unpacked(dir); err == nil {
		return k, nil
	}
	// A half unpacked one never gets its final name.
	part, err := os.MkdirTemp(cache, suite+"-part-")
	if err != nil {
		return kernel{}, err
	}
	defer func() { _ = os.RemoveAll(part) }()
	a := apt{dir: filepath.Join(part, "apt")}
	if err := a.setUp(ctx, suite); err != nil {
		return kernel{}, err
	}
	image, err := a.imagePackage(ctx)
	if err != nil {
		return kernel{}, err
	}
	if _, err := a.run(ctx, "apt-get", "download", image); err != nil {
		return kernel{}, err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return kernel{}, fmt.Errorf("package %s: %d files were downloaded, want 1 (%w)", image, len(debs), err)
	}
	root := filepath.Join(part, "root")
	if _, err := output(ctx, "", nil, "dpkg-deb", "-x", debs[0], root); err != nil {
		return kernel{}, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return kernel{}, err
	}
	if err := os.Rename(root, dir); err != nil {
		return kernel{}, err
	}
	return unpacked(dir)
}

func unpacked(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("%s: %d kernel images, want 1", dir, len(images))
	}
	k := kernel{image: images[0], version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	for _, lib := range []string{"usr/lib", "lib"} {
		k.modules = filepath.Join(dir, lib, "modules", k.version)
		if _, err = os.Stat(k.modules); err == nil {
			return k, nil
		}
	}
	return k, err
}

// apt runs apt's commands on lists of their own in dir.
type apt struct{ dir string }

func (a apt) setUp(ctx context.Context, suite string) error {
	for _, sub := range []string{"lists/partial", "sources/partial", "cache/archives/partial", "empty"} {
		if err := os.MkdirAll(filepath.Join(a.dir, sub), 0o755); err != nil {
			return err
		}
	}
	mirror, err := a.mirror(ctx)
	if err != nil {
		return err
	}
	line := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
	if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(line), 0o644); err != nil {
		return err
	}
	_, err = a.run(ctx, "apt-get", "update")
	return err
}

// mirror is where this machine gets Debian from. A machine whose lists were removed, as
// in images of containers, has its sources asked for new ones, which are not left there.
func (a apt) mirror(ctx context.Context) (string, error) {
	uri, err := debian(ctx)
	if err != nil || uri != "" {
		return uri, err
	}
	own := []string{"-o", "Dir::State::lists=" + filepath.Join(a.dir, "sources"), "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"}
	if _, err := output(ctx, a.dir, nil, "apt-get", append(own, "update")...); err != nil {
		return "", err
	}
	if uri, err = debian(ctx, own...); err == nil && uri == "" {
		err = errors.New("apt's sources on this machine have none of Debian's packages: add one")
	}
	return uri, err
}

// debian returns the source of Debian's packages that apt has lists of; none: "".
func debian(ctx context.Context, options ...string) (string, error) {
	out, err := output(ctx, "", nil, "apt-get", append(options, "indextargets",
		"--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Identifier: Packages")...)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if uri, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian Debian "); ok {
			return uri, nil
		}
	}
	return "", nil
}

func (a apt) run(ctx context.Context, command string, args ...string) ([]byte, error) {
	options := []string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=" + filepath.Join(a.dir, "empty"),
		"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "APT::Sandbox::User=root",
		"-o", "APT::Architecture=amd64",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
	}
	return output(ctx, a.dir, nil, command, append(options, args...)...)
}

var dependsLine = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-\S+)$`)

// imagePackage is the image that the suite's meta package depends on.
func (a apt) imagePackage(ctx context.Context) (string, error) {
	out, err := a.run(ctx, "apt-cache", "depends", metaPackage)
	if err != nil {
		return "", err
	}
	m := dependsLine.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("package %s: it depends on no kernel image:\n%s", metaPackage, out)
	}
	return string(m[1]), nil
}

// output runs a command and returns what it prints; an error has what it said.
func output(ctx context.Context, dir string, stdin []byte, command string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Dir = dir
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", command, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// wanted are the modules that tests use. One that a kernel has built in is not
// loaded. libcrc32c, which sctp needs, asks for its algorithm by name.
var wanted = []string{"veth", "sch_ingress", "cls_bpf", "bridge", "vxlan", "dummy", "crc32c_generic", "sctp"}

// module is a loadable object, not compressed.
type module struct {
	name string
	data []byte
}

// modules returns those wanted with all that they depend on, in an order in
// which they can be loaded.
func modules(ctx context.Context, k kernel, wanted []string) ([]module, error) {
	files, err := moduleFiles(k)
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	var loaded []module
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		file, ok := files[name]
		if !ok {
			if isBuiltin(builtin, name) {
				return nil
			}
			return fmt.Errorf("module %s: Linux %s has none", name, k.version)
		}
		data, err := readModule(ctx, file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		depends, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := add(d); err != nil {
				return err
			}
		}
		loaded = append(loaded, module{name, data})
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return loaded, nil
}

// moduleName is the kernel's name for what a file or a dependency calls so.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// moduleFiles finds every module. Debian's packages have no modules.dep: depmod
// makes it where a kernel is installed.
func moduleFiles(k kernel) (map[string]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, _, ok := strings.Cut(d.Name(), ".ko"); ok {
			files[moduleName(name)] = path
		}
		return nil
	})
	return files, err
}

func isBuiltin(list []byte, name string) bool {
	for line := range bytes.Lines(list) {
		file := strings.TrimSuffix(filepath.Base(string(bytes.TrimSpace(line))), ".ko")
		if moduleName(file) == name {
			return true
		}
	}
	return false
}

func readModule(ctx context.Context, file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	switch filepath.Ext(file) {
	case ".xz":
		return output(ctx, "", data, "xz", "-dc")
	case ".ko":
		return data, nil
	}
	return nil, fmt.Errorf("%s: unknown compression", filepath.Base(file))
}

// dependencies reads "depends=a,b" of a module's .modinfo section.
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok {
			return slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return s == "" }), nil
		}
	}
	return nil, nil
}

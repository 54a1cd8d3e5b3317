package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// cpio writes an archive in the "newc" format, which an initramfs has
// (Documentation/driver-api/early-userspace/buffer-format.rst). Parents come
// before what is in them; it makes those that are missing.
type cpio struct {
	w     io.Writer
	inode int
	names map[string]bool // of what it has
	err   error
}

func newCPIO(w io.Writer) *cpio { return &cpio{w: w, names: map[string]bool{".": true}} }

// Modes of a file's type, as in stat(2).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

func (c *cpio) entry(name string, mode int, data []byte) {
	if c.err != nil {
		return
	}
	c.inode++
	c.names[name] = true
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	const align = 4
	head := append([]byte(header+name), 0)
	head = append(head, make([]byte, -len(head)&(align-1))...)
	if _, c.err = c.w.Write(head); c.err != nil {
		return
	}
	if _, c.err = c.w.Write(data); c.err != nil {
		return
	}
	_, c.err = c.w.Write(make([]byte, -len(data)&(align-1)))
}

func (c *cpio) has(name string) bool { return c.names[name] }

func (c *cpio) dir(name string) {
	if c.has(name) {
		return
	}
	c.dir(path.Dir(name))
	c.entry(name, modeDir|0o755, nil)
}

func (c *cpio) file(name string, mode int, data []byte) {
	c.dir(path.Dir(name))
	c.entry(name, modeFile|mode, data)
}

// copy adds a file of this machine.
func (c *cpio) copy(name string, mode int, from string) {
	data, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.file(name, mode, data)
}

// tree adds a directory of this machine with all files in it, if it exists.
func (c *cpio) tree(name, from string) {
	err := filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err == nil {
			c.copy(path.Join(name, filepath.ToSlash(rel)), 0o644, file)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) && c.err == nil {
		c.err = err
	}
}

func (c *cpio) close() error {
	c.entry("TRAILER!!!", 0, nil)
	return c.err
}

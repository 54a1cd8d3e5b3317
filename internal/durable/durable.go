// Package durable puts files into their places so that a crash, a full disk or an
// error leaves what was there before or what is new, whole.
package durable

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Unfinished ends the name of a file that Replace writes, until it gets the name it
// is for. A crash leaves such files: the next Replace of the same path writes over
// them, and whoever owns a folder may remove them while nobody writes.
const Unfinished = ".new"

// Replace makes a file of what write writes, in the place of the one that has the
// path. When it returns the new content is durable under that name. After an error
// of writing there is what was before, and nothing beside it. One goroutine of one
// process may replace a path at a time.
func Replace(path string, mode fs.FileMode, write func(io.Writer) error) error {
	f, err := os.OpenFile(path+Unfinished, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	return finish(f, path, write)
}

// ReplaceShared is Replace for a path that others may replace at the same time: the
// last one wins. The file is its owner's alone. What a crash leaves, under a name
// that begins with a dot, nobody writes over.
func ReplaceShared(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*"+Unfinished)
	if err != nil {
		return err
	}
	return finish(f, path, write)
}

func finish(f *os.File, path string, write func(io.Writer) error) error {
	w := bufio.NewWriterSize(f, 1<<16)
	err := write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder durable: a file that was made, renamed or
// removed in it stays so.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

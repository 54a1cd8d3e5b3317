package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

func TestReplace(t *testing.T) {
	for name, replace := range map[string]func(string, func(io.Writer) error) error{
		"one writer": func(path string, write func(io.Writer) error) error { return Replace(path, 0o600, write) },
		"any number": ReplaceShared,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			want := func(content string) {
				t.Helper()
				if got, err := os.ReadFile(path); err != nil || string(got) != content {
					t.Errorf("%q, %v; want %q", got, err, content)
				}
				if all := names(t, dir); len(all) != 1 {
					t.Errorf("%v lies there; want the file alone", all)
				}
			}
			if err := replace(path, text("first")); err != nil {
				t.Fatal(err)
			}
			want("first")
			broken := errors.New("broken")
			err := replace(path, func(w io.Writer) error { return errors.Join(text("second, to be cut")(w), broken) })
			if !errors.Is(err, broken) {
				t.Errorf("%v, want the writer's error", err)
			}
			want("first")
			if err := replace(path, text("third")); err != nil {
				t.Fatal(err)
			}
			want("third")
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			if err := replace(filepath.Join(dir, "none", "file"), text("x")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v, want that the folder does not exist", err)
			}
		})
	}
}

// What a crash left is written over.
func TestReplaceAfterCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path+Unfinished, []byte("much more than what comes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, 0o600, text("new")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	if all := names(t, filepath.Dir(path)); len(all) != 1 {
		t.Errorf("%v lies there", all)
	}
}

// Whoever reads while many write finds the whole of what one wrote.
func TestReplaceSharedIsWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	contents := map[string]bool{}
	var writers sync.WaitGroup
	for i := range 8 {
		b := make([]byte, 100<<10+i)
		contents[string(b)] = true
		writers.Go(func() {
			for range 4 {
				if err := ReplaceShared(path, text(string(b))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 50 {
		got, err := os.ReadFile(path)
		if err == nil && !contents[string(got)] {
			t.Fatalf("%d bytes that nobody wrote", len(got))
		}
	}
	writers.Wait()
	if all := names(t, filepath.Dir(path)); len(all) != 1 {
		t.Errorf("%v lies there", all)
	}
}

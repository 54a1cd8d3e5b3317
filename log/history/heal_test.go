package history

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/varve-net/varve/log"
)

// What is lost of a history, in whatever way, comes back as it was from who has it, and
// the damaged file stays beside it. Wrong records do not.
func TestHeal(t *testing.T) {
	flip := func(path string, at func(size int) int) func(*testing.T) {
		return func(t *testing.T) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[at(len(b))] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	middle := func(size int) int { return size / 2 }
	for name, tc := range map[string]struct {
		packed bool
		damage func(files []string) func(*testing.T)
		aside  int
	}{
		"a record":         {false, func(files []string) func(*testing.T) { return flip(files[1], middle) }, 1},
		"a block":          {true, func(files []string) func(*testing.T) { return flip(files[1], middle) }, 1},
		"a header":         {false, func(files []string) func(*testing.T) { return flip(files[1], func(int) int { return 3 }) }, 1},
		"the first header": {true, func(files []string) func(*testing.T) { return flip(files[0], func(int) int { return 3 }) }, 1},
		"a segment":        {false, func(files []string) func(*testing.T) { return func(*testing.T) { os.Remove(files[1]) } }, 1},
		"the last, in its middle": {false, func(files []string) func(*testing.T) {
			return flip(files[len(files)-1], func(int) int { return headerSize + 20 })
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			records, files := write(t, dir, 300, 3000)
			if tc.packed {
				h := open(t, dir, 3000)
				for _, f := range files[:2] {
					first, _ := parseName(filepath.Base(f))
					if err := h.Pack(first); err != nil {
						t.Fatal(err)
					}
				}
				closeHistory(t, h)
			}
			tc.damage(files)(t)
			h := open(t, dir, 3000)
			if err := h.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			var missed, wrong []log.Record
			for _, l := range h.Lost() {
				missed = append(missed, records[l.First-1:l.Last]...)
			}
			if len(missed) == 0 {
				t.Fatal("nothing is lost")
			}
			for _, r := range missed {
				r.Event = append([]byte("not "), r.Event...)
				wrong = append(wrong, r)
			}
			lost := len(h.Lost())
			if healed, err := h.Heal(wrong); !errors.Is(err, log.ErrCorrupt) || len(healed) != 0 || len(h.Lost()) != lost {
				t.Errorf("by wrong records: %v, %v", healed, err)
			}
			if _, err := h.Heal(missed); err != nil || len(h.Lost()) != 0 {
				t.Fatalf("lost %v, %v", h.Lost(), err)
			}
			sameRecords(t, read(t, h, 1, 300), records)
			closeHistory(t, h)
			h = open(t, dir, 3000)
			if err := errors.Join(h.Verify(t.Context(), 1), h.Check(t.Context())); err != nil || len(h.Lost()) != 0 {
				t.Errorf("opened anew: lost %v, %v", h.Lost(), err)
			}
			if aside, _ := filepath.Glob(filepath.Join(dir, "*"+asideSuffix)); len(aside) != tc.aside {
				t.Errorf("kept aside: %v", aside)
			}
		})
	}
}

// Files that are missing at the beginning are known as lost at every opening, unless
// retention let go of them or somebody has accepted it.
func TestMissingBeginning(t *testing.T) {
	dir := t.TempDir()
	_, files := write(t, dir, 300, 3000)
	second, _ := parseName(filepath.Base(files[1]))
	if err := os.Rename(files[0], files[0]+".copy"); err != nil {
		t.Fatal(err)
	}
	for _, open := range []func() (*History, error){
		func() (*History, error) { return open(t, dir, 3000), nil },
		func() (*History, error) { return OpenReadOnly(dir, open(t, t.TempDir(), 1).logger) },
	} {
		h, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if lost := h.Lost(); len(lost) != 1 || lost[0].First != 1 || lost[0].Last != second-1 || !errors.Is(h.Verify(t.Context(), 1), log.ErrCorrupt) {
			t.Errorf("lost %v, verify: %v", lost, h.Verify(t.Context(), 1))
		}
		closeHistory(t, h)
	}

	// It is put back.
	if err := os.Rename(files[0]+".copy", files[0]); err != nil {
		t.Fatal(err)
	}
	h := open(t, dir, 3000)
	if err := h.Verify(t.Context(), 1); err != nil || len(h.Lost()) != 0 {
		t.Errorf("lost %v, %v", h.Lost(), err)
	}
	// It is let go of.
	if err := h.DropBefore(second); err != nil {
		t.Fatal(err)
	}
	closeHistory(t, h)
	whole := func(what string) {
		t.Helper()
		h := open(t, dir, 3000)
		if err := h.Verify(t.Context(), 1); err != nil || len(h.Lost()) != 0 {
			t.Errorf("%s: lost %v, %v", what, h.Lost(), err)
		}
		closeHistory(t, h)
	}
	whole("retention")
	// More is gone, and somebody says that it may be.
	if err := errors.Join(os.Remove(files[1]), os.Remove(filepath.Join(dir, floorFile))); err != nil {
		t.Fatal(err)
	}
	whole("accepted")
	if err := os.WriteFile(filepath.Join(dir, floorFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	whole("a damaged floor")
}

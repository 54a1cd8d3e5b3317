package history

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/log"
)

// damage does something to the files of a history at random.
func damage(t *rapid.T, files []string, foreign []string) string {
	pick := func(label string) string { return rapid.SampledFrom(files).Draw(t, label) }
	must := func(err error) {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	change := func(file string, fn func([]byte) []byte) {
		b, err := os.ReadFile(file)
		if err == nil && len(b) > 0 {
			must(os.WriteFile(file, fn(b), 0o600))
		}
	}
	what := rapid.SampledFrom([]string{"flip", "zero", "cut out", "truncate", "double", "remove", "swap", "foreign"}).Draw(t, "what")
	file := pick("file")
	at := func(b []byte) int { return rapid.IntRange(0, len(b)-1).Draw(t, "at") }
	switch what {
	case "flip":
		change(file, func(b []byte) []byte { b[at(b)] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit"); return b })
	case "zero":
		change(file, func(b []byte) []byte { i := at(b); clear(b[i:min(len(b), i+200)]); return b })
	case "cut out":
		change(file, func(b []byte) []byte { i := at(b); return append(b[:i], b[min(len(b), i+150):]...) })
	case "truncate":
		change(file, func(b []byte) []byte { return b[:at(b)] })
	case "double":
		change(file, func(b []byte) []byte { i := at(b); return append(bytes.Clone(b), b[i:]...) })
	case "remove":
		must(os.Remove(file))
	case "swap":
		other := pick("other")
		must(os.Rename(file, file+"~"))
		if err := os.Rename(other, file); err == nil {
			must(os.Rename(file+"~", other))
		} else {
			must(os.Rename(file+"~", file))
		}
	case "foreign": // a segment of another log with the same revisions
		for _, f := range foreign {
			if filepath.Base(f) == filepath.Base(file) {
				b, err := os.ReadFile(f)
				must(err)
				must(os.WriteFile(file, b, 0o600))
			}
		}
	}
	return what
}

// Whatever happens to the files: a history opens, answers each revision as it was or
// refuses it with the place, says after a Check exactly what it refuses, takes what
// comes, and does all of that again once it was opened anew.
func TestDamageNeverLies(t *testing.T) {
	const n, size = 120, 2500
	pristine, other := t.TempDir(), t.TempDir()
	records, files := write(t, pristine, n, size)
	foreign := writeRecords(t, other, chainOf(1, n, log.Hash{7}), size)
	h := open(t, pristine, size)
	for i, f := range files[:len(files)-1] { // some of both formats
		if first, _ := parseName(filepath.Base(f)); i%2 == 0 {
			if err := h.Pack(first); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeHistory(t, h)
	end := records[n-1].Chain
	all := append(records, chainOf(n+1, 6, end)...)
	quiet := slog.New(slog.DiscardHandler)
	rapid.Check(t, func(rt *rapid.T) {
		dir := filepath.Join(t.TempDir(), "history")
		if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
			rt.Fatal(err)
		}
		now, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
		if err != nil {
			rt.Fatal(err)
		}
		// Not the last one: that the state does not agree with it is found by whoever has
		// the state.
		for range rapid.IntRange(1, 3).Draw(rt, "how often") {
			damage(rt, now[:len(now)-1], foreign)
		}
		want := func(at log.Revision) *log.Record { return &all[at-1] }
		for start := range 2 {
			h, err := OpenSized(dir, size, quiet)
			if err != nil {
				rt.Fatalf("start %d: %v", start, err)
			}
			last, chain := h.Last()
			if start == 0 && (last != n || chain != end) {
				rt.Fatalf("the last one, which is whole, is %d, %s", last, chain)
			}
			if err := h.Append(chainOf(last+1, 3, chain)); err != nil {
				rt.Fatal(err)
			}
			if err := h.Check(t.Context()); err != nil {
				rt.Fatal(err)
			}
			verified := h.Verify(t.Context(), 1)
			lost := h.Lost()
			if (verified == nil) != (len(lost) == 0) || verified != nil && !errors.Is(verified, log.ErrCorrupt) {
				rt.Fatalf("Verify says %v, Lost is %v", verified, lost)
			}
			for i, l := range lost {
				if !errors.Is(l.Err, log.ErrCorrupt) || !strings.Contains(l.Err.Error(), dir) || l.First > l.Last || i > 0 && l.First <= lost[i-1].Last {
					rt.Fatalf("lost: %v", lost)
				}
			}
			for at := h.First(); at <= last+3; at++ {
				got, err := h.Record(t.Context(), at)
				isLost := false
				for _, l := range lost {
					isLost = isLost || at >= l.First && at <= l.Last
				}
				switch {
				case err == nil && !equal(&got, want(at)):
					rt.Fatalf("revision %d: a record that never was: %+v, want %+v", at, got, want(at))
				case err == nil:
				case !errors.Is(err, log.ErrCorrupt):
					rt.Fatalf("revision %d: %v", at, err)
				}
				if isLost != (err != nil) {
					rt.Fatalf("revision %d: %v, but lost is %v", at, err, lost)
				}
			}
			if err := h.Close(); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

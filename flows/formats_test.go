package flows

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var writeFormats = flag.String("write-formats", "", "write what this version writes into this folder of testdata, and what is read of it")

// Records of every version are read as they were when they were written.
func TestOldFormats(t *testing.T) {
	if *writeFormats != "" {
		writeAll(t, filepath.Join("testdata", *writeFormats))
	}
	versions, err := filepath.Glob("testdata/v*")
	if err != nil || len(versions) == 0 {
		t.Fatal(versions, err)
	}
	for _, dir := range versions {
		want, err := os.ReadFile(filepath.Join(dir, "flows.txt"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), listing(t, dir)); diff != "" {
			t.Errorf("%s (-recorded +read):\n%s", dir, diff)
		}
	}
}

// listing is all that a record says.
func listing(t *testing.T, dir string) string {
	t.Helper()
	s, err := OpenReadOnly(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var b strings.Builder
	err = s.Read(t.Context(), 100*second, 200*second, func(f *Flow) error {
		fmt.Fprintf(&b, "flow %+v\n", *f)
		return nil
	}, func(g Gap) error {
		fmt.Fprintf(&b, "gap %+v\n", g)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func writeAll(t *testing.T, dir string) {
	t.Helper()
	c := &clock{100 * second}
	for run := range 2 { // nobody watches in between
		s := openStore(t, dir, c, func(cfg *Config) { cfg.MaxBytes = segmentParts * 256 })
		for n := range 8 {
			f := s.flow(n)
			f.Verdict = Verdict(1 + n%3)
			if f.Verdict != Dropped {
				f.Reason = 0
			}
			s.Observe(f)
			s.pass(time.Second)
			s.Observe(s.flow(n + run))
			*s.lost += uint64(n / 7)
			s.write(false)
		}
		done, stop := context.WithCancel(t.Context())
		stop()
		s.Run(done)
		c.ns += 5 * second
	}
	if err := os.WriteFile(filepath.Join(dir, "flows.txt"), []byte(listing(t, dir)), 0o600); err != nil {
		t.Fatal(err)
	}
}

package match

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/policy"
)

func selector(t testing.TB, text string) policy.FQDNSelector {
	t.Helper()
	s, err := policy.ParseFQDN("", text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func set(t testing.TB, texts ...string) *Set {
	t.Helper()
	patterns := make([]Pattern, len(texts))
	for i, text := range texts {
		patterns[i] = Pattern{Selector: selector(t, text), ID: uint32(i)}
	}
	return New(patterns)
}

func TestMatch(t *testing.T) {
	s := set(t, "*.domain.com", "api.domain.com", "**.deep.io", "*sub.x.io", "a*b*c.x.io", "www.*.org", "*", ".", "*.*")
	for name, want := range map[string][]uint32{
		"www.domain.com.":     {0, 6},
		"api.domain.com.":     {0, 1, 6},
		"domain.com.":         {6, 8},
		"a.b.domain.com.":     {6},
		"deep.io.":            {6, 8},
		"a.deep.io.":          {2, 6},
		"a.b.deep.io.":        {2, 6},
		`a\.b.deep.io.`:       nil,
		"sub.x.io.":           {3, 6},
		"evilsub.x.io.":       {3, 6},
		"abc.x.io.":           {4, 6},
		"a1b2b3c.x.io.":       {4, 6},
		"acb.x.io.":           {6},
		`a\032b\032c.x.io.`:   nil,
		"www.a.org.":          {5, 6},
		"www.a.b.org.":        {6},
		".":                   {6, 7},
		"com.":                {6},
		"domain.com.evil.io.": {6},
	} {
		if got := s.Append(nil, []byte(name)); !slices.Equal(got, want) {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
		id, ok := s.Match([]byte(name))
		if ok != (len(want) > 0) || ok && id != want[0] {
			t.Errorf("%s: least %d %t, want of %d", name, id, ok, want)
		}
	}
	if _, ok := New(nil).Match([]byte("a.")); ok {
		t.Error("the empty set matches")
	}
	if got := s.Append([]uint32{9}, []byte("com.")); !slices.Equal(got, []uint32{9, 6}) {
		t.Errorf("appended: %d", got)
	}
}

// TestEqualsPolicy holds sets of random patterns to what each of them says alone.
func TestEqualsPolicy(t *testing.T) {
	texts := rapid.SliceOfN(rapid.StringMatching(`(\*\*\.|[*.])?([ab*_-]{1,4}[.]{1,2}){0,4}[abc*]{0,3}`), 1, 12)
	names := rapid.SliceOfN(rapid.StringMatching(`([ab_\\é-]{0,4}[.]){0,5}`), 1, 12)
	rapid.Check(t, func(t *rapid.T) {
		var patterns []Pattern
		for _, text := range texts.Draw(t, "patterns") {
			name, pattern := text, ""
			if strings.Contains(text, "*") {
				name, pattern = "", text
			}
			s, err := policy.ParseFQDN(name, pattern)
			if err == nil {
				patterns = append(patterns, Pattern{s, uint32(len(patterns) / 2)})
			}
		}
		s := New(patterns)
		for _, name := range names.Draw(t, "names") {
			name = policy.NormalizeFQDN(name)
			compare(t, s, patterns, name)
		}
	})
}

func compare(t interface{ Errorf(string, ...any) }, s *Set, patterns []Pattern, name string) {
	var want []uint32
	for _, p := range patterns {
		if p.Selector.Matches(name) {
			want = append(want, p.ID)
		}
	}
	want = slices.Compact(want)
	if got := s.Append(nil, []byte(name)); !slices.Equal(got, want) {
		t.Errorf("%q: %d, want %d of %v", name, got, want, patterns)
	}
	if id, ok := s.Match([]byte(name)); ok != (len(want) > 0) || ok && id != want[0] {
		t.Errorf("%q: least is %d %t, want of %d", name, id, ok, want)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("*.domain.com\n**.x.io", "www.domain.com.")
	f.Add("**..\n.\n*", ".")
	f.Add("a*b*c.*.io\na**c.io", "aXbXc.y.io.")
	f.Fuzz(func(t *testing.T, texts, name string) {
		var patterns []Pattern
		for text := range strings.SplitSeq(texts, "\n") {
			if s, err := policy.ParseFQDN("", text); err == nil && len(patterns) < 32 {
				patterns = append(patterns, Pattern{s, uint32(len(patterns))})
			}
		}
		compare(t, New(patterns), patterns, policy.NormalizeFQDN(name))
	})
}

func TestMatchAllocatesNothing(t *testing.T) {
	s := set(t, "*.domain.com", "api.domain.com", "**.deep.io", "*sub.x.io", "a*b*c.x.io", "*")
	for _, text := range []string{"www.domain.com.", "a.b.deep.io.", "evilsub.x.io.", "a1b2b3c.x.io.", "no.where."} {
		name := []byte(text)
		if n := testing.AllocsPerRun(100, func() { s.Match(name) }); n != 0 {
			t.Errorf("%s: %v allocations", text, n)
		}
	}
}

// BenchmarkMatch is one name against 10,000 patterns.
func BenchmarkMatch(b *testing.B) {
	for _, bench := range []struct{ what, pattern, name string }{
		{"domains", "*.domain%d.com", "www.domain%d.com."},
		{"subdomains", "**.domain%d.com", "a.b.domain%d.com."},
		{"one label of many", "*svc%d.cluster.local", "a-svc%d.cluster.local."},
		{"names", "api.domain%d.com", "api.domain%d.com."},
	} {
		b.Run(bench.what, func(b *testing.B) {
			var texts []string
			var names [][]byte
			for i := range 10000 {
				texts = append(texts, fmt.Sprintf(bench.pattern, i))
				names = append(names, fmt.Appendf(nil, bench.name, i))
			}
			s := set(b, texts...)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, ok := s.Match(names[i%len(names)]); !ok {
					b.Fatal(i)
				}
				i += 7919
			}
		})
		b.Run(bench.what+" refused", func(b *testing.B) {
			var texts []string
			for i := range 10000 {
				texts = append(texts, fmt.Sprintf(bench.pattern, i))
			}
			s := set(b, texts...)
			name := []byte("www.domain77.example.")
			for b.Loop() {
				if _, ok := s.Match(name); ok {
					b.Fatal()
				}
			}
		})
	}
}

package policy

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// fqdnCase is one line of the known answers of Cilium's engine.
type fqdnCase struct {
	Kind, Pattern, Regex, Error string
	CRDPatternOK                bool `json:"crd_pattern_ok"`
	Matches                     []string
	Names                       int
}

func fqdnCases(t testing.TB) (cases []fqdnCase, names []string) {
	t.Helper()
	data, err := os.ReadFile("../internal/policytest/testdata/fqdn-names.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &names); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("../internal/policytest/testdata/fqdn-patterns.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var c fqdnCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		cases = append(cases, c)
	}
	if len(cases) < 20 || len(names) < 30 {
		t.Fatalf("%d cases, %d names", len(cases), len(names))
	}
	return cases, names
}

func fqdnOf(kind, text string) (name, pattern string) {
	if kind == "matchName" {
		return text, ""
	}
	return "", text
}

func TestFQDNCases(t *testing.T) {
	cases, names := fqdnCases(t)
	for _, c := range cases {
		name, pattern := fqdnOf(c.Kind, c.Pattern)
		if got := CheckFQDNSchema(name, pattern); got != c.CRDPatternOK {
			t.Errorf("%s %q: the schema takes it: %t, want %t", c.Kind, c.Pattern, got, c.CRDPatternOK)
		}
		s, err := ParseFQDN(name, pattern)
		if (err != nil) != (c.Error != "") || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s %q: %v, want %q", c.Kind, c.Pattern, err, c.Error)
		}
		if err != nil {
			continue
		}
		if c.Names != len(names) {
			t.Fatalf("%s %q: is about %d names", c.Kind, c.Pattern, c.Names)
		}
		for _, n := range names {
			if got, want := s.Matches(n), slices.Contains(c.Matches, n); got != want {
				t.Errorf("%s %q matches %q: %t, want %t", c.Kind, c.Pattern, n, got, want)
			}
		}
	}
}

func TestFQDNCanonical(t *testing.T) {
	for _, test := range []struct{ name, pattern, want string }{
		{"API.Example.com", "", "api.example.com."},
		{"api.example.com.", "", "api.example.com."},
		{"", "api.example.com", "api.example.com."},
		{"", "*", "*"},
		{"", "***", "*"},
		{"", "**.", "*"},
		{"", "*.x.IO", "*.x.io."},
		{"", "**.x.io", "**.x.io."},
		{"", "****.x.io", "**.x.io."},
		{"", "**x.io", "*x.io."},
		{"", "a.**.io", "a.*.io."},
		{"", "*.**.io", "*.*.io."},
		{"", "x.**", "x.*."},
		{"", ".", "."},
	} {
		s, err := ParseFQDN(test.name, test.pattern)
		if err != nil || s.String() != test.want {
			t.Errorf("%q, %q: %q, %v; want %q", test.name, test.pattern, s, err, test.want)
			continue
		}
		again, err := FQDNFromPB(s.PB())
		if err != nil || again != s {
			t.Errorf("%q, %q: reads back as %q, %v", test.name, test.pattern, again, err)
		}
	}
}

func TestFQDNInvalid(t *testing.T) {
	long := strings.Repeat("a.", 128)
	for _, test := range []struct{ name, pattern, want string }{
		{"", "", "neither"},
		{"a.io", "a.io", "only one"},
		{"a b", "", "matchName"},
		{"*.io", "", "matchName"},
		{"", "a/b", "matchPattern"},
		{"bücher.example", "", "matchName"},
		{long, "", "the most is 255"},
		{"", "*" + long, "the most is 255"},
	} {
		_, err := ParseFQDN(test.name, test.pattern)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q, %q: %v, want %q", test.name, test.pattern, err, test.want)
		}
	}
	if (FQDNSelector{}).Matches(".") || (FQDNSelector{}).Matches("") {
		t.Error("the zero selector matches")
	}
}

func TestFQDNMatchAllocatesNothing(t *testing.T) {
	for _, pattern := range []string{"*", "*.example.com", "**.example.com", "api.example.com"} {
		s, err := ParseFQDN("", pattern)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(10, func() { s.Matches("a.b.example.com.") }); n != 0 {
			t.Errorf("%s: %v allocations", pattern, n)
		}
	}
}

// fqdnRegexp is what the semantics say, straight.
func fqdnRegexp(pattern string) *regexp.Regexp {
	const char = "[-a-zA-Z0-9_]"
	p := strings.ToLower(pattern)
	if regexp.MustCompile(`^\*+\.?$`).MatchString(p) {
		return regexp.MustCompile("^(" + char + "+[.])+$|^[.]$")
	}
	if !strings.HasSuffix(p, ".") {
		p += "."
	}
	lead := ""
	if m := regexp.MustCompile(`^\*{2,}\.`).FindString(p); m != "" {
		lead, p = "("+char+"+[.])+", p[len(m):]
	}
	p = regexp.MustCompile(`\*+`).ReplaceAllString(p, "*")
	p = strings.ReplaceAll(p, ".", "[.]")
	return regexp.MustCompile("^" + lead + strings.ReplaceAll(p, "*", char+"*") + "$")
}

// A selector, and the one that its canonical form is, match as the regular
// expression of the semantics does.
func TestFQDNAgainstRegexp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab*.A_]{1,9}`).Draw(t, "pattern")
		s, err := ParseFQDN("", pattern)
		if err != nil {
			t.Fatal(err)
		}
		again, err := FQDNFromPB(s.PB())
		if err != nil || again != s {
			t.Fatalf("%s: %s, %v", s, again, err)
		}
		re := fqdnRegexp(pattern)
		for range 20 {
			name := NormalizeFQDN(rapid.StringMatching(`[ab._A]{0,8}`).Draw(t, "name"))
			if got, want := s.Matches(name), re.MatchString(name); got != want {
				t.Fatalf("%q (%s) matches %q: %t, want %t by %s", pattern, s, name, got, want, re)
			}
		}
	})
}

package policy

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/varve-net/varve/log/eventpb"
)

func corpus(f *testing.F) [][]byte {
	files, err := filepath.Glob("testdata/corpus/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no corpus: ", err)
	}
	var out [][]byte
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, data)
	}
	return out
}

// Whatever it is given, Parse returns policies that compile and whose manifests
// read back to the same, or errors of a class with something to say.
func FuzzParse(f *testing.F) {
	f.Add([]byte(cnp("endpointSelector: {}\ningress: [{fromEndpoints: [{}]}]")))
	f.Add([]byte(np("podSelector: {}\ningress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 1, endPort: 2}]}]")))
	f.Add([]byte("a: &a [*a]"))
	for _, data := range corpus(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		sets, _, err := Parse("f", data, Options{})
		if err != nil {
			if sets != nil || len(FieldErrors(err)) == 0 {
				t.Fatalf("%v, %v", sets, err)
			}
			for _, e := range FieldErrors(err) {
				if e.Problem == "" || !errors.Is(e, ErrInvalid) && !errors.Is(e, ErrUnsupported) {
					t.Fatalf("%+v", e)
				}
			}
			return
		}
		for _, set := range sets {
			again, _, err := Parse("f", []byte(set.Manifest), Options{})
			if err != nil || len(again) != 1 || !proto.Equal(set, again[0]) {
				t.Fatalf("%v\n%v\n%v", set, again, err)
			}
			data, err := set.MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			var back eventpb.PolicySet
			if err := back.UnmarshalVT(data); err != nil {
				t.Fatal(err)
			}
			if _, err := Compile(&back); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Compile never panics, and what it accepts is safe to use.
func FuzzCompile(f *testing.F) {
	good, err := proto.Marshal(goodSet())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	for _, data := range corpus(f) {
		sets, _, err := Parse("", data, Options{})
		if err != nil {
			continue
		}
		for _, set := range sets {
			wire, err := proto.Marshal(set)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(wire)
		}
	}
	ls := EndpointLabels("", "alpha", nil, map[string]string{"team": "alpha"}, "")
	f.Fuzz(func(t *testing.T, data []byte) {
		var set eventpb.PolicySet
		if set.UnmarshalVT(data) != nil {
			return
		}
		p, err := Compile(&set)
		if err != nil {
			if p != nil || !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("%v, %v", p, err)
			}
			return
		}
		if ref, err := ParseStream(p.Ref.Stream()); err != nil || ref != p.Ref {
			t.Fatalf("%v, %v", ref, err)
		}
		for _, s := range p.Specs {
			s.Subject.Matches(ls)
			for _, r := range s.Rules {
				for _, peer := range r.Peers {
					if kinds := peerKinds(peer); kinds != 1 {
						t.Fatalf("%+v", peer)
					}
					peer.FQDN.Matches("a.b.c.")
					if peer.Selector != nil {
						peer.Selector.Matches(ls)
					}
					if peer.Key() == "" {
						t.Fatal("a peer without key")
					}
				}
			}
		}
	})
}

func peerKinds(p Peer) (n int) {
	for _, set := range []bool{p.Selector != nil, p.CIDR.IsValid(), p.Entity != "", p.FQDN != FQDNSelector{}, p.Group != nil} {
		if set {
			n++
		}
	}
	return n
}

// What ParseFQDN takes has one canonical form, and matches as the regular
// expression of the semantics does.
func FuzzParseFQDN(f *testing.F) {
	cases, names := fqdnCases(f)
	for _, c := range cases {
		name, pattern := fqdnOf(c.Kind, c.Pattern)
		for _, n := range names {
			f.Add(name, pattern, n)
		}
	}
	f.Fuzz(func(t *testing.T, matchName, matchPattern, name string) {
		s, err := ParseFQDN(matchName, matchPattern)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || s.Matches(name) {
				t.Fatalf("%q, %v", s, err)
			}
			return
		}
		again, err := FQDNFromPB(s.PB())
		if err != nil || again != s {
			t.Fatalf("%q reads back as %q: %v", s, again, err)
		}
		if len(name) > 300 {
			return
		}
		name = NormalizeFQDN(name)
		if got, want := s.Matches(name), fqdnRegexp(matchName+matchPattern).MatchString(name); got != want {
			t.Fatalf("%q (%q, %q) matches %q: %t, want %t", s, matchName, matchPattern, name, got, want)
		}
	})
}

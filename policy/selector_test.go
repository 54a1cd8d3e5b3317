package policy

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/varve-net/varve/log/eventpb"
)

var (
	genSource = rapid.SampledFrom([]string{"k8s", "any", "reserved", "container"})
	genKey    = rapid.SampledFrom([]string{"a", "b", "app", "io.x/y"})
	genValue  = rapid.SampledFrom([]string{"", "1", "2", "web"})
)

func genRequirement() *rapid.Generator[*eventpb.Requirement] {
	return rapid.Custom(func(t *rapid.T) *eventpb.Requirement {
		r := &eventpb.Requirement{
			Key:      genSource.Draw(t, "source") + ":" + genKey.Draw(t, "key"),
			Operator: eventpb.Requirement_Operator(rapid.IntRange(1, 4).Draw(t, "operator")),
		}
		if r.Operator == eventpb.Requirement_IN || r.Operator == eventpb.Requirement_NOT_IN {
			r.Values = rapid.SliceOfN(genValue, 1, 4).Draw(t, "values")
		}
		return r
	})
}

func genLabels() *rapid.Generator[Labels] {
	return rapid.Custom(func(t *rapid.T) Labels {
		return NewLabels(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Label {
			return Label{
				rapid.SampledFrom([]string{"k8s", "reserved", "container"}).Draw(t, "source"),
				genKey.Draw(t, "key"), genValue.Draw(t, "value"),
			}
		}), 0, 6).Draw(t, "labels")...)
	})
}

// naiveMatches is Matches as one would say it, without order or search.
func naiveMatches(pb *eventpb.Selector, ls Labels) bool {
	for _, r := range pb.Requirements {
		exists, in := false, false
		for _, l := range ls {
			if r.Key == l.Source+":"+l.Key || r.Key == "any:"+l.Key {
				exists = true
				in = in || slices.Contains(r.Values, l.Value)
			}
		}
		ok := map[eventpb.Requirement_Operator]bool{
			eventpb.Requirement_IN: in, eventpb.Requirement_NOT_IN: !in,
			eventpb.Requirement_EXISTS: exists, eventpb.Requirement_DOES_NOT_EXIST: !exists,
		}[r.Operator]
		if !ok {
			return false
		}
	}
	return true
}

func TestSelectorMatchesAsSaid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pb := &eventpb.Selector{Requirements: rapid.SliceOfN(genRequirement(), 0, 4).Draw(t, "requirements")}
		ls := genLabels().Draw(t, "labels")
		s, err := CompileSelector(pb)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := s.Matches(ls), naiveMatches(pb, ls); got != want {
			t.Fatalf("%s of %s: %t, want %t", s, ls, got, want)
		}
	})
}

func TestSelectorStringIsCanonical(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reqs := rapid.SliceOfN(genRequirement(), 0, 4).Draw(t, "requirements")
		a, err := CompileSelector(&eventpb.Selector{Requirements: reqs})
		if err != nil {
			t.Fatal(err)
		}
		other := rapid.Permutation(reqs).Draw(t, "order")
		var shuffled []*eventpb.Requirement
		for _, r := range other {
			values := rapid.Permutation(r.Values).Draw(t, "values")
			shuffled = append(shuffled, &eventpb.Requirement{Key: r.Key, Operator: r.Operator, Values: append(values, values...)})
		}
		shuffled = append(shuffled, shuffled...)
		b, err := CompileSelector(&eventpb.Selector{Requirements: shuffled})
		if err != nil {
			t.Fatal(err)
		}
		if a.String() != b.String() {
			t.Fatalf("%s and %s", a, b)
		}
		// Another requirement in it is another selector.
		more := &eventpb.Requirement{Key: "k8s:other", Operator: eventpb.Requirement_EXISTS}
		c, err := CompileSelector(&eventpb.Selector{Requirements: append(slices.Clone(reqs), more)})
		if err != nil {
			t.Fatal(err)
		}
		if c.String() == a.String() {
			t.Fatalf("%s says both", a)
		}
	})
}

func TestSelectorStringTellsApart(t *testing.T) {
	const in, notIn, exists, lacks = eventpb.Requirement_IN, eventpb.Requirement_NOT_IN, eventpb.Requirement_EXISTS, eventpb.Requirement_DOES_NOT_EXIST
	seen := make(map[string]bool)
	for _, pb := range []*eventpb.Selector{
		{},
		{Requirements: []*eventpb.Requirement{{Key: "k8s:a", Operator: in, Values: []string{""}}}},
		{Requirements: []*eventpb.Requirement{{Key: "k8s:a", Operator: in, Values: []string{"", "b"}}}},
		{Requirements: []*eventpb.Requirement{{Key: "k8s:a", Operator: notIn, Values: []string{""}}}},
		{Requirements: []*eventpb.Requirement{{Key: "k8s:a", Operator: exists}}},
		{Requirements: []*eventpb.Requirement{{Key: "k8s:a", Operator: lacks}}},
		{Requirements: []*eventpb.Requirement{{Key: "any:a", Operator: lacks}}},
		{Requirements: []*eventpb.Requirement{{Key: "k8s:a", Operator: exists}, {Key: "k8s:b", Operator: exists}}},
	} {
		s, err := CompileSelector(pb)
		if err != nil {
			t.Fatal(err)
		}
		if seen[s.String()] {
			t.Errorf("%s twice", s)
		}
		seen[s.String()] = true
	}
	if (Selector{}).String() != "{}" {
		t.Error("the zero selector is not the empty one")
	}
}

func TestSelectorMatchDoesNotAllocate(t *testing.T) {
	s, err := CompileSelector(&eventpb.Selector{Requirements: []*eventpb.Requirement{
		{Key: "k8s:app", Operator: eventpb.Requirement_IN, Values: []string{"db", "web"}},
		{Key: "any:team", Operator: eventpb.Requirement_NOT_IN, Values: []string{"blue"}},
		{Key: "k8s:" + KeyNamespace, Operator: eventpb.Requirement_EXISTS},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ls := EndpointLabels("", "", nil, map[string]string{"app": "web", "team": "red"}, "")
	if !s.Matches(ls) {
		t.Fatal("no match")
	}
	if n := testing.AllocsPerRun(100, func() { s.Matches(ls) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestBadSelectors(t *testing.T) {
	const in, exists = eventpb.Requirement_IN, eventpb.Requirement_EXISTS
	for name, r := range map[string]*eventpb.Requirement{
		"nil":              nil,
		"no source":        {Key: "app", Operator: exists},
		"empty source":     {Key: ":app", Operator: exists},
		"bad source":       {Key: "k8S!:app", Operator: exists},
		"no key":           {Key: "k8s:", Operator: exists},
		"key with a comma": {Key: "k8s:a,b", Operator: exists},
		"no operator":      {Key: "k8s:a"},
		"later operator":   {Key: "k8s:a", Operator: 9},
		"no value":         {Key: "k8s:a", Operator: in},
		"bad value":        {Key: "k8s:a", Operator: in, Values: []string{"a)"}},
		"too many values":  {Key: "k8s:a", Operator: in, Values: make([]string, maxValues+1)},
		"value for none":   {Key: "k8s:a", Operator: exists, Values: []string{"x"}},
	} {
		if _, err := CompileSelector(&eventpb.Selector{Requirements: []*eventpb.Requirement{r}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := CompileSelector(nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func BenchmarkSelectorMatches(b *testing.B) {
	s, err := CompileSelector(&eventpb.Selector{Requirements: []*eventpb.Requirement{
		{Key: "any:app", Operator: eventpb.Requirement_IN, Values: []string{"web"}},
		{Key: "k8s:" + KeyCluster, Operator: eventpb.Requirement_IN, Values: []string{"default"}},
		{Key: "k8s:" + KeyNamespace, Operator: eventpb.Requirement_IN, Values: []string{"default"}},
	}})
	if err != nil {
		b.Fatal(err)
	}
	ls := EndpointLabels("", "", map[string]string{"team": "red", "env": "prod"},
		map[string]string{"app": "web", "role": "fe", "ver": "v1"}, "")
	b.ReportAllocs()
	for b.Loop() {
		s.Matches(ls)
	}
}

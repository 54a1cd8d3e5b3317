package pbjson

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// The texts are those of every build; protobuf's own are those of half of them.
func TestTheSameInEveryBuild(t *testing.T) {
	m := &varvev1.AppendResponse{Results: []*varvev1.AppendResult{
		{Outcome: varvev1.Outcome_OUTCOME_APPLIED, Revision: 7},
		{Outcome: varvev1.Outcome_OUTCOME_CONFLICT, Reason: "a, b: <c>"},
	}}
	const set = `{"results":[{"outcome":"OUTCOME_APPLIED","revision":"7"},{"outcome":"OUTCOME_CONFLICT","reason":"a, b: <c>"}]}`
	doc, err := Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(set, string(doc)); diff != "" {
		t.Error(diff)
	}
	whole, err := MarshalWhole(&varvev1.AppendResult{Revision: 7})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(whole, &fields); err != nil {
		t.Fatal(err)
	}
	if want := (&varvev1.AppendResult{}).ProtoReflect().Descriptor().Fields().Len(); len(fields) != want {
		t.Errorf("%s: %d fields, want all %d", whole, len(fields), want)
	}

	for doc, want := range map[string]string{
		`{"result":[]}`:                  `(line 1:2): unknown field "result"`,
		`{"results":[{"revision":"x"}]}`: `(line 1:25): invalid value for uint64 field revision: "x"`,
		`{"results":[}`:                  `syntax error (line 1:13): unexpected token }`,
	} {
		err := Unmarshal([]byte(doc), &varvev1.AppendResponse{})
		if err == nil {
			t.Fatalf("%s was read", doc)
		}
		if diff := cmp.Diff(want, err.Error()); diff != "" {
			t.Errorf("%s: %s", doc, diff)
		}
	}
}

package wire

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, m := range []Message{
		{Kind: Start, Package: "bpf"}, {Kind: End, Package: "bpf", Code: 2, Took: time.Second}, {Kind: Broke, Text: "a \"line\"\nmore"}, {Kind: Done},
	} {
		if got, ok := Parse(m.Line()); !ok || got != m {
			t.Errorf("%q: %+v, %v", m.Line(), got, ok)
		}
	}
	for _, line := range []string{"", "ok\n", "--- PASS: TestX\n", mark + "{\n", "x" + (Message{Kind: Done}).Line()} {
		if got, ok := Parse(line); ok {
			t.Errorf("%q: taken for %+v", line, got)
		}
	}
}

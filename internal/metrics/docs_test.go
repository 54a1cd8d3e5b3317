package metrics

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/dataplane"
)

// The table of docs/metrics.md is what is registered.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // type and labels by name
	var order []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 || !strings.HasPrefix(cells[1], " `varve_") {
			continue
		}
		name := strings.Trim(cells[1], " `")
		documented[name] = strings.TrimSpace(cells[2]) + " " + strings.TrimSpace(cells[3])
		order = append(order, name)
		if meaning := strings.TrimSpace(cells[4]); !strings.HasSuffix(meaning, ".") {
			t.Errorf("%s: its meaning is no sentence: %q", name, meaning)
		}
	}
	if !slices.IsSorted(order) {
		t.Error("the table is not in the order of the names")
	}

	k := newKit(t)
	k.attach()
	k.mustAppend(joined())
	k.round(dataplane.Stats{}, nil)
	k.Bootstrapped("overall", time.Second)
	families, err := k.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	registered := map[string]string{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), namespace+"_") {
			continue
		}
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		registered[f.GetName()] = strings.ToLower(f.GetType().String()) + " " + strings.Join(labels, ", ")
	}
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("docs/metrics.md (-registered +documented):\n%s", diff)
	}
}

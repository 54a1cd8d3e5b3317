package dns

import (
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestDocs: docs/dns.md has every metric of the proxy.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewRegistry()
	NewMetrics(r).observer().m.upstream.WithLabelValues("", "udp")
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) < 8 {
		t.Fatalf("%d metrics", len(families))
	}
	for _, f := range families {
		if !strings.Contains(string(text), "`"+f.GetName()+"`") {
			t.Errorf("docs/dns.md lacks %s", f.GetName())
		}
	}
}

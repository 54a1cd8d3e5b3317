package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/varve-net/varve/log/eventpb"
)

// dump writes a policy's meaning, one line a rule, e.g.
//
//	subject k8s:app in (web),k8s:io.kubernetes.pod.namespace in (alpha)
//	isolates ingress
//	ingress[0] from entity:host at 80/TCP
//
// Selectors are cut down by short to what tells them apart.
func dump(t *testing.T, set *eventpb.PolicySet) string {
	t.Helper()
	p, err := Compile(set)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i, s := range p.Specs {
		if len(p.Specs) > 1 {
			fmt.Fprintf(&b, "spec %d\n", i)
		}
		fmt.Fprintf(&b, "subject %s\n", short(s.Subject.String()))
		if s.Log != "" {
			fmt.Fprintf(&b, "log %s\n", s.Log)
		}
		if s.Audit {
			b.WriteString("audit\n")
		}
		var isolates []string
		for _, d := range []Direction{Ingress, Egress} {
			if s.DefaultDeny[d] {
				isolates = append(isolates, d.String())
			}
		}
		fmt.Fprintf(&b, "isolates %s\n", strings.Join(isolates, " "))
		for _, r := range s.Rules {
			fmt.Fprintf(&b, "%s[%d] %s\n", r.Section, r.Index, dumpRule(r))
		}
	}
	return b.String()
}

func dumpRule(r Rule) string {
	peers := "none"
	if r.AnyPeer {
		peers = "any"
	} else if len(r.Peers) > 0 {
		var keys []string
		for _, p := range r.Peers {
			keys = append(keys, short(p.Key()))
		}
		peers = strings.Join(keys, " | ")
	}
	ports := "none"
	if r.AllPorts {
		ports = "all"
	} else if len(r.Ports) > 0 {
		var names []string
		for _, p := range r.Ports {
			names = append(names, p.String())
		}
		ports = strings.Join(names, " ")
	}
	return peers + " at " + ports
}

var shortener = strings.NewReplacer(
	"endpoints:", "",
	"k8s:"+KeyNamespaceLabelPrefix, "nslabel:",
	"k8s:"+KeyNamespace, "ns",
	"any:"+KeyNamespace, "any:ns",
	"k8s:"+KeyCluster, "cluster",
	"any:"+KeyCluster, "any:cluster",
)

func short(s string) string { return shortener.Replace(s) }

package cli

import (
	"fmt"
	"strings"
	"time"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// factText is an address that an endpoint was told for a name, and what that does.
func (a *app) factText(f *varvev1.NameFact) string {
	standing := f.Standing
	switch standing {
	case "admits", "allowed":
		standing = a.ink.good.Sprint(standing)
	case "denied":
		standing = a.ink.bad.Sprint(standing)
	default:
		standing = a.ink.dim.Sprint(standing)
	}
	text := fmt.Sprintf("%s, told for %s, until %s: %s", f.Address, strings.TrimSuffix(f.Name, "."), a.clock(f.ExpiresUnixNs), standing)
	if len(f.Chain) > 0 {
		text += ", by way of " + strings.Join(f.Chain, " ")
	}
	if f.Revision == 0 {
		return text + " (on its way to the log)"
	}
	return fmt.Sprintf("%s (revision %d)", text, f.Revision)
}

func (a *app) clock(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339) }

// showFacts tells by what names a party may reach what nothing else lets it reach.
func (a *app) showFacts(subject string, byName bool, facts []*varvev1.NameFact) {
	switch {
	case !byName:
	case len(facts) == 0:
		fmt.Fprintf(a.stdout, "\nOnly names could open it, and %s was told this address for none.\n", subject)
	default:
		fmt.Fprintf(a.stdout, "\nOnly names open it. What %s was told:\n", subject)
		for _, f := range facts {
			fmt.Fprintf(a.stdout, "  %s\n", a.factText(f))
		}
	}
}

// factLine is facts at the end of a line of monitor.
func (a *app) factLine(e *varvev1.DatapathEvent) string {
	if !e.ByName {
		return ""
	}
	var names []string
	for _, f := range e.Facts {
		name := strings.TrimSuffix(f.Name, ".")
		if f.Standing != "admits" {
			name += " (" + f.Standing + ")"
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return a.ink.dim.Sprint(" told for no name")
	}
	return a.ink.dim.Sprint(" told for ") + strings.Join(names, ", ")
}

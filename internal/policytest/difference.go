package policytest

import (
	"fmt"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
)

// maxDifferences bounds the rows that a report shows of one case.
const maxDifferences = 20

// difference writes down the rows of a matrix that differ:
//
//	80/TCP from alpha/web (1 ingress, 2 egress allowed)
//	  want .333333
//	  got  .313133
//	         ^ ^
//	  to beta/api: egress denied: no rule allows it
type difference struct {
	b    strings.Builder
	rows int
}

func (d *difference) row(j Judge, p probe, proto uint8, parties []party, from int, want, got string) {
	if want == got {
		return
	}
	if d.rows++; d.rows > maxDifferences {
		return
	}
	marks := make([]byte, len(want))
	for i := range marks {
		marks[i] = ' '
		if want[i] != got[i] {
			marks[i] = '^'
		}
	}
	fmt.Fprintf(&d.b, "%s from %s (1 ingress, 2 egress allowed)\n  want %s\n  got  %s\n       %s\n",
		p, parties[from].name, want, got, strings.TrimRight(string(marks), " "))
	for to := range parties {
		wrong := want[to] ^ got[to]
		if wrong&egressAllowed != 0 {
			d.side(j, parties[to].name, "egress", got[to]&egressAllowed != 0,
				question(abi.Egress, parties[from], parties[to], proto, p.Port))
		}
		if wrong&ingressAllowed != 0 {
			d.side(j, parties[to].name, "ingress", got[to]&ingressAllowed != 0,
				question(abi.Ingress, parties[to], parties[from], proto, p.Port))
		}
	}
}

func (d *difference) side(j Judge, to, direction string, allowed bool, q Question) {
	verdict := "denied"
	if allowed {
		verdict = "allowed"
	}
	why := "it is no pod, so nothing can deny it"
	if q.Endpoint != 0 {
		why = j.Explain(q)
	}
	fmt.Fprintf(&d.b, "  to %s: %s %s: %s\n", to, direction, verdict, why)
}

func (d *difference) String() string {
	if more := d.rows - maxDifferences; more > 0 {
		fmt.Fprintf(&d.b, "and %d rows more\n", more)
	}
	return d.b.String()
}

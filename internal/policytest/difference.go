package policytest

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds on what a report shows of one case.
const (
	maxProbes  = 5
	maxReasons = 20
	// maxRows is how many parties a matrix may have to be shown whole; of a larger
	// one the rows that differ are.
	maxRows = 24
)

// compare counts connections and those of which an engine's verdict is wrong, or
// differs from another engine's, and writes the difference down:
//
//	80/TCP (1 ingress allowed, 2 egress allowed; a row for each source, a column for each destination)
//	                    want  got   differ
//	  1 default/server  .333  .333  ....
//	  2 default/client  3.03  2.33  x.x.
//	  default/client to default/server: ingress denied: no rule allows it
//
// Engines that agree are one column, named got.
func compare(probes []probe, parties []party, truth [][]string, opinions []opinion, r *Result) string {
	d := difference{parties: parties, opinions: opinions}
	for i, p := range probes {
		columns := []column{{"want", truth[i]}}
		for _, o := range opinions {
			columns = append(columns, column{o.engine, o.got[i]})
		}
		wrong := false
		for from := range parties {
			for to := range parties {
				if truth[i][from][to] != '.' {
					r.Connections++
				}
				if differs(columns, from, to) {
					wrong = true
					r.Wrong++
				}
			}
		}
		if wrong {
			d.probe(p, columns)
		}
	}
	return d.String()
}

type column struct {
	name   string
	matrix []string
}

func differs(columns []column, from, to int) bool {
	return slices.ContainsFunc(columns, func(c column) bool { return c.matrix[from][to] != columns[0].matrix[from][to] })
}

type difference struct {
	b        strings.Builder
	parties  []party
	opinions []opinion
	probes   int
	reasons  int
}

func (d *difference) probe(p probe, columns []column) {
	if d.probes++; d.probes <= maxProbes {
		d.matrices(p, columns)
	}
	for from := range d.parties {
		for to := range d.parties {
			if differs(columns, from, to) {
				d.connection(p, columns, from, to)
			}
		}
	}
}

// matrices shows them side by side.
func (d *difference) matrices(p probe, columns []column) {
	if agree(columns[1:]) {
		columns = []column{columns[0], {"got", columns[1].matrix}}
	}
	names, width := make([]string, len(d.parties)), 0
	for i, party := range d.parties {
		names[i] = fmt.Sprintf("%*d %s", len(fmt.Sprint(len(d.parties))), i+1, party.name)
		width = max(width, len(names[i]))
	}
	fmt.Fprintf(&d.b, "%s (1 ingress allowed, 2 egress allowed; a row for each source, a column for each destination)\n", p)
	line := func(name string, cells []string) {
		fmt.Fprintf(&d.b, "  %-*s", width, name)
		for i, cell := range cells {
			if i == len(cells)-1 {
				fmt.Fprintf(&d.b, "  %s\n", cell)
			} else {
				fmt.Fprintf(&d.b, "  %-*s", max(len(d.parties), len(columns[i].name)), cell)
			}
		}
	}
	header := make([]string, 0, len(columns)+1)
	for _, c := range columns {
		header = append(header, c.name)
	}
	line("", append(header, "differ"))
	for from := range d.parties {
		marks := make([]byte, len(d.parties))
		wrong := false
		for to := range marks {
			marks[to] = '.'
			if differs(columns, from, to) {
				marks[to], wrong = 'x', true
			}
		}
		if !wrong && len(d.parties) > maxRows {
			continue
		}
		cells := make([]string, 0, len(columns)+1)
		for _, c := range columns {
			cells = append(cells, c.matrix[from])
		}
		line(names[from], append(cells, string(marks)))
	}
}

func agree(columns []column) bool {
	return !slices.ContainsFunc(columns, func(c column) bool { return !slices.Equal(c.matrix, columns[0].matrix) })
}

// connection says what decided each direction that is wrong.
func (d *difference) connection(p probe, columns []column, from, to int) {
	want := columns[0].matrix[from][to]
	for _, s := range sides(d.parties[from], d.parties[to]) {
		var wrong, by []string
		for i, o := range d.opinions {
			if got := columns[i+1].matrix[from][to]; (got^want)&s.bit != 0 {
				wrong = append(wrong, d.verdict(i, p, s, got))
				by = append(by, o.engine)
			}
		}
		if len(wrong) == 0 {
			continue
		}
		if d.reasons++; d.reasons > maxReasons {
			continue
		}
		if len(wrong) == len(d.opinions) {
			wrong = slices.Compact(wrong)
		} else {
			wrong[0] += " (engine " + strings.Join(by, ", ") + " only)"
		}
		fmt.Fprintf(&d.b, "  %s to %s, %s: %s %s\n", d.parties[from].name, d.parties[to].name, p, s.name, strings.Join(wrong, "; "))
	}
}

func (d *difference) verdict(opinion int, p probe, s side, got byte) string {
	verdict := "denied"
	if got&s.bit != 0 {
		verdict = "allowed"
	}
	o := &d.opinions[opinion]
	if s.subject.endpoint == 0 {
		return verdict + ": it is no pod, so nothing can deny it"
	}
	proto, err := protocol(p.Proto)
	if err != nil {
		return verdict + ": " + err.Error()
	}
	return verdict + ": " + o.judge.Explain(question(s.direction, s.subject, s.other, proto, p.Port))
}

func (d *difference) String() string {
	if more := d.reasons - maxReasons; more > 0 {
		fmt.Fprintf(&d.b, "  and %d verdicts more\n", more)
	}
	if more := d.probes - maxProbes; more > 0 {
		fmt.Fprintf(&d.b, "and %d probes more\n", more)
	}
	return d.b.String()
}

package main

import (
	"slices"
)

// Results are the figures of one run, and what they were measured on.
type Results struct {
	Machine Machine  `json:"machine"`
	Started string   `json:"started"` // RFC 3339, UTC
	Seconds float64  `json:"seconds"` // that the run took
	Quick   bool     `json:"quick"`
	Series  []Series `json:"series"`
	// Left out: what could not be measured here, and why.
	Left []string `json:"left,omitempty"`
}

// Series is one figure of one subject, measured once a round.
type Series struct {
	Section string    `json:"section"` // "append"
	Metric  string    `json:"metric"`  // "events/s"
	Case    string    `json:"case"`    // a column: "64 clients"
	Subject string    `json:"subject"` // a row: "etcd"
	Values  []float64 `json:"values"`  // by round
}

// sink collects the figures of a section as they come.
type sink struct {
	results *Results
	section string
}

func (s sink) add(metric, of, subject string, value float64) {
	for i := range s.results.Series {
		have := &s.results.Series[i]
		if have.Section == s.section && have.Metric == metric && have.Case == of && have.Subject == subject {
			have.Values = append(have.Values, value)
			return
		}
	}
	s.results.Series = append(s.results.Series, Series{s.section, metric, of, subject, []float64{value}})
}

func (s sink) leave(reason string) {
	if !slices.Contains(s.results.Left, reason) {
		s.results.Left = append(s.results.Left, reason)
	}
}

// find returns a figure, or nil.
func (r *Results) find(section, metric, of, subject string) *Series {
	for i := range r.Series {
		s := &r.Series[i]
		if s.Section == section && s.Metric == metric && s.Case == of && s.Subject == subject {
			return s
		}
	}
	return nil
}

// cases and subjects of a section's metric, in the order in which they came.
func (r *Results) cases(section, metric string) (cases, subjects []string) {
	for _, s := range r.Series {
		if s.Section != section || s.Metric != metric {
			continue
		}
		if !slices.Contains(cases, s.Case) {
			cases = append(cases, s.Case)
		}
		if !slices.Contains(subjects, s.Subject) {
			subjects = append(subjects, s.Subject)
		}
	}
	return cases, subjects
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile of v, which it leaves as it is; 0 for none.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	at := q * float64(len(s)-1)
	low := int(at)
	if low+1 == len(s) {
		return s[low]
	}
	return s[low] + (at-float64(low))*(s[low+1]-s[low])
}

// ratio is the median of the ratios round by round, so that what disturbs a whole
// round, a busy disk say, does not count. 0 without a pair.
func ratio(a, b *Series) float64 {
	if a == nil || b == nil {
		return 0
	}
	var r []float64
	for i := range min(len(a.Values), len(b.Values)) {
		if b.Values[i] != 0 {
			r = append(r, a.Values[i]/b.Values[i])
		}
	}
	return median(r)
}

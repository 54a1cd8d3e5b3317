package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// Sizes of a plot, in pixels.
const (
	plotWidth  = 760
	labelWidth = 210
	valueWidth = 150
	barHeight  = 16
	caseGap    = 26
	plotTop    = 44
)

var colours = []string{"#2563eb", "#0d9488", "#7c3aed", "#9ca3af", "#db2777", "#d97706", "#65a30d"}

// plot draws one bar for each subject of each case, the median, with a line from
// the least to the most. It is readable on a light and on a dark page.
func plot(r *Results, f figure, cases, subjects []string) string {
	most := 0.0
	for _, of := range cases {
		for _, subject := range subjects {
			if s := r.find(f.section, f.metric, of, subject); s != nil {
				most = max(most, quantile(s.Values, 1))
			}
		}
	}
	if most == 0 {
		most = 1
	}
	scale := float64(plotWidth-labelWidth-valueWidth) / most
	var body strings.Builder
	y := plotTop
	for _, of := range cases {
		fmt.Fprintf(&body, `<text class="h" x="8" y="%d">%s</text>`+"\n", y+12, html.EscapeString(of))
		y += caseGap - 6
		for _, subject := range subjects {
			s := r.find(f.section, f.metric, of, subject)
			if s == nil {
				continue
			}
			low, mid, high := quantile(s.Values, 0)*scale, median(s.Values)*scale, quantile(s.Values, 1)*scale
			text := number(median(s.Values))
			if ref := r.find(f.section, f.metric, of, f.reference); ref != nil && subject != f.reference {
				text += fmt.Sprintf("  (%.2f)", ratio(s, ref))
			}
			middle := y + barHeight/2
			fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, y+12, html.EscapeString(subject))
			fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, y+1, mid, barHeight-3, colours[slices.Index(subjects, subject)%len(colours)])
			fmt.Fprintf(&body, `<path class="s" d="M%.1f %dH%.1f"/>`+"\n", labelWidth+low, middle, labelWidth+high)
			fmt.Fprintf(&body, `<text x="%.1f" y="%d">%s</text>`+"\n", labelWidth+max(mid, high)+6, y+12, text)
			y += barHeight + 2
		}
		y += caseGap / 3
	}
	title := f.title
	if f.reference != "" {
		title += " (ratio to " + f.reference + ")"
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">
<title>%s</title>
<style>text{font:12px system-ui,sans-serif;fill:#1f2937}.t{font-size:15px;font-weight:600}.h{font-weight:600}.s{stroke:#111827;stroke-width:1.5}rect.page{fill:#ffffff}</style>
<rect class="page" width="%d" height="%d"/>
<text class="t" x="8" y="24">%s</text>
%s</svg>
`, plotWidth, y, plotWidth, y, html.EscapeString(title), plotWidth, y, html.EscapeString(title), body.String())
}

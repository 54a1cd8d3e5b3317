package main

import (
	"context"
	"fmt"
	"io"
)

func reportCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error { return nil }

func writeTables(w io.Writer, r *Results) {
	for _, s := range r.Series {
		fmt.Fprintf(w, "%-8s %-10s %-12s %-34s %12.2f  [%.2f %.2f]\n", s.Section, s.Metric, s.Case, s.Subject, median(s.Values), quantile(s.Values, 0), quantile(s.Values, 1))
	}
}

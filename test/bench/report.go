package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A figure is a metric of a section as the report shows it.
type figure struct {
	section, metric string
	title           string
	reference       string // the subject that others are compared with; "" for none
	plot            string // name of its file, "" for no plot
}

// figures in the order of the report.
var figures = []figure{
	{"append", "events/s", "Durable appends a second", "etcd", "append"},
	{"append", "p50, ms", "Time of an append, median, ms", "etcd", ""},
	{"append", "p99, ms", "Time of an append, 99th percentile, ms", "etcd", ""},
	{"replay", "events/s", "Events a second", "", "replay"},
	{"history", "bytes an event", "Bytes an event", "", ""},
	{"history", "us an event", "Time an event, us", "", ""},
	{"history", "share of an append, %", "Share of an append, %", "", ""},
	{"history", "a moment of the past, ms", "The state at a moment of the past, ms", "", ""},
	{"history", "verify", "Verify a second", "", ""},
	{"audit", "ms", "Time of an answer, ms", "", ""},
	{"datapath", "TCP_RR, 1/s", "TCP_RR, transactions a second", "veth pair", "tcp-rr"},
	{"datapath", "TCP_CRR, 1/s", "TCP_CRR, connections a second", "veth pair", "tcp-crr"},
	{"datapath", "UDP_RR, 1/s", "UDP_RR, transactions a second", "veth pair", "udp-rr"},
	{"datapath", "stream, Gbit/s", "One TCP stream, Gbit/s", "redirect_peer alone", "stream"},
	{"datapath", liveMetric, "Nanoseconds a packet under live traffic of 100k tuples, by the kernel's run_time_ns and run_cnt", "", ""},
	{"datapath", runMetric, "Nanoseconds a packet, one flow, by BPF_PROG_RUN (its harness, some 38 ns, included)", "", ""},
	{"dns", dnsRate, "DNS queries a second", "CoreDNS", "dns"},
	{"dns", dnsMean, "Time of a DNS query, mean, us", "CoreDNS", ""},
	{"dns", dnsP99, "Time of a DNS query, 99th percentile, us", "CoreDNS", ""},
	{"dns", dnsCPU, "CPU of the forwarder's processes, us a query", "CoreDNS", ""},
	{"dns", dnsCPUWhole, "CPU of the whole machine, us a query", "CoreDNS", ""},
	{"dns", dnsLost, "Queries that were not answered, or with SERVFAIL", "", ""},
	{"policy", "all tables from the state, ms", "All tables from the state, ms", "", ""},
	{"policy", "all tables from the state, MB allocated", "All tables from the state, MB allocated", "", ""},
	{"policy", "an identity of a known class, us to in the kernel", "An identity of a known class, us until it is in the kernel", "", ""},
	{"policy", "a policy, us to in the kernel", "A policy, us until it is in the kernel", "", ""},
	{"policy", "a namespace gets another label, us to in the kernel", "A namespace gets another label, us until all its pods are in the kernel", "", ""},
	{"policy", "a policy, rows written", "Rows written for a policy, mean", "", ""},
	{"policy", "a policy, allocations", "Allocations for a policy, mean", "", ""},
	{"policy", "an identity of a known class, allocations", "Allocations for an identity, mean", "", ""},
	{"policy", "rows", "Rows", "", ""},
	{"policy", "kernel memory, MB", "Kernel memory of the maps, MB", "", ""},
	{"agent", "start to enforcing, s", "From the start of the process to enforcing, s", "", ""},
	{"agent", "VmRSS, MiB", "Resident memory, MiB", "", ""},
	{"agent", "VmHWM, MiB", "Resident memory at its peak, MiB", "", ""},
	{"agent", "rows in the kernel", "Rows in the kernel, verified", "", ""},
	{"agent", "a policy over the API, ms until in force", "A policy over the API, ms until it is on disk and in force", "", ""},
}

// begin and end are the lines of docs/benchmarks.md between which the figures of
// a section stand.
func begin(section string) string { return "<!-- figures: " + section + " -->" }

const end = "<!-- end -->"

// reportCommand draws the plots and fills the figures into the document.
func reportCommand(_ context.Context, args []string, _, stderr io.Writer) error {
	fs := flag.NewFlagSet("report", flag.ContinueOnError)
	fs.SetOutput(stderr)
	in := fs.String("in", "", "results")
	docs := fs.String("docs", "", "directory of benchmarks.md; plots go to its img")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *in == "" || *docs == "" {
		return errors.New("-in and -docs must be given")
	}
	b, err := os.ReadFile(*in)
	if err != nil {
		return err
	}
	var r Results
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("%s: %w", *in, err)
	}
	for _, f := range figures {
		cases, subjects := r.cases(f.section, f.metric)
		if f.plot == "" || len(cases) == 0 {
			continue
		}
		name := filepath.Join(*docs, "img", "bench-"+f.plot+".svg")
		if err := os.WriteFile(name, []byte(plot(&r, f, cases, subjects)), 0o644); err != nil {
			return err
		}
	}
	return fill(filepath.Join(*docs, "benchmarks.md"), &r)
}

// fill replaces what stands between the marks of a document.
func fill(path string, r *Results) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text := string(b)
	for _, section := range []string{"machine", "append", "replay", "history", "audit", "datapath", "dns", "policy", "agent"} {
		head, rest, ok := strings.Cut(text, begin(section)+"\n")
		_, tail, ended := strings.Cut(rest, end)
		if !ok || !ended {
			return fmt.Errorf("%s: has no line %q with %q after it", path, begin(section), end)
		}
		var figures strings.Builder
		if section == "machine" {
			writeMachine(&figures, r)
		} else {
			writeSection(&figures, r, section)
		}
		text = head + begin(section) + "\n\n" + figures.String() + end + tail
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func writeMachine(w io.Writer, r *Results) {
	m := r.Machine
	kind := "A full run"
	if r.Quick {
		kind = "A quick run, of short measurements,"
	}
	fmt.Fprintf(w, "%s of %s, %.0f minutes long, on %d cores of %s with %d MiB, Linux %s, disk %s.\n", kind, r.Started, r.Seconds/60, m.CPUs, m.CPU, m.MemoryMB, m.Kernel, m.Disk)
	var versions []string
	for name, v := range m.Versions {
		versions = append(versions, name+": "+v)
	}
	slices.Sort(versions)
	fmt.Fprintf(w, "Versions: %s.\n\n", strings.Join(versions, "; "))
	for _, l := range r.Left {
		fmt.Fprintf(w, "Left out: %s.\n\n", l)
	}
}

// writeTables writes all figures for people at a terminal.
func writeTables(w io.Writer, r *Results) {
	for _, section := range []string{"append", "replay", "history", "audit", "datapath", "dns", "policy", "agent"} {
		writeSection(w, r, section)
	}
}

func writeSection(w io.Writer, r *Results, section string) {
	for _, f := range figures {
		cases, subjects := r.cases(f.section, f.metric)
		if f.section != section || len(cases) == 0 {
			continue
		}
		if f.plot != "" {
			fmt.Fprintf(w, "![%s](img/bench-%s.svg)\n\n", f.title, f.plot)
		}
		fmt.Fprintf(w, "| %s | %s |\n|---%s|\n", f.title, strings.Join(cases, " | "), strings.Repeat("|---", len(cases)))
		for _, subject := range subjects {
			fmt.Fprintf(w, "| %s |", subject)
			for _, of := range cases {
				fmt.Fprintf(w, " %s |", cell(r, f, of, subject))
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w)
	}
}

// cell is median, spread and ratio to the reference.
func cell(r *Results, f figure, of, subject string) string {
	s := r.find(f.section, f.metric, of, subject)
	if s == nil {
		return ""
	}
	text := fmt.Sprintf("%s (%s to %s)", number(median(s.Values)), number(quantile(s.Values, 0)), number(quantile(s.Values, 1)))
	if ref := r.find(f.section, f.metric, of, f.reference); ref != nil && subject != f.reference {
		text += fmt.Sprintf(", **%.2f**", ratio(s, ref))
	}
	return text
}

// number has three digits that say something.
func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

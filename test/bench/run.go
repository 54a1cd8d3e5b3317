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
	"time"
)

// plan is how thoroughly to measure.
type plan struct {
	varve  string // binary
	dir    string // for state; on the disk that is measured
	rounds int
	// length of one measurement
	length   time.Duration
	replay   int // events
	progress io.Writer
}

// full and quick are the two plans. 11 rounds are what it takes for medians on a
// machine whose neighbours are not still; 3 show whether something broke.
func (p *plan) full()  { p.rounds, p.length, p.replay = 11, 2*time.Second, 1_000_000 }
func (p *plan) quick() { p.rounds, p.length, p.replay = 3, 700*time.Millisecond, 200_000 }

func (p *plan) say(format string, args ...any) {
	fmt.Fprintf(p.progress, "%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}

// sections are measured in this order.
var sections = []struct {
	name string
	run  func(context.Context, *plan, sink) error
}{
	{"append", runAppend},
	{"replay", runReplay},
	{"history", runHistory},
	{"audit", runAudit},
	{"datapath", runDatapath},
	{"dns", runDNS},
	{"policy", runPolicy},
	{"agent", runAgent},
}

// runCommand measures and writes the results.
func runCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	p := &plan{progress: stderr}
	fs := flag.NewFlagSet("run", flag.ContinueOnError)
	fs.SetOutput(stderr)
	quick := fs.Bool("quick", false, "fewer and shorter rounds")
	only := fs.String("only", "", "sections to measure, with commas between; the others' results are kept (default all)")
	fs.StringVar(&p.varve, "varve", "", "the varve binary")
	base := fs.String("dir", "", "directory to work in; its disk is measured (default the system's for temporary files)")
	out := fs.String("out", "", "JSON file of the results")
	rounds := fs.Int("rounds", 0, "rounds (default 11, quick 3)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if p.varve == "" || *out == "" {
		return errors.New("-varve and -out must be given")
	}
	if os.Geteuid() != 0 {
		return errors.New("it makes network namespaces and loads BPF programs: run it as root")
	}
	p.full()
	if *quick {
		p.quick()
	}
	if *rounds > 0 {
		p.rounds = *rounds
	}
	var err error
	if p.varve, err = filepath.Abs(p.varve); err != nil {
		return err
	}
	if p.dir, err = os.MkdirTemp(*base, "varve-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(p.dir)

	began := time.Now()
	results := &Results{Started: began.UTC().Format(time.RFC3339), Quick: *quick}
	if results.Machine, err = thisMachine(p.dir, p.varve); err != nil {
		return err
	}
	for _, s := range sections {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), s.name) {
			continue
		}
		p.say("%s: %d rounds", s.name, p.rounds)
		if err := s.run(ctx, p, sink{results, s.name}); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	results.Seconds = time.Since(began).Round(time.Second).Seconds()
	if *only != "" {
		if err := keepOthers(results, *out); err != nil {
			return err
		}
	}
	writeTables(stdout, results)
	return writeJSON(*out, results)
}

// keepOthers takes over the sections of an earlier run that this one left out.
func keepOthers(r *Results, path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var old Results
	if err := json.Unmarshal(b, &old); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.Started, r.Seconds, r.Quick = old.Started, r.Seconds+old.Seconds, r.Quick || old.Quick
	measured := make(map[string]bool)
	for _, s := range r.Series {
		measured[s.Section] = true
	}
	for _, s := range old.Series {
		if !measured[s.Section] {
			r.Series = append(r.Series, s)
		}
	}
	return nil
}

func writeJSON(path string, r *Results) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/varve-net/varve/test/vm/wire"
)

// job is the tests of one package that a machine runs.
type job struct {
	pkg      string   // directory from the module's root
	run      string   // only tests that match; empty: every one
	quick    string   // the same with -quick; empty: none
	left     []left   // tests that do not run in a machine
	args     []string // of the test binary: what makes tests smaller
	binary   bool     // its tests run the real binary
	commands []string // that its tests run, beside those of every job
}

// left are tests that stay with the native run, `make test`.
type left struct {
	tests string // as in -skip
	why   string
}

// jobs are what a machine can do, in this order. Emulation makes everything 10 to 30
// times slower, so it is for what another kernel can change.
var jobs = []job{
	{
		pkg:   "bpf",
		quick: "TestAttach$|TestTakeOverFilters|TestLocalDelivery|TestHostStack|TestThroughHost|TestDropReasons|TestEcho|TestICMPErrors|TestFragments$|TestExtensionHeaders|TestLearned$|TestAudit$|TestWire$|TestWireFragments|TestWireProxy$|TestAroundProxy",
	},
	{
		pkg:   "dataplane",
		quick: "TestTraffic|TestRestartUnderTraffic",
		left: []left{
			{"TestEveryPrefixOfTheWrites|TestACrashAnywhere|TestDeltasKeepTheOrder|TestADelta", "random histories over maps in memory: the kernel has no part in it"},
			{"TestEveryRowIsCompared", "how 100,000 rows are swept: so many system calls take minutes, and the kernel's answer is the same to each"},
		},
		args: []string{"-hammer.changes=10", "-undisturbed.changes=20"},
	},
	{
		pkg: "dataplane/dns",
		left: []left{
			{"TestDocs", "compares the source with docs/dns.md"},
		},
	},
	{
		pkg: "dataplane/dns/relay",
	},
	{
		pkg:   "test/dns",
		quick: "TestTheExample",
		left: []left{
			{"TestServersAndClientsOfOthers", "other servers and clients send the packets that the authority and dig send in the other tests; they want a whole system around them"},
			{"TestMusl", "compiles another client: a machine has no compiler"},
			{"TestSoak", "a load that an emulated machine cannot bear: its clients would wait in vain"},
		},
		args:   []string{"-first-packets=6"},
		binary: true, commands: []string{"dig"},
	},
	{
		pkg: "test/faults", run: "TestClock", quick: "TestClockSet",
		left:   []left{{"TestFlipped|TestTruncated|TestDamaged|TestFullDisk|TestDisk|TestReadOnly|TestSecondAgent", "the file system's faults; the log is the same on every kernel"}},
		binary: true,
	},
}

// choose returns the jobs of packages, in the order of jobs; those that -quick has none
// of are left out of a quick run.
func choose(packages []string, quick bool) ([]job, error) {
	if len(packages) == 0 {
		for _, j := range jobs {
			packages = append(packages, j.pkg)
		}
	}
	for _, p := range packages {
		if !slices.ContainsFunc(jobs, func(j job) bool { return j.pkg == p }) {
			return nil, fmt.Errorf("-packages: %s is not among the jobs of test/vm/jobs.go", p)
		}
	}
	var chosen []job
	for _, j := range jobs {
		if quick {
			j.run = j.quick
		}
		if slices.Contains(packages, j.pkg) && (!quick || j.quick != "") {
			chosen = append(chosen, j)
		}
	}
	return chosen, nil
}

// plan is what a machine does, with timeout for each job. run, if not empty, takes the
// place of the jobs' own; skip is added to them.
func plan(jobs []job, timeout time.Duration, run, skip string) wire.Plan {
	p := wire.Plan{Timeout: timeout}
	for _, j := range jobs {
		args := slices.Clone(j.args)
		if want := cmp.Or(run, j.run); want != "" {
			args = append(args, "-test.run="+want)
		}
		var without []string
		for _, l := range j.left {
			without = append(without, l.tests)
		}
		if skip != "" {
			without = append(without, skip)
		}
		if len(without) > 0 {
			args = append(args, "-test.skip="+strings.Join(without, "|"))
		}
		p.Jobs = append(p.Jobs, wire.Job{Package: j.pkg, Args: args})
	}
	return p
}

// tell says what the machines do not run, and what they run less of.
func tell(w io.Writer, jobs []job) {
	for _, j := range jobs {
		if j.run != "" {
			fmt.Fprintf(w, "vm: %s: only tests that match %s\n", j.pkg, j.run)
		}
		for _, l := range j.left {
			fmt.Fprintf(w, "vm: %s: left to `make test`: %s: %s\n", j.pkg, l.tests, l.why)
		}
		if len(j.args) > 0 {
			fmt.Fprintf(w, "vm: %s: smaller than in `make test`: %s\n", j.pkg, strings.Join(j.args, " "))
		}
	}
}

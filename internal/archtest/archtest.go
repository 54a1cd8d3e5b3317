// Package archtest states which packages may import which, and why. Its test
// holds the whole repository to it (ARCHITECTURE.md, "Arrows point one way").
package archtest

import (
	"cmp"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Module is the import path of the repository's root.
const Module = "github.com/varve-net/varve"

// A Purity forbids imports to a set of packages.
type Purity struct {
	Package string // relative to the module; exact
	Forbid  map[string]string
}

// noWorld is what a pure package may not import itself, with the reason.
var noWorld = map[string]string{
	"time":         "a clock read while events are applied makes replicas differ; time enters as int64 nanoseconds in events",
	"os":           "files and the environment differ between nodes; what a pure package needs is an argument",
	"net":          "sockets are an effect, and net.IP has two forms of one address; use net/netip",
	"math/rand":    "the same events must give the same state everywhere; ids are hashes or are allocated in order",
	"math/rand/v2": "the same events must give the same state everywhere; ids are hashes or are allocated in order",
	"crypto/rand":  "the same events must give the same state everywhere; ids enter before append",
	"syscall":      "a system call is an effect and belongs into dataplane, bpf or raftlog",
	"os/exec":      "a process is an effect",
	"log":          "a pure package says nothing; it returns what happened",
	"log/slog":     "a pure package says nothing; it returns what happened",
}

// Pure lists the packages that compute and do nothing else. *.pb.go and *_test.go
// are exempt.
var Pure = []Purity{
	{"log", noWorld},
	{"log/eventpb", noWorld},
	{"policy", noWorld},
	{"fsm", noWorld},
	{"projections", noWorld},
	{"verdict", noWorld},
	{"bpf/abi", noWorld},
}

// Arrow is a rule between packages of the module: those under From may not come
// to import, directly or through others, those under To.
type Arrow struct {
	From, To string // a folder relative to the module; it covers what lies below, bar Except
	Except   []string
	Reason   string
}

// Forbidden is every arrow that must not be drawn.
var Forbidden = slices.Concat(
	only("log/eventpb", "an event's encoding depends on nothing else, for ever"),
	only("log", "the log does not know what its events mean", "log/eventpb"),
	only("log/raftlog", "replication hands entries to the state and knows nothing of what follows from it", "log", "log/eventpb", "log/history", "fsm", "policy", "internal"),
	only("log/history", "history keeps bytes", "log", "log/eventpb", "internal"),
	only("log/journal", "a journal keeps bytes of a node that the log does not have yet", "internal"),
	only("policy", "the policy model is a leaf: users' YAML in, meaning out", "log/eventpb"),
	only("fsm", "state is folded from the log and nothing else", "log", "log/eventpb", "policy"),
	only("projections", "tables are a function of the view alone, not of what some kernel holds", "fsm", "policy", "log", "log/eventpb", "bpf/abi"),
	only("verdict", "a verdict is a function of view and tables, at any revision", "projections", "fsm", "policy", "log", "log/eventpb", "bpf/abi"),
	only("audit", "answers about the past follow from records and states, whoever keeps them", "verdict", "flows", "projections", "fsm", "policy", "log", "log/eventpb", "bpf/abi"),
	only("flows", "the flow record keeps what it is told", "bpf/abi", "log", "log/eventpb"),
	only("bpf/abi", "layouts are a leaf: C is their only counterpart"),
	only("bpf", "programs are loaded without knowing what the tables mean", "bpf/abi", "internal"),
	only("dataplane", "the dataplane makes the kernel equal to tables and decides nothing", "projections", "fsm", "policy", "log", "log/eventpb", "log/journal", "bpf", "bpf/abi", "internal"),
	only("cluster", "membership must work on a machine without BPF", "log", "log/eventpb", "log/raftlog", "log/history", "fsm", "policy", "internal"),
	only("api", "the client is imported by other programs: it brings the protocol and no agent", "log/eventpb"),
	[]Arrow{{From: "", To: "cmd", Except: []string{"cmd"}, Reason: "the binary is the last to import anything"}},
)

// folders are the top of every subtree that an arrow may point to.
var folders = []string{
	"log/eventpb", "log/raftlog", "log/history", "log/journal", "log", "policy", "fsm", "projections", "verdict", "audit", "flows", "bpf/abi", "bpf",
	"dataplane", "cluster", "api", "cmd", "internal", "test",
}

// only forbids from every folder but the allowed ones and itself. Allowing a
// folder allows that folder's own packages, not those that folders lists below it.
func only(from, reason string, allowed ...string) []Arrow {
	var arrows []Arrow
	for _, to := range folders {
		if to != from && !slices.Contains(allowed, to) {
			arrows = append(arrows, Arrow{From: from, To: to, Reason: reason})
		}
	}
	return arrows
}

// folderOf is the longest of folders that holds the package, or "".
func folderOf(pkg string) string {
	best := ""
	for _, f := range folders {
		if (pkg == f || strings.HasPrefix(pkg, f+"/")) && len(f) > len(best) {
			best = f
		}
	}
	return best
}

// Imports reads the imports of every package below the root of a module, by the
// package's folder; "" is the root's own. Files of tests and testdata are left out.
type Imports map[string][]Import

// Import is one import in one file.
type Import struct {
	File      string // relative to the root
	Path      string
	Generated bool // the file is *.pb.go
}

// Scan parses the imports of all Go files in a tree.
func Scan(root fs.FS) (Imports, error) {
	imports := Imports{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		source, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		if dir == "." {
			dir = ""
		}
		if _, ok := imports[dir]; !ok {
			imports[dir] = nil
		}
		for _, spec := range file.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: import %s: %w", name, spec.Path.Value, err)
			}
			imports[dir] = append(imports[dir], Import{File: name, Path: p, Generated: strings.HasSuffix(base, ".pb.go")})
		}
		return nil
	})
	return imports, err
}

// Check returns every breach, sorted, each saying what, where and why not.
func (im Imports) Check(pure []Purity, forbidden []Arrow) []string {
	var breaches []string
	for _, p := range pure {
		for _, i := range im[p.Package] {
			if reason, bad := p.Forbid[i.Path]; bad && !i.Generated {
				breaches = append(breaches, fmt.Sprintf("%s: imports %s: %s", i.File, i.Path, reason))
			}
		}
	}
	for pkg := range im {
		from := folderOf(pkg)
		for reached, via := range im.reach(pkg) {
			to := folderOf(reached)
			for _, a := range forbidden {
				if a.To != to || (a.From != "" && a.From != from) || slices.Contains(a.Except, from) {
					continue
				}
				breaches = append(breaches, fmt.Sprintf("%s: imports %s (%s): %s",
					cmp.Or(pkg, "."), reached, strings.Join(via, " -> "), a.Reason))
			}
		}
	}
	slices.Sort(breaches)
	return slices.Compact(breaches)
}

// reach is every package of the module that pkg comes to import, with a way there.
func (im Imports) reach(pkg string) map[string][]string {
	ways := map[string][]string{}
	var visit func(at string, way []string)
	visit = func(at string, way []string) {
		for _, i := range im[at] {
			next, inside := strings.CutPrefix(i.Path, Module+"/")
			if _, seen := ways[next]; !inside || seen || next == pkg {
				continue
			}
			ways[next] = append(slices.Clone(way), next)
			visit(next, ways[next])
		}
	}
	visit(pkg, []string{cmp.Or(pkg, ".")})
	return ways
}

// Packages lists the scanned packages, sorted.
func (im Imports) Packages() []string { return slices.Sorted(maps.Keys(im)) }

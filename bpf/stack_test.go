package bpf

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestStackFitsOldKernels: the frames of a chain of calls fit in 512 bytes as Linux
// before 6.8 counts them, each rounded up to 32 (check_max_stack_depth of
// kernel/bpf/verifier.c). Later kernels round to 16, so they do not tell.
func TestStackFitsOldKernels(t *testing.T) {
	const limit, unit = 512, 32
	spec, err := loadEndpoint()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range spec.Maps {
		if !fixed[name] && m.Type != ebpf.RingBuf {
			m.MaxEntries = 64
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer c.Close()
	for name, p := range spec.Programs {
		functions := functionsOf(p.Instructions)
		depths := stackDepths(t, c.Programs[name].VerifierLog)
		if len(depths) != len(functions) {
			t.Fatalf("%s: the verifier tells of %d functions, the object has %d", name, len(depths), len(functions))
		}
		index := make(map[string]int)
		for i, f := range functions {
			index[f.name] = i
		}
		var deepest func(i int) (int, []string)
		deepest = func(i int) (most int, chain []string) {
			for _, callee := range functions[i].calls {
				if d, c := deepest(index[callee]); d > most {
					most, chain = d, c
				}
			}
			frame := (max(depths[i], 1) + unit - 1) / unit * unit
			return most + frame, append([]string{fmt.Sprintf("%s %d", functions[i].name, depths[i])}, chain...)
		}
		most, chain := deepest(0)
		t.Logf("%s: %d of %d bytes: %s", name, most, limit, strings.Join(chain, ", "))
		if most > limit {
			t.Errorf("%s: the stack needs %d bytes, Linux 6.1 takes %d: %s", name, most, limit, strings.Join(chain, ", "))
		}
	}
}

type function struct {
	name  string
	calls []string
}

// functionsOf splits a program: itself, then what it calls, as the verifier counts.
func functionsOf(insns asm.Instructions) []function {
	var all []function
	for i := range insns {
		if name := insns[i].Symbol(); name != "" {
			all = append(all, function{name: name})
		}
		if insns[i].IsFunctionCall() {
			last := &all[len(all)-1]
			last.calls = append(last.calls, insns[i].Reference())
		}
	}
	return all
}

var depthsLine = regexp.MustCompile(`(?m)^stack depth ([0-9+]+)`)

func stackDepths(t *testing.T, log string) []int {
	t.Helper()
	m := depthsLine.FindStringSubmatch(log)
	if m == nil {
		t.Fatalf("the verifier tells no stack depth: %.200s", log)
	}
	var depths []int
	for s := range strings.SplitSeq(m[1], "+") {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		depths = append(depths, n)
	}
	return depths
}

// Package policytest runs policy test files: each case is a small cluster, its
// policies, and the verdict that every connection in it must get. A case needs
// no cluster: its objects become the events of a log in memory, the log's state
// is projected, and an engine is asked for every verdict.
//
// The format is one JSON object a line, also gzipped; README.md describes it.
package policytest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/policy"
)

// ErrCase: a line is no case, or its parts do not fit together.
var ErrCase = errors.New("not a policy test case")

// testCase is one line of a file, as written.
type testCase struct {
	ID         string                       `json:"id"`
	Desc       string                       `json:"desc"`
	Namespaces map[string]map[string]string `json:"namespaces"`
	Pods       []pod                        `json:"pods"`
	Externals  []netip.Addr                 `json:"externals"`
	Entities   []string                     `json:"entities"`
	Policies   []json.RawMessage            `json:"policies"`
	Probes     []probe                      `json:"probes"`
	Truth      [][]string                   `json:"truth"`
	// TruthCilium replaces Truth where an ipBlock that holds a pod's address
	// does not select the pod, which is how varve reads it.
	TruthCilium [][]string `json:"truth_cilium"`
	Error       string     `json:"error"`

	// Of a file of FQDN patterns. An empty pattern is one.
	Kind     string          `json:"kind"`
	Pattern  string          `json:"pattern"`
	SchemaOK *bool           `json:"crd_pattern_ok"`
	Names    json.RawMessage `json:"names"`
	Matches  []string        `json:"matches"`

	file string
	line int
}

type pod struct {
	Namespace      string            `json:"ns"`
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels"`
	IP             netip.Addr        `json:"ip"`
	ServiceAccount string            `json:"sa"`
	Ports          []podPort         `json:"ports"`
}

type podPort struct {
	Name  string `json:"name"`
	Port  uint32 `json:"port"`
	Proto string `json:"proto"`
}

// probe is a destination port; for ICMP the port is the type.
type probe struct {
	Port  uint16 `json:"port"`
	Proto string `json:"proto"`
}

func (p probe) String() string { return fmt.Sprintf("%d/%s", p.Port, p.Proto) }

var protocols = map[string]uint8{
	"": policy.ProtoTCP, "TCP": policy.ProtoTCP, "UDP": policy.ProtoUDP, "SCTP": policy.ProtoSCTP,
	"ICMP": policy.ProtoICMP, "ICMPV6": policy.ProtoICMPv6,
}

func protocol(name string) (uint8, error) {
	p, ok := protocols[strings.ToUpper(name)]
	if !ok {
		return 0, fmt.Errorf("%w: protocol %q is not TCP, UDP, SCTP, ICMP or ICMPv6", ErrCase, name)
	}
	return p, nil
}

var entities = map[string]uint32{
	"host": abi.IdentityHost, "unmanaged": abi.IdentityUnmanaged, "health": abi.IdentityHealth,
	"init": abi.IdentityInit, "remote-node": abi.IdentityRemoteNode,
	"kube-apiserver": abi.IdentityKubeAPIServer, "ingress": abi.IdentityIngress,
}

// name is how reports call the case.
func (c *testCase) name() string {
	switch {
	case c.ID != "":
		return c.ID
	case c.Kind != "":
		return fmt.Sprintf("%s %q", c.Kind, c.Pattern)
	}
	return fmt.Sprintf("%s:%d", c.file, c.line)
}

// endpoints is the parties of the case in the order of the truth.
func (c *testCase) endpoints() []string {
	var names []string
	for _, p := range c.Pods {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	for _, a := range c.Externals {
		names = append(names, a.String())
	}
	return append(names, c.Entities...)
}

// truth is the matrix that holds here, checked for shape.
func (c *testCase) truth() ([][]string, error) {
	t, field := c.Truth, "truth"
	if len(c.TruthCilium) > 0 {
		t, field = c.TruthCilium, "truth_cilium"
	}
	n := len(c.Pods) + len(c.Externals) + len(c.Entities)
	if len(t) != len(c.Probes) {
		return nil, fmt.Errorf("%w: %s has %d matrices for %d probes", ErrCase, field, len(t), len(c.Probes))
	}
	for i, matrix := range t {
		if len(matrix) != n {
			return nil, fmt.Errorf("%w: %s[%d] has %d rows for %d endpoints", ErrCase, field, i, len(matrix), n)
		}
		for j, row := range matrix {
			if len(row) != n || strings.Trim(row, ".0123") != "" {
				return nil, fmt.Errorf("%w: %s[%d][%d] is %q, want %d characters of . 0 1 2 3", ErrCase, field, i, j, row, n)
			}
		}
	}
	return t, nil
}

// readFile yields the cases of a file. A line that is no JSON yields an error of
// its own, and reading goes on.
func readFile(name string, yield func(testCase, error)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	if magic, err := in.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(in)
		if err != nil {
			return fmt.Errorf("file %s: %w", name, err)
		}
		in = bufio.NewReader(z)
	}
	for line := 1; ; line++ {
		b, err := in.ReadBytes('\n')
		if len(bytes.TrimSpace(b)) > 0 {
			c := testCase{}
			e := json.Unmarshal(b, &c)
			if e == nil && c.Kind == "" && c.Policies == nil {
				e = errors.New("it has neither policies nor an FQDN pattern")
			}
			if e != nil {
				e = fmt.Errorf("%w: %w", ErrCase, e)
			}
			c.file, c.line = name, line
			yield(c, e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("file %s, line %d: %w", name, line, err)
		}
	}
}

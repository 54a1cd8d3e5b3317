package policytest

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/varve-net/varve/policy"
)

// namesFile stands beside a file of FQDN patterns and has the names that they are
// tried on; without it these are fqdnNames.
const namesFile = "fqdn-names.json"

//go:embed fqdn-names.json
var fqdnNames []byte

// judgePattern compares what an FQDN pattern matches with what it must.
func judgePattern(c *testCase, r *Result) error {
	selector, ok, err := parsePattern(c)
	if err != nil {
		return err
	}
	if c.Error != "" {
		if ok {
			return fmt.Errorf("the pattern is accepted as %s; it must be rejected: %s", selector, c.Error)
		}
		return nil
	}
	if !ok {
		return errors.New("the pattern is rejected; it must be accepted")
	}
	names, err := c.names()
	if err != nil {
		return err
	}
	var diff strings.Builder
	for _, name := range names {
		r.Verdicts++
		want, got := slices.Contains(c.Matches, name), selector.Matches(name)
		if want == got {
			continue
		}
		r.Wrong++
		if got {
			fmt.Fprintf(&diff, "matches %q and must not\n", name)
		} else {
			fmt.Fprintf(&diff, "does not match %q and must\n", name)
		}
	}
	r.Difference = diff.String()
	if r.Wrong > 0 {
		return fmt.Errorf("%d of %d names differ", r.Wrong, len(names))
	}
	return nil
}

// parsePattern is ok if the pattern is accepted. The error is about the case.
func parsePattern(c *testCase) (selector policy.FQDNSelector, ok bool, err error) {
	name, pattern := c.Pattern, ""
	switch c.Kind {
	case "matchName":
	case "matchPattern":
		name, pattern = pattern, name
	default:
		return selector, false, fmt.Errorf("%w: kind %q is neither matchName nor matchPattern", ErrCase, c.Kind)
	}
	if want := c.SchemaOK; want != nil && *want != policy.CheckFQDNSchema(name, pattern) {
		return selector, false, fmt.Errorf("the schema of Cilium's custom resources accepts the pattern: %v; it must be %v", !*want, *want)
	}
	selector, err = policy.ParseFQDN(name, pattern)
	return selector, err == nil, nil
}

// names is what the pattern is tried on: the case's own list or, where it has only
// their number, the list of so many beside the file or of this package. If there is
// none it is what must match.
func (c *testCase) names() ([]string, error) {
	var names []string
	if json.Unmarshal(c.Names, &names) == nil {
		return names, nil
	}
	count := 0
	if err := json.Unmarshal(c.Names, &count); err != nil {
		return nil, fmt.Errorf("%w: names: neither a list nor a number", ErrCase)
	}
	path := filepath.Join(filepath.Dir(c.file), namesFile)
	beside, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, list := range [][]byte{beside, fqdnNames} {
		if len(list) == 0 {
			continue
		}
		if err := json.Unmarshal(list, &names); err != nil {
			return nil, fmt.Errorf("%w: file %s: %w", ErrCase, path, err)
		}
		if len(names) == count {
			return names, nil
		}
	}
	return c.Matches, nil
}

package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds on one policy. Those without a source only keep a hostile event small;
// they lie far above what people write.
const (
	maxPortsEntry   = 40 // entries of one toPorts, and of one icmps: Cilium's bound
	maxSpecs        = 256
	maxRules        = 4096 // of one section
	maxPeers        = 4096 // of one rule
	maxPorts        = 4096 // of one rule, protocols made explicit
	maxRequirements = 256  // of one selector
	maxValues       = 1024 // of one requirement
	maxExcept       = 1024 // of one CIDR
	maxNames        = 1024 // of the DNS rules of one port
	maxGroupTerms   = 256  // of each sort, in one group
	maxLog          = 32   // characters of a log value: Cilium's bound
	maxManifest     = 1 << 20
)

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isLowerAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// The check functions return what is wrong, or "".

// checkDNSLabel follows RFC 1123 as Kubernetes does.
func checkDNSLabel(s string) string {
	const rule = "must be 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"
	if s == "" || len(s) > 63 || !isLowerAlnum(s[0]) || !isLowerAlnum(s[len(s)-1]) {
		return rule
	}
	for i := range len(s) {
		if !isLowerAlnum(s[i]) && s[i] != '-' {
			return rule
		}
	}
	return ""
}

// checkSubdomain follows Kubernetes' "DNS subdomain": labels joined by dots.
func checkSubdomain(s string) string {
	const rule = "must be at most 253 of a-z, 0-9, '-' and '.', with a letter or digit at both ends of each part"
	if s == "" || len(s) > 253 {
		return rule
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || !isLowerAlnum(part[0]) || !isLowerAlnum(part[len(part)-1]) {
			return rule
		}
		for i := range len(part) {
			if !isLowerAlnum(part[i]) && part[i] != '-' {
				return rule
			}
		}
	}
	return ""
}

// checkLabelName is what stands after the '/' of a label key, and a label value
// that is not empty.
func checkLabelName(s string) bool {
	if s == "" || len(s) > 63 || !isAlnum(s[0]) || !isAlnum(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// checkLabelKey follows Kubernetes' "qualified name": [prefix/]name.
func checkLabelKey(key string) string {
	prefix, name, ok := strings.Cut(key, "/")
	if !ok {
		name = prefix
	} else if problem := checkSubdomain(prefix); problem != "" {
		return "the part before '/' " + problem
	}
	if !checkLabelName(name) {
		return "a label's name must be 1 to 63 of letters, digits, '-', '_' and '.', with a letter or digit at both ends"
	}
	return ""
}

// checkSelectorKey is checkLabelKey, but the labels of a namespace keep their own
// length under varve's prefix.
func checkSelectorKey(key string) string {
	return checkLabelKey(strings.TrimPrefix(key, KeyNamespaceLabelPrefix))
}

// checkLogValue wants what Cilium takes as log.value.
func checkLogValue(s string) string {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > maxLog || strings.ContainsFunc(s, func(r rune) bool { return unicode.Is(unicode.C, r) }) {
		return fmt.Sprintf("must be at most %d printable characters", maxLog)
	}
	return ""
}

func checkLabelValue(v string) string {
	if v != "" && !checkLabelName(v) {
		return "a label's value must be empty or at most 63 of letters, digits, '-', '_' and '.', with a letter or digit at both ends"
	}
	return ""
}

// checkSource wants what Cilium's label sources look like: it knows none with an
// upper-case letter, so that one is a slip that would select no one or everyone.
func checkSource(source string) string {
	const rule = "a label source must be like k8s, any or reserved: 1 to 63 of a-z and 0-9"
	if source == "" || len(source) > 63 {
		return rule
	}
	for i := range len(source) {
		if !isLowerAlnum(source[i]) {
			return rule
		}
	}
	return ""
}

// checkPortName follows RFC 6335 section 5.1 but for case.
func checkPortName(s string) bool {
	if len(s) == 0 || len(s) > 15 || s[0] == '-' || s[len(s)-1] == '-' || strings.Contains(s, "--") {
		return false
	}
	letter := false
	for i := range len(s) {
		c := s[i]
		if !isAlnum(c) && c != '-' {
			return false
		}
		letter = letter || c > '9'
	}
	return letter
}

// CheckPortName checks a named port of an endpoint, case aside. The error is an
// ErrInvalid.
func CheckPortName(name string) error {
	if !checkPortName(name) {
		return fmt.Errorf("port name %q: %w: must be 1 to 15 of letters, digits and single '-', with at least one letter", name, ErrInvalid)
	}
	return nil
}

// CheckName checks the name of an endpoint, a policy or a node. The error is an
// ErrInvalid.
func CheckName(name string) error {
	if problem := checkSubdomain(name); problem != "" {
		return fmt.Errorf("name %q: %w: %s", name, ErrInvalid, problem)
	}
	return nil
}

// CheckNamespace checks the name of a namespace. The error is an ErrInvalid.
func CheckNamespace(name string) error {
	if problem := checkDNSLabel(name); problem != "" {
		return fmt.Errorf("namespace %q: %w: %s", name, ErrInvalid, problem)
	}
	return nil
}

// CheckLabels checks the labels of an endpoint or a namespace by Kubernetes'
// rules. The error is an ErrInvalid and names the first offender in key order.
func CheckLabels(labels map[string]string) error {
	var stack [16]string
	keys := stack[:0]
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if problem := checkLabelKey(k); problem != "" {
			return fmt.Errorf("label %q: %w: %s", k, ErrInvalid, problem)
		}
		if problem := checkLabelValue(labels[k]); problem != "" {
			return fmt.Errorf("label %s=%q: %w: %s", k, labels[k], ErrInvalid, problem)
		}
	}
	return nil
}

package policy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/varve-net/varve/log/eventpb"
)

// maxFQDN is Cilium's bound on a name or pattern, in bytes.
const maxFQDN = 255

// FQDNSelector selects DNS names, as Cilium 1.20 does. It is immutable and may be
// compared with ==: two that were written differently and select the same names by
// one of these forms are equal.
//
//	api.example.com.   that name
//	*.example.com.     a '*' is zero or more of [-a-zA-Z0-9_], so never a dot
//	**.example.com.    a leading "**." is one or more whole labels
//	*                  every name, and the root
type FQDNSelector struct {
	text string // lower case, with a dot at its end unless it is "*"
	wild bool   // text is a pattern
}

// matchEverything is the pattern of every name.
const matchEverything = "*"

// EveryFQDN selects every name, and the root.
var EveryFQDN = FQDNSelector{matchEverything, true}

// ParseFQDN reads a matchName or matchPattern, of which one must be empty. It
// takes what Cilium's engine takes; CheckFQDNSchema is stricter. The error is an
// ErrInvalid.
func ParseFQDN(matchName, matchPattern string) (FQDNSelector, error) {
	field, text, allowed := "matchName", matchName, "letters, digits, '-', '_' and '.'"
	if matchPattern != "" {
		if matchName != "" {
			return FQDNSelector{}, fmt.Errorf("matchName and matchPattern: %w: only one of them may be given", ErrInvalid)
		}
		field, text, allowed = "matchPattern", matchPattern, "letters, digits, '-', '_', '.' and '*'"
	}
	if text == "" {
		return FQDNSelector{}, fmt.Errorf("%w: neither matchName nor matchPattern", ErrInvalid)
	}
	if len(text) > maxFQDN {
		return FQDNSelector{}, fmt.Errorf("%s: %w: %d bytes, the most is %d", field, ErrInvalid, len(text), maxFQDN)
	}
	for i := range len(text) {
		if c := text[i]; !isNameByte(c) && c != '.' && (c != '*' || matchPattern == "") {
			return FQDNSelector{}, fmt.Errorf("%s %q: %w: only %s", field, text, ErrInvalid, allowed)
		}
	}
	return canonicalFQDN(text), nil
}

// canonicalFQDN gives patterns that mean the same one text.
func canonicalFQDN(text string) FQDNSelector {
	if strings.Trim(strings.TrimSuffix(text, "."), "*") == "" && text != "." {
		return EveryFQDN
	}
	text = strings.ToLower(text)
	if !strings.HasSuffix(text, ".") {
		text += "."
	}
	if !strings.Contains(text, "*") {
		return FQDNSelector{text: text}
	}
	var b strings.Builder
	if rest := strings.TrimLeft(text, "*"); len(text)-len(rest) > 1 && rest[0] == '.' {
		b.WriteString("**")
		text = rest
	}
	for i := range len(text) {
		if text[i] != '*' || i == 0 || text[i-1] != '*' {
			b.WriteByte(text[i])
		}
	}
	return FQDNSelector{b.String(), true}
}

// The schema of Cilium's custom resources, which refuses empty labels.
var (
	fqdnNameSchema    = regexp.MustCompile(`^([-a-zA-Z0-9_]+[.]?)+$`)
	fqdnPatternSchema = regexp.MustCompile(`^([-a-zA-Z0-9_*]+[.]?)+$`)
)

// CheckFQDNSchema tells whether the schema of Cilium's custom resources takes a
// matchName or matchPattern, so that the Kubernetes API server would.
func CheckFQDNSchema(matchName, matchPattern string) bool {
	switch {
	case (matchName == "") == (matchPattern == ""):
		return false
	case matchName != "":
		return len(matchName) <= maxFQDN && fqdnNameSchema.MatchString(matchName)
	}
	return len(matchPattern) <= maxFQDN && fqdnPatternSchema.MatchString(matchPattern)
}

// FQDNFromPB reads a selector as the log stores it, which must be canonical. The
// error is an ErrInvalid.
func FQDNFromPB(pb *eventpb.FqdnSelector) (FQDNSelector, error) {
	s, err := ParseFQDN(pb.GetMatchName(), pb.GetMatchPattern())
	if err != nil {
		return s, err
	}
	if text := pb.GetMatchName() + pb.GetMatchPattern(); text != s.text || s.wild != (pb.GetMatchPattern() != "") {
		return FQDNSelector{}, fmt.Errorf("%q: %w: not in canonical form, which is %s", text, ErrInvalid, s)
	}
	return s, nil
}

// PB is the selector as events hold it.
func (s FQDNSelector) PB() *eventpb.FqdnSelector {
	if s.wild {
		return &eventpb.FqdnSelector{MatchPattern: s.text}
	}
	return &eventpb.FqdnSelector{MatchName: s.text}
}

// String is the canonical form: equal for equal selectors only, since a name
// holds no '*' and a pattern does.
func (s FQDNSelector) String() string { return s.text }

// Compare orders selectors by their text.
func (s FQDNSelector) Compare(o FQDNSelector) int { return strings.Compare(s.text, o.text) }

// IsName tells whether s selects a single name.
func (s FQDNSelector) IsName() bool { return !s.wild && s.text != "" }

// IsEverything tells whether s selects every name.
func (s FQDNSelector) IsEverything() bool { return s.text == matchEverything }

// Matches tells whether s selects a name, case and a missing dot at its end aside.
// The zero selector selects none. It allocates nothing for a name that is in
// lower case and ends in a dot.
func (s FQDNSelector) Matches(name string) bool {
	name = NormalizeFQDN(name)
	switch {
	case s.text == "":
		return false
	case s.IsEverything():
		return name == "." || afterLabels(name, func(rest string) bool { return rest == "" })
	case !s.wild:
		return name == s.text
	}
	if suffix, deep := strings.CutPrefix(s.text, "**."); deep {
		return afterLabels(name, func(rest string) bool { return glob(suffix, rest) })
	}
	return glob(s.text, name)
}

// NormalizeFQDN is the name in lower case and with a dot at its end.
func NormalizeFQDN(name string) string {
	name = strings.ToLower(name)
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	return name
}

// afterLabels tells whether accept holds for what is left of name after one, or
// two, or more of its labels, none of them empty or with an odd character.
func afterLabels(name string, accept func(rest string) bool) bool {
	start := 0
	for i := range len(name) {
		switch {
		case isNameByte(name[i]):
		case name[i] != '.' || i == start:
			return false
		default:
			start = i + 1
			if accept(name[start:]) {
				return true
			}
		}
	}
	return false
}

// glob matches a pattern of which a '*' takes no dot. To let only the last '*'
// before a mismatch take more is enough: an earlier one could take more only of
// what the last one can take as well.
func glob(pattern, name string) bool {
	p, star, taken := 0, -1, 0
	for n := 0; n < len(name); {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, taken = p, n
			p++
		case p < len(pattern) && pattern[p] == name[n]:
			p++
			n++
		case star >= 0 && isNameByte(name[taken]):
			taken++
			p, n = star+1, taken
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// isNameByte tells whether c may be in a label of a name.
func isNameByte(c byte) bool { return isAlnum(c) || c == '-' || c == '_' }

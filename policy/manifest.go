package policy

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// manifest renders v as canonical JSON: keys sorted, no white space, and every
// character that YAML cannot hold escaped, so that Parse reads it back. It
// stops soon after limit bytes; ok is false then.
func manifest(v *value, limit int) (_ string, ok bool) {
	m := manifestWriter{limit: limit}
	m.value(v)
	return m.b.String(), m.b.Len() <= limit
}

type manifestWriter struct {
	b     strings.Builder
	limit int
}

func (m *manifestWriter) value(v *value) {
	if m.b.Len() > m.limit {
		return
	}
	switch v.kind {
	case kindNull:
		m.b.WriteString("null")
	case kindString:
		m.string(v.text)
	case kindList:
		m.b.WriteByte('[')
		for i, item := range v.items {
			if i > 0 {
				m.b.WriteByte(',')
			}
			m.value(item)
		}
		m.b.WriteByte(']')
	case kindMap:
		fields := slices.Clone(v.fields)
		slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.key, b.key) })
		m.b.WriteByte('{')
		for i, f := range fields {
			if i > 0 {
				m.b.WriteByte(',')
			}
			m.string(f.key)
			m.b.WriteByte(':')
			m.value(f.val)
		}
		m.b.WriteByte('}')
	default:
		m.b.WriteString(v.text)
	}
}

func (m *manifestWriter) string(s string) {
	const hex = "0123456789abcdef"
	m.b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			m.b.WriteByte('\\')
			m.b.WriteRune(r)
		case r == '\n':
			m.b.WriteString(`\n`)
		case r == '\t':
			m.b.WriteString(`\t`)
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfeff || r >= 0xfffe && r <= 0xffff || r == utf8.RuneError:
			m.b.WriteString(`\u`)
			for shift := 12; shift >= 0; shift -= 4 {
				m.b.WriteByte(hex[r>>shift&15])
			}
		default:
			m.b.WriteRune(r)
		}
	}
	m.b.WriteByte('"')
}

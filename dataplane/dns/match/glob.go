package match

import "strings"

// inAlphabet tells what a wildcard stands for: [-a-zA-Z0-9_], of a name in lower case.
var inAlphabet = func() (t [256]bool) {
	for _, b := range "-_0123456789abcdefghijklmnopqrstuvwxyz" {
		t[b] = true
	}
	return t
}()

func spelled(s []byte) bool {
	for _, b := range s {
		if !inAlphabet[b] {
			return false
		}
	}
	return true
}

// glob is a label with wildcards and literals between them, and where it leads. Its
// first and last literal are in the key it is found under.
type glob struct {
	middle []string // literals between the first and the last wildcard
	to     uint32
}

// match tells whether rest, a label without the first and last literal, matches.
func (g *glob) match(rest []byte) bool {
	for _, literal := range g.middle {
		// The leftmost place is never worse than a later one.
		i := indexSpelled(rest, literal)
		if i < 0 {
			return false
		}
		rest = rest[i+len(literal):]
	}
	return spelled(rest)
}

// indexSpelled is strings.Index, but what stands before must be in the alphabet.
func indexSpelled(s []byte, literal string) int {
	for i := 0; i+len(literal) <= len(s); i++ {
		if string(s[i:i+len(literal)]) == literal {
			return i
		}
		if !inAlphabet[s[i]] {
			return -1
		}
	}
	return -1
}

// shape is the lengths of the first and the last literal of a node's globs.
type shape struct{ first, last uint16 }

// viaGlob marks where a node hangs if what leads there is a glob's key.
const viaGlob uint32 = 1 << 31

// appendGlobKey appends what stands in the table for all globs with these first and last
// literals.
func appendGlobKey[T string | []byte](b []byte, first, last T) []byte {
	return append(append(append(b, first...), '*'), last...)
}

// splitGlob takes a label with at least one wildcard apart.
func splitGlob(label string) (first, last string, middle []string) {
	parts := strings.Split(label, "*")
	for _, p := range parts[1 : len(parts)-1] {
		if p != "" {
			middle = append(middle, p)
		}
	}
	return parts[0], parts[len(parts)-1], middle
}

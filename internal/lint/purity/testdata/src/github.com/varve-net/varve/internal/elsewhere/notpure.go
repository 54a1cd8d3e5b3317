// Package elsewhere is not pure.
package elsewhere

import "os"

func Dump(m map[string]int) {
	for k := range m {
		os.Stdout.WriteString(k)
	}
}

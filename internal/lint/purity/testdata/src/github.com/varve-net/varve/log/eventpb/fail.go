// Package eventpb has one file that is generated and one that is not.
package eventpb

import "os" // want `pure package log/eventpb imports os: files and the environment differ between nodes`

var suffix = os.Getenv("SUFFIX")

func Marshal(labels map[string]string) (out []string) {
	for k := range labels { // want `out grows in map order and may be returned before it is sorted`
		out = append(out, k+suffix)
	}
	return
}

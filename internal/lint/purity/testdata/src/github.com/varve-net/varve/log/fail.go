// Package log breaks the rules as a clumsy codec might.
package log

import (
	"crypto/rand" // want `pure package log imports crypto/rand: the same events must give the same state everywhere`
	"crypto/sha256"
	"hash/maphash" // want `pure package log imports hash/maphash: its seed differs between processes`
	"time"         // want `pure package log imports time: a clock read while events are applied makes replicas differ`

	"google.golang.org/protobuf/reflect/protoreflect"
)

var (
	seed = maphash.MakeSeed()
	now  = time.Now
	_    = rand.Read
)

func digest(labels map[string]string) (sum [32]byte) {
	var b []byte
	for k, v := range labels { // want `map order can reach the output: b grows in map order and is used before it is sorted \(line \d+\): collect the keys and sort them, or iterate slices\.Sorted\(maps\.Keys\(labels\)\)`
		b = append(b, k+v...)
	}
	return sha256.Sum256(b)
}

func encode(m protoreflect.Message) []string {
	var names []string
	m.Range(func(name string, _ any) bool { // want `protoreflect\.Message\)\.Range has no fixed order`
		names = append(names, name)
		return true
	})
	return names
}

func parallel(parts [][]byte, sum chan<- [32]byte) {
	for _, p := range parts {
		go func() { sum <- sha256.Sum256(p) }() // want `a goroutine in a pure package`
	}
}

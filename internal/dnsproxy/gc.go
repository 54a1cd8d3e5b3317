package dnsproxy

import (
	"os"
	"runtime/debug"
)

// What is known of names is nearly all of the heap, lives long and is full of pointers, so
// that looking through it was a fifth of the proxy's work while new names came in. Memory for
// it is spent more freely than by default, up to softMemory.
const (
	gcPercent  = 400
	softMemory = 512 << 20 // bytes
)

// tuneGC does so, unless whoever started the proxy has said otherwise in its environment.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
}

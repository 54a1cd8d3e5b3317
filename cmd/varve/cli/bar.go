package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	barCells = 30
	// barPause is the least time between two drawings.
	barPause = 100 * time.Millisecond
)

// bar draws progress on standard error, if that is a terminal. It is not safe for
// concurrent use.
type bar struct {
	w    io.Writer // nil: no terminal
	what string
	now  func() time.Time
	last time.Time
}

func (a *app) newBar(what string) *bar {
	b := &bar{what: what, now: a.now}
	if isTerminal(a.stderr) {
		b.w = a.stderr
	}
	return b
}

func (b *bar) set(done, total int) {
	if b.w == nil || total == 0 || b.now().Sub(b.last) < barPause {
		return
	}
	b.last = b.now()
	full := barCells * done / total
	fmt.Fprintf(b.w, "\r%s%s %d/%d %s", strings.Repeat("█", full), strings.Repeat("░", barCells-full), done, total, b.what)
}

// clear removes the bar, so that what follows begins on an empty line.
func (b *bar) clear() {
	if b.w != nil && !b.last.IsZero() {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

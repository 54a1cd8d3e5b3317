package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// printer writes the demo's story. It is safe for concurrent use.
type printer struct {
	mu     sync.Mutex
	w      io.Writer
	colour bool
	began  time.Time
	n      int // of sections
}

func newPrinter(w io.Writer, noColour bool) *printer {
	return &printer{w: w, colour: !noColour && os.Getenv("NO_COLOR") == "" && isTerminal(w), began: time.Now()}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Styles of text, as ANSI SGR parameters.
const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (p *printer) paint(style, s string) string {
	if !p.colour || s == "" || style == "" {
		return s
	}
	return "\033[" + style + "m" + s + "\033[0m"
}

func (p *printer) printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format, args...)
}

func (p *printer) section(title string) {
	p.n++
	at := fmt.Sprintf("%5.1fs", time.Since(p.began).Seconds())
	head := fmt.Sprintf("%d  %s", p.n, title)
	p.printf("\n%s%s%s\n\n", p.paint(bold, head), strings.Repeat(" ", max(1, 92-utf8.RuneCountInString(head))), p.paint(faint, at))
}

func (p *printer) mark(ok bool) string {
	if ok {
		return p.paint(green, "✓")
	}
	return p.paint(red, "✗")
}

// note is a line that claims nothing.
func (p *printer) note(format string, args ...any) {
	p.printf("   %s\n", p.paint(faint, fmt.Sprintf(format, args...)))
}

// table prints rows in columns as wide as their widest cell. Cells may be painted.
func (p *printer) table(header []string, rows [][]string) {
	widths := make([]int, len(header))
	for i, h := range header {
		widths[i] = utf8.RuneCountInString(h)
	}
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], visible(cell))
		}
	}
	line := func(row []string, style string) {
		var b strings.Builder
		for i, cell := range row {
			pad := widths[i] - visible(cell)
			if i == len(row)-1 {
				pad = 0
			}
			b.WriteString(p.paint(style, cell) + strings.Repeat(" ", pad+2))
		}
		p.printf("   %s\n", strings.TrimRight(b.String(), " "))
	}
	line(header, faint)
	for _, row := range rows {
		line(row, "")
	}
}

// visible is the number of columns that a painted cell takes.
func visible(s string) int {
	n, escape := 0, false
	for _, r := range s {
		switch {
		case r == '\033':
			escape = true
		case escape:
			escape = r != 'm'
		default:
			n++
		}
	}
	return n
}

// ms prints a duration as people compare them.
func ms(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	default:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
}

// short is the beginning of a digest, enough to compare by eye.
func short(digest []byte) string {
	if len(digest) == 0 {
		return "none"
	}
	return fmt.Sprintf("%x", digest[:min(6, len(digest))])
}

package cli

import (
	"io"
	"os"

	"github.com/fatih/color"
	"golang.org/x/term"
)

// palette is what colours mean. Without colours it prints plain text.
type palette struct {
	good, bad, warn, dim, strong *color.Color
}

func newPalette(on bool) palette {
	ink := func(attrs ...color.Attribute) *color.Color {
		c := color.New(attrs...)
		if on {
			c.EnableColor()
		} else {
			c.DisableColor()
		}
		return c
	}
	return palette{
		good:   ink(color.FgGreen),
		bad:    ink(color.FgRed, color.Bold),
		warn:   ink(color.FgYellow),
		dim:    ink(color.Faint),
		strong: ink(color.Bold),
	}
}

// coloured says whether to colour what goes to w. https://no-color.org
func (a *app) coloured(w io.Writer) bool {
	return !a.noColor && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

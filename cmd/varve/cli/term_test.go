package cli

import (
	"bytes"
	"testing"
)

func TestPalette(t *testing.T) {
	if got := newPalette(true).good.Sprint("x"); got != "\x1b[32mx\x1b[0m" {
		t.Errorf("with colours: %q", got)
	}
	if got := newPalette(false).good.Sprint("x"); got != "x" {
		t.Errorf("without colours: %q", got)
	}
}

func TestNoColoursInFiles(t *testing.T) {
	a := newApp(nil, &bytes.Buffer{}, &bytes.Buffer{})
	if a.coloured(a.stdout) {
		t.Error("a buffer is coloured as if it were a terminal")
	}
}

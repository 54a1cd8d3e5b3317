package dataplane

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOneProcessHasThePins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start(everything("a"), "a")
	before := w.picture()
	d, err := Open(w.config)
	if !errors.Is(err, ErrPinsBusy) {
		t.Fatalf("Open of pins in use: %v, %v; want ErrPinsBusy", d, err)
	}
	if diff := cmp.Diff(before, w.picture()); diff != "" {
		t.Errorf("after the refusal (-before +after):\n%s", diff)
	}
	w.check(w.Close())
	w.open()
}

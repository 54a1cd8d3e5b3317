package dataplane

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockPins takes dir, which is on a bpffs, for this process alone, until the file
// is closed or the process ends in whatever way. A bpffs holds no files to lock,
// so the lock is on the directory.
func lockPins(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return f, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(fmt.Errorf("pins in %s: %w: stop that one or choose another --bpf-root", dir, ErrPinsBusy), f.Close())
	default:
		return nil, errors.Join(fmt.Errorf("pins in %s: lock: %w", dir, err), f.Close())
	}
}

package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ownerPrefix begins the name of an empty directory beside the pins, which says
// whose they are. A bpffs holds no files; a directory's name is all it can keep.
const ownerPrefix = "owner_"

// claimPins notes that the pins in dir belong to owner. Those of another owner are
// taken over only if no container hangs on them: to a log that knows none of the
// containers all of them are what a crash left, and would be disconnected.
func claimPins(dir, owner string, connected []string) error {
	if owner == "" {
		return nil
	}
	mine := filepath.Join(dir, ownerPrefix+owner)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	var others []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ownerPrefix) && e.Name() != filepath.Base(mine) {
			others = append(others, filepath.Join(dir, e.Name()))
		}
	}
	if len(others) > 0 && len(connected) > 0 {
		return fmt.Errorf("pins in %s: %w: give the --state-dir of before, or another --bpf-root; or disconnect its %d containers first (`ip link del %s` and so on)",
			dir, ErrPinsForeign, len(connected), connected[0])
	}
	if err := os.Mkdir(mine, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("pins: %w", err)
	}
	for _, o := range others {
		if err := os.Remove(o); err != nil {
			return fmt.Errorf("pins: %w", err)
		}
	}
	return nil
}

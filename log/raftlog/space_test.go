package raftlog

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/varve-net/varve/log"
)

func TestFreeSpaceReserve(t *testing.T) {
	const reserve = 1 << 20
	var free atomic.Uint64
	free.Store(reserve)
	c := testConfig(t.TempDir())
	c.ReserveBytes = reserve
	c.FreeBytes = func() (uint64, error) { return free.Load(), nil }
	l := open(t, c)
	fill(t, l, "a", 2)
	free.Store(reserve - 1)
	before := lastRaftIndex(l)
	for range 2 {
		_, err := l.Append(t.Context(), namespaceSet("a", "refused"))
		if !errors.Is(err, log.ErrNoSpace) || !strings.Contains(err.Error(), "1048575 bytes free, 1048576 must remain") {
			t.Errorf("error %v", err)
		}
	}
	if err := l.Snapshot(t.Context()); err == nil || !strings.Contains(err.Error(), log.ErrNoSpace.Error()) {
		t.Errorf("snapshot: %v", err)
	}
	if lastRaftIndex(l) != before || l.Err() != nil {
		t.Errorf("entry %d, was %d; %v", lastRaftIndex(l), before, l.Err())
	}
	if n := len(allIDs(t, l)); n != 2 {
		t.Errorf("%d events can be read, want 2", n)
	}
	free.Store(reserve) // service resumes by itself
	fill(t, l, "b", 2)
	if err := l.Snapshot(t.Context()); err != nil {
		t.Error(err)
	}
}

// A snapshot stops before it takes what Raft needs.
func TestSnapshotSparesTheReserve(t *testing.T) {
	looks := 0
	c := &Config{ReserveBytes: 10, FreeBytes: func() (uint64, error) { looks++; return uint64(20 - 5*looks), nil }}
	var written strings.Builder
	s := &sparing{w: &written, c: c}
	block := make([]byte, spareStep/4)
	var err error
	n := 0
	for ; err == nil; n++ {
		_, err = s.Write(block)
	}
	if !errors.Is(err, log.ErrNoSpace) || looks != 4 || n != 4*3+1 {
		t.Errorf("%v after %d looks, %d blocks", err, looks, n)
	}
}

// A disk that is full all the same stops the node with ErrNoSpace; nothing
// panics, and what was acknowledged is there afterwards.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatalf("mount a small file system (the tests run as root): %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	c := testConfig(filepath.Join(dir, "log"))
	l := open(t, c)
	acked := 0
	var err error
	for err == nil {
		e := namespaceSet("a", "")
		e.Actor.Name = strings.Repeat("x", 100<<10)
		if _, err = l.Append(t.Context(), e); err == nil {
			acked++
		}
	}
	if !errors.Is(err, log.ErrNoSpace) || !errors.Is(l.Err(), log.ErrNoSpace) {
		t.Errorf("error %v; Err %v", err, l.Err())
	}
	if err := l.Close(t.Context()); err != nil {
		t.Logf("Close: %v", err)
	}
	// Full, it does not start; with room, it does.
	ballast := filepath.Join(dir, "ballast")
	if err := fillUp(ballast); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if full, err := Open(t.Context(), c); err == nil {
		full.Close(t.Context())
	} else if !errors.Is(err, log.ErrNoSpace) {
		t.Errorf("on a full disk: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	l = open(t, c)
	if head, _ := l.Head(); head < log.Revision(acked) || acked == 0 {
		t.Errorf("head %d, %d events were acknowledged", head, acked)
	}
	if err := l.Verify(t.Context(), 1); err != nil {
		t.Error(err)
	}
	closeLog(t, l)
}

func fillUp(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return err
		}
	}
}

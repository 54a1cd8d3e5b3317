package raftlog

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain is also the writer of the kill test, when its environment says so. It
// fails on goroutines and files that the tests left behind.
func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		os.Exit(writer(dir, os.Getenv(writerRoundEnv)))
	}
	files := openFiles()
	code := m.Run()
	if code == 0 {
		code = leaks(files)
	}
	os.Exit(code)
}

func leaks(before int) int {
	stack := make([]byte, 1<<20)
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		stack = stack[:runtime.Stack(stack[:cap(stack)], true)]
		ours := 0
		for goroutine := range strings.SplitSeq(string(stack), "\n\n") {
			// Raft leaves some futures unanswered when it stops, and so whoever waits for one.
			unanswered := strings.Contains(goroutine, "raftlog.(*Log).await.func1()")
			if !unanswered && (strings.Contains(goroutine, "hashicorp/raft") || strings.Contains(goroutine, "log/raftlog.(*") || strings.Contains(goroutine, "bbolt.")) {
				ours++
			}
		}
		if ours == 0 && openFiles() <= before {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Printf("leaked: %d files before the tests, %d after; goroutines:\n%s\n", before, openFiles(), stack)
			return 1
		}
	}
}

// openFiles counts regular files that this process has open.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, os.TempDir()+"/") {
			n++
		}
	}
	return n
}

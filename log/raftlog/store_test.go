package raftlog

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/varve-net/varve/log/raftlog/wal"
)

// What Raft would panic at ends its goroutine and stops the node.
func TestStoreStopsInsteadOfPanic(t *testing.T) {
	for name, call := range map[string]func(*store) error{
		"SetUint64": func(s *store) error { return s.SetUint64([]byte("CurrentTerm"), 7) },
		"Set":       func(s *store) error { return s.Set([]byte("LastVoteCand"), nil) },
		"GetLog":    func(s *store) error { return s.GetLog(1, new(raft.Log)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			bolt, err := openBolt(filepath.Join(dir, stableFile))
			if err != nil {
				t.Fatal(err)
			}
			entries, err := wal.Open(filepath.Join(dir, walDir), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(bolt.Close(), entries.Close()); err != nil {
				t.Fatal(err)
			}
			var cause error
			s := &store{Store: entries, StableStore: bolt, stop: func(err error) { cause = err }}
			if err := call(s); err == nil || cause == nil {
				t.Errorf("before Raft runs: error %v, cause %v", err, cause)
			}
			cause = nil
			s.running.Store(true)
			returned := false
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				call(s)
				returned = true
			}()
			<-ended
			if returned || cause == nil {
				t.Errorf("while Raft runs: returned %v, cause %v", returned, cause)
			}
		})
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	to := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	l := newLogger(to).With("id", "n1").Named("x")
	l.Info("not heard at the default level")
	l.Warn("heard", "servers", hclog.Fmt("%d of %d", 1, 3))
	l.Log(hclog.Error, "bad", "error", "e")
	l.Log(hclog.Off, "nothing")
	want := "level=WARN msg=heard component=raft id=n1 servers=\"1 of 3\"\nlevel=ERROR msg=bad component=raft id=n1 error=e\n"
	if out.String() != want {
		t.Errorf("said\n%swant\n%s", out.String(), want)
	}
	if l.IsDebug() || l.IsInfo() || !l.IsWarn() || l.GetLevel() != hclog.Warn || l.Name() != "x" || len(l.ImpliedArgs()) != 2 {
		t.Errorf("level %v, name %q, args %v", l.GetLevel(), l.Name(), l.ImpliedArgs())
	}
	out.Reset()
	l.StandardLogger(nil).Print("said as debug")
	if strings.Contains(out.String(), "said") {
		t.Errorf("said %s", out.String())
	}
}

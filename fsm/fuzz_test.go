package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// pack frames byte strings for a fuzzer, unpack takes any bytes for such. The
// CRC is made right, so that the fuzzer gets past it.
func pack(parts ...[]byte) []byte { return log.EncodeBatch(parts)[5:] }

func unpack(b []byte) [][]byte {
	framed := append([]byte{1, 0, 0, 0, 0}, b...)
	binary.LittleEndian.PutUint32(framed[1:], log.Checksum(b))
	parts, err := log.DecodeBatch(framed)
	if err != nil {
		return nil
	}
	return parts
}

// FuzzApply applies hostile events and holds the state to its own laws.
func FuzzApply(f *testing.F) {
	for _, e := range []*eventpb.Event{
		setPolicy(cnp("default", "p"), "web", id("r"), expect(0)),
		deletePolicy(cnp("default", "p")),
		setNamespace("default", labels("a", "b")),
		deleteNamespace("default"),
		create("n1", "default", "db", 1, "10.0.0.2", labels("app", "db"), seq(1)),
		update("n1", "default", "web", 5, labels("app", "db")),
		deleteEndpoint("n1", "default", "web", 5),
		join("n3", []string{"192.0.2.3"}),
		updateNode("n1", []string{"2001:db8::1"}, []string{"10.0.0.0/24"}),
		leave("n1", at(7)),
	} {
		f.Add(pack(marshal(f, e)))
	}
	f.Add(pack(
		marshal(f, create("n1", "a", "x", 1, "", nil)), marshal(f, setNamespace("a", labels("k", "v"))),
		marshal(f, leave("n1")), marshal(f, deleteNamespace("a")),
	))
	want := base(f)
	want.ok(setNamespace("default", labels("a", "b")), setPolicy(cnp("default", "p"), "web"))
	var whole [][]byte
	for _, e := range restoring(want.View(), "r") {
		whole = append(whole, marshal(f, e))
	}
	f.Add(pack(whole...))
	f.Add(pack(whole[0], marshal(f, abandon("r"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := base(t).State
		for _, e := range unpack(b) {
			before := s.View()
			record, result, err := s.Apply(e)
			after := s.View()
			switch {
			case err != nil:
				if !errors.Is(err, log.ErrCorrupt) && !errors.Is(err, log.ErrUpgradeNeeded) {
					t.Fatalf("unclassified error: %v", err)
				}
				sameViews(t, "after an error", after, before)
				continue
			case result.Outcome == log.OutcomeApplied, result.Outcome == log.OutcomeRejected:
				want := log.Next(before.Chain(), log.Leaf(e))
				if record.Revision != before.Revision()+1 || after.Revision() != record.Revision || after.Chain() != want || after.TimeNS() < before.TimeNS() {
					t.Fatalf("%+v after revision %d", record, before.Revision())
				}
			default:
				sameViews(t, "without a revision", after, before)
			}
			if (result.Outcome == log.OutcomeRejected) != (record.Reason != "") || len(record.Reason) > maxReason {
				t.Fatalf("outcome %d with reason %q", result.Outcome, record.Reason)
			}
			if got := digestFromScratch(after); got != after.Digest() {
				t.Fatalf("digest %s, of all rows anew %s", after.Digest(), got)
			}
		}
		sameViews(t, "over a snapshot", restore(t, snapshot(t, s.View())).View(), s.View())
	})
}

// FuzzReadSnapshot reads hostile files: as they are, and with the checksums and
// the digest that they should have. What is taken must be a state that can be
// written, read and applied to.
func FuzzReadSnapshot(f *testing.F) {
	file := snapshot(f, rich(f).View())
	f.Add(file)
	p := parse(f, file)
	parts := [][]byte{marshalMessage(f, p.header)}
	for _, r := range p.records {
		parts = append(parts, marshalMessage(f, r))
	}
	f.Add(pack(parts...))
	f.Add(pack(parts[0]))
	e := marshal(f, create("n1", "default", "new", 9, "10.0.0.9", labels("app", "new")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ReadSnapshot(bytes.NewReader(b)); err == nil {
			sameViews(t, "read again", restore(t, snapshot(t, s.View())).View(), s.View())
		} else if !errors.Is(err, log.ErrCorrupt) && !errors.Is(err, log.ErrUpgradeNeeded) {
			t.Fatalf("unclassified error: %v", err)
		}
		file, ok := mend(t, unpack(b))
		if !ok {
			return
		}
		s := restore(t, file)
		if again := snapshot(t, s.View()); !bytes.Equal(again, file) {
			sameViews(t, "read again", restore(t, again).View(), s.View())
		}
		if _, _, err := s.Apply(e); err != nil {
			t.Fatal(err)
		}
		if got := digestFromScratch(s.View()); got != s.sum() {
			t.Fatalf("digest %s, of all rows anew %s", s.sum(), got)
		}
	})
}

// mend makes a file of a header and records, if they could be one.
func mend(t *testing.T, parts [][]byte) ([]byte, bool) {
	if len(parts) == 0 {
		return nil, false
	}
	p := parsed{header: new(eventpb.SnapshotHeader)}
	if log.UnmarshalMessage(parts[0], p.header) != nil || p.header.Format != snapshotFormat {
		return nil, false
	}
	p.header.Digest = make([]byte, 32)
	l, err := newLoader(p.header)
	if err != nil {
		return nil, false
	}
	for _, b := range parts[1:] {
		r := new(eventpb.SnapshotRecord)
		if len(b) == 0 || log.UnmarshalMessage(b, r) != nil || l.add(r) != nil {
			return nil, false
		}
		p.records = append(p.records, r)
	}
	sum := l.s.sum()
	l.digest, p.header.Digest = sum, sum[:]
	if _, err := l.finish(); err != nil {
		return nil, false
	}
	return p.write(t), true
}

func marshalMessage(t testing.TB, m log.Message) []byte {
	t.Helper()
	b, err := log.MarshalMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

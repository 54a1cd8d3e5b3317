package dns

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varve-net/varve/dataplane/dns/relay"
	"github.com/varve-net/varve/dataplane/dns/wire"
)

func exchange(name string) *relay.Exchange {
	return &relay.Exchange{
		Time: time.Unix(1700000000, 5), Client: netip.MustParseAddrPort("10.1.0.7:4711"), Server: netip.MustParseAddrPort("[2001:db8::53]:53"),
		Protocol: relay.TCP, Ruling: &relay.Ruling{Namespace: "default", Name: "pod"}, Name: []byte(name), Type: 28,
		Row: 1 << 63, Selector: "*.domain.com.", Chain: [][]byte{[]byte("a."), []byte(`b\".`)},
		Addresses: []wire.Address{{Addr: far, TTLSeconds: 30}, {Addr: netip.MustParseAddr("2001:db8::1"), TTLSeconds: 0}},
		Upstream:  time.Millisecond, Total: time.Second,
	}
}

// TestEntry holds the line that is written by hand to what encoding/json reads.
func TestEntry(t *testing.T) {
	var got Entry
	line := appendEntry(nil, exchange(`a\"b.domain.com.`))
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	want := Entry{
		Time: time.Unix(1700000000, 5).UTC(), Endpoint: "default/pod", Client: "10.1.0.7:4711", Server: "[2001:db8::53]:53", Protocol: "tcp",
		Name: `a\"b.domain.com.`, Type: 28, Verdict: "allowed", Row: 1 << 63, Rule: "*.domain.com.", Chain: []string{"a.", `b\".`},
		Addresses: []string{"192.0.2.1", "2001:db8::1"}, TTLSeconds: []uint32{30, 0}, UpstreamNS: 1e6, TotalNS: 1e9,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	e := &relay.Exchange{Time: time.Unix(1, 0), Client: want0, Server: want0, Ruling: &relay.Ruling{}, Verdict: relay.Malformed, RCode: 1, Problem: relay.MalformedQuery}
	if err := json.Unmarshal(appendEntry(nil, e), &got); err != nil || got.Problem != string(relay.MalformedQuery) || got.Verdict != "malformed" {
		t.Errorf("%+v: %v", got, err)
	}
}

var want0 = netip.MustParseAddrPort("0.0.0.0:0")

// TestLogIsBounded: the newest questions stay, in two files, and a reader that
// follows misses none over a rotation.
func TestLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	const max = 64 << 10
	l, err := OpenLog(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	at, err := l.Read(time.Time{}, func(*Entry) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	const n = 2000
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	seen := make(chan string, n)
	done := make(chan error, 1)
	go func() { done <- l.Follow(ctx, at, func(e *Entry) error { seen <- e.Name; return nil }) }()
	for i := range n {
		l.add(exchange(fmt.Sprintf("n%d.", i)))
		if i%10 == 9 {
			l.write()
			for k := i - 9; k <= i; k++ { // the reader keeps up
				select {
				case got := <-seen:
					if want := fmt.Sprintf("n%d.", k); got != want {
						t.Fatalf("followed %s, want %s", got, want)
					}
				case <-ctx.Done():
					t.Fatalf("entry %d did not come", k)
				}
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for _, name := range []string{logFile, oldFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > max {
		t.Errorf("%d bytes, the most is %d", size, max)
	}
	if l, err = OpenLog(dir, max); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	count, last := 0, ""
	end, err := l.Read(time.Time{}, func(e *Entry) error { count, last = count+1, e.Name; return nil })
	if err != nil {
		t.Fatal(err)
	}
	end.Close()
	if last != fmt.Sprintf("n%d.", n-1) || count < 50 || count >= n {
		t.Errorf("%d entries, the last is %s", count, last)
	}
}

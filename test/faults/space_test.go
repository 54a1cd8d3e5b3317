package faults

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testns"
)

// guard is the policy of traffic.
const guard = `{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"p"},"spec":{
	"endpointSelector":{"matchLabels":{"app":"server"}},"ingress":[{"fromEndpoints":[{"matchLabels":{"app":"friend"}}]}]}}`

// traffic is a server, a client that it lets in and one that it does not.
type traffic struct {
	t        *testing.T
	server   netip.AddrPort
	friend   *testns.NS
	stranger *testns.NS
	trip     func() error // over a connection that was there before the fault
}

// strangerTries is how long a denied client waits for an answer.
const strangerTries = 300 * time.Millisecond

func (n *node) traffic() *traffic {
	n.t.Helper()
	tr := &traffic{t: n.t}
	add := func(name string) (*testns.NS, netip.Addr) {
		ns, err := testns.New(name)
		if err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() { ns.Close() })
		resp, err := n.client.Endpoints.Add(context.Background(), connect.NewRequest(&varvev1.AddEndpointRequest{
			Name: name, Netns: ns.Path(), Labels: map[string]string{"app": name},
		}))
		if err != nil {
			n.t.Fatal(err)
		}
		return ns, netip.MustParseAddr(resp.Msg.Endpoint.Ipv4)
	}
	server, addr := add("server")
	tr.friend, _ = add("friend")
	tr.stranger, _ = add("stranger")
	_, err := n.client.Policies.Apply(context.Background(), connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: guard}))
	if err != nil {
		n.t.Fatal(err)
	}
	echo, err := server.EchoTCP(netip.AddrPortFrom(addr, 7000))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { echo.Close() })
	tr.server = echo.Addr()
	c, err := tr.friend.DialTCP(context.Background(), tr.server)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	tr.trip = func() error { return testns.RoundTrip(c, "still here", patience) }
	return tr
}

// goesOn checks that what was open flows, that a friend gets in and a stranger
// does not.
func (tr *traffic) goesOn(when string) {
	tr.t.Helper()
	if err := tr.trip(); err != nil {
		tr.t.Errorf("%s: the open connection: %v", when, err)
	}
	if err := tr.friend.ExchangeTCP(tr.server, patience); err != nil {
		tr.t.Errorf("%s: an allowed connection: %v", when, err)
	}
	if err := tr.stranger.ExchangeTCP(tr.server, strangerTries); err == nil {
		tr.t.Errorf("%s: a denied connection came up", when)
	}
}

// fill takes space of the state directory's disk until left bytes are free, and
// all of it with left 0.
func (n *node) fill(name string, left uint64) {
	n.t.Helper()
	f, err := os.Create(filepath.Join(n.state, name))
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	var s unix.Statfs_t
	if err := unix.Statfs(n.state, &s); err != nil {
		n.t.Fatal(err)
	}
	if free := s.Bavail * uint64(s.Frsize); free > left {
		// The agent may take some of it meanwhile: then there is less than asked for.
		for size := free - left; ; size -= min(size, uint64(s.Frsize)) {
			err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
			if err == nil {
				return
			}
			if err != unix.ENOSPC || size == 0 {
				n.t.Fatalf("fallocate of %d bytes: %v", size, err)
			}
		}
	}
}

const mib = 1 << 20

func TestFullDisk(t *testing.T) {
	for _, tt := range []struct {
		name string
		left uint64
	}{
		{"below the reserve", 60 * mib},
		{"nothing left", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.tmpfs(128 * mib)
			a := n.start()
			tr := n.traffic()
			acked := n.appendMany("before", 20)

			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			n.fill("ballast", tt.left)
			var refusal error
			for i := 0; refusal == nil; i++ {
				id := fmt.Sprintf("during-%d", i)
				var rev uint64
				if rev, refusal = n.append(ctx, id); refusal == nil {
					acked[id] = rev
				}
			}
			if connect.CodeOf(refusal) != connect.CodeResourceExhausted || !strings.Contains(refusal.Error(), "free some space") {
				t.Errorf("the refusal is %v, want resource_exhausted with the remedy", refusal)
			}
			tr.goesOn("disk full")

			if err := os.Remove(filepath.Join(n.state, "ballast")); err != nil {
				t.Fatal(err)
			}
			for {
				rev, err := n.append(ctx, "after")
				if err == nil {
					acked["after"] = rev
					break
				}
				if ctx.Err() != nil {
					t.Fatalf("appends do not resume: %v\n%s", err, a.log())
				}
			}
			if err := n.holds(acked); err != nil {
				t.Errorf("with space again: %v", err)
			}
			tr.goesOn("space again")
			a.kill()
			n.start()
			if err := n.holds(acked); err != nil {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}

func (n *node) remount(flags uintptr) {
	n.t.Helper()
	if err := unix.Mount("tmpfs", n.state, "tmpfs", unix.MS_REMOUNT|flags, ""); err != nil {
		n.t.Fatal(err)
	}
}

func TestReadOnlyDiskAtStart(t *testing.T) {
	n := newNode(t)
	n.tmpfs(128 * mib)
	a := n.start()
	acked := n.appendMany("before", 5)
	n.stop(a)
	n.remount(unix.MS_RDONLY)
	n.refused(n.launch(), "read-only file system", n.state)
	n.remount(0)
	n.start()
	if err := n.holds(acked); err != nil {
		t.Error(err)
	}
}

func TestSecondAgent(t *testing.T) {
	n := newNode(t)
	n.start()
	acked := n.appendMany("first", 3)
	other := newNode(t)
	other.state = n.state
	other.refused(other.launch(), "in use", "stop it or choose another directory")
	maps.Copy(acked, n.appendMany("second", 3))
	if err := n.holds(acked); err != nil {
		t.Errorf("the first agent, after the second was refused: %v", err)
	}
}

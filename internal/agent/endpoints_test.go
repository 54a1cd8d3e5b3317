package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/fsm"
)

// ownNetns is a network namespace that is there in every test: our own.
const ownNetns = "/proc/self/ns/net"

func request(name string) *varvev1.AddEndpointRequest {
	return &varvev1.AddEndpointRequest{Name: name, Netns: ownNetns, Labels: map[string]string{"app": name}}
}

func (n *node) add(t *testing.T, req *varvev1.AddEndpointRequest) (*fsm.Endpoint, bool) {
	t.Helper()
	ref, created, err := n.eps.Add(t.Context(), tester, req)
	if err != nil {
		t.Fatal(err)
	}
	ep, ok := n.log.View().Endpoint(ref)
	if !ok {
		t.Fatalf("%v is not in the state", ref)
	}
	return ep, created
}

func TestAddOrdersItsSteps(t *testing.T) {
	n := newNode(t)
	ep, created := n.add(t, request("web"))
	if !created || ep.IPv4.String() != "10.9.0.2" || ep.IPv6.String() != "fd00:9::2" || ep.Incarnation != 1 {
		t.Errorf("created %t, %+v", created, ep)
	}
	if d := cmp.Diff([]string{"ensure", "activate"}, n.links.calls); d != "" {
		t.Error(d)
	}
	if !n.links.up[ep.HostInterface] || n.eps.bindings(n.log.View())[ep.ID] != 10 {
		t.Error("the interface is not up, or not bound to the endpoint")
	}
}

func TestAddTwiceChangesOnlyWhatDiffers(t *testing.T) {
	n := newNode(t)
	first, _ := n.add(t, request("web"))
	again, created := n.add(t, request("web"))
	if created || again.Revision != first.Revision {
		t.Errorf("created %t at revision %d, was at %d", created, again.Revision, first.Revision)
	}
	req := request("web")
	req.Labels["tier"] = "front"
	relabelled, created := n.add(t, req)
	if created || relabelled.Labels["tier"] != "front" || relabelled.Incarnation != first.Incarnation || relabelled.IPv4 != first.IPv4 {
		t.Errorf("created %t, %+v", created, relabelled)
	}
	req.Mtu = 1400
	n.add(t, req)
	if mtu := n.links.mtu[first.HostInterface]; mtu != 1400 {
		t.Errorf("MTU %d, want the one asked for", mtu)
	}
	// A repair after a restart knows it too, and a change of labels keeps it.
	if err := n.eps.SetLabels(t.Context(), tester, first.Ref, map[string]string{"tier": "back"}, nil); err != nil {
		t.Fatal(err)
	}
	if now, _ := n.log.View().Endpoint(first.Ref); n.eps.specOf(now).MTU != 1400 || now.Labels["tier"] != "back" {
		t.Errorf("%+v: MTU %d, want the one asked for", now, n.eps.specOf(now).MTU)
	}
	req.Mtu, req.BigTcp = 0, true
	if now, _ := n.add(t, req); n.eps.specOf(now).MTU != n.eps.cfg.MTU || !n.eps.specOf(now).BigTCP4 {
		t.Errorf("asked for nothing: %+v", n.eps.specOf(now))
	}
	req.Addresses = []string{"10.9.0.77"}
	_, _, err := n.eps.Add(t.Context(), tester, req)
	if connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("another address: %v", err)
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.add(t, &varvev1.AddEndpointRequest{Name: "first", Netns: ownNetns, Addresses: []string{"10.9.0.50"}})
	for name, tt := range map[string]struct {
		spoil func()
		req   *varvev1.AddEndpointRequest
		want  connect.Code
	}{
		"no namespace":        {func() {}, &varvev1.AddEndpointRequest{Name: "x", Netns: "/nowhere"}, connect.CodeInvalidArgument},
		"no name":             {func() {}, &varvev1.AddEndpointRequest{Netns: ownNetns}, connect.CodeInvalidArgument},
		"address in use":      {func() {}, &varvev1.AddEndpointRequest{Name: "x", Netns: ownNetns, Addresses: []string{"10.9.0.50"}}, connect.CodeAlreadyExists},
		"reserved address":    {func() {}, &varvev1.AddEndpointRequest{Name: "x", Netns: ownNetns, Addresses: []string{"240.0.0.1"}}, connect.CodeInvalidArgument},
		"two of one family":   {func() {}, &varvev1.AddEndpointRequest{Name: "x", Netns: ownNetns, Addresses: []string{"10.9.0.51", "10.9.0.52"}}, connect.CodeInvalidArgument},
		"no unicast address":  {func() {}, &varvev1.AddEndpointRequest{Name: "x", Netns: ownNetns, Addresses: []string{"224.0.0.1"}}, connect.CodeInvalidArgument},
		"machine refuses":     {func() { n.links.fail["ensure"] = errors.New("no room") }, request("x"), connect.CodeFailedPrecondition},
		"state refuses":       {func() {}, &varvev1.AddEndpointRequest{Name: "Not A Name", Netns: ownNetns}, connect.CodeFailedPrecondition},
		"port without number": {func() {}, &varvev1.AddEndpointRequest{Name: "x", Netns: ownNetns, NamedPorts: []*varvev1.NamedPort{{Name: "http"}}}, connect.CodeInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			tt.spoil()
			defer clear(n.links.fail)
			_, _, err := n.eps.Add(t.Context(), tester, tt.req)
			if connect.CodeOf(err) != tt.want {
				t.Errorf("got %v, want code %s", err, tt.want)
			}
			if len(n.links.have) != 1 || len(n.eps.bindings(n.log.View())) != 1 || len(n.eps.ipam.held) != 0 {
				t.Errorf("left behind: interfaces %v, held addresses %v", n.links.have, n.eps.ipam.held)
			}
		})
	}
}

func TestAddThatIsRecordedIsMendedNotUndone(t *testing.T) {
	n := newNode(t)
	n.links.fail["activate"] = errors.New("interrupted")
	ref, _, err := n.eps.Add(t.Context(), tester, request("web"))
	if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "add it again") {
		t.Fatalf("got %v", err)
	}
	if s := n.eps.State(ref); s == stateReady {
		t.Error("state is ready")
	}
	clear(n.links.fail)
	ep, created := n.add(t, request("web"))
	if created || !n.links.up[ep.HostInterface] || n.eps.State(ref) != stateReady {
		t.Errorf("created %t, state %s", created, n.eps.State(ref))
	}
}

func TestDelete(t *testing.T) {
	n := newNode(t)
	ep, _ := n.add(t, request("web"))
	for _, want := range []bool{true, false} {
		deleted, err := n.eps.Delete(t.Context(), tester, ep.Ref)
		if err != nil || deleted != want {
			t.Fatalf("deleted %t, %v; want %t", deleted, err, want)
		}
	}
	if len(n.links.have) != 0 || len(n.eps.bound) != 0 {
		t.Errorf("left behind: %v, %v", n.links.have, n.eps.bound)
	}
	again, created := n.add(t, request("web"))
	if !created || again.IPv4 == ep.IPv4 {
		t.Errorf("created %t with address %s, which should rest", created, again.IPv4)
	}
}

func TestSetLabels(t *testing.T) {
	n := newNode(t)
	ep, _ := n.add(t, request("web"))
	if err := n.eps.SetLabels(t.Context(), tester, ep.Ref, map[string]string{"tier": "front"}, []string{"app"}); err != nil {
		t.Fatal(err)
	}
	got, _ := n.log.View().Endpoint(ep.Ref)
	if d := cmp.Diff(map[string]string{"tier": "front"}, got.Labels); d != "" {
		t.Error(d)
	}
	head, _ := n.log.Head()
	if err := n.eps.SetLabels(t.Context(), tester, ep.Ref, map[string]string{"tier": "front"}, nil); err != nil {
		t.Fatal(err)
	}
	if now, _ := n.log.Head(); now != head {
		t.Error("a change of nothing made an event")
	}
	if err := n.eps.SetLabels(t.Context(), tester, ep.Ref, map[string]string{"a": "b"}, []string{"a"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("set and removed: %v", err)
	}
}

func TestAddsAtOnceGetTheirOwnAddresses(t *testing.T) {
	n := newNode(t)
	const count = 40
	var wg sync.WaitGroup
	errs := make([]error, count)
	for i := range count {
		wg.Go(func() { _, _, errs[i] = n.eps.Add(context.Background(), tester, request(fmt.Sprintf("e%d", i))) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for ep := range n.log.View().Endpoints() {
		seen[ep.IPv4.String()], seen[ep.IPv6.String()] = true, true
	}
	if len(seen) != 2*count {
		t.Errorf("%d addresses for %d endpoints", len(seen), count)
	}
}

func TestRecoverAfterACrash(t *testing.T) {
	n := newNode(t)
	whole, _ := n.add(t, request("whole"))
	lost, _ := n.add(t, request("lost"))
	// lost's interface went with the machine; vvstale was made, and its event never written.
	delete(n.links.have, lost.HostInterface)
	n.links.have["vvstale"] = 99
	n.links.have["eth7"] = 100 // not one of ours by name
	n.links.fail["ensure"] = errors.New("its container is gone")
	n.links.calls = nil
	n.restart()
	if err := n.eps.adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.eps.recover(t.Context())
	if n.eps.State(whole.Ref) != stateReady || !strings.Contains(n.eps.State(lost.Ref), "its container is gone") {
		t.Errorf("states: %q, %q", n.eps.State(whole.Ref), n.eps.State(lost.Ref))
	}
	if _, ok := n.links.have["vvstale"]; ok {
		t.Error("the stale interface is still there")
	}
	if _, ok := n.links.have["eth7"]; !ok {
		t.Error("an interface that is not ours was removed")
	}
	if slices.Contains(n.links.calls[:1], "ensure") {
		t.Error("an interface that is whole was made anew")
	}
}

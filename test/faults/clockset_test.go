//go:build guest

package faults

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/log/eventpb"
)

// setClock moves the machine's wall clock.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	to := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &to); err != nil {
		t.Fatal(err)
	}
}

// policyIs removes the policy of traffic, or applies it, and waits until a stranger sees
// that.
func (tr *traffic) policyIs(n *node, inForce bool, when string) {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), patience)
	defer cancel()
	var err error
	if inForce {
		_, err = n.client.Policies.Apply(ctx, connect.NewRequest(&varvev1.ApplyPolicyRequest{Manifest: guard}))
	} else {
		_, err = n.client.Policies.Delete(ctx, connect.NewRequest(&varvev1.DeletePolicyRequest{Ref: &eventpb.PolicyRef{
			Kind: eventpb.PolicyKind_CILIUM_NETWORK_POLICY, Namespace: "default", Name: "p",
		}}))
	}
	if err != nil {
		tr.t.Fatalf("%s: %v", when, err)
	}
	for ctx.Err() == nil {
		if err = tr.stranger.ExchangeTCP(tr.server, strangerTries); (err != nil) == inForce {
			return
		}
	}
	tr.t.Errorf("%s: policy in force is to be %t, and a stranger has %v", when, inForce, err)
}

// The machine's clock is set while an agent runs: whichever way it goes, appends are
// taken in order, traffic is judged as before and by new policies. Behind the log's time
// there is an alarm, which goes when the clock is right.
func TestClockSetUnderAnAgent(t *testing.T) {
	n := newNode(t)
	a := n.start()
	acked := n.appendMany("right", 3)
	tr := n.traffic()
	var set time.Duration
	defer func() { setClock(t, -set) }()
	for _, step := range []struct {
		name  string
		by    time.Duration
		alarm bool
	}{
		{"ahead", 5 * time.Hour, false},
		{"back", -7 * time.Hour, true},
		{"ahead-again", 4 * time.Hour, true}, // behind the log's time still
		{"right", 4 * time.Hour, false},
	} {
		setClock(t, step.by)
		set += step.by
		maps.Copy(acked, n.appendMany(step.name, 3))
		if err := n.holds(acked); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		tr.goesOn(step.name)
		tr.policyIs(n, false, step.name)
		tr.policyIs(n, true, step.name)
		tr.goesOn(step.name)
		told := "by=" + step.by.String()
		for deadline := time.Now().Add(patience); !strings.Contains(a.log(), told) && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if !strings.Contains(a.log(), told) {
			t.Errorf("%s: the agent's log does not say %s:\n%s", step.name, told, a.log())
		}
		c := n.check("clock")
		if c.Ok == step.alarm || step.alarm && !strings.Contains(c.Message, "set the clock right") {
			t.Errorf("%s: the check says ok=%v, %q", step.name, c.Ok, c.Message)
		}
	}
	for _, said := range []string{"the clock is behind the log's time", "the clock has caught up with the log's time"} {
		if got := strings.Count(a.log(), said); got != 1 {
			t.Errorf("the agent's log says %q %d times, want once:\n%s", said, got, a.log())
		}
	}
	all := n.times()
	for i := range all[1:] {
		if all[i+1] < all[i] {
			t.Errorf("revision %d goes back in time", i+2)
		}
	}
	// An agent that starts with the clock hours behind.
	n.stop(a)
	setClock(t, -9*time.Hour)
	set -= 9 * time.Hour
	n.start()
	maps.Copy(acked, n.appendMany("started-behind", 3))
	if err := n.holds(acked); err != nil {
		t.Error(err)
	}
	tr.goesOn("started behind")
	if c := n.check("clock"); c.Ok {
		t.Errorf("started behind: the check says %q", c.Message)
	}
}

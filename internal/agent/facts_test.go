package agent

import (
	"context"
	"testing"

	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// late lets the first append be overtaken: somebody else's fact takes its number.
type late struct {
	log.Appender
	overtake func()
	calls    int
}

func (l *late) Append(ctx context.Context, events ...*eventpb.Event) ([]log.Result, error) {
	if l.calls++; l.calls == 1 {
		l.overtake()
	}
	return l.Appender.Append(ctx, events...)
}

func TestFactWhoseNumberIsTakenGetsTheNext(t *testing.T) {
	n := newNode(t)
	other := &facts{log: n.log, view: n.log.View, cluster: n.cfg.Cluster, node: n.cfg.Node}
	l := &late{Appender: n.log, overtake: func() {
		if _, err := other.append(t.Context(), tester, joined("192.0.2.7")); err != nil {
			t.Error(err)
		}
	}}
	n.facts.log = l
	rev, err := n.facts.append(t.Context(), tester, joined("192.0.2.8"))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := n.log.View().Node(n.cfg.Node)
	if l.calls != 2 || got.Revision != rev || got.Addresses[0].String() != "192.0.2.8" || got.JournalSeq != 3 {
		t.Errorf("%d appends, node %+v", l.calls, got)
	}
}

func TestAnnounceIsSilentWhenNothingChanged(t *testing.T) {
	n := newNode(t)
	head, _ := n.log.Head()
	if err := announce(t.Context(), n.cfg, n.facts); err != nil {
		t.Fatal(err)
	}
	if now, _ := n.log.Head(); now != head {
		t.Errorf("head moved from %d to %d", head, now)
	}
	n.cfg.KubeAPIServer = true
	if err := announce(t.Context(), n.cfg, n.facts); err != nil {
		t.Fatal(err)
	}
	if now, _ := n.log.Head(); now != head+1 {
		t.Errorf("head is %d, want %d", now, head+1)
	}
}

func joined(addr string) *eventpb.Event {
	return &eventpb.Event{Payload: &eventpb.Event_NodeJoined{NodeJoined: &eventpb.NodeJoined{
		Name: "n1", Addresses: [][]byte{{192, 0, 2, addr[len(addr)-1] - '0'}}, EndpointCidrs: []string{"10.9.0.0/24"},
	}}}
}

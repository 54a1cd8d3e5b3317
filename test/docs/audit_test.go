package docs

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

var database = netip.MustParseAddrPort("10.244.0.6:5432")

// incident is what happens between the commands of docs/audit.md.
var incident = map[string]func(*stage){
	"pods": func(s *stage) {
		s.start()
		s.add("web", "10.244.0.5", map[string]string{"app": "web"})
		s.add("db", database.Addr().String(), map[string]string{"app": "db"}, &varvev1.NamedPort{Name: "postgres", Protocol: "TCP", Port: uint32(database.Port())})
		echo, err := s.pods["db"].EchoTCP(database)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = echo.Close() })
	},
	"traffic": func(s *stage) {
		for range 3 {
			s.eventually("web reaches db", func() error { return s.pods["web"].ExchangeTCP(database, limit) })
		}
		s.divided = s.seen("FORWARDED", 3) > 1
	},
	"relabel": func(s *stage) {
		_, err := s.client.Endpoints.SetLabels(s.t.Context(), connect.NewRequest(&varvev1.SetEndpointLabelsRequest{Namespace: "shop", Name: "web", Set: map[string]string{"app": "web-v2"}}))
		if err != nil {
			s.t.Fatal(err)
		}
		if err := s.pods["web"].ExchangeTCP(database, 300*time.Millisecond); err == nil {
			s.t.Fatal("web still reaches db")
		}
		s.seen("DROPPED", 1)
	},
	"replace": func(s *stage) {
		if _, err := s.client.Endpoints.Delete(s.t.Context(), connect.NewRequest(&varvev1.DeleteEndpointRequest{Namespace: "shop", Name: "web"})); err != nil {
			s.t.Fatal(err)
		}
		s.add("worker", "10.244.0.5", map[string]string{"app": "worker"})
	},
	"crash": func(s *stage) {
		s.written()
		_ = s.agent.Process.Kill()
		_ = s.agent.Wait()
		// Now: the next agent adds to the record that nothing happens.
		if err := os.CopyFS(filepath.Join(s.dir, "flows"), os.DirFS(filepath.Join(s.dir, "state", "flows"))); err != nil {
			s.t.Fatal(err)
		}
		s.start()
	},
}

// seen waits until the flow record has seen a verdict some times, and returns in how
// many parts: a flow has one in each block.
func (s *stage) seen(verdict string, times uint64) (parts int) {
	s.t.Helper()
	s.eventually("flows "+verdict, func() error {
		stream, err := s.client.Flows.Observe(s.t.Context(), connect.NewRequest(&varvev1.ObserveRequest{Filter: &varvev1.FlowFilter{Verdicts: []string{verdict}}}))
		if err != nil {
			return err
		}
		defer stream.Close()
		var n uint64
		parts = 0
		for stream.Receive() {
			if f := stream.Msg().GetFlow(); f != nil {
				n += f.GetCount()
				parts++
			}
		}
		if n < times {
			return fmt.Errorf("seen %d times, want %d", n, times)
		}
		return stream.Err()
	})
	return parts
}

// written waits until the flow record has written what it has seen until now: a
// killed agent loses the last seconds.
func (s *stage) written() {
	s.t.Helper()
	size := func() (uint64, error) {
		st, err := s.client.Agent.Status(s.t.Context(), connect.NewRequest(&varvev1.StatusRequest{}))
		if err != nil {
			return 0, err
		}
		return st.Msg.GetFlows().GetBytes(), nil
	}
	before, err := size()
	if err != nil {
		s.t.Fatal(err)
	}
	s.eventually("a block of flows is written", func() error {
		now, err := size()
		if err == nil && now <= before {
			err = fmt.Errorf("%d bytes, as before", now)
		}
		return err
	})
}

func TestTheIncidentOfTheDocument(t *testing.T) {
	doc := read(t, "audit.md")
	for range 10 {
		s := newStage(t)
		got := s.play(doc, incident)
		if !s.divided {
			hold(t, "audit.md", got)
			return
		}
		// The agent writes what it has seen every few seconds, and the document shows
		// flows that were seen within one of these times.
		t.Log("the agent wrote a block amid the traffic: once more")
	}
	t.Fatal("the traffic never fell into one block")
}

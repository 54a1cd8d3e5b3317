package dns

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testns"
)

// A server that lies opens nothing, and one that is slow or dead holds nobody.
func TestBadServers(t *testing.T) {
	t.Parallel()
	w := newTown(t, "--tofqdns-dns-reject-response-code", "nameError")
	type result struct{ code, out string }
	dead := make(chan result, 1)
	go func() {
		out, err := w.client.Output(context.Background(), "dig", "-r", "+tries=1", "+time=60", "@"+outsideAddr[0].String(), "dead.domain.com", "A")
		code := fmt.Sprint(err)
		if m := statusRE.FindStringSubmatch(out); m != nil {
			code = m[1]
		}
		dead <- result{code, out}
	}()
	w.rejected(w.client, outsideAddr[0], "n1.example.com", "NXDOMAIN")

	// An answer with another id is none, even if it comes first.
	w.resolves(w.client, outsideAddr[0], "liar.domain.com", site(303))
	w.reaches(w.client, site(303)[0])
	w.dropped(w.client, site(304)[0])

	// Records of other names open nothing, in the answer or beside it.
	w.resolves(w.client, outsideAddr[1], "extra.domain.com", site(305))
	for i, a := range site(305) {
		w.reaches(w.client, a)
		w.dropped(w.client, site(306)[i])
		w.dropped(w.client, site(307)[i])
	}

	// A loop ends, with no address.
	if code, got, out := w.dig(w.client, outsideAddr[0], "loop.domain.com", "A"); len(got) > 0 {
		t.Fatalf("a loop: %s\n%s", code, out)
	}
	w.resolves(w.client, outsideAddr[0], "slow.domain.com", site(308))
	w.reaches(w.client, site(308)[0])

	// Nobody listens there: the answer is no later than the kernel's word.
	for _, a := range unboundAddr {
		w.rejected(w.client, a, "n1.domain.com", "SERVFAIL")
	}
	if r := <-dead; r.code != "SERVFAIL" {
		t.Fatalf("a server that does not answer: want SERVFAIL:\n%s", r.out)
	}
	w.equal()
}

// After the TTL no new connection is made, and one that lives goes on.
func TestExpiry(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	to := site(301)
	for i, a := range to {
		conn := w.opens(w.client, w.kubeDNS.addr[i], a)
		defer conn.Close()
		goesOn := func() {
			t.Helper()
			if err := testns.RoundTrip(conn, "still here", limit); err != nil {
				t.Fatal(err)
			}
		}
		goesOn()
		w.eventually("the address closes after its TTL", func(context.Context) error { return closed(w.client, a) })
		goesOn()
		w.apply("client.yaml", "443", fmt.Sprintf("44%d", 4+i), "8080", "443")
		w.dropped(w.client, a)
		goesOn()
		again := w.opens(w.client, w.kubeDNS.addr[i], a)
		if err := errors.Join(testns.RoundTrip(again, "open again", limit), again.Close()); err != nil {
			t.Fatal(err)
		}
		w.apply("client.yaml")
		goesOn()
	}
}

// observed counts the observations of each name in the log.
func (s *stage) observed(ctx context.Context) (map[string]int, error) {
	stream, err := s.client.Log.Read(ctx, connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	names := map[string]int{}
	for stream.Receive() {
		if o := stream.Msg().GetEvent().GetDnsObserved(); o != nil {
			for _, a := range o.Addresses {
				names[fmt.Sprintf("%s %s %x", o.Ref.GetName(), o.Name, a.Address)]++
			}
		}
	}
	return names, stream.Err()
}

// Whatever process dies, names resolve and addresses open; afterwards the log has
// each observation once.
func TestDeaths(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	server := w.kubeDNS.addr
	asked := 0
	ask := func(numbers ...int) {
		t.Helper()
		for _, number := range numbers {
			w.resolves(w.client, server[number%2], fmt.Sprintf("n%d.domain.com", number), site(number))
			asked = max(asked, number)
			for _, a := range site(number) {
				w.reaches(w.client, a)
			}
		}
		w.rejected(w.client, server[0], "n1.example.com", "REFUSED")
		w.dropped(w.client, site(299)[0])
		w.dropped(w.other, site(1)[0])
	}
	ask(1, 2)
	w.proxyPID()
	w.agent.Kill()
	ask(1, 2, 3, 4)
	w.killProxy()
	w.startProxy()
	ask(1, 3, 5, 6)
	w.start()
	w.eventually("the log has every observation", func(ctx context.Context) error {
		got, err := w.observed(ctx)
		if err == nil && len(got) < 2*asked {
			err = fmt.Errorf("%d addresses of %d", len(got), 2*asked)
		}
		return err
	})
	w.equal()
	// The agent starts a proxy in place of one that dies, and that one knows all.
	pid := w.proxyPID()
	w.killProxy()
	w.eventually("another proxy", func(ctx context.Context) error {
		st, err := w.proxy.Status(ctx)
		if err == nil && st.PID == pid {
			err = fmt.Errorf("process %d answers", pid)
		}
		return err
	})
	ask(6, 7, 8)
	w.eventually("the log has every observation", func(ctx context.Context) error {
		got, err := w.observed(ctx)
		if err == nil && len(got) != 2*asked {
			err = fmt.Errorf("%d addresses of %d", len(got), 2*asked)
		}
		return err
	})
	got, err := w.observed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for what, times := range got {
		if times != 1 {
			t.Errorf("%s: observed %d times", what, times)
		}
	}
	w.equal()
}

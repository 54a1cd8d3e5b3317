package dns

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/internal/testns"
)

var soakFull = flag.Bool("soak.full", false, "soak the DNS proxy for a minute with 50 endpoints, 10,000 names and 2,000 questions a second")

// soakSize is how much a soak asks of the proxy.
type soakSize struct {
	lasts     time.Duration
	endpoints int
	names     int
	rate      int           // questions a second, of all endpoints
	kills     time.Duration // between two deaths
	// try is how long a client waits before it asks again, once: longer than a proxy,
	// which may have died, takes to be there again.
	try time.Duration
}

func size() soakSize {
	if *soakFull {
		return soakSize{time.Minute, 50, 10_000, 2000, 4 * time.Second, 5 * time.Second} // as resolv.conf(5)
	}
	return soakSize{7 * time.Second, 6, 600, 200, 2 * time.Second, 15 * time.Second}
}

const (
	// soakShort is the time to live of every tenth name, in which a client has to have
	// connected, however busy the machine is; the others outlive the test.
	soakShort = 5
	// soakOutstanding bounds the questions of one endpoint that wait for an answer.
	soakOutstanding = 400
)

// Many clients ask for many names and use at once what they are told, while agent and
// proxy die again and again: nobody reaches what it was not told, no answer is lost that
// asking once more does not bring, and what was told is open to the very first packet.
func TestSoak(t *testing.T) {
	t.Parallel()
	k := newSoak(t, size())
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i := range k.pods {
		load.Go(func() { k.ask(i, stop) })
	}
	deaths := k.kill(k.lasts)
	close(stop)
	load.Wait()
	k.waiting.Wait()
	k.report(deaths)
	k.settle()
	for _, p := range k.problems {
		t.Error(p)
	}
}

// soak is a town whose clients are many.
type soak struct {
	*stage
	soakSize
	pods    []*client
	waiting sync.WaitGroup

	refusedUpstream atomic.Int64 // names that no rule allows and that reached the server

	mu       sync.Mutex
	problems []string
	asked    int
	again    map[string]int // questions that were asked once more, by what came of the first
	held     int            // not asked, since too many waited already
	packets  int            // first packets
	resent   int            // of which TCP sent again
	refused  int
	strayed  int // packets to what an endpoint was never told
	took     []time.Duration
	told     map[string]bool // "endpoint name address", of names that last
}

func newSoak(t *testing.T, size soakSize) *soak {
	t.Helper()
	k := &soak{stage: newStage(t), soakSize: size, told: map[string]bool{}, again: map[string]int{}}
	k.ip(k.node, "route add 198.18.0.0/15 via 198.51.100.2")
	k.ip(k.outside, "route add local 198.18.0.0/15 dev lo")
	k.serve(k.outside, outsideAddr[0], k.answer)
	k.apply("client.yaml")
	for i := range size.endpoints {
		k.pods = append(k.pods, newClient(k.stage, k.add(fmt.Sprintf("default/client-%d", i), "app", "client")))
	}
	k.inForce()
	return k
}

// client is a pod that opens many sockets: a few threads stay in its namespace, since
// to enter it anew for each costs more than all else.
type client struct {
	*pod
	work chan func()
	ctx  context.Context
}

const clientThreads = 3

func newClient(s *stage, p *pod) *client {
	c := &client{p, make(chan func()), s.t.Context()}
	var threads sync.WaitGroup
	for range clientThreads {
		threads.Go(func() {
			_ = p.Do(func() error {
				for {
					select {
					case <-c.ctx.Done():
						return nil
					case fn := <-c.work:
						fn()
					}
				}
			})
		})
	}
	s.t.Cleanup(threads.Wait)
	return c
}

func (c *client) dial(network string, to netip.AddrPort) (conn net.Conn, err error) {
	done := make(chan struct{})
	dial := func() {
		defer close(done)
		d := net.Dialer{Timeout: limit}
		conn, err = d.DialContext(c.ctx, network, to.String())
	}
	select {
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	case c.work <- dial:
		<-done
		return conn, err
	}
}

// exchange sends a datagram and waits for it to come back.
func (c *client) exchange(to netip.AddrPort, timeout time.Duration) error {
	conn, err := c.dial("udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	return testns.RoundTrip(conn, "hello from "+c.ref, timeout)
}

// soakSite is the addresses of a name.
func soakSite(number int) addrs {
	return pair(fmt.Sprintf("198.18.%d.%d", number>>8, number&0xff), fmt.Sprintf("2001:db8:113::2:%x", number))
}

func soakTTL(number int) uint32 {
	if number%10 == 0 {
		return soakShort
	}
	return ttl
}

// answer is what the server outside says: name N is sN.domain.com.
func (k *soak) answer(w dns.ResponseWriter, m *dns.Msg) {
	r := new(dns.Msg).SetReply(m)
	name := strings.ToLower(m.Question[0].Name)
	host, domain, _ := strings.Cut(name, ".")
	number, err := strconv.Atoi(strings.TrimPrefix(host, "s"))
	if err != nil || domain != "domain.com." {
		k.refusedUpstream.Add(1)
		r.Rcode = dns.RcodeNameError
	} else if rr := record(m.Question[0].Name, m.Question[0].Qtype, soakSite(number), soakTTL(number)); rr != nil {
		r.Answer = append(r.Answer, rr)
	}
	_ = w.WriteMsg(r)
}

// ask lets a pod ask at its share of the rate. Every fiftieth question is for a name that
// no rule allows, and as often a packet goes to an address that only others were told.
func (k *soak) ask(pod int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(pod), 5))
	every := time.Second * time.Duration(k.endpoints) / time.Duration(k.rate)
	slots := make(chan struct{}, soakOutstanding)
	begin := func(fn func()) {
		select {
		case slots <- struct{}{}:
		default:
			k.note(func() { k.held++ })
			return
		}
		k.waiting.Go(func() {
			defer func() { <-slots }()
			fn()
		})
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-k.t.Context().Done():
			return
		case <-t.C:
		}
		number, family := k.draw(r, pod), r.IntN(2)
		switch r.IntN(50) {
		case 0:
			begin(func() { k.forbidden(pod, number) })
		case 1:
			// A pod never asks for the names whose numbers leave its own.
			never := number - number%k.endpoints + pod
			begin(func() { k.stray(pod, soakSite(never)[family]) })
		default:
			begin(func() { k.visit(pod, number, family) })
		}
	}
}

// draw is a name to ask for: half of them are from few that a pod likes.
func (k *soak) draw(r *rand.Rand, pod int) int {
	for {
		number := r.IntN(k.names)
		if r.IntN(2) == 0 {
			number = (pod*k.names/k.endpoints + r.IntN(k.names/50)) % k.names
		}
		if number%k.endpoints != pod {
			return number
		}
	}
}

func (k *soak) note(fn func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fn()
}

func (k *soak) wrong(format string, args ...any) {
	k.note(func() {
		if len(k.problems) < 50 {
			k.problems = append(k.problems, fmt.Sprintf(format, args...))
		}
	})
}

// visit asks for a name and connects to what it is told.
func (k *soak) visit(pod, number, family int) {
	name := fmt.Sprintf("s%d.domain.com.", number)
	kind := []uint16{dns.TypeA, dns.TypeAAAA}[family]
	r, ok := k.question(pod, name, kind)
	if !ok {
		return
	}
	want := soakSite(number)[family]
	if got := addressesOf(r); r.Rcode != dns.RcodeSuccess || !slices.Equal(got, []netip.Addr{want}) {
		k.wrong("%s asks for %s: %s %v, want %s", k.pods[pod].ref, name, dns.RcodeToString[r.Rcode], got, want)
		return
	}
	if soakTTL(number) == ttl {
		k.note(func() { k.told[fmt.Sprintf("client-%d %s %x", pod, name, want.AsSlice())] = true })
	}
	k.first(pod, name, want, soakTTL(number) != ttl || number%4 == 1)
}

// question asks the server outside, and once more if no answer comes.
func (k *soak) question(pod int, name string, kind uint16) (*dns.Msg, bool) {
	began := time.Now()
	var last string
	for try := range 2 {
		if try > 0 {
			k.note(func() { k.again[last]++ })
		}
		r, err := k.exchange(pod, name, kind)
		switch {
		case isTimeout(err):
			last = "timeout"
		case err != nil:
			last = err.Error()
		case r.Rcode == dns.RcodeServerFailure:
			last = "SERVFAIL"
		default:
			k.note(func() {
				k.asked++
				k.took = append(k.took, time.Since(began))
			})
			return r, true
		}
	}
	k.wrong("%s asks for %s twice: %s", k.pods[pod].ref, name, last)
	return nil, false
}

func (k *soak) exchange(pod int, name string, kind uint16) (*dns.Msg, error) {
	c, err := k.pods[pod].dial("udp", netip.AddrPortFrom(outsideAddr[0], 53))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(k.try)); err != nil {
		return nil, err
	}
	m := new(dns.Msg).SetQuestion(name, kind)
	conn := dns.Conn{Conn: c}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		// What is late for a question that had the port before is no answer.
		if r, err := conn.ReadMsg(); err != nil || r.Id == m.Id {
			return r, err
		}
	}
}

func addressesOf(r *dns.Msg) (out []netip.Addr) {
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A.To4())
			out = append(out, a)
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			out = append(out, a)
		}
	}
	return out
}

// first sends one packet to an address that was just told. A datagram is not sent again,
// of TCP the kernel says whether it was.
func (k *soak) first(pod int, name string, to netip.Addr, tcp bool) {
	k.note(func() { k.packets++ })
	if !tcp {
		if err := k.pods[pod].exchange(addrPort(to), limit); err != nil {
			k.wrong("%s, first datagram to %s of %s: %v", k.pods[pod].ref, to, name, err)
		}
		return
	}
	c, err := k.pods[pod].dial("tcp", addrPort(to))
	if err != nil {
		k.wrong("%s, connection to %s of %s: %v", k.pods[pod].ref, to, name, err)
		return
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Total_retrans > 0 {
				k.note(func() { k.resent++ })
			}
		})
	}
	if err == nil {
		err = testns.RoundTrip(c, "hello", limit)
	}
	if err != nil {
		k.wrong("%s, connection to %s of %s: %v", k.pods[pod].ref, to, name, err)
	}
}

// forbidden asks for a name that no rule allows.
func (k *soak) forbidden(pod, number int) {
	name := fmt.Sprintf("s%d.example.com.", number)
	if r, ok := k.question(pod, name, dns.TypeA); ok && (r.Rcode != dns.RcodeRefused || len(r.Answer) > 0) {
		k.wrong("%s asks for %s: %s, want REFUSED", k.pods[pod].ref, name, dns.RcodeToString[r.Rcode])
	}
	k.note(func() { k.refused++ })
}

// stray sends a datagram where it must not arrive.
func (k *soak) stray(pod int, to netip.Addr) {
	if err := k.pods[pod].exchange(addrPort(to), 2*time.Second); !isTimeout(err) {
		k.wrong("%s to %s, which it was never told: want it dropped in silence, got %v", k.pods[pod].ref, to, err)
	}
	k.note(func() { k.strayed++ })
}

// deaths counts the processes that were killed.
type deaths struct{ agents, proxies int }

// kill kills agent, proxy, agent, both, in turn and for some time, and leaves both alive. No
// question meets two deaths of a proxy: in the long form there is more time between them
// than a client waits before it asks again, in the short one there is one death.
func (k *soak) kill(lasts time.Duration) (n deaths) {
	k.t.Helper()
	end := time.Now().Add(lasts)
	for turn := 0; time.Now().Before(end) || n.agents == 0 || n.proxies == 0; turn++ {
		<-time.After(k.kills)
		if turn%2 != 0 {
			k.killProxy()
			n.proxies++
		}
		if turn%4 != 1 {
			k.agent.Kill()
			k.launch()
			n.agents++
		}
		k.eventually("agent and proxy answer", func(ctx context.Context) error {
			_, err := k.status(ctx, false)
			_, perr := k.proxy.Status(ctx)
			return errors.Join(err, perr)
		})
	}
	return n
}

// settle waits until the log has all that was told, each once, and nothing is left of
// what has expired.
func (k *soak) settle() {
	k.t.Helper()
	var seen map[string]int
	k.eventually("the log has every observation", func(ctx context.Context) (err error) {
		if seen, err = k.observed(ctx); err != nil {
			return err
		}
		missing := 0
		for what := range k.told {
			if seen[what] == 0 {
				missing++
			}
		}
		if missing > 0 {
			err = fmt.Errorf("%d of %d are missing", missing, len(k.told))
		}
		return err
	})
	for what := range k.told {
		if seen[what] != 1 {
			k.wrong("%s: observed %d times", what, seen[what])
		}
	}
	k.factsOnce()
	k.dropsCounted()
	k.eventually("what has expired is collected", func(ctx context.Context) error {
		names, err := k.client.FQDN.ListNames(ctx, connect.NewRequest(&varvev1.ListNamesRequest{}))
		if err != nil {
			return err
		}
		expired, now := 0, time.Now().UnixNano()
		for _, n := range names.Msg.Names {
			for _, a := range n.Addresses {
				if a.ExpiresUnixNs < now {
					expired++
				}
			}
		}
		if expired > 0 {
			return fmt.Errorf("%d addresses are still known", expired)
		}
		return nil
	})
	k.equal()
}

// dropsCounted wants the programs to have dropped what went where nobody was told of, and
// not one packet more, by policy.
func (k *soak) dropsCounted() {
	k.t.Helper()
	r, err := k.client.Datapath.Counters(k.t.Context(), connect.NewRequest(&varvev1.CountersRequest{}))
	if err != nil {
		k.t.Fatal(err)
	}
	var dropped uint64
	for _, c := range r.Msg.Counters {
		if strings.HasPrefix(c.Reason, "policy") {
			dropped += c.Packets
		}
	}
	if dropped != uint64(k.strayed) {
		k.wrong("policy dropped %d packets, %d went where they must not", dropped, k.strayed)
	}
}

// factsOnce wants no fact of the proxy in the log twice.
func (k *soak) factsOnce() {
	k.t.Helper()
	stream, err := k.client.Log.Read(k.t.Context(), connect.NewRequest(&varvev1.ReadRequest{}))
	if err != nil {
		k.t.Fatal(err)
	}
	defer stream.Close()
	facts := map[uint64]bool{}
	for stream.Receive() {
		r := stream.Msg()
		if e := r.GetEvent(); r.Outcome == varvev1.Outcome_OUTCOME_APPLIED && (e.GetDnsObserved() != nil || e.GetDnsCollected() != nil) {
			if facts[e.JournalSeq] {
				k.wrong("fact %d of the proxy is in the log twice", e.JournalSeq)
			}
			facts[e.JournalSeq] = true
		}
	}
	if err := stream.Err(); err != nil {
		k.t.Fatal(err)
	}
}

func (k *soak) report(d deaths) {
	k.t.Helper()
	slices.Sort(k.took)
	if len(k.took) == 0 {
		k.t.Fatal("no question was answered")
	}
	at := func(q float64) time.Duration {
		return k.took[int(q*float64(len(k.took)-1))].Round(time.Microsecond)
	}
	k.t.Logf("%d questions answered, %.0f a second; asked once more %v, %d held back; p50 %s, p99 %s, longest %s; killed %d agents, %d proxies",
		k.asked, float64(k.asked)/k.lasts.Seconds(), k.again, k.held, at(0.5), at(0.99), at(1), d.agents, d.proxies)
	k.t.Logf("%d first packets, %d sent again by TCP; %d names refused, %d packets dropped; %d observations that last", k.packets, k.resent, k.refused, k.strayed, len(k.told))
	if n := k.refusedUpstream.Load(); n > 0 {
		k.wrong("%d questions that no rule allows reached the server", n)
	}
	if d.agents == 0 || d.proxies == 0 || k.refused == 0 || k.strayed == 0 {
		k.wrong("too short to prove anything: %+v, %d refused, %d strayed", d, k.refused, k.strayed)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// DNSLoad is what one process that asks measured.
type DNSLoad struct {
	Queries    int     `json:"queries"` // answered in the time that counts
	Seconds    float64 `json:"seconds"`
	All        int     `json:"all"`  // answered, warm-up included
	Lost       int     `json:"lost"` // not answered in time, or with SERVFAIL
	MeanMicros float64 `json:"mean_us"`
	P99Micros  float64 `json:"p99_us"`
}

// dnsPatience is after how long a question is lost and another is asked.
const dnsPatience = 2 * time.Second

// maxOutstanding: the id of a question is its lane and how often the lane has asked.
const maxOutstanding = 256

// dnsLoadCommand asks a server for one name after another.
func dnsLoadCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("dns-load", flag.ContinueOnError)
	fs.SetOutput(stderr)
	to := fs.String("to", "", "the server's address; its port is 53")
	outstanding := fs.Int("outstanding", 1, "questions under way")
	prefix := fs.String("prefix", "", "what all names begin with")
	names := fs.Int("names", 0, "how many names there are, before they begin anew; 0: each is asked for once")
	once := fs.Bool("once", false, "ask for each of the names once, and measure nothing")
	seconds := fs.Float64("seconds", 2, "how long to measure")
	if err := fs.Parse(args); err != nil {
		return err
	}
	addr, err := netip.ParseAddr(*to)
	if err != nil {
		return fmt.Errorf("-to: %w", err)
	}
	if *outstanding < 1 || *outstanding > maxOutstanding {
		return fmt.Errorf("-outstanding: %d; give 1 to %d", *outstanding, maxOutstanding)
	}
	runtime.LockOSThread()
	fd, err := dial(unix.SOCK_DGRAM, &unix.SockaddrInet4{Port: 53, Addr: addr.As4()})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	a := &asker{fd: fd, lanes: make([]dnsLane, *outstanding), prefix: *prefix, names: *names, in: newDatagrams(), out: newDatagrams()}
	if *once {
		a.last = *names
	}
	load, err := a.run(time.Duration(*seconds * float64(time.Second)))
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(load)
}

// asker keeps a number of questions under way, on one socket and one thread.
type asker struct {
	fd     int
	lanes  []dnsLane
	prefix string
	names  int
	last   int // stop after so many; 0: when time is up
	next   int // number of the next name
	lost   int

	in, out *datagrams
	waiting int // of out
}

// dnsLane is one question under way after the other.
type dnsLane struct {
	asked time.Time // zero: the lane rests
	turn  uint8
	query []byte
}

func (a *asker) run(length time.Duration) (DNSLoad, error) {
	began := time.Now()
	for i := range a.lanes {
		if err := a.ask(i, began); err != nil {
			return DNSLoad{}, err
		}
	}
	if err := a.flush(); err != nil {
		return DNSLoad{}, err
	}
	var out DNSLoad
	var micros []float64
	from, checked := began.Add(warmup), began
	for {
		n, err := a.in.receive(a.fd, true)
		if err != nil {
			return DNSLoad{}, err
		}
		now := time.Now()
		for i := range n {
			lane, err := a.answered(a.in.at(i))
			if err != nil {
				return DNSLoad{}, err
			}
			if lane < 0 {
				continue
			}
			if failed := a.in.at(i)[3]&0xf == 2; failed {
				a.lost++
			} else if out.All++; now.After(from) {
				micros = append(micros, float64(now.Sub(a.lanes[lane].asked).Nanoseconds())/1e3)
			}
			if err := a.ask(lane, now); err != nil {
				return DNSLoad{}, err
			}
		}
		if now.Sub(checked) > dnsPatience/4 {
			checked = now
			if err := a.giveUp(now); err != nil {
				return DNSLoad{}, err
			}
		}
		if err := a.flush(); err != nil {
			return DNSLoad{}, err
		}
		if a.last > 0 && out.All+a.lost >= a.last || a.last == 0 && now.Sub(from) >= length {
			out.Queries, out.Seconds, out.Lost = len(micros), now.Sub(from).Seconds(), a.lost
			out.MeanMicros, out.P99Micros = mean(micros), quantile(micros, 0.99)
			return out, nil
		}
	}
}

// ask asks for the next name.
func (a *asker) ask(lane int, now time.Time) error {
	l := &a.lanes[lane]
	if a.last > 0 && a.next >= a.last {
		l.asked = time.Time{}
		return nil
	}
	number := a.next
	if a.next++; a.names > 0 {
		number %= a.names
	}
	l.turn++
	l.asked = now
	l.query = appendQuestion(l.query[:0], uint16(l.turn)<<8|uint16(lane), dnsName(a.prefix, number))
	a.out.put(a.waiting, append(a.out.data[a.waiting][:0], l.query...))
	if a.waiting++; a.waiting == dnsBatch {
		return a.flush()
	}
	return nil
}

func (a *asker) flush() error {
	n := a.waiting
	a.waiting = 0
	return a.out.send(a.fd, n)
}

// answered is the lane that an answer is for; -1: it came too late. An answer without
// an address, or to another question, is an error unless it is SERVFAIL, by which who
// is too busy says so: nothing here is to be refused.
func (a *asker) answered(msg []byte) (lane int, err error) {
	end := questionEnd(msg)
	if end == 0 {
		return 0, fmt.Errorf("no answer: %x", msg)
	}
	id := binary.BigEndian.Uint16(msg)
	lane = int(id & 0xff)
	if lane >= len(a.lanes) {
		return 0, fmt.Errorf("an answer to nothing: %x", msg)
	}
	l := &a.lanes[lane]
	if l.asked.IsZero() || l.turn != uint8(id>>8) {
		return -1, nil
	}
	if rcode := msg[3] & 0xf; rcode != 2 && (rcode != 0 || binary.BigEndian.Uint16(msg[6:]) == 0) || !bytes.Equal(msg[dnsHeader:end], l.query[dnsHeader:]) {
		return 0, fmt.Errorf("asked %x, got %x", l.query, msg)
	}
	return lane, nil
}

// giveUp asks something else on lanes that wait in vain.
func (a *asker) giveUp(now time.Time) error {
	for i := range a.lanes {
		if l := &a.lanes[i]; !l.asked.IsZero() && now.Sub(l.asked) > dnsPatience {
			a.lost++
			if err := a.ask(i, now); err != nil {
				return err
			}
		}
	}
	return nil
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(len(v), 1))
}

// dnsServerCommand is the upstream of all forwarders.
func dnsServerCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("dns-server", flag.ContinueOnError)
	fs.SetOutput(stderr)
	if err := fs.Parse(args); err != nil {
		return err
	}
	runtime.LockOSThread()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 53}); err != nil {
		return err
	}
	fmt.Fprintln(stdout, readyLine)
	in, out := newDatagrams(), newDatagrams()
	for {
		n, err := in.receive(fd, false)
		if err != nil {
			return err
		}
		answers := 0
		for i := range n {
			b := appendDNSAnswer(out.data[answers][:0], in.at(i))
			if len(b) == 0 {
				continue
			}
			out.put(answers, b)
			out.address(answers, in, i)
			answers++
		}
		if err := out.send(fd, answers); err != nil {
			return err
		}
	}
}

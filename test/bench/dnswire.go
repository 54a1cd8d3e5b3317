package main

import (
	"encoding/binary"
	"hash/fnv"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Just enough of DNS messages for a load that costs little beside what it measures.

const (
	dnsHeader   = 12
	dnsDatagram = 1232 // bytes that anybody here sends at most
	dnsBatch    = 32   // datagrams of one system call
)

// appendQuestion writes a query for the A record of a name with a final dot.
func appendQuestion(b []byte, id uint16, name string) []byte {
	b = binary.BigEndian.AppendUint16(b, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired, one question
	for label := 0; label < len(name); {
		end := label
		for name[end] != '.' {
			end++
		}
		b = append(append(b, byte(end-label)), name[label:end]...)
		label = end + 1
	}
	return append(b, 0, 0, 1, 0, 1)
}

// questionEnd is the offset behind the one question of a message; 0: there is none.
func questionEnd(msg []byte) int {
	if len(msg) < dnsHeader || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return 0
	}
	at := dnsHeader
	for at < len(msg) && msg[at] != 0 {
		at += int(msg[at]) + 1
	}
	if at += 5; at > len(msg) {
		return 0
	}
	return at
}

// Of what the upstream answers: known names last, new ones are soon forgotten, so
// that rounds do not pile up.
const (
	knownTTL = 300 * time.Second
	newTTL   = 10 * time.Second
)

// newPrefix is what the names begin with that are asked for once.
const newPrefix = 'n'

// appendDNSAnswer makes the answer to a query: one address of 198.18.0.0/15 (RFC 2544),
// another one for another name. It returns nothing for what is no query.
func appendDNSAnswer(b, query []byte) []byte {
	end := questionEnd(query)
	if end == 0 || query[2]&0x80 != 0 {
		return b
	}
	start := len(b)
	b = append(b, query[:end]...)
	out := b[start:]
	out[2], out[3] = out[2]|0x84, 0x80 // an authoritative answer, recursion available
	clear(out[6:dnsHeader])
	if binary.BigEndian.Uint16(query[end-4:]) != 1 {
		return b
	}
	ttl := knownTTL
	if query[dnsHeader+1] == newPrefix {
		ttl = newTTL
	}
	h := fnv.New32a()
	h.Write(query[dnsHeader : end-4])
	host := h.Sum32() % (1<<17 - 2)
	out[7] = 1
	b = append(b, 0xc0, dnsHeader, 0, 1, 0, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(ttl/time.Second))
	return binary.BigEndian.AppendUint32(append(b, 0, 4), 198<<24|18<<16+host+1)
}

// dnsName is the number'th name under a prefix; each of dnsPatterns patterns matches
// its share of them.
func dnsName(prefix string, number int) string {
	return prefix + strconv.Itoa(number) + "." + dnsDomain(number%dnsPatterns) + "."
}

func dnsDomain(pattern int) string { return "d" + strconv.Itoa(pattern) + ".bench.example" }

// datagrams is a batch of them for recvmmsg and sendmmsg.
type datagrams struct {
	msgs [dnsBatch]struct {
		hdr unix.Msghdr
		n   uint32
		_   [4]byte
	}
	iovs  [dnsBatch]unix.Iovec
	names [dnsBatch]unix.RawSockaddrInet4
	data  [dnsBatch][dnsDatagram]byte
}

func newDatagrams() *datagrams {
	d := new(datagrams)
	for i := range d.msgs {
		d.iovs[i].Base = &d.data[i][0]
		h := &d.msgs[i].hdr
		h.Iov = &d.iovs[i]
		h.SetIovlen(1)
	}
	return d
}

// receive waits for a datagram or a signal, and returns how many came. Of peers it notes
// the addresses, unless the socket is connected. Go's scheduler interrupts a thread that
// waits in a raw system call: going on by itself would wait for ever.
func (d *datagrams) receive(fd int, connected bool) (int, error) {
	for i := range d.msgs {
		h := &d.msgs[i].hdr
		h.Flags = 0
		d.iovs[i].SetLen(dnsDatagram)
		if !connected {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&d.names[i])), unix.SizeofSockaddrInet4
		}
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&d.msgs[0])), dnsBatch, unix.MSG_WAITFORONE, 0, 0)
	if errno == unix.EINTR || errno == unix.EAGAIN {
		return 0, nil
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// at is the i-th datagram that was received.
func (d *datagrams) at(i int) []byte { return d.data[i][:d.msgs[i].n] }

// put makes b, which is appended to data[i][:0], the i-th datagram to send.
func (d *datagrams) put(i int, b []byte) { d.iovs[i].SetLen(len(b)) }

// address sends the i-th datagram to whom another one came from.
func (d *datagrams) address(i int, of *datagrams, at int) {
	d.names[i] = of.names[at]
	d.msgs[i].hdr.Name, d.msgs[i].hdr.Namelen = (*byte)(unsafe.Pointer(&d.names[i])), unix.SizeofSockaddrInet4
}

// send sends the first n.
func (d *datagrams) send(fd, n int) error {
	for at := 0; at < n; {
		sent, err := call(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&d.msgs[at])), uintptr(n-at), 0, 0, 0)
		if err != nil {
			return err
		}
		at += sent
	}
	return nil
}

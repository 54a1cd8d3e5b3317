package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const udpHeader = 8

// Answers sends datagrams from addresses and ports of others, without binding
// them: a socket bound to a server's address would take what is meant for that
// server, if it runs on this host. It gathers them and sends many with one system
// call (sendmmsg). Not safe for concurrent use.
type Answers struct {
	families [2]*answers // IPv4, IPv6
}

// answers is one family of Answers: a raw socket and what waits to be sent.
type answers struct {
	fd      int
	v6      bool
	n       int
	msgs    [BatchSize]message
	iovs    [BatchSize]unix.Iovec
	names   [BatchSize]unix.RawSockaddrInet6
	control [BatchSize][controlSize]byte
	data    [BatchSize][]byte
}

// nowhere is what the raw sockets are bound to, so that the kernel copies no
// received datagram to them: nothing is ever sent to these addresses.
var nowhere = [2]netip.Addr{netip.MustParseAddr("127.255.255.254"), netip.MustParseAddr("100::dead")}

// NewAnswers opens the sockets; a family that the kernel does not have is left out.
func NewAnswers(mark uint32) (*Answers, error) {
	a := new(Answers)
	for i, v6 := range []bool{false, true} {
		f, err := newAnswers(v6, mark)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("raw socket: %w", err), a.Close())
		}
		a.families[i] = f
	}
	return a, nil
}

func newAnswers(v6 bool, mark uint32) (_ *answers, err error) {
	f := &answers{v6: v6}
	family, index := unix.AF_INET, 0
	if v6 {
		family, index = unix.AF_INET6, 1
	}
	if f.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP); err != nil {
		return nil, err
	}
	err = transparent(f.fd, v6, mark)
	if err == nil && v6 {
		err = unix.SetsockoptInt(f.fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	} else if err == nil {
		err = unix.SetsockoptInt(f.fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	if err == nil {
		err = unix.Bind(f.fd, sockaddr(netip.AddrPortFrom(nowhere[index], 0)))
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(f.fd))
	}
	for i := range f.msgs {
		h := &f.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&f.names[i]))
		h.Iov = &f.iovs[i]
		h.SetIovlen(1)
		h.Control = &f.control[i][0]
	}
	return f, nil
}

// Close closes the sockets; what waits is not sent.
func (a *Answers) Close() error {
	var errs []error
	for _, f := range a.families {
		if f != nil {
			errs = append(errs, unix.Close(f.fd))
		}
	}
	return errors.Join(errs...)
}

// Add takes a datagram, of which it keeps a copy, and sends what waits when it is
// a batch. A datagram that cannot be sent is lost, as datagrams are.
func (a *Answers) Add(from, to netip.AddrPort, payload []byte) {
	f := a.families[0]
	if to.Addr().Is6() {
		f = a.families[1]
	}
	if f == nil || from.Addr().Is6() != to.Addr().Is6() || len(payload) > 65535-udpHeader {
		return
	}
	f.add(from, to, payload)
	if f.n == BatchSize {
		f.flush()
	}
}

// Flush sends what waits.
func (a *Answers) Flush() {
	for _, f := range a.families {
		if f != nil && f.n > 0 {
			f.flush()
		}
	}
}

func (f *answers) add(from, to netip.AddrPort, payload []byte) {
	i := f.n
	f.n++
	d := f.data[i][:0]
	d = binary.BigEndian.AppendUint16(d, from.Port())
	d = binary.BigEndian.AppendUint16(d, to.Port())
	d = binary.BigEndian.AppendUint16(d, uint16(udpHeader+len(payload)))
	d = append(d, 0, 0)
	d = append(d, payload...)
	binary.BigEndian.PutUint16(d[6:], checksum(from.Addr(), to.Addr(), d))
	f.data[i] = d
	f.iovs[i].Base = &d[0]
	f.iovs[i].SetLen(len(d))

	h := &f.msgs[i].hdr
	c := (*unix.Cmsghdr)(unsafe.Pointer(&f.control[i][0]))
	body := f.control[i][unix.SizeofCmsghdr:]
	clear(f.control[i][:])
	if f.v6 {
		f.names[i] = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: to.Addr().As16()}
		h.Namelen = unix.SizeofSockaddrInet6
		c.Level, c.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
		src := from.Addr().As16()
		copy(body, src[:]) // struct in6_pktinfo: ipi6_addr first
		c.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
		h.SetControllen(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
		return
	}
	*(*unix.RawSockaddrInet4)(unsafe.Pointer(&f.names[i])) = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	h.Namelen = unix.SizeofSockaddrInet4
	c.Level, c.Type = unix.SOL_IP, unix.IP_PKTINFO
	src := from.Addr().As4()
	copy(body[4:], src[:]) // struct in_pktinfo: ipi_spec_dst behind the interface
	c.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	h.SetControllen(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
}

// flush sends what waits. One that the kernel refuses is left out, not those behind it.
func (f *answers) flush() {
	for at := 0; at < f.n; {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&f.msgs[at])), uintptr(f.n-at), 0, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0 || n == 0:
			at++
		default:
			at += int(n)
		}
	}
	f.n = 0
}

// checksum is that of UDP (RFC 768) over pseudo-header, header and data, of which
// the checksum's own place is zero.
func checksum(src, dst netip.Addr, datagram []byte) uint16 {
	sum := uint64(unix.IPPROTO_UDP) + uint64(len(datagram))
	for _, a := range [2]netip.Addr{src, dst} {
		if a.Is4() {
			b := a.As4()
			sum += uint64(binary.BigEndian.Uint32(b[:]))
			continue
		}
		b := a.As16()
		for i := 0; i < 16; i += 4 {
			sum += uint64(binary.BigEndian.Uint32(b[i:]))
		}
	}
	for len(datagram) >= 4 {
		sum += uint64(binary.BigEndian.Uint32(datagram))
		datagram = datagram[4:]
	}
	var tail [4]byte
	copy(tail[:], datagram)
	sum += uint64(binary.BigEndian.Uint32(tail[:]))
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if c := ^uint16(sum); c != 0 {
		return c
	}
	return 0xffff // 0 would say that there is none
}

package sock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message is struct mmsghdr.
type message struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// into has the message's data go to a buffer, by a vector of its own.
func (m *message) into(data []byte, by *unix.Iovec) {
	by.Base = &data[0]
	by.SetLen(len(data))
	m.hdr.Iov = by
	m.hdr.SetIovlen(1)
}

// receive reads what waits at a socket with one system call (recvmmsg), and returns
// the number of datagrams. The error is the socket's, EAGAIN if nothing waits.
func receive(fd int, msgs []message) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Sizes of a Batch.
const (
	BatchSize = 32
	// QuestionSize bounds a question over UDP; nobody sends a longer one.
	QuestionSize = 4096
	controlSize  = 64
)

// Datagram is a question as it came in.
type Datagram struct {
	// Data is valid until the next Receive.
	Data   []byte
	From   netip.AddrPort
	To     netip.AddrPort
	Whole  bool // it fit into the buffer
	Usable bool // both addresses are known
}

// Batch receives several datagrams with one system call. It is not safe for
// concurrent use, and must stay where it is.
type Batch struct {
	msgs    [BatchSize]message
	iovs    [BatchSize]unix.Iovec
	names   [BatchSize]unix.RawSockaddrInet6
	control [BatchSize][controlSize]byte
	data    [BatchSize][QuestionSize]byte
}

// NewBatch makes a Batch.
func NewBatch() *Batch {
	b := new(Batch)
	for i := range b.msgs {
		b.msgs[i].into(b.data[i][:], &b.iovs[i])
		h := &b.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Control = &b.control[i][0]
	}
	return b
}

// Receive reads what waits at a socket of ListenUDP, and returns the number of
// datagrams: 0 with EAGAIN if there are none.
func (b *Batch) Receive(fd int) (int, error) {
	for i := range b.msgs {
		h := &b.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlSize)
		h.Flags = 0
	}
	return receive(fd, b.msgs[:])
}

// At is the i-th datagram of the last Receive.
func (b *Batch) At(i int) Datagram {
	m := &b.msgs[i]
	d := Datagram{Data: b.data[i][:min(int(m.n), QuestionSize)], Whole: m.hdr.Flags&unix.MSG_TRUNC == 0}
	from, ok := addrPort(unsafe.Slice((*byte)(unsafe.Pointer(&b.names[i])), unix.SizeofSockaddrInet6))
	if !ok {
		return d
	}
	d.From = from
	d.To, d.Usable = originalDestination(b.control[i][:min(int(m.hdr.Controllen), controlSize)])
	return d
}

// originalDestination finds the address in control messages.
func originalDestination(control []byte) (netip.AddrPort, bool) {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(control) {
			break
		}
		if h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR || h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR {
			return addrPort(control[unix.SizeofCmsghdr:n])
		}
		control = control[min(unix.CmsgSpace(n-unix.SizeofCmsghdr), len(control)):]
	}
	return netip.AddrPort{}, false
}

// addrPort reads a struct sockaddr_in or sockaddr_in6.
func addrPort(sa []byte) (netip.AddrPort, bool) {
	if len(sa) < unix.SizeofSockaddrInet4 {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(sa[2:])
	switch family := binary.NativeEndian.Uint16(sa); {
	case family == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), port), true
	case family == unix.AF_INET6 && len(sa) >= unix.SizeofSockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(sa[8:24])), port), true
	}
	return netip.AddrPort{}, false
}

package sock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// InboxSize is how many datagrams an Inbox takes at once.
	InboxSize = 16
	// answerSize is the longest datagram. Only what arrives of it takes memory.
	answerSize = 1 << 16
)

// Inbox receives several datagrams of a connected socket with one system call
// (recvmmsg). It is not safe for concurrent use, and must stay where it is.
type Inbox struct {
	msgs [InboxSize]message
	iovs [InboxSize]unix.Iovec
	data [InboxSize][answerSize]byte
}

// NewInbox makes an Inbox.
func NewInbox() *Inbox {
	b := new(Inbox)
	for i := range b.msgs {
		b.iovs[i].Base = &b.data[i][0]
		b.iovs[i].SetLen(answerSize)
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
	}
	return b
}

// Receive reads what waits at a socket of DialUDP, and returns the number of
// datagrams. The error is the socket's, EAGAIN if nothing waits.
func (b *Inbox) Receive(fd int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), InboxSize, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// At is the i-th datagram of the last Receive, valid until the next.
func (b *Inbox) At(i int) []byte { return b.data[i][:b.msgs[i].n] }

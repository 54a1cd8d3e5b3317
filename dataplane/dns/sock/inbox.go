package sock

import "golang.org/x/sys/unix"

const (
	// InboxSize is how many datagrams an Inbox takes at once.
	InboxSize = 16
	// answerSize is the longest datagram. Only what arrives of it takes memory.
	answerSize = 1 << 16
)

// Inbox receives several datagrams of a connected socket with one system call. It is
// not safe for concurrent use, and must stay where it is.
type Inbox struct {
	msgs [InboxSize]message
	iovs [InboxSize]unix.Iovec
	data [InboxSize][answerSize]byte
}

// NewInbox makes an Inbox.
func NewInbox() *Inbox {
	b := new(Inbox)
	for i := range b.msgs {
		b.msgs[i].into(b.data[i][:], &b.iovs[i])
	}
	return b
}

// Receive reads what waits at a socket of DialUDP, and returns the number of
// datagrams. The error is the socket's, EAGAIN if nothing waits.
func (b *Inbox) Receive(fd int) (int, error) { return receive(fd, b.msgs[:]) }

// At is the i-th datagram of the last Receive, valid until the next.
func (b *Inbox) At(i int) []byte { return b.data[i][:b.msgs[i].n] }

package testns

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Ping sends one ICMP or ICMPv6 echo request from inside the namespace and waits
// for its answer. A timeout is an error for which os.IsTimeout is true.
func (n *NS) Ping(to netip.Addr, timeout time.Duration) error {
	to = to.Unmap()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = net.Dial(network, to.String())
		return err
	})
	if err != nil {
		return fmt.Errorf("ping from %s: %w", n.name, err)
	}
	defer c.Close()
	// type, code, checksum, identifier, sequence, data: RFC 792 and RFC 4443.
	m := append(make([]byte, 8), "0123456789abcdef"...)
	m[0] = request
	rand.Read(m[4:8])
	if to.Is4() { // the kernel fills in ICMPv6's
		binary.BigEndian.PutUint16(m[2:], InternetChecksum(m))
	}
	if _, err := c.Write(m); err != nil {
		return fmt.Errorf("ping from %s: %w", n.name, err)
	}
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil { // from when it was sent
		return err
	}
	buf := make([]byte, 2048)
	for {
		size, _, err := c.(*net.IPConn).ReadFromIP(buf) // Read would keep the IPv4 header
		if err != nil {
			return fmt.Errorf("ping from %s: %w", n.name, err)
		}
		got := buf[:size]
		if size >= len(m) && got[0] == reply && bytes.Equal(got[4:size], m[4:]) {
			return nil
		}
	}
}

// InternetChecksum is that of RFC 1071, of an even number of bytes.
func InternetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

package wire

import "github.com/miekg/dns"

// Fit makes a reply that is longer than size bytes shorter: by compressing its names if
// it may, and by leaving records out and saying so (the client then asks over
// TCP). A reply that cannot be read is cut down to its question.
func Fit(msg []byte, size int, compress bool) []byte {
	if len(msg) <= size {
		return msg
	}
	var m dns.Msg
	if m.Unpack(msg) != nil {
		m = dns.Msg{MsgHdr: m.MsgHdr, Question: m.Question}
		m.Truncated = true
	}
	m.Compress = compress
	if compress {
		if out, err := m.Pack(); err == nil && len(out) <= size {
			return out
		}
	}
	m.Truncate(size)
	m.Compress = m.Compress && compress
	out, err := m.Pack()
	if err != nil || len(out) > size {
		short := dns.Msg{MsgHdr: m.MsgHdr, Question: m.Question}
		short.Truncated = true
		if out, err = short.Pack(); err != nil {
			return nil
		}
	}
	return out
}

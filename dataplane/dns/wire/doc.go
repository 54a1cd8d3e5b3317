// Package wire reads and writes DNS messages as far as a forwarder needs: it
// checks a whole message, but unpacks only the question, what EDNS says, and the
// addresses that an answer gives to the name that was asked.
//
// Nothing here allocates once its buffers have grown, and nothing panics,
// whatever the bytes. Names come out in presentation form (RFC 1035 section 5.1,
// with miekg/dns's escapes), in lower case, with the final dot. A test holds it
// to github.com/miekg/dns.
package wire

package wire

import "encoding/binary"

const (
	maxName    = 255 // RFC 1035 section 3.1, in wire form, final zero included
	headerSize = 12
	// pointerMark are the two top bits of a length that is a pointer (RFC 1035
	// section 4.1.4); the other two values of these bits are no longer in use.
	pointerMark = 0xc0
)

// appendName appends the name at off in presentation form, and returns the
// offset behind it. A pointer must lead to before the labels that it ends, and
// behind the header, so reading always comes to an end.
func appendName(dst, msg []byte, off int) (name []byte, next int, ok bool) {
	size := 0     // in wire form
	before := off // where a pointer must lead to before
	next = -1     // behind the first pointer, once there was one
	start := len(dst)
	for {
		if off >= len(msg) {
			return dst, 0, false
		}
		c := int(msg[off])
		switch c & pointerMark {
		case 0:
			if size += c + 1; size > maxName {
				return dst, 0, false
			}
			off++
			if c == 0 {
				if next < 0 {
					next = off
				}
				if len(dst) == start {
					dst = append(dst, '.')
				}
				return dst, next, true
			}
			if off+c > len(msg) {
				return dst, 0, false
			}
			dst = append(appendLabel(dst, msg[off:off+c]), '.')
			off += c
		case pointerMark:
			if off+2 > len(msg) {
				return dst, 0, false
			}
			to := int(binary.BigEndian.Uint16(msg[off:]) &^ (pointerMark << 8))
			if next < 0 {
				next = off + 2
			}
			if to >= before || to < headerSize {
				return dst, 0, false
			}
			off, before = to, to
		default:
			return dst, 0, false
		}
	}
}

// skipName returns the offset behind the name at off, which it does not follow.
func skipName(msg []byte, off int) (next int, ok bool) {
	for size := 0; off < len(msg); {
		c := int(msg[off])
		switch c & pointerMark {
		case 0:
			if size += c + 1; size > maxName {
				return 0, false
			}
			off += c + 1
			if c == 0 {
				return off, true
			}
		case pointerMark:
			return off + 2, off+2 <= len(msg)
		default:
			return 0, false
		}
	}
	return 0, false
}

// appendLabel writes what is neither special nor printable as miekg/dns does:
// `\.` and `\000`. The escape is in no pattern's alphabet, so a label with a dot
// in it is never taken for two.
func appendLabel(dst, label []byte) []byte {
	for _, b := range label {
		switch class[b] {
		case plain:
			dst = append(dst, b)
		case upper:
			dst = append(dst, b|0x20)
		case special:
			dst = append(dst, '\\', b)
		default:
			dst = append(dst, '\\', '0'+b/100, '0'+b/10%10, '0'+b%10)
		}
	}
	return dst
}

const (
	control = iota
	plain
	upper
	special
)

var class = func() (t [256]byte) {
	for b := '!'; b <= '~'; b++ {
		t[b] = plain
	}
	for b := 'A'; b <= 'Z'; b++ {
		t[b] = upper
	}
	for _, b := range ` .'@;()"\` {
		t[b] = special
	}
	return t
}()

// lower is ASCII's lower case (RFC 4343).
func lower(b byte) byte {
	if class[b] == upper {
		return b | 0x20
	}
	return b
}

// equalFold compares without regard to ASCII's case.
func equalFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

package history

import (
	"errors"
	"fmt"
	"io"
)

// frames reads a segment's records in large pieces.
type frames struct {
	f      io.ReaderAt
	offset int64 // of the next frame
	end    int64 // no frame begins here or later
	buf    []byte
	unread []byte // part of buf, what lies at offset
}

// readAhead is how much a cursor reads at once.
const readAhead = 256 << 10

// fill makes at least n bytes available in unread, if the segment has them.
func (r *frames) fill(n int) error {
	if len(r.unread) >= n {
		return nil
	}
	want := max(n, readAhead)
	if left := r.end - r.offset; int64(want) > left {
		want = int(left)
	}
	if cap(r.buf) < want {
		grown := make([]byte, want)
		copy(grown, r.unread)
		r.buf = grown
	} else {
		r.buf = r.buf[:cap(r.buf)][:want]
		copy(r.buf, r.unread)
	}
	have := len(r.unread)
	r.buf = r.buf[:want]
	got, err := r.f.ReadAt(r.buf[have:], r.offset+int64(have))
	r.unread = r.buf[:have+got]
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// next returns a whole frame, valid until the following call. io.EOF at the end;
// a problem, in words, if no frame lies there.
func (r *frames) next() (frame []byte, problem string, err error) {
	left := r.end - r.offset
	if left == 0 {
		return nil, "", io.EOF
	}
	if left < frameSize {
		return nil, fmt.Sprintf("%d bytes where a record begins", left), nil
	}
	if err := r.fill(frameSize); err != nil {
		return nil, "", err
	}
	if len(r.unread) < frameSize {
		return nil, "the file ends within a record", nil
	}
	n, ok := bodyLength(r.unread)
	if !ok {
		return nil, fmt.Sprintf("no record has a length of %d bytes", n), nil
	}
	size := frameSize + n
	if int64(size) > left {
		return nil, fmt.Sprintf("a record of %d bytes where %d are left", size, left), nil
	}
	if err := r.fill(size); err != nil {
		return nil, "", err
	}
	if len(r.unread) < size {
		return nil, "the file ends within a record", nil
	}
	frame = r.unread[:size:size]
	r.unread = r.unread[size:]
	r.offset += int64(size)
	return frame, "", nil
}

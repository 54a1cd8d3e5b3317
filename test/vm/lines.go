package main

import (
	"bytes"
	"io"
	"sync"
)

// lines lets several machines write to one output without tearing each other's
// lines apart. Each has a writer of its own.
type lines struct {
	mu  sync.Mutex
	out io.Writer
}

// writer returns a writer that passes on whole lines. It is for one goroutine at a
// time, and what it is given must end with a newline.
func (l *lines) writer() io.Writer { return &lineWriter{to: l} }

type lineWriter struct {
	to   *lines
	part []byte
}

func (w *lineWriter) Write(b []byte) (int, error) {
	w.part = append(w.part, b...)
	end := bytes.LastIndexByte(w.part, '\n') + 1
	if end == 0 {
		return len(b), nil
	}
	w.to.mu.Lock()
	defer w.to.mu.Unlock()
	if _, err := w.to.out.Write(w.part[:end]); err != nil {
		return 0, err
	}
	w.part = append(w.part[:0], w.part[end:]...)
	return len(b), nil
}

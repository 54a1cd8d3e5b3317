package policy

import (
	"errors"
	"strconv"
	"strings"
)

// Errors. Both may be found in one joined error with errors.Is.
var (
	// ErrInvalid: the object breaks a rule of its kind. Cilium or Kubernetes
	// would refuse it too, or it could not be read at all.
	ErrInvalid = errors.New("invalid")
	// ErrUnsupported: the object may be legal, but it uses a field, value or kind
	// that varve does not understand, and so must not guess at.
	ErrUnsupported = errors.New("not supported")
)

// FieldError is one problem in what a user wrote.
type FieldError struct {
	Source   string // the file, as Parse was told
	Line     int    // from 1; 0 if unknown
	Document int    // of a multi-document file, from 1
	Path     string // "spec.ingress[0].toPorts[1].ports[0].port"; empty for the whole document
	Problem  string
	Remedy   string // what to do about it; may be empty
	class    error
}

// Error is "file:line: path: problem; remedy".
func (e *FieldError) Error() string {
	var b strings.Builder
	b.WriteString(position(e.Source, e.Line, e.Document))
	if e.Path != "" {
		b.WriteString(e.Path)
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	if e.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(e.Remedy)
	}
	return b.String()
}

func position(source string, line, document int) string {
	s := source
	if line > 0 {
		if s != "" {
			s += ":"
		} else {
			s = "line "
		}
		s += strconv.Itoa(line)
	}
	if document > 1 {
		if s != "" {
			s += ": "
		}
		s += "document " + strconv.Itoa(document)
	}
	if s == "" {
		return ""
	}
	return s + ": "
}

// Unwrap is ErrInvalid or ErrUnsupported.
func (e *FieldError) Unwrap() error { return e.class }

// FieldErrors is every FieldError within err, in order.
func FieldErrors(err error) []*FieldError {
	switch e := err.(type) { //nolint:errorlint // it is what unwraps
	case nil:
		return nil
	case *FieldError:
		return []*FieldError{e}
	case interface{ Unwrap() []error }:
		var out []*FieldError
		for _, sub := range e.Unwrap() {
			out = append(out, FieldErrors(sub)...)
		}
		return out
	case interface{ Unwrap() error }:
		return FieldErrors(e.Unwrap())
	}
	return nil
}

// Warning is something in an accepted object that does not do what it looks
// like.
type Warning struct {
	Source   string
	Line     int
	Document int
	Path     string
	Text     string
	Remedy   string // what to do about it
}

// String is "file:line: path: text; remedy".
func (w Warning) String() string {
	s := position(w.Source, w.Line, w.Document)
	if w.Path != "" {
		s += w.Path + ": "
	}
	return s + w.Text + "; " + w.Remedy
}

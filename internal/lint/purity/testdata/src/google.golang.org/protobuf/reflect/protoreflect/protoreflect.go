// Package protoreflect has what the fixtures use of the real one.
package protoreflect

type Message interface {
	Range(func(name string, value any) bool)
}

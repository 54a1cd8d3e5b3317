package eventpb

import "sync"
import "time"
import "unsafe"

var once sync.Once

type Event struct {
	Labels map[string]string
	At     time.Time
}

func (e *Event) ProtoReflect() unsafe.Pointer { return unsafe.Pointer(e) }

func (e *Event) GetLabels() map[string]string { return e.Labels }

func (e *Event) MarshalVT() (b []byte) {
	for k := range e.Labels {
		b = append(b, k...)
	}
	return b
}

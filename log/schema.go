package log

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/varve-net/varve/log/eventpb"
)

// schema says which bytes are an encoding of a message. It is built from the
// message's descriptor, once, and checks what the generated decoder lets pass.
type schema struct {
	name    string
	fields  []schemaField // by field number
	hasMaps bool          // here or below
}

type schemaField struct {
	known bool
	kind  fieldKind
	wire  protowire.Type
	// once is a bit of its own for what may be given once; fields of a oneof
	// share theirs. 0 for repeated fields.
	once  uint64
	isMap bool
	msg   *schema
	name  string
}

type fieldKind uint8

const (
	kindBytes fieldKind = iota
	kindString
	kindMessage
	kindBool
	kindEnum
	kindUint32
	kindVarint64
)

var (
	schemas     = buildSchemas()
	eventSchema = schemas[(&eventpb.Event{}).ProtoReflect().Descriptor().FullName()]
)

func schemaOf(m Message) (*schema, error) {
	name := m.ProtoReflect().Descriptor().FullName()
	if s := schemas[name]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("%w: %s is no message of the log", ErrInvalid, name)
}

func buildSchemas() map[protoreflect.FullName]*schema {
	out := map[protoreflect.FullName]*schema{}
	messages := eventpb.File_log_eventpb_event_proto.Messages()
	for i := range messages.Len() {
		buildSchema(messages.Get(i), out)
	}
	return out
}

// buildSchema panics at start-up for a descriptor that it cannot express, which
// any test of this package then finds.
func buildSchema(md protoreflect.MessageDescriptor, out map[protoreflect.FullName]*schema) *schema {
	if s := out[md.FullName()]; s != nil {
		return s
	}
	s := &schema{name: string(md.FullName())}
	out[md.FullName()] = s
	fds := md.Fields()
	if fds.Len() > 64 {
		panic(fmt.Sprintf("log: message %s has over 64 fields", s.name))
	}
	for i := range fds.Len() {
		fd := fds.Get(i)
		f := schemaField{known: true, isMap: fd.IsMap(), name: string(fd.Name())}
		switch fd.Kind() {
		case protoreflect.BytesKind:
			f.kind, f.wire = kindBytes, protowire.BytesType
		case protoreflect.StringKind:
			f.kind, f.wire = kindString, protowire.BytesType
		case protoreflect.MessageKind:
			f.kind, f.wire = kindMessage, protowire.BytesType
			f.msg = buildSchema(fd.Message(), out)
			s.hasMaps = s.hasMaps || f.isMap || f.msg.hasMaps
		case protoreflect.BoolKind:
			f.kind = kindBool
		case protoreflect.EnumKind:
			f.kind = kindEnum
		case protoreflect.Uint32Kind:
			f.kind = kindUint32
		case protoreflect.Uint64Kind, protoreflect.Int64Kind:
			f.kind = kindVarint64
		default:
			panic(fmt.Sprintf("log: field %s is of a type that the log does not use", fd.FullName()))
		}
		if fd.IsList() && f.wire == protowire.VarintType {
			panic(fmt.Sprintf("log: field %s: repeated numbers would need packing", fd.FullName()))
		}
		if !fd.IsList() && !f.isMap {
			f.once = 1 << i
			if o := fd.ContainingOneof(); o != nil {
				f.once = 1 << o.Fields().Get(0).Index()
			}
		}
		for len(s.fields) <= int(fd.Number()) {
			s.fields = append(s.fields, schemaField{})
		}
		s.fields[fd.Number()] = f
	}
	return s
}

// check returns nil if b is a strict encoding, ErrCorrupt if it is none, and
// ErrUpgradeNeeded if only fields that are not known keep it from being one.
func (s *schema) check(b []byte) error {
	var unknown error
	if err := s.scan(b, &unknown); err != nil {
		return err
	}
	return unknown
}

func (s *schema) scan(b []byte, unknown *error) error {
	var seen uint64
	for len(b) > 0 {
		num, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return corruptf("%s: tag: %v", s.name, protowire.ParseError(n))
		}
		b = b[n:]
		if int(num) >= len(s.fields) || !s.fields[num].known {
			if wire == protowire.StartGroupType || wire == protowire.EndGroupType {
				return corruptf("%s: field %d: a group", s.name, num)
			}
			if n = protowire.ConsumeFieldValue(num, wire, b); n < 0 {
				return corruptf("%s: field %d: %v", s.name, num, protowire.ParseError(n))
			}
			if *unknown == nil {
				*unknown = fmt.Errorf("%s: field %d is unknown to this version: %w", s.name, num, ErrUpgradeNeeded)
			}
			b = b[n:]
			continue
		}
		f := &s.fields[num]
		if wire != f.wire {
			return corruptf("%s: %s: wire type %d, want %d", s.name, f.name, wire, f.wire)
		}
		if seen&f.once != 0 {
			return corruptf("%s: %s: given twice, or with another of its oneof", s.name, f.name)
		}
		seen |= f.once
		if f.wire == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return corruptf("%s: %s: %v", s.name, f.name, protowire.ParseError(n))
			}
			if !f.inRange(v) {
				return corruptf("%s: %s: %d is out of range", s.name, f.name, v)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return corruptf("%s: %s: %v", s.name, f.name, protowire.ParseError(n))
		}
		switch f.kind {
		case kindString:
			if !utf8.Valid(v) {
				return corruptf("%s: %s: not UTF-8", s.name, f.name)
			}
		case kindMessage:
			if err := f.msg.scan(v, unknown); err != nil {
				return err
			}
		default:
		}
		b = b[n:]
	}
	return nil
}

func (f *schemaField) inRange(v uint64) bool {
	switch f.kind {
	case kindBool:
		return v <= 1
	case kindEnum: // negative numbers, ten bytes long, name nothing here
		return v <= math.MaxInt32
	case kindUint32:
		return v <= math.MaxUint32
	default:
		return true
	}
}

// mapsSorted tells whether every map in b, which passed check, has its entries in
// the order of their keys, so that sortMaps would change nothing.
func (s *schema) mapsSorted(b []byte) bool {
	if !s.hasMaps {
		return true
	}
	var field protowire.Number // of the entry before, if it was one
	var key []byte
	for len(b) > 0 {
		num, wire, n := protowire.ConsumeTag(b)
		if n < 0 || int(num) >= len(s.fields) {
			return false
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, wire, b); n < 0 {
			return false
		}
		f := &s.fields[num]
		switch body, _ := protowire.ConsumeBytes(b); {
		case f.isMap:
			last := key
			key = entryKey(body)
			if num == field && bytes.Compare(last, key) > 0 {
				return false
			}
			field = num
		case f.msg != nil && !f.msg.mapsSorted(body):
			return false
		default:
			field = 0
		}
		b = b[n:]
	}
	return true
}

// mapEntry is an entry of a map as encoded, with its tag.
type mapEntry struct {
	key, bytes []byte
}

// mapSorter is what sorting takes.
type mapSorter struct {
	run    []mapEntry // consecutive entries of one map
	sorted []byte
}

var mapSorters = sync.Pool{New: func() any { return new(mapSorter) }}

// sort puts the entries of the run, which are those in b, into order, and empties it.
func (m *mapSorter) sort(b []byte) {
	if !slices.IsSortedFunc(m.run, compareEntries) {
		slices.SortStableFunc(m.run, compareEntries)
		m.sorted = m.sorted[:0]
		for _, e := range m.run {
			m.sorted = append(m.sorted, e.bytes...)
		}
		copy(b, m.sorted)
	}
	clear(m.run)
	m.run = m.run[:0]
}

// maxSorter is the largest run that a mapSorter keeps memory for, in entries and in
// 64 bytes of them.
const maxSorter = 256

func (m *mapSorter) release() {
	m.run = m.run[:0]
	if cap(m.run) <= maxSorter && cap(m.sorted) <= 64*maxSorter {
		mapSorters.Put(m)
	}
}

// sortMaps puts the entries of every map in b, which passed check, into the order
// of their keys. Nothing moves but whole entries, so every length stays right.
func (s *schema) sortMaps(b []byte) {
	if s.mapsSorted(b) {
		return
	}
	m := mapSorters.Get().(*mapSorter)
	defer m.release()
	var field protowire.Number // of the run
	start, pos := 0, 0         // the run is b[start:pos]
	for pos < len(b) {
		num, _, n := protowire.ConsumeTag(b[pos:])
		if n < 0 || int(num) >= len(s.fields) {
			return
		}
		f := &s.fields[num]
		size := protowire.ConsumeFieldValue(num, f.wire, b[pos+n:])
		if size < 0 {
			return
		}
		if len(m.run) > 0 && num != field {
			m.sort(b[start:pos])
		}
		if f.isMap {
			if len(m.run) == 0 {
				start, field = pos, num
			}
			body, _ := protowire.ConsumeBytes(b[pos+n:])
			m.run = append(m.run, mapEntry{entryKey(body), b[pos : pos+n+size]})
		} else if f.msg != nil && f.msg.hasMaps {
			body, _ := protowire.ConsumeBytes(b[pos+n:])
			f.msg.sortMaps(body)
		}
		pos += n + size
	}
	m.sort(b[start:pos])
}

func compareEntries(a, b mapEntry) int { return bytes.Compare(a.key, b.key) }

// entryKey is the key, field 1, of a map entry with a string key.
func entryKey(entry []byte) []byte {
	for len(entry) > 0 {
		num, wire, n := protowire.ConsumeTag(entry)
		if n < 0 {
			return nil
		}
		if num == 1 && wire == protowire.BytesType {
			key, _ := protowire.ConsumeBytes(entry[n:])
			return key
		}
		size := protowire.ConsumeFieldValue(num, wire, entry[n:])
		if size < 0 {
			return nil
		}
		entry = entry[n+size:]
	}
	return nil
}

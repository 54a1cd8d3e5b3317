package bpf

import (
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/cilium/ebpf/btf"

	"github.com/varve-net/varve/bpf/abi"
)

// TestLayout compares every type of package abi with the struct of abi.h that it
// stands for: size, and name, offset and size of each field.
func TestLayout(t *testing.T) {
	spec, err := loadEndpoint()
	if err != nil {
		t.Fatal(err)
	}
	for name, typ := range map[string]reflect.Type{
		"ipcache_key":     reflect.TypeFor[abi.IPCacheKey](),
		"ipcache_lpm_key": reflect.TypeFor[abi.IPCacheLPMKey](),
		"ipcache_value":   reflect.TypeFor[abi.IPCacheValue](),
		"policy_ref":      reflect.TypeFor[abi.PolicyRef](),
		"endpoint_key":    reflect.TypeFor[abi.EndpointKey](),
		"endpoint_value":  reflect.TypeFor[abi.EndpointValue](),
		"class_key":       reflect.TypeFor[abi.ClassKey](),
		"class_value":     reflect.TypeFor[abi.ClassValue](),
		"policy_key":      reflect.TypeFor[abi.PolicyKey](),
		"policy_value":    reflect.TypeFor[abi.PolicyValue](),
		"fqdn_key":        reflect.TypeFor[abi.FQDNKey](),
		"fqdn_value":      reflect.TypeFor[abi.FQDNValue](),
		"proxy":           reflect.TypeFor[abi.Proxy](),
		"device":          reflect.TypeFor[abi.Device](),
		"ct4_key":         reflect.TypeFor[abi.CT4Key](),
		"ct6_key":         reflect.TypeFor[abi.CT6Key](),
		"ct_side":         reflect.TypeFor[abi.CTSide](),
		"ct_value":        reflect.TypeFor[abi.CTValue](),
		"generations":     reflect.TypeFor[abi.Generations](),
		"config":          reflect.TypeFor[abi.Config](),
		"fragment_key":    reflect.TypeFor[abi.FragmentKey](),
		"fragment_value":  reflect.TypeFor[abi.FragmentValue](),
		"held_value":      reflect.TypeFor[abi.HeldValue](),
		"clock":           reflect.TypeFor[abi.Clock](),
		"counter_value":   reflect.TypeFor[abi.CounterValue](),
		"event":           reflect.TypeFor[abi.Event](),
	} {
		t.Run(name, func(t *testing.T) {
			var c *btf.Struct
			if err := spec.Types.TypeByName(name, &c); err != nil {
				t.Fatal(err)
			}
			if uintptr(c.Size) != typ.Size() {
				t.Errorf("size in C %d, in Go %d", c.Size, typ.Size())
			}
			if len(c.Members) != typ.NumField() {
				t.Fatalf("%d fields in C, %d in Go", len(c.Members), typ.NumField())
			}
			end := uint32(0)
			for i, m := range c.Members {
				f := typ.Field(i)
				size, err := btf.Sizeof(m.Type)
				if err != nil {
					t.Fatal(err)
				}
				if uintptr(m.Offset.Bytes()) != f.Offset || uintptr(size) != f.Type.Size() {
					t.Errorf("%s: offset %d size %d, Go's %s: offset %d size %d",
						m.Name, m.Offset.Bytes(), size, f.Name, f.Offset, f.Type.Size())
				}
				if m.Offset.Bytes() != end {
					t.Errorf("%s: padding before it is not written out", m.Name)
				}
				end = m.Offset.Bytes() + uint32(size)
				if !sameName(m.Name, f.Name) {
					t.Errorf("field %d is %s in C and %s in Go", i, m.Name, f.Name)
				}
			}
			if end != c.Size {
				t.Errorf("padding at the end is not written out: %d of %d bytes", end, c.Size)
			}
		})
	}
}

// sameName compares a C name with a Go name that may add order and unit.
func sameName(c, g string) bool {
	if strings.HasPrefix(c, "pad") {
		return g == "_"
	}
	g = strings.TrimSuffix(strings.TrimSuffix(g, "BE"), "Seconds")
	c = strings.TrimSuffix(c, "_seconds")
	letters := func(r rune) rune {
		if r == '_' {
			return -1
		}
		return unicode.ToLower(r)
	}
	return strings.Map(letters, c) == strings.Map(letters, g)
}

// TestMapTypes checks that the maps have these keys and values.
func TestMapTypes(t *testing.T) {
	spec, err := loadEndpoint()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]uintptr{
		"ipcache":     {reflect.TypeFor[abi.IPCacheKey]().Size(), reflect.TypeFor[abi.IPCacheValue]().Size()},
		"ipcache_lpm": {reflect.TypeFor[abi.IPCacheLPMKey]().Size(), reflect.TypeFor[abi.IPCacheValue]().Size()},
		"endpoints":   {reflect.TypeFor[abi.EndpointKey]().Size(), reflect.TypeFor[abi.EndpointValue]().Size()},
		"classes":     {reflect.TypeFor[abi.ClassKey]().Size(), reflect.TypeFor[abi.ClassValue]().Size()},
		"policy":      {reflect.TypeFor[abi.PolicyKey]().Size(), reflect.TypeFor[abi.PolicyValue]().Size()},
		"fqdn":        {reflect.TypeFor[abi.FQDNKey]().Size(), reflect.TypeFor[abi.FQDNValue]().Size()},
		"proxy":       {4, reflect.TypeFor[abi.Proxy]().Size()},
		"devices":     {4, reflect.TypeFor[abi.Device]().Size()},
		"ct4":         {reflect.TypeFor[abi.CT4Key]().Size(), reflect.TypeFor[abi.CTValue]().Size()},
		"ct6":         {reflect.TypeFor[abi.CT6Key]().Size(), reflect.TypeFor[abi.CTValue]().Size()},
		"generations": {4, reflect.TypeFor[abi.Generations]().Size()},
		"config":      {4, reflect.TypeFor[abi.Config]().Size()},
		"counters":    {4, reflect.TypeFor[abi.CounterValue]().Size()},
		"fragments":   {reflect.TypeFor[abi.FragmentKey]().Size(), reflect.TypeFor[abi.FragmentValue]().Size()},
		"held":        {4, reflect.TypeFor[abi.HeldValue]().Size()},
		"clock":       {4, reflect.TypeFor[abi.Clock]().Size()},
		"admitted":    {4, 104}, // the programs' own
		"events":      {0, 0},
	}
	if len(spec.Maps) != len(want) {
		t.Errorf("%d maps, want %d", len(spec.Maps), len(want))
	}
	for name, sizes := range want {
		m, ok := spec.Maps[name]
		if !ok {
			t.Errorf("no map %s", name)
			continue
		}
		if uintptr(m.KeySize) != sizes[0] || uintptr(m.ValueSize) != sizes[1] {
			t.Errorf("%s: key %d value %d, want %d and %d", name, m.KeySize, m.ValueSize, sizes[0], sizes[1])
		}
	}
}

// TestReasons checks that reasons have the same numbers in C and in Go.
func TestReasons(t *testing.T) {
	spec, err := loadEndpoint()
	if err != nil {
		t.Fatal(err)
	}
	var reason *btf.Enum
	if err := spec.Types.TypeByName("reason", &reason); err != nil {
		t.Fatal(err)
	}
	last := reason.Values[len(reason.Values)-1]
	if last.Name != "REASON_MAX" || last.Value != abi.ReasonCount || len(reason.Values) != abi.ReasonCount+1 {
		t.Errorf("C has %d reasons up to %s = %d, Go has %d", len(reason.Values), last.Name, last.Value, abi.ReasonCount)
	}
}

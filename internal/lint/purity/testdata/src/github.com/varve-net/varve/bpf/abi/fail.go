// Package abi breaks the rules with addresses.
package abi

import (
	"fmt"
	"math/rand/v2" // want `pure package bpf/abi imports math/rand/v2`
	"runtime"      // want `pure package bpf/abi imports runtime: the scheduler`
	"unsafe"       // want `pure package bpf/abi imports unsafe: an address differs between runs`
)

type row struct{ n int }

type named chan int

func (named) String() string { return "named" }

func print(r *row, n *int, f func(), c chan int, s named) []string {
	logf("%d%% of %p", n, r) // want `%p prints an address`
	return []string{
		fmt.Sprintf("%p", r),          // want `%p prints an address`
		fmt.Sprintf("%#[2]p", n, r),   // want `%p prints an address`
		fmt.Sprintf("%-10p", r),       // want `%p prints an address`
		fmt.Sprint(n),                 // want `fmt prints a \*int as an address`
		fmt.Sprintf("%v", f),          // want `fmt prints a func\(\) as an address`
		fmt.Sprintln(c),               // want `fmt prints a chan int as an address`
		fmt.Sprint(unsafe.Pointer(r)), // want `fmt prints a unsafe\.Pointer as an address`
		fmt.Sprintf("%v %d%%pure", r, rand.Int()),
		fmt.Sprint(s),
	}
}

func logf(format string, args ...any) {}

func scan(s string) (n int) {
	fmt.Sscan(s, &n)
	return n + runtime.NumCPU()
}

func offsets(sizes map[string]int) map[string]int {
	out, at := map[string]int{}, 0
	for name, size := range sizes { // want `at is read here while it is being written`
		out[name] = at
		at += size
	}
	return out
}

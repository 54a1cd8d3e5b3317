// Package raftlog lies below a pure package and is not pure.
package raftlog

import (
	"fmt"
	"time"
)

func Run(m map[string]int, done <-chan struct{}) {
	go func() { fmt.Printf("%p\n", &m) }()
	for k := range m {
		fmt.Println(k)
	}
	select {
	case <-done:
	case <-time.After(time.Second):
	}
	//purity:ordered
}

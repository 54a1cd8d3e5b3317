package fsm

import (
	"os"
	"time"
)

func testHelper(m map[string]int) {
	for k := range m {
		os.Stdout.WriteString(k)
	}
	go time.Sleep(0)
}

// Package verdict breaks the rules with a clock and with an answer in map order.
package verdict

import "time" // want `pure package verdict imports time`

func first(rules map[string]int) string {
	for name := range rules { // want `.`
		return name
	}
	return time.Now().String()
}

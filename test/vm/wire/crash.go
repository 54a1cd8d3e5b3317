package wire

import (
	"encoding/json"
	"strings"
)

// Crash is a line of a machine that is going to be killed; one of its fields is set.
type Crash struct {
	Have  *Append `json:",omitempty"` // a record that was found at start
	Open  *Head   `json:",omitempty"` // all that was found has been told; appends begin
	Acked *Append `json:",omitempty"` // an append that was acknowledged
	Broke string  `json:",omitempty"` // the machine cannot go on
}

// Append is a record of the log, by its request id in hexadecimal.
type Append struct {
	ID       string
	Revision uint64
}

// Head is the end of the log.
type Head struct {
	Revision uint64
	Chain    string // hexadecimal
}

// Line is m as it is sent.
func (m Crash) Line() string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return mark + string(b) + "\n"
}

// ParseCrash reads a line; false if it is none, as one that a kill has cut.
func ParseCrash(line string) (m Crash, ok bool) {
	rest, ok := strings.CutPrefix(line, mark)
	if !ok || !strings.HasSuffix(rest, "\n") || json.Unmarshal([]byte(rest), &m) != nil {
		return Crash{}, false
	}
	return m, true
}

// Package wire is what the init of a test machine and its host agree on: a plan one
// way, in the machine's initramfs, and the other way a serial line on which the
// output of test binaries alternates with messages, which begin with a byte that no
// output has.
package wire

import (
	"encoding/json"
	"strings"
	"time"
)

// PlanFile is where the machine has its Plan, as JSON.
const PlanFile = "/plan.json"

// Plan is what a machine has to do.
type Plan struct {
	Timeout time.Duration // of each job
	Jobs    []Job         // one after the other
}

// Job is a run of a package's test binary.
type Job struct {
	Package string   // its directory from the module's root
	Args    []string // of the binary, beside those of every run
}

// Port is the guest's device of the serial line.
const Port = "/dev/ttyS1"

// Kind says what a message is.
type Kind string

// Kinds of messages.
const (
	Start Kind = "start" // the tests of Package start
	End   Kind = "end"   // they ended, with Code, after Took
	Done  Kind = "done"  // all have ended; the machine goes down
	Broke Kind = "broke" // the init cannot go on; Text says why
)

// Message is a line that is not a test's.
type Message struct {
	Kind    Kind
	Package string        `json:",omitempty"`
	Code    int           `json:",omitempty"`
	Took    time.Duration `json:",omitempty"`
	Text    string        `json:",omitempty"`
}

const mark = "\x01vm "

// Line is m as it is sent.
func (m Message) Line() string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return mark + string(b) + "\n"
}

// Parse reads a line; false if it is no message.
func Parse(line string) (m Message, ok bool) {
	rest, ok := strings.CutPrefix(line, mark)
	if !ok || json.Unmarshal([]byte(rest), &m) != nil {
		return Message{}, false
	}
	return m, true
}

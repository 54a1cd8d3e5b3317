package fsm

import "github.com/varve-net/varve/log"

// requestWindow is how many request ids are remembered, the newest. At 1,000
// events a second that is over a minute of retries.
const requestWindow = 65536

// maxRequestID is the longest request id, in bytes.
const maxRequestID = 64

// request remembers the result of an event that carried a request id and took a
// revision. The row's key is the revision, so that order is age.
type request struct {
	id          string
	revision    log.Revision
	outcome     log.Outcome
	reason      string
	fingerprint log.Hash
}

// remember adds to the window and lets the oldest go.
func (s *State) remember(r request) {
	s.requestByID[r.id] = add(s, s.requests, &s.write.request, r.revision, r)
	for s.requests.Len() > requestWindow {
		_, oldest, _ := s.requests.PopMin()
		drop(s, oldest)
		delete(s.requestByID, oldest.row.id)
	}
}

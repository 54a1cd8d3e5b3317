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
	id          requestID
	revision    log.Revision
	outcome     log.Outcome
	reason      string
	fingerprint log.Hash
}

// remember adds to the window and lets the oldest go.
func (s *State) remember(r *request) {
	s.requestIndex.add(&r.id, s.requests.end)
	s.requests.push(r)
	for s.requests.len() > requestWindow {
		oldest := s.requests.first
		s.requestIndex.remove(&s.requests.at(oldest).id, oldest)
		if oldest < s.requestsHashed {
			s.rows.Remove(*s.requests.hash(oldest))
		}
		s.requests.pop(s.requestsHashed)
	}
}

// requestOf finds a request in the window.
func (s *State) requestOf(id *requestID) (*request, bool) {
	position, ok := s.requestIndex.find(&s.requests, id)
	if !ok {
		return nil, false
	}
	return s.requests.at(position), true
}

// settleRequests hashes the requests that are not yet.
func (s *State) settleRequests() {
	w := &s.requests
	for position := max(w.first, s.requestsHashed); position < w.end; position++ {
		s.scratch = canonRequest(s.scratch[:0], w.at(position))
		h := log.RowHash("request", nil, s.scratch)
		*w.hash(position) = h
		s.rows.Add(h)
	}
	s.requestsHashed = w.end
}

package fsm

// Resume returns a State that goes on from a View, as the one that it is of did.
// It costs time with the number of endpoints, identities and remembered requests,
// some ten milliseconds for tens of thousands, and shares every row with the View.
// Changes are not comparable with those of the View's State (ChangesSince).
//
// Two calls for one View must not run at once.
func Resume(v View) *State {
	s := New(v.Cluster())
	s.tables = *v.tables().freeze()
	s.journal = newJournal()
	for i := range all(s.tables.identities) {
		s.scratch = labelKey(s.scratch[:0], i.Labels)
		s.byLabels[string(s.scratch)] = i.ID
	}
	s.rebuildReleased()
	s.requests = s.requests.fork()
	s.requestsHashed = s.requests.end
	for position := s.requests.first; position < s.requests.end; position++ {
		s.requestIndex.add(&s.requests.at(position).id, position)
	}
	for n := range all(s.nodes) {
		if !n.Left {
			for _, a := range n.Addresses {
				s.owners[a] = owner{node: n.Name}
			}
		}
	}
	for e := range all(s.endpoints) {
		s.own(e)
	}
	for n := range all(s.names) {
		s.learned[n.Endpoint.key()] += len(n.Addresses)
	}
	s.rebuildStaged()
	return s
}

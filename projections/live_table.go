package projections

import (
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/policy"
)

// subjectKey is a direction of an identity; for ingress with a set of named ports.
type subjectKey struct {
	direction policy.Direction
	peer      uint64
}

// liveSubject is a subject of local endpoints. Its table is nil until settled.
type liveSubject struct {
	subject
	key      subjectKey
	identity *localIdentity
	ports    []fsm.NamedPort
	users    map[*localEndpoint]struct{}
}

// localIdentity is an identity that local endpoints have, with the specs of
// policies that select it, in order.
type localIdentity struct {
	*fsm.Identity
	labels   policy.Labels
	selected []selection
	known    bool // selected was found
	subjects map[*liveSubject]struct{}
}

type localEndpoint struct {
	*fsm.Endpoint
	subjects [2]*liveSubject
}

// liveTable is a table in use.
type liveTable struct {
	*table
	in         *liveScope // nil: no item
	subjects   map[*liveSubject]struct{}
	itemCauses map[string]Cause
	prefixes   map[netip.Prefix]Cause // that its rules name
	filled     bool                   // has its rows
	recaused   bool                   // rules have other revisions than the rows
	gone       bool
}

func (x *live) subject(key subjectKey, id *fsm.Identity, ports []fsm.NamedPort) *liveSubject {
	local, ok := x.identities[id.ID]
	if !ok {
		local = &localIdentity{subjects: make(map[*liveSubject]struct{})}
		x.identities[id.ID] = local
	}
	if local.Identity == nil || local.Revision != id.Revision {
		local.Identity, local.labels, local.known = id, id.Labels, false
		for s := range local.subjects {
			x.dirtySubjects[s] = struct{}{}
		}
	}
	s, ok := x.subjects[key]
	if !ok {
		s = &liveSubject{key: key, identity: local, ports: ports, users: make(map[*localEndpoint]struct{})}
		x.subjects[key] = s
		local.subjects[s] = struct{}{}
		x.dirtySubjects[s] = struct{}{}
	}
	return s
}

// settleSubject finds the table of a subject, or lets go of it.
func (x *live) settleSubject(s *liveSubject, policies func(func(*fsm.Policy) bool)) {
	if len(s.users) == 0 {
		x.leaveTable(s)
		delete(x.subjects, s.key)
		delete(s.identity.subjects, s)
		if len(s.identity.subjects) == 0 {
			delete(x.identities, s.identity.ID)
		}
		return
	}
	id := s.identity
	if !id.known {
		id.known, id.selected = true, nil
		for p := range policies {
			id.selected = selectionsOf(id.selected, p, id.labels)
		}
	}
	rs := x.env.rulesOf(s.key.direction, id.selected, s.ports, x.opts)
	sc := x.env.newScope(rs, x.ids)
	t := x.env.newTable(rs, sc, x.ids)
	for l := range s.users {
		x.dirtyLocals[l] = struct{}{}
	}
	s.enforced, s.audited, s.revisions = rs.enforced, rs.audited, rs.revisions
	if s.table != nil && s.table.id == t.id {
		if known, ok := x.tables[t.id]; ok && !slices.EqualFunc(known.rules, t.rules, func(a, b *rule) bool { return a.revision == b.revision }) {
			known.rules, known.recaused = t.rules, true
			x.dirtyTables[known] = struct{}{}
		}
		if known, ok := x.tables[t.id]; ok {
			x.dirtyTables[known] = struct{}{} // its name may be another
		}
		return
	}
	x.leaveTable(s)
	x.joinTable(s, t)
}

func (x *live) leaveTable(s *liveSubject) {
	if s.table == nil {
		return
	}
	if t, ok := x.tables[s.table.id]; ok {
		delete(t.subjects, s)
		x.dirtyTables[t] = struct{}{}
	}
	s.table = nil
}

func (x *live) joinTable(s *liveSubject, t *table) {
	s.table = t
	if t.id == 0 {
		return
	}
	known, ok := x.tables[t.id]
	if !ok {
		known = &liveTable{table: t, subjects: make(map[*liveSubject]struct{})}
		x.tables[t.id] = known
	} else if !slices.EqualFunc(known.rules, t.rules, func(a, b *rule) bool { return a.revision == b.revision }) {
		known.rules, known.recaused = t.rules, true
	}
	s.table = known.table
	known.subjects[s] = struct{}{}
	x.dirtyTables[known] = struct{}{}
}

// settleTable drops a table without subjects, and attaches a new one to its
// scope and prefixes.
func (x *live) settleTable(t *liveTable) {
	if len(t.subjects) == 0 {
		x.dropTable(t)
		return
	}
	first := (*liveSubject)(nil)
	//purity:ordered subjects of one table and one identity give it one name
	for s := range t.subjects {
		if first == nil || s.identity.ID < first.identity.ID {
			first = s
		}
	}
	x.name(t.id, tableName(first.key.direction, first.identity.Identity))
	if t.filled && !t.recaused {
		return
	}
	t.gatherCauses()
	//purity:ordered a prefix keeps its tables in no order
	for p := range t.prefixes {
		x.useCIDR(p, t)
	}
	if t.scope.id == 0 {
		return
	}
	if t.in == nil {
		in, ok := x.scopes[t.scope.id]
		if !ok {
			in = newLiveScope(t.scope)
			x.scopes[in.id] = in
		}
		t.in, t.scope = in, in.scope
		in.tables[t] = struct{}{}
	}
	x.dirtyScopes[t.in] = struct{}{}
}

// gatherCauses finds what in its rules explains rows of classes and prefixes.
func (t *liveTable) gatherCauses() {
	t.itemCauses, t.prefixes = make(map[string]Cause), make(map[netip.Prefix]Cause)
	add := func(key string, cause Cause) {
		if have, ok := t.itemCauses[key]; ok {
			cause = join(have, cause)
		}
		t.itemCauses[key] = cause
	}
	for i, r := range t.rules {
		if len(r.items)+len(r.named) == 0 {
			continue
		}
		cause := t.cause([]int{i})
		for _, key := range r.items {
			add(key, cause)
			p := t.scope.items[key].peer
			if !p.CIDR.IsValid() {
				continue
			}
			t.prefixes[p.CIDR] = join(t.prefixes[p.CIDR], cause)
			for _, e := range p.Except {
				t.prefixes[e] = join(t.prefixes[e], cause)
			}
		}
		for _, key := range r.named {
			add(key, cause)
		}
	}
}

func (x *live) dropTable(t *liveTable) {
	delete(x.tables, t.id)
	x.ids.release("table", t.id)
	x.name(t.id, "")
	t.gone = true
	//purity:ordered a prefix keeps its tables in no order
	for p := range t.prefixes {
		x.unuseCIDR(p, t)
	}
	if t.in != nil {
		delete(t.in.tables, t)
		x.dirtyScopes[t.in] = struct{}{}
	}
	x.dropRows(t.id, func(abi.PolicyKey) bool { return true }, abi.PolicyKey{Table: t.id})
	for _, row := range x.learned.while(LearnedKey{Table: t.id}, func(k LearnedKey) bool { return k.Table == t.id }) {
		x.learned.remove(row.Key)
		x.dropLearned(row.Key.Class)
	}
}

// dropRows removes the rows of a table from the first on as long as more holds.
func (x *live) dropRows(table uint64, more func(abi.PolicyKey) bool, first abi.PolicyKey) {
	for _, row := range x.policy.while(first, func(k abi.PolicyKey) bool { return k.Table == table && more(k) }) {
		x.policy.remove(row.Key)
		x.questions.remove(QuestionKey{row.Value.Row})
		x.ids.release("row", row.Value.Row)
	}
}

// settleRows gives a new table its rows, and those of a recaused one their cause.
func (x *live) settleRows(t *liveTable) {
	if t.gone || (t.filled && !t.recaused) {
		return
	}
	x.putLearned(t)
	t.filled, t.recaused = true, false
	x.putRows(t, abi.ClassAny, t.anyRows())
	for _, base := range bases {
		x.putRows(t, base, t.baseRows(base))
	}
	if t.in == nil {
		return
	}
	//purity:ordered rows of a class are its own
	for _, c := range t.in.classes {
		x.putRows(t, c.id, t.classRows(c.class))
	}
}

func (x *live) putRows(t *liveTable, class uint64, decisions []decision) {
	for _, row := range t.keyed(class, decisions, x.ids) {
		putRow(x.policy, row.PolicyRow)
		if row.Value.Flags&abi.PolicyDNS != 0 {
			putRow(x.questions, row.question())
		}
	}
}

// putRow gives a row that is there its cause, or brings it.
func putRow[K, V comparable](e *editor[K, V], row *Row[K, V]) {
	if have, ok := e.get(row.Key); ok && have.Value == row.Value {
		e.recause(row.Key, row.Cause)
	} else {
		e.set(row.Key, row.Value, row.Cause)
	}
}

// putLearned gives a table the rows of names, or those that it has their causes.
func (x *live) putLearned(t *liveTable) {
	for _, s := range t.learnedSets() {
		class := x.ids.learnedClass(s)
		if !t.filled {
			if x.learnedBy[class]++; x.learnedBy[class] == 1 {
				x.name(class, s.String())
			}
		}
		putRow(x.learned, &learnedRow{Key: LearnedKey{t.id, class}, Value: s, Cause: t.learnedCause(s)})
		x.putRows(t, class, t.learnedRows(s))
	}
}

// dropLearned forgets the class of a set of names with the last table that has it.
func (x *live) dropLearned(class uint64) {
	if x.learnedBy[class]--; x.learnedBy[class] == 0 {
		delete(x.learnedBy, class)
		x.name(class, "")
		x.ids.release("learned", class)
	}
}

// settleLocal gives an endpoint its row, or takes it away.
func (x *live) settleLocal(l *localEndpoint) {
	if x.locals[l.Ref] != l {
		if !x.isLocal(l.ID) {
			x.endpoints.remove(EndpointKey{l.ID})
		}
		return
	}
	row := x.env.endpointRow(l.Endpoint, &l.subjects[policy.Egress].subject, &l.subjects[policy.Ingress].subject)
	if have, ok := x.endpoints.get(row.Key); !ok || have.Value != row.Value {
		x.endpoints.set(row.Key, row.Value, row.Cause)
	} else {
		x.endpoints.recause(row.Key, row.Cause)
	}
}

// isLocal tells whether an endpoint that stays has the id: the row is then its.
func (x *live) isLocal(id uint32) bool {
	for _, l := range x.locals {
		if l.ID == id {
			return true
		}
	}
	return false
}

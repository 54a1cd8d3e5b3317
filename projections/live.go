package projections

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/varve-net/varve/bpf/abi"
	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/policy"
)

// live is the tables of a node with everything needed to change them by what an
// event touches. It holds as many of each thing as something refers to:
//
//	endpoint -> variant -> group -> selector          (peers)
//	local endpoint -> subject -> table -> scope -> selector, class
//	table -> prefix -> peers
//
// A row of the class map is a function of a scope and a peer, and one of the
// policy map of a table and a class. So rows come and go with these, and change
// in their cause only.
type live struct {
	env  env // without policies
	opts Options
	ids  *ids
	node string

	endpoints *editor[EndpointKey, abi.EndpointValue]
	ipcache   *editor[Prefix, abi.IPCacheValue]
	classes   *editor[abi.ClassKey, abi.ClassValue]
	policy    *editor[abi.PolicyKey, abi.PolicyValue]
	reasons   *editor[ClassIn, struct{}]
	questions *editor[QuestionKey, NameSet]
	learned   *editor[LearnedKey, NameSet]

	names      map[uint64]string
	namesTaken bool // by Tables: to be copied before the next change

	peers
	scopes     map[uint64]*liveScope
	classUsers map[uint64]int // scopes that have the class
	learnedBy  map[uint64]int // tables that have the class of a set of names
	tables     map[uint64]*liveTable
	subjects   map[subjectKey]*liveSubject
	identities map[uint32]*localIdentity
	locals     map[fsm.EndpointRef]*localEndpoint
	cidrs      map[netip.Prefix]*cidr
	filling    []classRow // scratch
	claims     map[Prefix][]claimant

	// What the change at hand leaves to be settled.
	dirtySubjects map[*liveSubject]struct{}
	dirtyTables   map[*liveTable]struct{} // new, without subject or with other causes
	dirtyScopes   map[*liveScope]struct{}
	dirtyCIDRs    map[netip.Prefix]struct{}
	dirtyLocals   map[*localEndpoint]struct{}
	dirtyPrefixes map[Prefix]struct{}
}

func newLive(cluster string, self *fsm.Node, opts Options) *live {
	x := &live{
		env: env{hostServesAPI: self.KubeAPIServer, auditMode: self.AuditMode}, opts: opts, ids: newIDs(cluster), node: self.Name,
		endpoints: newEditor(&endpointCodec), ipcache: newEditor(&ipcacheCodec),
		classes: newEditor(&classCodec), policy: newEditor(&policyCodec), reasons: newEditor(&reasonCodec),
		questions: newEditor(&questionCodec), learned: newEditor(&learnedCodec),
		names:      make(map[uint64]string),
		scopes:     make(map[uint64]*liveScope),
		classUsers: make(map[uint64]int),
		learnedBy:  make(map[uint64]int),
		tables:     make(map[uint64]*liveTable),
		subjects:   make(map[subjectKey]*liveSubject),
		identities: make(map[uint32]*localIdentity),
		locals:     make(map[fsm.EndpointRef]*localEndpoint),
		cidrs:      make(map[netip.Prefix]*cidr),
		claims:     make(map[Prefix][]claimant),

		dirtySubjects: make(map[*liveSubject]struct{}),
		dirtyTables:   make(map[*liveTable]struct{}),
		dirtyScopes:   make(map[*liveScope]struct{}),
		dirtyCIDRs:    make(map[netip.Prefix]struct{}),
		dirtyLocals:   make(map[*localEndpoint]struct{}),
		dirtyPrefixes: make(map[Prefix]struct{}),
	}
	x.peers = newPeers(x.env)
	x.name(abi.ClassAny, "everyone")
	for _, base := range bases {
		x.name(base, x.env.reservedLabels(base).String())
	}
	x.name(basePod, "pods")
	x.claim(netip.PrefixFrom(netip.IPv4Unspecified(), 0), claimant{rank: rankDefault, peer: baseWorldIPv4})
	x.claim(netip.PrefixFrom(netip.IPv6Unspecified(), 0), claimant{rank: rankDefault, peer: baseWorldIPv6})
	return x
}

// name explains an id; an empty name forgets it.
func (x *live) name(id uint64, name string) {
	if x.names[id] == name {
		return
	}
	if x.namesTaken {
		x.names, x.namesTaken = maps.Clone(x.names), false
	}
	if name == "" {
		delete(x.names, id)
	} else {
		x.names[id] = name
	}
}

// settle makes the rows right after the facts changed. policies is every policy,
// for subjects that are new. The steps, each relying on those before it:
//
//	peers come and go in scopes as they are
//	subjects find their tables
//	tables without subject go, with their scopes; new ones attach to theirs
//	prefixes come and go in scopes as they are
//	new scopes gather their peers; causes are brought up to date
//	new tables get their rows
//	endpoints and addresses
func (x *live) settle(policies func(func(*fsm.Policy) bool)) {
	x.settlePeers()
	//purity:ordered a subject finds its table by content and marks what is to be settled
	for s := range x.dirtySubjects {
		x.settleSubject(s, policies)
	}
	x.dirtySubjects = emptied(x.dirtySubjects)
	//purity:ordered a table enters or leaves sets, and its scope is found by content
	for t := range x.dirtyTables {
		x.settleTable(t)
	}
	//purity:ordered a prefix has rows of its own; classes are counted and found by content
	for p := range x.dirtyCIDRs {
		x.settleCIDR(p)
	}
	//purity:ordered a scope has rows of its own; selectors keep their uses in no order
	for s := range x.dirtyScopes {
		if len(s.tables) > 0 {
			x.settleScope(s)
		}
	}
	//purity:ordered a scope takes its own rows; classes and uses are counted
	for s := range x.dirtyScopes { // last, so that selectors in use all the time stay
		if len(s.tables) == 0 {
			x.dropScope(s)
		}
	}
	x.dirtyScopes = emptied(x.dirtyScopes)
	//purity:ordered a table has rows of its own
	for t := range x.dirtyTables {
		x.settleRows(t)
	}
	x.dirtyTables = emptied(x.dirtyTables)
	//purity:ordered a prefix has one claim of this rank
	for p := range x.dirtyCIDRs {
		x.claimCIDR(p)
	}
	x.dirtyCIDRs = emptied(x.dirtyCIDRs)
	//purity:ordered an endpoint has a row of its own
	for l := range x.dirtyLocals {
		x.settleLocal(l)
	}
	x.dirtyLocals = emptied(x.dirtyLocals)
	//purity:ordered a prefix has a row of its own
	for p := range x.dirtyPrefixes {
		x.settlePrefix(p)
	}
	x.dirtyPrefixes = emptied(x.dirtyPrefixes)
}

// keptRoom is how many entries a set of what is to be settled keeps room for.
const keptRoom = 1024

// emptied is a map without its entries. One that has held many is let go of: it would
// keep their room, and each look through it would go through that.
func emptied[K comparable, V any](m map[K]V) map[K]V {
	if len(m) > keptRoom {
		return make(map[K]V)
	}
	clear(m)
	return m
}

// freeze returns the tables as they are now, and what changed since the last.
func (x *live) freeze(revision log.Revision) (*Tables, Delta) {
	t := &Tables{Node: x.node, Revision: revision, Names: x.names}
	x.namesTaken = true
	var d Delta
	t.Endpoints, d.Endpoints = x.endpoints.freeze()
	t.IPCache, d.IPCache = x.ipcache.freeze()
	t.Classes, d.Classes = x.classes.freeze()
	t.Policy, d.Policy = x.policy.freeze()
	t.Reasons, _ = x.reasons.freeze()
	t.Questions, d.Questions = x.questions.freeze()
	t.Learned, d.Learned = x.learned.freeze()
	return t, d
}

// addEndpoint and removeEndpoint tell of an endpoint as a View has it.
func (x *live) addEndpoint(e *fsm.Endpoint, id *fsm.Identity) {
	number := x.ids.endpointPeer(id.ID, e.NamedPorts)
	x.use(id, number, e.NamedPorts)
	c := claimant{rank: rankRemoteEndpoint, name: e.Ref.Namespace + "\x00" + e.Ref.Name, peer: number, cause: Cause{Events: endpointEvents(e)}}
	if e.Node == x.node {
		c.rank = rankLocalEndpoint
		l := &localEndpoint{Endpoint: e}
		l.subjects[policy.Egress] = x.subject(subjectKey{policy.Egress, uint64(id.ID)}, id, nil)
		l.subjects[policy.Ingress] = x.subject(subjectKey{policy.Ingress, number}, id, e.NamedPorts)
		for _, s := range l.subjects {
			s.users[l] = struct{}{}
		}
		x.locals[e.Ref] = l
		x.dirtyLocals[l] = struct{}{}
	}
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			x.claim(netip.PrefixFrom(a, a.BitLen()), c)
		}
	}
}

func (x *live) removeEndpoint(e *fsm.Endpoint) {
	x.unuse(e.Identity, x.ids.endpointPeer(e.Identity, e.NamedPorts))
	rank := rankRemoteEndpoint
	if e.Node == x.node {
		rank = rankLocalEndpoint
		l := x.locals[e.Ref]
		delete(x.locals, e.Ref)
		x.dirtyLocals[l] = struct{}{}
		for _, s := range l.subjects {
			delete(s.users, l)
			x.dirtySubjects[s] = struct{}{}
		}
	}
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			x.unclaim(netip.PrefixFrom(a, a.BitLen()), rank, e.Ref.Namespace+"\x00"+e.Ref.Name)
		}
	}
}

// addNode and removeNode tell of a node that has not left.
func (x *live) addNode(n *fsm.Node) {
	rank := x.nodeRank(n)
	for _, a := range n.Addresses {
		x.claim(netip.PrefixFrom(a, a.BitLen()), claimant{
			rank: rank, name: n.Name, peer: nodePeer(n, rank == rankLocalNode), cause: Cause{Events: []log.Revision{n.Revision}},
		})
	}
}

func (x *live) removeNode(n *fsm.Node) {
	for _, a := range n.Addresses {
		x.unclaim(netip.PrefixFrom(a, a.BitLen()), x.nodeRank(n), n.Name)
	}
}

func (x *live) nodeRank(n *fsm.Node) uint8 {
	if n.Name == x.node {
		return rankLocalNode
	}
	return rankRemoteNode
}

// changePolicy tells of a policy that was, and is, as Views have it; nil where it was not
// there, or is no more.
func (x *live) changePolicy(ref policy.Ref, was, is *fsm.Policy) {
	//purity:ordered an identity has a selection of its own, kept in the order of policies
	for _, id := range x.identities {
		all := len(id.selected)
		if was != nil {
			id.selected = slices.DeleteFunc(id.selected, func(s selection) bool { return s.policy == was })
		}
		touched := len(id.selected) < all
		if is != nil {
			if more := selectionsOf(nil, is, id.labels); len(more) > 0 {
				touched = true
				at, _ := slices.BinarySearchFunc(id.selected, ref, func(s selection, r policy.Ref) int { return s.policy.Policy.Ref.Compare(r) })
				id.selected = slices.Insert(id.selected, at, more...)
			}
		}
		if touched {
			for s := range id.subjects {
				x.dirtySubjects[s] = struct{}{}
			}
		}
	}
}

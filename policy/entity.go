package policy

import (
	"net/netip"
	"slices"
)

// Entities.
const (
	EntityAll           Entity = "all"
	EntityWorld         Entity = "world"
	EntityWorldIPv4     Entity = "world-ipv4"
	EntityWorldIPv6     Entity = "world-ipv6"
	EntityCluster       Entity = "cluster"
	EntityClusterMesh   Entity = "cluster-mesh" // cluster, and the workloads of connected clusters
	EntityHost          Entity = "host"
	EntityRemoteNode    Entity = "remote-node"
	EntityKubeAPIServer Entity = "kube-apiserver"
	EntityHealth        Entity = "health"
	EntityInit          Entity = "init"
	EntityIngress       Entity = "ingress"
	EntityUnmanaged     Entity = "unmanaged"
	EntityNone          Entity = "none"
)

var clusterIdentities = []uint32{
	identityHost, identityRemoteNode, identityKubeAPIServer, identityHealth,
	identityInit, identityIngress, identityUnmanaged,
}

// entityIdentities are the reserved identities that an entity covers. all and
// none are not in it.
var entityIdentities = map[Entity][]uint32{
	EntityWorld:         {identityWorld, identityWorldIPv4, identityWorldIPv6},
	EntityWorldIPv4:     {identityWorldIPv4},
	EntityWorldIPv6:     {identityWorldIPv6},
	EntityCluster:       clusterIdentities,
	EntityClusterMesh:   clusterIdentities,
	EntityHost:          {identityHost},
	EntityRemoteNode:    {identityRemoteNode, identityKubeAPIServer},
	EntityKubeAPIServer: {identityKubeAPIServer},
	EntityHealth:        {identityHealth},
	EntityInit:          {identityInit},
	EntityIngress:       {identityIngress},
	EntityUnmanaged:     {identityUnmanaged},
}

// Entities is every entity a policy may name, sorted.
func Entities() []Entity {
	out := []Entity{EntityAll, EntityNone}
	for e := range entityIdentities {
		out = append(out, e)
	}
	slices.Sort(out)
	return out
}

// Valid tells whether e is one of the entities above.
func (e Entity) Valid() bool {
	_, ok := entityIdentities[e]
	return ok || e == EntityAll || e == EntityNone
}

// MatchesIdentity tells whether e covers a peer of this identity: a reserved one,
// or, from 256 on, a workload of this cluster.
func (e Entity) MatchesIdentity(id uint32) bool {
	if e == EntityAll {
		return true
	}
	if id >= identityFirstDynamic {
		return e.MatchesPods()
	}
	return slices.Contains(entityIdentities[e], id)
}

// MatchesPods tells whether e covers the workloads of this cluster.
func (e Entity) MatchesPods() bool {
	return e == EntityAll || e == EntityCluster || e == EntityClusterMesh
}

// MatchesCIDR tells whether e covers a peer that is an address range outside
// the cluster. It depends on the range's family only.
func (e Entity) MatchesCIDR(p netip.Prefix) bool {
	switch e {
	case EntityAll, EntityWorld:
		return true
	case EntityWorldIPv4:
		return p.Addr().Is4()
	case EntityWorldIPv6:
		return p.Addr().Is6()
	}
	return false
}

package policy

// Reserved identities, numbered as in Cilium (and in bpf/abi, which a test
// compares).
const (
	identityHost          = 1
	identityWorld         = 2
	identityUnmanaged     = 3
	identityHealth        = 4
	identityInit          = 5
	identityRemoteNode    = 6
	identityKubeAPIServer = 7
	identityIngress       = 8
	identityWorldIPv4     = 9
	identityWorldIPv6     = 10
	identityFirstDynamic  = 256
)

// reservedLabels is indexed by identity. A node that serves the Kubernetes API
// is also a remote node. Outside addresses, CIDR peers included, are
// reserved:world-ipv4 or -ipv6 and not reserved:world, as in a dual-stack Cilium.
var reservedLabels = [identityWorldIPv6 + 1]Labels{
	identityHost:          reserved("host"),
	identityWorld:         reserved("world"),
	identityUnmanaged:     reserved("unmanaged"),
	identityHealth:        reserved("health"),
	identityInit:          reserved("init"),
	identityRemoteNode:    reserved("remote-node"),
	identityKubeAPIServer: reserved("kube-apiserver", "remote-node"),
	identityIngress:       reserved("ingress"),
	identityWorldIPv4:     reserved("world-ipv4"),
	identityWorldIPv6:     reserved("world-ipv6"),
}

func reserved(keys ...string) Labels {
	ls := make([]Label, len(keys))
	for i, k := range keys {
		ls[i] = Label{Source: SourceReserved, Key: k}
	}
	return NewLabels(ls...)
}

// ReservedLabels is the labels of a reserved identity, 1 to 10, and nil for
// any other number. The result is shared: do not write to it.
func ReservedLabels(identity uint32) Labels {
	if identity >= uint32(len(reservedLabels)) {
		return nil
	}
	return reservedLabels[identity]
}

// CIDRLabels is the labels of a peer that is an address range outside the
// cluster: reserved:world-ipv4 or reserved:world-ipv6.
func CIDRLabels(ipv6 bool) Labels {
	if ipv6 {
		return reservedLabels[identityWorldIPv6]
	}
	return reservedLabels[identityWorldIPv4]
}

package cli

import (
	"slices"
	"strings"
)

// derived shortens, for people, the keys of labels that follow from where a workload
// runs. -o json has them in full.
var derived = strings.NewReplacer(
	"k8s:io.kubernetes.pod.namespace", "namespace",
	"k8s:io.cilium.k8s.namespace.labels.", "namespace-label:",
	"k8s:io.cilium.k8s.policy.serviceaccount", "serviceaccount",
	"k8s:io.cilium.k8s.policy.cluster", "cluster",
)

// usual are derived labels that tell two identities apart only by being otherwise.
var usual = []string{"serviceaccount=default", "cluster=default"}

// nameLabel repeats the namespace.
const nameLabel = "namespace-label:kubernetes.io/metadata.name="

// securityLabels shows an identity's labels: the workload's own, then those that are
// derived, without what is usual.
func securityLabels(labels []string) string {
	var own, other []string
	for _, l := range labels {
		short := derived.Replace(l)
		switch {
		case slices.Contains(usual, short), strings.HasPrefix(short, nameLabel):
		case short != l:
			other = append(other, short)
		default:
			own = append(own, l)
		}
	}
	return dash(strings.Join(append(own, other...), " "))
}

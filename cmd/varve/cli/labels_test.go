package cli

import "testing"

func TestSecurityLabels(t *testing.T) {
	for _, tt := range []struct {
		want   string
		labels []string
	}{
		{"-", nil},
		{"reserved:host", []string{"reserved:host"}},
		{"k8s:app=web namespace=shop", []string{
			"k8s:app=web", "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop", "k8s:io.cilium.k8s.policy.cluster=default",
			"k8s:io.cilium.k8s.policy.serviceaccount=default", "k8s:io.kubernetes.pod.namespace=shop",
		}},
		{"k8s:zone=a namespace-label:team=sales cluster=west serviceaccount=db", []string{
			"k8s:io.cilium.k8s.namespace.labels.team=sales", "k8s:io.cilium.k8s.policy.cluster=west", "k8s:io.cilium.k8s.policy.serviceaccount=db", "k8s:zone=a",
		}},
	} {
		if got := securityLabels(tt.labels); got != tt.want {
			t.Errorf("securityLabels(%q) = %q, want %q", tt.labels, got, tt.want)
		}
	}
}

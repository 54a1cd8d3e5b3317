package policy_test

import (
	"errors"
	"fmt"

	"github.com/varve-net/varve/policy"
)

func ExampleParse() {
	sets, _, err := policy.Parse("web.yaml", []byte(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEntities: [world]
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
`), policy.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := policy.Compile(sets[0])
	if err != nil {
		fmt.Println(err)
		return
	}
	rule := p.Specs[0].Rules[0]
	fmt.Println(p.Ref, "selects", p.Specs[0].Subject)
	fmt.Println(rule.Section, rule.Peers[0].Key(), rule.Ports[0])
	// Output:
	// cnp/default/web selects any:app in (web),k8s:io.kubernetes.pod.namespace in (default)
	// ingress entity:world 443/TCP
}

func ExampleFieldErrors() {
	_, _, err := policy.Parse("web.yaml", []byte(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web}
spec:
  endpointSelector: {}
  egress:
  - toServices: [{k8sService: {serviceName: db}}]
`), policy.Options{})
	for _, e := range policy.FieldErrors(err) {
		fmt.Println(errors.Is(e, policy.ErrUnsupported), e)
	}
	// Output:
	// true web.yaml:8: spec.egress[0].toServices: field toServices is not supported: policy knows no services; select the service's pods with toEndpoints, or its addresses with toCIDR
}

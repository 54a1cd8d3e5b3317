package api_test

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// Connect a workload, protect it, and look at what is in force.
func Example() {
	socket, stop := startFake()
	defer stop()

	client, err := api.New(socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	ctx := context.Background()

	added, err := client.Endpoints.Add(ctx, connect.NewRequest(&varvev1.AddEndpointRequest{
		Name: "web", Netns: "/run/netns/web", Labels: map[string]string{"app": "web"},
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("added", added.Msg.Endpoint.Name, added.Msg.Endpoint.Ipv4)

	_, err = client.Policies.Apply(ctx, connect.NewRequest(&varvev1.ApplyPolicyRequest{
		Manifest: "kind: Nonsense", Source: "web.yaml",
	}))
	for _, e := range api.PolicyErrors(err) {
		fmt.Printf("%s:%d: %s: %s; %s\n", e.Source, e.Line, e.Path, e.Problem, e.Remedy)
	}

	// Output:
	// added web 10.244.0.2
	// web.yaml:1: kind: is not supported; use CiliumNetworkPolicy
}

// Tell an agent that is down from one that refuses.
func ExampleDialError() {
	client, err := api.New("/nonexistent/varve.sock")
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = client.Agent.Status(context.Background(), connect.NewRequest(&varvev1.StatusRequest{}))
	var down *api.DialError
	fmt.Println(errors.As(err, &down), down)

	// Output:
	// true socket /nonexistent/varve.sock: no such file or directory
}

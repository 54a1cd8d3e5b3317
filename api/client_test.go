package api_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
)

// The fakes answer a few calls, as an agent would.
type (
	fakeEndpoints struct {
		varvev1connect.UnimplementedEndpointServiceHandler
	}
	fakePolicies struct {
		varvev1connect.UnimplementedPolicyServiceHandler
	}
	fakeLog struct {
		varvev1connect.UnimplementedLogServiceHandler
		*appends
	}
)

func (fakeEndpoints) Add(_ context.Context, req *connect.Request[varvev1.AddEndpointRequest]) (*connect.Response[varvev1.AddEndpointResponse], error) {
	return connect.NewResponse(&varvev1.AddEndpointResponse{Created: true, Endpoint: &varvev1.Endpoint{Name: req.Msg.Name, Ipv4: "10.244.0.2"}}), nil
}

func (fakePolicies) Apply(_ context.Context, req *connect.Request[varvev1.ApplyPolicyRequest]) (*connect.Response[varvev1.ApplyPolicyResponse], error) {
	err := connect.NewError(connect.CodeInvalidArgument, errors.New("1 problem"))
	detail, derr := connect.NewErrorDetail(&varvev1.PolicyError{
		Source: req.Msg.Source, Line: 1, Path: "kind", Problem: "is not supported", Remedy: "use CiliumNetworkPolicy",
	})
	if derr != nil {
		return nil, derr
	}
	err.AddDetail(detail)
	return nil, err
}

// Subscribe tells over which protocol it was called, then sends until the caller
// goes.
func (fakeLog) Subscribe(ctx context.Context, req *connect.Request[varvev1.SubscribeRequest], stream *connect.ServerStream[varvev1.Record]) error {
	for revision := req.Msg.After + 1; ctx.Err() == nil; revision++ {
		err := stream.Send(&varvev1.Record{Revision: revision, Kind: req.Peer().Protocol})
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// startFake serves on a unix socket, in a directory short enough for one.
func startFake() (socket string, stop func()) { return serveFake(fakeLog{appends: newAppends()}) }

func serveFake(log fakeLog) (socket string, stop func()) {
	dir, err := os.MkdirTemp("", "varve")
	if err != nil {
		panic(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.Handle(varvev1connect.NewEndpointServiceHandler(fakeEndpoints{}))
	mux.Handle(varvev1connect.NewPolicyServiceHandler(fakePolicies{}))
	mux.Handle(varvev1connect.NewLogServiceHandler(log))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	return socket, func() {
		srv.Close()
		<-done
		os.RemoveAll(dir)
	}
}

func TestStreamsOverBothProtocols(t *testing.T) {
	socket, stop := startFake()
	defer stop()
	for _, tt := range []struct {
		want string
		opts []api.Option
	}{
		{connect.ProtocolConnect, nil},
		{connect.ProtocolGRPC, []api.Option{api.WithGRPC()}},
	} {
		t.Run(tt.want, func(t *testing.T) {
			c, err := api.New("unix://"+socket, tt.opts...)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := c.Log.Subscribe(ctx, connect.NewRequest(&varvev1.SubscribeRequest{After: 6}))
			if err != nil {
				t.Fatal(err)
			}
			for want := uint64(7); want < 10; want++ {
				if !stream.Receive() {
					t.Fatalf("stream ended: %v", stream.Err())
				}
				if got := stream.Msg(); got.Revision != want || got.Kind != tt.want {
					t.Errorf("got revision %d over %s, want %d over %s", got.Revision, got.Kind, want, tt.want)
				}
			}
			cancel()
			for stream.Receive() {
				// What was under way before the cancel.
			}
			if got := connect.CodeOf(stream.Err()); got != connect.CodeCanceled {
				t.Errorf("after cancel: code %v, want canceled", got)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	long := "/" + strings.Repeat("x", 107)
	for _, tt := range []struct {
		address, env string
		want         string
		problem      string
	}{
		{want: api.DefaultSocket},
		{env: "/env.sock", want: "/env.sock"},
		{env: "/env.sock", address: "/given.sock", want: "/given.sock"},
		{address: "relative.sock", want: "relative.sock"},
		{address: "./with:colon", want: "./with:colon"},
		{address: "unix:///run/x", want: "/run/x"},
		{address: "unix:rel/x", want: "rel/x"},
		{address: "@abstract", want: "@abstract"},
		{address: "unix://run/x", problem: "has a host"},
		{address: "unix:", problem: "has no path"},
		{address: "http://localhost", problem: `scheme "http" is not known`},
		{address: long, problem: "at most 107"},
	} {
		t.Run(fmt.Sprintf("%q,%q", tt.address, tt.env), func(t *testing.T) {
			t.Setenv(api.SocketEnv, tt.env)
			c, err := api.New(tt.address)
			if tt.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tt.problem) {
					t.Fatalf("New: %v, want an error with %q", err, tt.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.Address() != tt.want {
				t.Errorf("Address() = %q, want %q", c.Address(), tt.want)
			}
		})
	}
}

func TestDialErrorKeepsItsCause(t *testing.T) {
	c, err := api.New(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Agent.Status(t.Context(), connect.NewRequest(&varvev1.StatusRequest{}))
	var dial *api.DialError
	if !errors.As(err, &dial) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("err = %v, want a DialError for which errors.Is finds fs.ErrNotExist", err)
	}
	if got := connect.CodeOf(err); got != connect.CodeUnavailable {
		t.Errorf("code %v, want unavailable", got)
	}
}

func TestReconnectsToARestartedAgent(t *testing.T) {
	socket, stop := startFake()
	c, err := api.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	add := func() error {
		_, err := c.Endpoints.Add(t.Context(), connect.NewRequest(&varvev1.AddEndpointRequest{Name: "x"}))
		return err
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := add(); err == nil {
		t.Fatal("a call to an agent that is down succeeded")
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	second, stop := startFake()
	defer stop()
	if err := os.Rename(second, socket); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(filepath.Dir(socket))
	if err := add(); err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

func TestPolicyErrorsOfOtherErrors(t *testing.T) {
	for _, err := range []error{nil, errors.New("x"), connect.NewError(connect.CodeInternal, errors.New("x"))} {
		if got := api.PolicyErrors(err); len(got) > 0 {
			t.Errorf("PolicyErrors(%v) = %v, want none", err, got)
		}
	}
}

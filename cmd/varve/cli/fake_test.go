package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/api/varve/v1/varvev1connect"
)

// fakeAgent serves the API over a real unix socket. It answers each call with the
// message or error that the test put there, and keeps what it was asked.
type fakeAgent struct {
	socket string

	mu      sync.Mutex
	answers map[string]answer // by procedure
	asked   []proto.Message
}

// answer is what a call gets: an error, or messages: one of a unary call, all in
// turn of a stream, which hang makes wait for its reader's end.
type answer struct {
	messages []proto.Message
	err      error
	hang     bool
}

func startFakeAgent(t *testing.T) *fakeAgent {
	t.Helper()
	// t.TempDir may be too long for a socket.
	dir, err := os.MkdirTemp("", "varve")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeAgent{socket: filepath.Join(dir, "s"), answers: map[string]answer{}}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(varvev1connect.NewLogServiceHandler(fakeLog{fakeAgent: f}))
	mux.Handle(varvev1connect.NewPolicyServiceHandler(fakePolicies{f}))
	mux.Handle(varvev1connect.NewEndpointServiceHandler(fakeEndpoints{f}))
	mux.Handle(varvev1connect.NewNamespaceServiceHandler(fakeNamespaces{f}))
	mux.Handle(varvev1connect.NewIdentityServiceHandler(fakeIdentities{f}))
	mux.Handle(varvev1connect.NewAgentServiceHandler(fakeStatus{f}))
	mux.Handle(varvev1connect.NewDatapathServiceHandler(fakeDatapath{f}))
	mux.Handle(varvev1connect.NewAuditServiceHandler(fakeAudit{fakeAgent: f}))
	mux.Handle(varvev1connect.NewFQDNServiceHandler(fakeFQDN{fakeAgent: f}))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
		os.RemoveAll(dir)
	})
	return f
}

// on sets the answer of a procedure.
func (f *fakeAgent) on(procedure string, messages ...proto.Message) {
	f.answer(procedure, answer{messages: messages})
}

// fail makes a procedure fail.
func (f *fakeAgent) fail(procedure string, code connect.Code, text string, details ...proto.Message) {
	err := connect.NewError(code, errors.New(text))
	for _, d := range details {
		detail, derr := connect.NewErrorDetail(d)
		if derr != nil {
			panic(derr)
		}
		err.AddDetail(detail)
	}
	f.answer(procedure, answer{err: err})
}

func (f *fakeAgent) answer(procedure string, a answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[procedure] = a
}

// last is the newest request of a type.
func last[T proto.Message](t *testing.T, f *fakeAgent) T {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.asked) - 1; i >= 0; i-- {
		if m, ok := f.asked[i].(T); ok {
			return m
		}
	}
	var none T
	t.Fatalf("the agent got no %T", none)
	return none
}

func (f *fakeAgent) take(procedure string, req proto.Message) (answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, proto.Clone(req))
	a, ok := f.answers[procedure]
	if !ok {
		return a, connect.NewError(connect.CodeUnimplemented, errors.New("the test has no answer to "+procedure))
	}
	return a, a.err
}

func unary[Req, Resp any, PResp interface {
	*Resp
	proto.Message
}](f *fakeAgent, req *connect.Request[Req]) (*connect.Response[Resp], error) {
	a, err := f.take(req.Spec().Procedure, any(req.Msg).(proto.Message))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse((*Resp)(a.messages[0].(PResp))), nil
}

func stream[Req, Resp any, PResp interface {
	*Resp
	proto.Message
}](ctx context.Context, f *fakeAgent, req *connect.Request[Req], s *connect.ServerStream[Resp]) error {
	a, err := f.take(req.Spec().Procedure, any(req.Msg).(proto.Message))
	if err != nil {
		return err
	}
	for _, m := range a.messages {
		if err := s.Send((*Resp)(m.(PResp))); err != nil {
			return err
		}
	}
	if a.hang {
		<-ctx.Done()
	}
	return nil
}

// fakeLog has no AppendStream: no command uses it.
type fakeLog struct {
	*fakeAgent
	varvev1connect.UnimplementedLogServiceHandler
}

func (f fakeLog) Append(_ context.Context, r *connect.Request[varvev1.AppendRequest]) (*connect.Response[varvev1.AppendResponse], error) {
	return unary[varvev1.AppendRequest, varvev1.AppendResponse](f.fakeAgent, r)
}

func (f fakeLog) Verify(_ context.Context, r *connect.Request[varvev1.VerifyRequest]) (*connect.Response[varvev1.VerifyResponse], error) {
	return unary[varvev1.VerifyRequest, varvev1.VerifyResponse](f.fakeAgent, r)
}

func (f fakeLog) Read(ctx context.Context, r *connect.Request[varvev1.ReadRequest], s *connect.ServerStream[varvev1.Record]) error {
	return stream(ctx, f.fakeAgent, r, s)
}

func (f fakeLog) Subscribe(ctx context.Context, r *connect.Request[varvev1.SubscribeRequest], s *connect.ServerStream[varvev1.Record]) error {
	return stream(ctx, f.fakeAgent, r, s)
}

type fakePolicies struct{ *fakeAgent }

func (f fakePolicies) Apply(_ context.Context, r *connect.Request[varvev1.ApplyPolicyRequest]) (*connect.Response[varvev1.ApplyPolicyResponse], error) {
	return unary[varvev1.ApplyPolicyRequest, varvev1.ApplyPolicyResponse](f.fakeAgent, r)
}

func (f fakePolicies) Validate(_ context.Context, r *connect.Request[varvev1.ValidatePolicyRequest]) (*connect.Response[varvev1.ValidatePolicyResponse], error) {
	return unary[varvev1.ValidatePolicyRequest, varvev1.ValidatePolicyResponse](f.fakeAgent, r)
}

func (f fakePolicies) List(_ context.Context, r *connect.Request[varvev1.ListPoliciesRequest]) (*connect.Response[varvev1.ListPoliciesResponse], error) {
	return unary[varvev1.ListPoliciesRequest, varvev1.ListPoliciesResponse](f.fakeAgent, r)
}

func (f fakePolicies) Get(_ context.Context, r *connect.Request[varvev1.GetPolicyRequest]) (*connect.Response[varvev1.GetPolicyResponse], error) {
	return unary[varvev1.GetPolicyRequest, varvev1.GetPolicyResponse](f.fakeAgent, r)
}

func (f fakePolicies) Delete(_ context.Context, r *connect.Request[varvev1.DeletePolicyRequest]) (*connect.Response[varvev1.DeletePolicyResponse], error) {
	return unary[varvev1.DeletePolicyRequest, varvev1.DeletePolicyResponse](f.fakeAgent, r)
}

func (f fakePolicies) Verdict(_ context.Context, r *connect.Request[varvev1.VerdictRequest]) (*connect.Response[varvev1.VerdictResponse], error) {
	return unary[varvev1.VerdictRequest, varvev1.VerdictResponse](f.fakeAgent, r)
}

type fakeEndpoints struct{ *fakeAgent }

func (f fakeEndpoints) Add(_ context.Context, r *connect.Request[varvev1.AddEndpointRequest]) (*connect.Response[varvev1.AddEndpointResponse], error) {
	return unary[varvev1.AddEndpointRequest, varvev1.AddEndpointResponse](f.fakeAgent, r)
}

func (f fakeEndpoints) List(_ context.Context, r *connect.Request[varvev1.ListEndpointsRequest]) (*connect.Response[varvev1.ListEndpointsResponse], error) {
	return unary[varvev1.ListEndpointsRequest, varvev1.ListEndpointsResponse](f.fakeAgent, r)
}

func (f fakeEndpoints) Get(_ context.Context, r *connect.Request[varvev1.GetEndpointRequest]) (*connect.Response[varvev1.GetEndpointResponse], error) {
	return unary[varvev1.GetEndpointRequest, varvev1.GetEndpointResponse](f.fakeAgent, r)
}

func (f fakeEndpoints) Configure(_ context.Context, r *connect.Request[varvev1.ConfigureEndpointRequest]) (*connect.Response[varvev1.ConfigureEndpointResponse], error) {
	return unary[varvev1.ConfigureEndpointRequest, varvev1.ConfigureEndpointResponse](f.fakeAgent, r)
}

func (f fakeEndpoints) SetLabels(_ context.Context, r *connect.Request[varvev1.SetEndpointLabelsRequest]) (*connect.Response[varvev1.SetEndpointLabelsResponse], error) {
	return unary[varvev1.SetEndpointLabelsRequest, varvev1.SetEndpointLabelsResponse](f.fakeAgent, r)
}

func (f fakeEndpoints) Delete(_ context.Context, r *connect.Request[varvev1.DeleteEndpointRequest]) (*connect.Response[varvev1.DeleteEndpointResponse], error) {
	return unary[varvev1.DeleteEndpointRequest, varvev1.DeleteEndpointResponse](f.fakeAgent, r)
}

type fakeNamespaces struct{ *fakeAgent }

func (f fakeNamespaces) Apply(_ context.Context, r *connect.Request[varvev1.ApplyNamespaceRequest]) (*connect.Response[varvev1.ApplyNamespaceResponse], error) {
	return unary[varvev1.ApplyNamespaceRequest, varvev1.ApplyNamespaceResponse](f.fakeAgent, r)
}

func (f fakeNamespaces) List(_ context.Context, r *connect.Request[varvev1.ListNamespacesRequest]) (*connect.Response[varvev1.ListNamespacesResponse], error) {
	return unary[varvev1.ListNamespacesRequest, varvev1.ListNamespacesResponse](f.fakeAgent, r)
}

type fakeIdentities struct{ *fakeAgent }

func (f fakeIdentities) List(_ context.Context, r *connect.Request[varvev1.ListIdentitiesRequest]) (*connect.Response[varvev1.ListIdentitiesResponse], error) {
	return unary[varvev1.ListIdentitiesRequest, varvev1.ListIdentitiesResponse](f.fakeAgent, r)
}

type fakeStatus struct{ *fakeAgent }

func (f fakeStatus) Status(_ context.Context, r *connect.Request[varvev1.StatusRequest]) (*connect.Response[varvev1.StatusResponse], error) {
	return unary[varvev1.StatusRequest, varvev1.StatusResponse](f.fakeAgent, r)
}

type fakeDatapath struct{ *fakeAgent }

func (f fakeDatapath) Dump(_ context.Context, r *connect.Request[varvev1.DumpRequest]) (*connect.Response[varvev1.DumpResponse], error) {
	return unary[varvev1.DumpRequest, varvev1.DumpResponse](f.fakeAgent, r)
}

func (f fakeDatapath) Counters(_ context.Context, r *connect.Request[varvev1.CountersRequest]) (*connect.Response[varvev1.CountersResponse], error) {
	return unary[varvev1.CountersRequest, varvev1.CountersResponse](f.fakeAgent, r)
}

func (f fakeDatapath) Monitor(ctx context.Context, r *connect.Request[varvev1.MonitorRequest], s *connect.ServerStream[varvev1.DatapathEvent]) error {
	return stream(ctx, f.fakeAgent, r, s)
}

type fakeAudit struct {
	varvev1connect.UnimplementedAuditServiceHandler
	*fakeAgent
}

func (f fakeAudit) Bisect(_ context.Context, r *connect.Request[varvev1.BisectRequest]) (*connect.Response[varvev1.BisectResponse], error) {
	return unary[varvev1.BisectRequest, varvev1.BisectResponse](f.fakeAgent, r)
}

type fakeFQDN struct {
	varvev1connect.UnimplementedFQDNServiceHandler
	*fakeAgent
}

func (f fakeFQDN) ListNames(_ context.Context, r *connect.Request[varvev1.ListNamesRequest]) (*connect.Response[varvev1.ListNamesResponse], error) {
	return unary[varvev1.ListNamesRequest, varvev1.ListNamesResponse](f.fakeAgent, r)
}

// at is a moment that the tests' clock and events share.
var at = time.Date(2026, 1, 2, 15, 4, 5, 123456000, time.UTC)

// result is what one execution left behind.
type result struct {
	code           int
	stdout, stderr string
}

// varve executes one command line as a user would, against f unless it is nil.
func varve(t *testing.T, f *fakeAgent, stdin string, args ...string) result {
	t.Helper()
	return varveUntil(t.Context(), t, f, stdin, nil, args...)
}

// varveUntil is varve, which ends once the output holds a text.
func varveUntil(ctx context.Context, t *testing.T, f *fakeAgent, stdin string, until *string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdout := &watched{until: until, found: cancel}
	var stderr bytes.Buffer
	a := newApp(strings.NewReader(stdin), stdout, &stderr)
	a.now = func() time.Time { return at.Add(2 * time.Hour) }
	a.zone = time.UTC
	a.agentConfig = filepath.Join(t.TempDir(), "none.yaml")
	if f != nil {
		args = append([]string{"--socket", f.socket}, args...)
	}
	code := a.run(ctx, args)
	return result{code, stdout.String(), stderr.String()}
}

// watched is output that somebody waits for.
type watched struct {
	bytes.Buffer
	until *string
	found func()
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if w.until != nil && strings.Contains(w.String(), *w.until) {
		w.found()
	}
	return n, err
}

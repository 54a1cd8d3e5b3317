package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/varve-net/varve/api"
	varvev1 "github.com/varve-net/varve/api/varve/v1"
	"github.com/varve-net/varve/cluster"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
	"github.com/varve-net/varve/log/raftlog"
)

// targets open what loadCommand may drive.
var targets = map[string]func(ctx context.Context, addr string, conns int) (writer, func() error, error){
	"varve":        openVarve,
	"varve-unary":  openVarveUnary,
	"varve-stream": openVarveStream,
	"etcd":         openEtcd,
	"varve-inproc": openVarveInProcess,
	"etcd-inproc":  openEtcdInProcess,
}

// openVarve calls Append as a program with the Go client does: what its clients do
// at the same time shares a stream.
func openVarve(_ context.Context, addr string, conns int) (writer, func() error, error) {
	return openVarveWith(addr, conns)
}

// openVarveUnary sends an HTTP request for each event.
func openVarveUnary(_ context.Context, addr string, conns int) (writer, func() error, error) {
	return openVarveWith(addr, conns, api.WithUnaryAppends())
}

func openVarveWith(addr string, conns int, opts ...api.Option) (writer, func() error, error) {
	clients := make([]*api.Client, conns)
	for i := range clients {
		var err error
		if clients[i], err = api.New(addr, opts...); err != nil {
			return nil, nil, err
		}
	}
	write := func(ctx context.Context, client, n int) error {
		resp, err := clients[client%conns].Log.Append(ctx, connect.NewRequest(&varvev1.AppendRequest{Events: []*eventpb.Event{payload(client, n)}}))
		if err != nil {
			return err
		}
		return applied(resp.Msg.Results)
	}
	return write, func() error {
		for _, c := range clients {
			c.Close()
		}
		return nil
	}, nil
}

func applied(results []*varvev1.AppendResult) error {
	if len(results) != 1 || results[0].Outcome != varvev1.Outcome_OUTCOME_APPLIED {
		return fmt.Errorf("results %v, want one that was applied", results)
	}
	return nil
}

// openVarveStream gives each connection one Appender, which its clients share.
func openVarveStream(ctx context.Context, addr string, conns int) (writer, func() error, error) {
	clients := make([]*api.Client, conns)
	appenders := make([]*api.Appender, conns)
	for i := range clients {
		var err error
		if clients[i], err = api.New(addr); err != nil {
			return nil, nil, err
		}
		appenders[i] = clients[i].NewAppender(ctx)
	}
	write := func(ctx context.Context, client, n int) error {
		answer, err := appenders[client%conns].Append(ctx, payload(client, n))
		if err != nil {
			return err
		}
		return applied(answer.Results)
	}
	return write, func() error {
		var errs []error
		for i, a := range appenders {
			errs = append(errs, a.Close(ctx))
			clients[i].Close()
		}
		return errors.Join(errs...)
	}, nil
}

// etcdValue is as long as a payload, and differs with n.
func etcdValue(n int) string {
	return fmt.Sprintf("%09d", n) + strings.Repeat("v", payloadBytes-9)
}

func etcdKey(client int) string { return fmt.Sprintf("bench-%04d", client) }

func openEtcd(_ context.Context, addr string, conns int) (writer, func() error, error) {
	clients := make([]*clientv3.Client, conns)
	for i := range clients {
		var err error
		clients[i], err = clientv3.New(clientv3.Config{
			Endpoints: []string{"unix://" + addr}, Logger: zap.NewNop(),
			DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		})
		if err != nil {
			return nil, nil, err
		}
	}
	write := func(ctx context.Context, client, n int) error {
		_, err := clients[client%conns].Put(ctx, etcdKey(client), etcdValue(n))
		return err
	}
	return write, func() error {
		var errs []error
		for _, c := range clients {
			errs = append(errs, c.Close())
		}
		return errors.Join(errs...)
	}, nil
}

func openVarveInProcess(ctx context.Context, dir string, _ int) (writer, func() error, error) {
	const name, node = "bench", "bench-1"
	id, err := cluster.LoadOrCreate(dir, name, node)
	if err != nil {
		return nil, nil, err
	}
	l, err := raftlog.Open(ctx, raftlog.Config{Dir: dir + "/log", Cluster: name, Raft: cluster.RaftConfig(id)})
	if err != nil {
		return nil, nil, err
	}
	actor := &eventpb.Actor{Role: eventpb.Role_ROLE_ADMIN, Name: "unix:uid=0,gid=0,pid=4711"}
	origin := &eventpb.Origin{Cluster: name, Node: node}
	write := func(ctx context.Context, client, n int) error {
		e := payload(client, n)
		e.Actor, e.Origin = actor, origin
		if e.Stream, err = log.StreamOf(e); err != nil {
			return err
		}
		results, err := l.Append(ctx, e)
		if err == nil && results[0].Outcome != log.OutcomeApplied {
			err = fmt.Errorf("%+v, want it applied", results[0])
		}
		return err
	}
	return write, func() error { return l.Close(context.WithoutCancel(ctx)) }, nil
}

func openEtcdInProcess(ctx context.Context, dir string, _ int) (writer, func() error, error) {
	e, err := startEtcd(ctx, dir, dir+"/client.sock")
	if err != nil {
		return nil, nil, err
	}
	write := func(ctx context.Context, client, n int) error {
		_, err := e.Server.Put(ctx, &pb.PutRequest{Key: []byte(etcdKey(client)), Value: []byte(etcdValue(n))})
		return err
	}
	return write, func() error { e.Close(); return nil }, nil
}

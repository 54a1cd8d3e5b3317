package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcdVersion is of the module that the peer is built from; see go.mod.
const etcdVersion = "3.7.3"

// startEtcd runs a member that is alone, with etcd's defaults: each entry of its
// log is synced before it is answered.
func startEtcd(ctx context.Context, dir, socket string) (*embed.Etcd, error) {
	c := embed.NewConfig()
	c.Dir = filepath.Join(dir, "etcd")
	c.LogLevel, c.Logger = "error", "zap"
	c.QuotaBackendBytes = 8 << 30
	unix := func(path string) []url.URL { return []url.URL{{Scheme: "unix", Path: path}} }
	c.ListenClientUrls, c.AdvertiseClientUrls = unix(socket), unix(socket)
	peer, err := url.Parse("http://127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-e.Err():
	case <-ready.Done():
		err = ready.Err()
	}
	e.Close()
	return nil, fmt.Errorf("etcd: %w", err)
}

// etcdServerCommand serves until its context ends.
func etcdServerCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("etcd-server", flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("dir", "", "directory")
	socket := fs.String("socket", "", "unix socket to answer on")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *dir == "" || *socket == "" {
		return errors.New("-dir and -socket must be given")
	}
	e, err := startEtcd(ctx, *dir, *socket)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, readyLine)
	select {
	case <-ctx.Done():
	case err = <-e.Err():
	}
	e.Close()
	return err
}

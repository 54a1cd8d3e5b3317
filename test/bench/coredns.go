package main

import (
	"context"
	"io"
	"os"

	"github.com/coredns/coredns/coremain"
	// Plugins register themselves.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/forward"
)

// coreDNSCommand is CoreDNS's own main with the plugins that the comparison needs; its
// arguments are CoreDNS's.
func coreDNSCommand(_ context.Context, args []string, _, _ io.Writer) error {
	os.Args = append([]string{"coredns"}, args...)
	coremain.Run()
	return nil
}

package dataplane

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// watchBuffer is how many messages of the kernel wait for Watch at most.
const watchBuffer = 256

// Watch calls changed whenever the node loses an interface, an address, a route or
// a neighbour, or an interface changes, until ctx ends; then it returns nil. It
// returns an error if the kernel's messages cannot be followed any more, as when
// there were too many at once.
func (d *Dataplane) Watch(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := netns.NsHandle(d.node.file.Fd())
	var (
		links      = make(chan netlink.LinkUpdate, watchBuffer)
		addrs      = make(chan netlink.AddrUpdate, watchBuffer)
		routes     = make(chan netlink.RouteUpdate, watchBuffer)
		neighbours = make(chan netlink.NeighUpdate, watchBuffer)
	)
	// Whoever sends must be let go before Watch returns.
	defer func() {
		cancel()
		go drain(links)
		go drain(addrs)
		go drain(routes)
		go drain(neighbours)
	}()
	ignore := func(error) {} // its channel is closed too
	for what, subscribe := range map[string]func() error{
		"interfaces": func() error {
			return netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{Namespace: &at, ErrorCallback: ignore})
		},
		"addresses": func() error {
			return netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{Namespace: &at, ErrorCallback: ignore})
		},
		"routes": func() error {
			return netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{Namespace: &at, ErrorCallback: ignore})
		},
		"neighbours": func() error {
			return netlink.NeighSubscribeWithOptions(neighbours, ctx.Done(), netlink.NeighSubscribeOptions{Namespace: &at, ErrorCallback: ignore})
		},
	} {
		if err := subscribe(); err != nil {
			return fmt.Errorf("follow %s: %w", what, err)
		}
	}
	for {
		var news, open bool
		select {
		case <-ctx.Done():
			return nil
		case _, open = <-links:
			news = true
		case a, ok := <-addrs:
			news, open = !a.NewAddr, ok
		case r, ok := <-routes:
			news, open = r.Type == unix.RTM_DELROUTE, ok
		case n, ok := <-neighbours:
			news, open = n.Type == unix.RTM_DELNEIGH, ok
		}
		if !open {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("network namespace %s: the kernel's messages were lost", d.node.path)
		}
		if news {
			changed()
		}
	}
}

func drain[T any](ch <-chan T) {
	for range ch {
	}
}

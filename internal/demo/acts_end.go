package demo

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/vishvananda/netlink"

	varvev1 "github.com/varve-net/varve/api/varve/v1"
)

// describeKept says how to look around in what --keep left.
func (s *stage) describeKept() {
	s.out.section("Kept, as asked")
	s.out.printf("   agent's log   %s\n   CLI           %s --socket %s status --verify\n", s.logFile(), s.self, s.socket())
	for _, ns := range s.spaces {
		s.out.printf("   %-13s nsenter --net=%s\n", strings.TrimPrefix(ns.Name(), s.id+"-"), ns.Path())
	}
	if s.agent != nil {
		s.out.note("To end it: kill %d, then unmount and remove %s and the namespaces above.", s.agent.cmd.Process.Pid, s.dir)
	}
}

// actCleanUp takes everything back and looks for what was left. After a whole
// story (no err) it also claims that deleting endpoints leaves nothing in the node.
func (s *stage) actCleanUp(err error) {
	whole := err == nil
	s.out.section("Cleaning up")
	if whole {
		s.deleteEndpoints()
	}
	if s.agent != nil {
		err := s.agent.stop()
		if whole {
			s.claim(err == nil, "agent ended by SIGTERM%s", becauseOf(err))
		}
	}
	if !whole && !errors.Is(err, errStopped) || len(s.failed()) > 0 {
		if err := s.saveLog(); err != nil {
			s.out.note("the agent's log could not be kept: %v", err)
		}
	}
	err = s.takeBack()
	left := s.leftovers()
	s.claim(err == nil && len(left) == 0, "no namespace, mount, pin, process or file of this run is left%s%s", becauseOf(err), joined(left))
}

// deleteEndpoints removes every endpoint and looks at what the node has then.
func (s *stage) deleteEndpoints() {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for _, a := range s.actors {
		namespace, name, ok := strings.Cut(a.ref, "/")
		if !ok {
			continue
		}
		if _, err := s.client.Endpoints.Delete(ctx, connect.NewRequest(&varvev1.DeleteEndpointRequest{Namespace: namespace, Name: name})); err != nil {
			s.claim(false, "endpoint delete %s: %v", a.ref, err)
		}
	}
	var interfaces []string
	err := s.node.Do(func() error {
		return inSpace(func(h *netlink.Handle) error {
			links, err := h.LinkList()
			for _, l := range links {
				interfaces = append(interfaces, l.Attrs().Name)
			}
			return err
		})
	})
	pins, globErr := filepath.Glob(filepath.Join(s.dir, "bpf", "*", "links", "*"))
	slices.Sort(interfaces)
	extra := slices.DeleteFunc(interfaces, func(n string) bool { return n == "lo" || n == "uplink" })
	s.claim(err == nil && globErr == nil && len(extra) == 0 && len(pins) == 0,
		"endpoints deleted: no interface and no pinned program is left%s%s%s", becauseOf(err), joined(extra), joined(pins))
}

func joined(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return ": " + strings.Join(names, ", ")
}

package dataplane

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// checkContainer refuses a namespace that would lose its way to the world by
// being given an endpoint's default route.
func checkContainer(ctx context.Context, node, pod *namespace, s InterfaceSpec) error {
	same, err := node.is(pod)
	if err != nil {
		return err
	}
	if same {
		return fmt.Errorf("network namespace %s: %w: it is the node's own; give the container's", s.NetnsPath, ErrNotContainer)
	}
	return noOtherDefault(ctx, pod, s)
}

// noOtherDefault refuses a container that has a default route of one of the
// endpoint's families by another interface, such as that of another endpoint.
func noOtherDefault(ctx context.Context, pod *namespace, s InterfaceSpec) error {
	for _, f := range s.families() {
		routes, err := dump(ctx, func() ([]netlink.Route, error) {
			return pod.handle.RouteListFiltered(f.netlink, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("routes of network namespace %s: %w", s.NetnsPath, err)
		}
		for _, r := range routes {
			if !isDefault(r) || r.LinkIndex == 0 {
				continue
			}
			l, err := pod.handle.LinkByIndex(r.LinkIndex)
			if err != nil {
				return fmt.Errorf("routes of network namespace %s: interface %d: %w", s.NetnsPath, r.LinkIndex, err)
			}
			if name := l.Attrs().Name; name != s.ContainerName {
				return fmt.Errorf("network namespace %s: %w: it has a default route by %s; give the endpoint a namespace of its own, or remove the route",
					s.NetnsPath, ErrNotContainer, name)
			}
		}
	}
	return nil
}

func isDefault(r netlink.Route) bool {
	if r.Type != unix.RTN_UNICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// is tells whether both are one namespace, by whatever path they were opened.
func (n *namespace) is(other *namespace) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(n.file.Fd()), &a); err != nil {
		return false, fmt.Errorf("network namespace %s: %w", n.path, err)
	}
	if err := unix.Fstat(int(other.file.Fd()), &b); err != nil {
		return false, fmt.Errorf("network namespace %s: %w", other.path, err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

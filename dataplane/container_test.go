package dataplane

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestConnectedNamespacesAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx := context.Background()
	w.start(nil, "a")
	routes := func() string {
		var all strings.Builder
		for _, family := range []string{"-4", "-6"} {
			out, err := w.pods["a"].ns.Output(ctx, "ip", family, "route", "show")
			w.check(err)
			all.WriteString(out)
		}
		return all.String()
	}
	before := routes()
	for name, tt := range map[string]struct{ netns, says string }{
		"the node's own":      {w.node.Path(), "node's own"},
		"another endpoint's":  {w.pods["a"].ns.Path(), "default route by eth0"},
		"by another path too": {"/proc/thread-self/root" + w.pods["a"].ns.Path(), "default route by eth0"},
	} {
		spec := w.spec("second").spec
		spec.NetnsPath, spec.ContainerName = tt.netns, "eth1"
		if _, err := w.EnsureInterface(ctx, spec); !errors.Is(err, ErrNotContainer) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("EnsureInterface in %s: %v, want ErrNotContainer that says %q", name, err, tt.says)
		}
		if _, err := w.AdoptInterface(ctx, spec.HostName); !errors.Is(err, ErrNoInterface) {
			t.Errorf("EnsureInterface in %s left an interface: %v", name, err)
		}
	}
	if after := routes(); after != before {
		t.Errorf("routes were\n%sand are\n%s", before, after)
	}
}

// Two that come at once may both be made; only one may take the default route.
func TestActivateKeepsAnothersDefaultRoute(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx := context.Background()
	w.add("a")
	spec := w.spec("second").spec
	spec.NetnsPath, spec.ContainerName = w.pods["a"].ns.Path(), "eth1"
	_, err := w.EnsureInterface(ctx, spec)
	w.check(err)
	w.check(w.ActivateInterface(ctx, w.pods["a"].spec))
	if err := w.ActivateInterface(ctx, spec); !errors.Is(err, ErrNotContainer) {
		t.Errorf("ActivateInterface: %v, want ErrNotContainer", err)
	}
	out, err := w.pods["a"].ns.Output(ctx, "ip", "route", "show", "default")
	w.check(err)
	if !strings.Contains(out, "dev eth0") {
		t.Errorf("default route is %q, want it by eth0", out)
	}
}

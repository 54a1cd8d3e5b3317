package agent

import (
	"strings"
	"testing"
)

func TestAnEmptyLogLeavesConnectedContainersAlone(t *testing.T) {
	n := newNode(t)
	empty := emptyView()
	if err := refuseForeign(t.Context(), n.cfg, empty, n.links); err != nil {
		t.Errorf("nothing is connected: %v", err)
	}
	ep, _ := n.add(t, request("web"))
	if err := refuseForeign(t.Context(), n.cfg, n.log.View(), n.links); err != nil {
		t.Errorf("the log that connected it: %v", err)
	}
	err := refuseForeign(t.Context(), n.cfg, empty, n.links)
	if err == nil || !strings.Contains(err.Error(), ep.HostInterface) || !strings.Contains(err.Error(), "state-dir") {
		t.Errorf("an empty log: %v, want an error that names the interface and the flag", err)
	}
}

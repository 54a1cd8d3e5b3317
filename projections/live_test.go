package projections

import (
	"fmt"
	"testing"

	"github.com/varve-net/varve/fsm"
)

// A number that was freed and given to other labels between two updates takes the
// rows of these, though its endpoint has the name and ports of the one before.
func TestANumberOfOtherLabelsIsAnotherPeer(t *testing.T) {
	c := newCluster(t)
	c.addNode("one", false, "10.0.0.1")
	http := fsm.NamedPort{Name: "http", Protocol: 6, Port: 80}
	c.addPod("one", "web", "10.0.0.2", http)
	c.addPod("one", "client", "10.0.0.3", http)
	c.addPod("one", "other", "10.0.0.4", http)
	c.apply(webPolicy)
	all := func(yield func(*fsm.Policy) bool) {
		for _, p := range c.policies {
			if !yield(p) {
				return
			}
		}
	}
	fill := func() *live {
		x := newLive("default", &fsm.Node{Name: "one"}, Options{})
		for _, n := range c.nodes {
			x.addNode(n)
		}
		for _, e := range c.endpoints {
			id, _ := c.identity(e.Identity)
			x.addEndpoint(e, id)
		}
		x.settle(all)
		return x
	}
	for _, pair := range [][2]int{{1, 2}, {2, 1}, {0, 1}} {
		t.Run(fmt.Sprint(pair), func(t *testing.T) {
			x := fill()
			was := *c.identities[pair[0]]
			defer func() { c.identities[pair[0]] = &was }()
			taken := *c.identities[pair[0]]
			taken.Labels, taken.Revision = c.identities[pair[1]].Labels, c.next()
			e := c.endpoints[pair[0]]
			x.removeEndpoint(e)
			c.identities[pair[0]] = &taken
			x.addEndpoint(e, &taken)
			x.settle(all)
			got, _ := x.freeze(c.revision)
			sameTables(t, c.build(), got)
			x.checkNoLeaks(t)
		})
	}
}

package cli

import (
	"github.com/varve-net/varve/internal/agent"
	"github.com/varve-net/varve/internal/demo"
	"github.com/varve-net/varve/internal/dnsproxy"
)

// What the commands that are no client start. Tests put others in their place.
var (
	runAgent    = agent.Run
	runDNSProxy = dnsproxy.Run
	runDemo     = demo.Run
)

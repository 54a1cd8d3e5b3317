package cli

import (
	"github.com/varve-net/varve/internal/agent"
	"github.com/varve-net/varve/internal/demo"
)

// What the commands that are no client start. Tests put others in their place.
var (
	runAgent = agent.Run
	runDemo  = demo.Run
)

package agent

import (
	"context"

	"github.com/varve-net/varve/fsm"
	"github.com/varve-net/varve/log"
	"github.com/varve-net/varve/log/eventpb"
)

// abandonRestore forgets what a restore has staged that this node took and an end of
// its agent cut off: nothing of it is in force, and it would keep others from
// restoring until it is too old.
func abandonRestore(ctx context.Context, cfg *Config, l interface {
	log.Appender
	View() fsm.View
}) {
	s, ok := l.View().Staging()
	if !ok || s.Node != cfg.Node {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, factTimeout)
	defer cancel()
	e := &eventpb.Event{
		Actor:  &eventpb.Actor{Role: eventpb.Role_ROLE_RESTORER, Name: "agent:" + cfg.Node},
		Origin: &eventpb.Origin{Cluster: cfg.Cluster, Node: cfg.Node},
		Stream: "restore/" + s.Restore,
		Payload: &eventpb.Event_SnapshotAbandoned{SnapshotAbandoned: &eventpb.SnapshotAbandoned{
			Restore: s.Restore, Reason: "the agent that took it ended before all was staged",
		}},
	}
	if _, err := l.Append(ctx, e); err != nil {
		cfg.Logger.Warn("a restore that was cut off is not abandoned; it is forgotten 10 minutes after its last part", "restore", s.Restore, "error", err)
		return
	}
	cfg.Logger.Warn("a restore was cut off; nothing of it is in force", "restore", s.Restore, "parts", s.Parts)
}
